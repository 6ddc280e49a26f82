"""A trained classifier as a folder: its weights, and all that is needed to use and assess them.

model.safetensors    weights of backbone and head together, by the classifier's names
checkpoint.json      recipe, class names, transform, operating point, temperature, provenance
validation.parquet   label, logit, subtype and a consecutive patient number of each validation
                     image: enough to choose another operating point, nothing that names a patient
splits.parquet       salted digests of the patients and images that were trained and validated on,
                     and of the patients that were held out; checkpoints of older versions have none

Loading a checkpoint needs no PyTorch; building its `model` does.
"""

import dataclasses
import hashlib
import json
import platform
import time
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr import metrics, storage
from cxr.errors import CheckpointError, CxrError
from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint
from cxr.recipes import Recipe

if TYPE_CHECKING:
    from cxr.models.classifier import Classifier

# Raise it when files that older versions read change, and read or refuse the older ones.
FORMAT: Final = 1

# Packages whose versions a checkpoint records.
PACKAGES: Final = ("cxr", "ray", "torch", "torchvision", "pillow", "pydicom", "numpy")


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier with its calibration, operating point and provenance."""

    recipe: Recipe
    weights: bytes
    """The content of model.safetensors."""
    operating_point: OperatingPoint
    temperature: float
    provenance: dict[str, Any]
    """Data, weights, metrics on validation, package versions, settings of the run."""
    validation: pa.Table
    """One row per validation image: label, logit, subtype, patient (a consecutive number)."""
    fingerprint: str
    """SHA-256 of checkpoint.json, which contains the SHA-256 of the other files."""
    splits: pa.Table | None = None
    """Of schema `datasets.splits.SPLITS`; None in a checkpoint that does not have it."""
    name: str = ""
    """Its folder, and when it was written: for messages, where the fingerprint says nothing."""

    @cached_property
    def model(self) -> "Classifier":
        """The classifier with its weights, in evaluation mode; built when it is first asked for.

        Raises:
            CheckpointError: the weights are not those of the recipe.
        """
        import safetensors.torch

        from cxr.models import classifier

        try:
            model = classifier.build(self.recipe)
            model.load_state_dict(safetensors.torch.load(self.weights))
        except (ValueError, RuntimeError, CxrError) as error:
            raise CheckpointError(
                f"checkpoint {self.recipe.name}: the weights do not fit its recipe: {error}"
            ) from None
        return model.eval()

    @cached_property
    def onnx(self) -> bytes:
        """The classifier as an ONNX file."""
        from cxr.models.export import export

        return export(self.model, self.recipe, {})

    def choose(self, rule: str | None) -> OperatingPoint:
        """The stored operating point, or one chosen by another rule on the same images."""
        if rule is None or rule == self.operating_point.rule:
            return self.operating_point
        y_true = np.asarray(self.validation["label"])
        probs = metrics.probabilities(np.asarray(self.validation["logit"]), self.temperature)
        return metrics.choose_operating_point(y_true, probs, rule)


def save(
    folder: str,
    recipe: Recipe,
    model: "Classifier",
    validation: pa.Table,
    provenance: dict[str, Any],
    rule: str = "youden",
    splits: pa.Table | None = None,
) -> Checkpoint:
    """Calibrate on the validation images, choose the operating point and write the folder.

    Args:
        folder: path or URI; `checkpoint.json` is written last, so that an incomplete folder is
            not taken for a checkpoint.
        recipe: of the model.
        model: with its trained weights.
        validation: label (int64), logit (float64), subtype, patient of each validation image;
            patients are numbered, and no other column is kept.
        provenance: JSON values that say where the model comes from.
        rule: by which the operating point is chosen.
        splits: of schema `datasets.splits.SPLITS`, which names no patient.
    """
    import safetensors.torch

    y_true = np.asarray(validation["label"])
    logits = np.asarray(validation["logit"])
    patients = np.unique(np.asarray(validation["patient"]), return_inverse=True)[1]
    anonymous = pa.table(
        {
            "label": validation["label"],
            "logit": validation["logit"],
            "subtype": validation["subtype"],
            "patient": patients.astype(np.int64),
        }
    )
    temperature = metrics.fit_temperature(y_true, logits)
    point = metrics.choose_operating_point(y_true, metrics.probabilities(logits, temperature), rule)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    weights = safetensors.torch.save(state)
    files = {"model.safetensors": weights, "validation.parquet": _parquet(anonymous)}
    if splits is not None:
        files["splits.parquet"] = _parquet(splits)
    complete = provenance | {"packages": package_versions()}
    content = {
        "format": FORMAT,
        "recipe": dataclasses.asdict(recipe),
        "classes": CLASSES,
        "transform": {
            "pixels": "gray, uint8, bone bright",
            "image_px": recipe.image_px,
            "resize": "stretched to a square, Pillow bilinear with antialiasing",
            "normalization": recipe.normalization,
            "channels": "gray repeated to 3",
        },
        "operating_point": point.to_dict(),
        "temperature": temperature,
        "provenance": complete,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    text = (json.dumps(content, indent=2) + "\n").encode()
    storage.write_bytes(storage.join(folder, "checkpoint.json"), text)
    fingerprint = hashlib.sha256(text).hexdigest()
    return Checkpoint(recipe, weights, point, temperature, complete, anonymous, fingerprint, splits)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def exists(folder: str) -> bool:
    """Whether a folder holds a complete checkpoint."""
    return storage.kind(storage.join(folder, "checkpoint.json")) == "file"


def load(folder: str) -> Checkpoint:
    """Read a checkpoint that `save` has written, with this version of cxr or an older one.

    Raises:
        CheckpointError: the folder is no checkpoint, a file of it is missing or changed, its format
            is a newer one, or its classes are not `labels.CLASSES`.
    """
    if not exists(folder):
        raise CheckpointError(
            f"{folder}: no checkpoint here (checkpoint.json is missing). Give the folder that"
            " jobs/train.py printed as 'checkpoint'."
        )
    try:
        text = storage.read_bytes(storage.join(folder, "checkpoint.json"))
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: format {content['format']}, this version of cxr reads {FORMAT}."
            )
        if content["classes"] != list(CLASSES):
            raise CheckpointError(
                f"{folder}: its outputs are {content['classes']}, this version of cxr expects"
                f" {list(CLASSES)}, in this order. Train it again."
            )
        files = {name: storage.read_bytes(storage.join(folder, name)) for name in content["sha256"]}
        for name, expected in content["sha256"].items():
            if (actual := hashlib.sha256(files[name]).hexdigest()) != expected:
                raise CheckpointError(
                    f"{folder}/{name}: changed since it was written (SHA-256 {actual[:12]}...,"
                    f" not {expected[:12]}...). Copy the checkpoint again."
                )
        return Checkpoint(
            recipe=Recipe.from_json(json.dumps(content["recipe"])),
            weights=files["model.safetensors"],
            operating_point=OperatingPoint.from_dict(content["operating_point"]),
            temperature=content["temperature"],
            provenance=content["provenance"],
            validation=pq.read_table(pa.BufferReader(files["validation.parquet"])),
            fingerprint=hashlib.sha256(text).hexdigest(),
            splits=(
                pq.read_table(pa.BufferReader(files["splits.parquet"]))
                if "splits.parquet" in files
                else None
            ),
            name=_name(folder),
        )
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: checkpoint.json or a file it lists lacks {error}."
        ) from None
    except (ValueError, TypeError, RuntimeError, CxrError, pa.ArrowException) as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint: {error}") from None


def _name(folder: str) -> str:
    written_ns = storage.look_up(storage.join(folder, "checkpoint.json")).modified_ns
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written_ns / 1e9))
    return storage.absolute(folder) + (f" (written {date})" if written_ns else "")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # cxr itself, where Ray ships the working directory.
        return "not installed"
