"""The actor that makes scores of parts, and writes them."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import metrics, storage
from cxr.inference.engine import Engine
from cxr.inference.networks import Network
from cxr.labels import CLASSES
from cxr.models.outputs import logit
from cxr.models.unusual import WARN_ABOVE, WARNING, FeatureDistribution
from cxr.scoring.parts import REPORT, part_file
from cxr.scoring.read import PREDICTED, ReadPart, ReadSettings, read_packed
from cxr.scoring.report_settings import ReportSettings, check_installed

if TYPE_CHECKING:
    from cxr.scoring.structured_reports import StructuredReports


class PartPredictor:
    """Holds a trained classifier; on a CPU it reads parts as well.

    On CPUs a process reads, predicts and writes in turn, and none waits for another's core. A GPU
    is fed by tasks that read on the CPUs.
    """

    def __init__(
        self,
        network: Network,
        threads: int,
        reading: ReadSettings,
        folder: str,
        scaling: metrics.Scaling,
        threshold: float,
        distribution: FeatureDistribution | None = None,
        reports: ReportSettings | None = None,
    ) -> None:
        """Remember what the driver has sent.

        Args:
            network: whose engine returns logits (N, 2), with a distribution features as well.
            threads: of this process.
            reading: how images are read.
            folder: of the files of parts.
            scaling: of the probabilities.
            threshold: on the probabilities, of the predictions.
            distribution: of the features of the training images.
            reports: write a Structured Report for each DICOM image.
        """
        self.network, self.threads = network, threads
        self.reading, self.folder = reading, folder
        self.scaling, self.threshold = scaling, threshold
        self.distribution = distribution
        self.report_settings = reports

    @cached_property
    def engine(self) -> Engine:
        """The loaded classifier."""
        return self.network.open(self.threads)

    @cached_property
    def reports(self) -> "StructuredReports | None":
        """Writes Structured Reports, where asked."""
        if self.report_settings is None:
            return None
        check_installed()  # On this node.
        # Imported where it is asked for: highdicom and pydicom take a second.
        from cxr.scoring.structured_reports import StructuredReports

        return StructuredReports(self.report_settings)

    def ready(self) -> None:
        """Load what is needed: an error of the constructor would not reach the driver unchanged."""
        _ = self.engine, self.reports

    def score(self, *packed: bytes) -> Iterator[int]:
        """Read, predict and write parts; yields the rows of each.

        Args:
            packed: rows of the manifest of each part.
        """
        for part in read_packed(self.reading, *packed):
            yield self._write(part)

    def predict(self, *parts: ReadPart) -> Iterator[int]:
        """Predict and write parts that were read; yields the rows of each."""
        for part in parts:
            yield self._write(part)

    def _write(self, part: ReadPart) -> int:
        table = part.known
        without = np.asarray(pc.not_equal(table["status"], "scored"))
        logits: np.ndarray[tuple[int], np.dtype[np.float64]] = np.full(len(table), np.nan)
        unusual = logits.copy()
        if len(part.pixels):
            outputs = self.engine.run(part.pixels)
            logits[~without] = logit(outputs)
            if self.distribution is not None:
                distances = self.distribution.distances(outputs[:, len(CLASSES) :])
                unusual[~without] = self.distribution.percentiles(distances)
        probs = metrics.probabilities(logits, self.scaling)
        predictions = np.where(probs >= self.threshold, CLASSES[1], CLASSES[0])
        warned = unusual > WARN_ABOVE
        values = (probs, logits, predictions, unusual, warned)
        predicted = dict(zip(PREDICTED, values, strict=True))
        masks = dict.fromkeys(PREDICTED, without)
        masks["unusual"] = masks["unusual_warning"] = np.isnan(unusual)
        table = _append_warning(table, warned)
        schema = self.reading.schema
        columns = [
            pa.array(predicted[field.name], field.type, mask=masks[field.name])
            if field.name in predicted
            else pa.nulls(len(table), field.type)
            if field.name == REPORT
            else table[field.name]
            for field in schema
        ]
        scores = pa.table(columns, schema=schema)
        if self.reports is not None:
            # Before the scores: whose file is there, its reports are there.
            scores = self.reports.write(part.number, scores, part.evidence)
        storage.write_table(part_file(self.folder, part.number), scores)
        return len(table)


def _append_warning(table: pa.Table, warned: NDArray[np.bool_]) -> pa.Table:
    """Say of the rows that are warned of that they are unusual."""
    if not warned.any():
        return table
    warnings = [
        [*row, WARNING] if is_unusual else row
        for row, is_unusual in zip(table["warnings"].to_pylist(), warned.tolist(), strict=True)
    ]
    index = table.column_names.index("warnings")
    return table.set_column(index, table.field(index), pa.array(warnings, table.field(index).type))
