"""Writes a DICOM Structured Report for each scored DICOM image, to be sent to a PACS.

A Comprehensive SR of template TID 1500 (Measurement Report), in the study of its image: the
probability as Certainty of Finding in percent, as the standard's chest CAD has it (TID 4104), the
prediction at the operating point, the threshold, the percentile of `unusual`, the warnings of the
row, the model and its fingerprint. Of the patient it holds what the standard demands of a document
of the study (`evidence.COPIED`), and nothing else.

A report depends on nothing but its image, its score and the scores folder, so a repeated attempt
writes the same bytes under the same name.
"""

import io
import posixpath
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import config
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_description, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ComputedRadiographyImageStorage
from pydicom.valuerep import validate_value

from cxr import storage
from cxr.images.decoding.evidence import COPIED, IDENTIFIERS
from cxr.images.decoding.quiet import NO_LOGS, NO_WARNINGS
from cxr.images.decoding.tags import identifier, whole
from cxr.labels import CLASSES
from cxr.scoring.parts import REPORT, reports_folder
from cxr.scoring.report_settings import ReportSettings

RESEARCH_ONLY: Final = "Research use only"

NOT_FOR: Final = "not for diagnosis or treatment, and verified by nobody"

SERIES_NUMBER: Final = 900
"""Of the reports in a study: above those of acquisitions."""

DECIMALS: Final = 4
"""Of percentages."""

_MAX_LONG_STRING: Final = 64
"""Characters of a value of VR LO."""

_MANUFACTURER: Final = "cxr"

_NAMESPACE: Final = uuid.UUID("b417322e-122e-4ea6-be2c-a8f6465a7c31")
"""Of the UIDs of reports; drawn at random."""

_SCHEME: Final = "99CXR"
"""Designator of codes that no standard has. Source: DICOM PS3.16 section 8.2: private ones begin
with 99."""

_PERCENT: Final = CodedConcept("%", "UCUM", "Percent")

_PNEUMONIA: Final = CodedConcept("233604007", "SCT", "Pneumonia")

_THRESHOLD: Final = CodedConcept("THRESHOLD", _SCHEME, "Threshold of the operating point")

_PREDICTION: Final = CodedConcept("PREDICTION", _SCHEME, "Prediction at the operating point")

_UNUSUAL: Final = CodedConcept(
    "UNUSUAL", _SCHEME, "Percentile of the distance to the training images"
)


class ReportError(Exception):
    """The reason why an image has no report; caught here."""


class StructuredReports:
    """Writes the reports of parts."""

    def __init__(self, settings: ReportSettings) -> None:
        """Build what all reports have in common.

        Args:
            settings: of the scores folder.
        """
        self._folder = settings.folder
        self._job = (settings.fingerprint, repr(settings.operating_point), settings.begun)
        self._threshold = _percent(settings.operating_point.threshold)
        self._algorithm = AlgorithmIdentification(
            name=settings.model,
            version=settings.fingerprint,
            parameters=[
                f"operating point {settings.operating_point.rule}: on"
                f" {settings.operating_point.reached}"
            ],
            manufacturer=_MANUFACTURER,
        )
        # Building a report takes highdicom four times as long as exchanging what differs.
        self._report = self._build(settings)

    def write(self, number: int, scores: pa.Table, evidence: Sequence[Dataset | None]) -> pa.Table:
        """Write the reports of a part; what else its folder of reports holds is deleted.

        Args:
            number: of the part.
            scores: of the part, with the column `REPORT`.
            evidence: of each scored image, in order; None if it is not DICOM.

        Returns:
            The scores with the path of each report, and with a warning where a DICOM image has
            none.
        """
        folder = reports_folder(self._folder, number)
        rows = scores.to_pylist()
        files: dict[str, bytes] = {}
        scored = (row for row in rows if row["status"] == "scored")
        for row, header in zip(scored, evidence, strict=True):
            if header is None:
                continue
            try:
                uid, content = self.encode(row, header)
            except ReportError as error:
                row["warnings"].append(f"no Structured Report: {error}")
                continue
            uri = storage.join(folder, f"{uid}.dcm")
            files[uri] = content
            row[REPORT] = posixpath.relpath(uri, posixpath.dirname(self._folder))
        storage.for_all(lambda uri: storage.write_bytes(uri, files[uri]), list(files))
        written = {posixpath.basename(uri) for uri in files}
        for file in storage.list_files(folder):  # Of a process that was killed.
            if posixpath.basename(file.uri) not in written:
                storage.delete_file(file.uri)
        return pa.Table.from_pylist(rows, schema=scores.schema)

    def encode(self, row: Mapping[str, Any], header: Dataset) -> tuple[str, bytes]:
        """The report on a scored DICOM image as a file.

        Args:
            row: of the scores.
            header: of the image, as `read_evidence` reads it.

        Returns:
            The report's SOP Instance UID, and the bytes of its file.

        Raises:
            ReportError: the image cannot be referred to, or its patient not be copied.
        """
        # Warnings and logs of pydicom may quote the header.
        with NO_WARNINGS, NO_LOGS:
            image = {keyword: _identifier(header, keyword) for keyword in IDENTIFIERS}
            if (num_frames := whole(header, "NumberOfFrames")) > 1:
                raise ReportError(f"{num_frames} frames, and the score is of the first")
            copied = [*_character_set(header), *(_copied(header, keyword) for keyword in COPIED)]
            values = (
                _percent(row["prob_pneumonia"]),
                row["prediction"],
                None if row["unusual"] is None else round(row["unusual"], DECIMALS),
                *row["warnings"],
            )
            # The digest of the file stands for all that is copied from its header.
            uid = _uid("report", row["sha256"], *self._job, *values)
            self._fill(uid, image, copied)
            self._report.ContentSequence[-1].ContentSequence = self._measure(uid, image, *values)
            file = io.BytesIO()
            try:
                self._report.save_as(file, enforce_file_format=True)
            except Exception as error:  # The class only: the text may quote the header.
                name = type(error).__name__
                raise ReportError(f"the header cannot be copied ({name})") from None
            return uid, file.getvalue()

    def _build(self, settings: ReportSettings) -> ComprehensiveSR:
        """A report on no image: what differs is exchanged by `encode`."""
        nowhere = dict.fromkeys(IDENTIFIERS, _uid("nowhere"))
        observer = DeviceObserverIdentifyingAttributes(
            uid=_uid("device", settings.fingerprint),
            name=_MANUFACTURER,
            manufacturer_name=_MANUFACTURER,
            model_name=settings.model,
            serial_number=settings.fingerprint,
        )
        content = MeasurementReport(
            ObservationContext(ObserverContext(codes.DCM.Device, observer)),
            codes.SCT.PlainRadiography,
            [self._measure("", nowhere, 0.0, CLASSES[0], None)],
        )
        evidence = Dataset()
        for keyword in COPIED:
            setattr(evidence, keyword, "")
        for keyword, uid in nowhere.items():
            setattr(evidence, keyword, uid)
        evidence.SOPClassUID = ComputedRadiographyImageStorage
        date, time = settings.begun.replace("-", "").replace(":", "").split("T")
        report = ComprehensiveSR(
            [evidence],
            content,
            series_instance_uid=_uid("nowhere"),
            series_number=SERIES_NUMBER,
            series_description=f"{RESEARCH_ONLY}: {settings.model}"[:_MAX_LONG_STRING],
            sop_instance_uid=_uid("nowhere"),
            instance_number=1,
            is_complete=True,
            manufacturer=_MANUFACTURER,
            manufacturer_model_name=settings.model[:_MAX_LONG_STRING],
            device_serial_number=settings.fingerprint,
            content_date=date,
            content_time=time,
            coding_schemes=[
                CodingSchemeIdentificationItem(
                    _SCHEME, name=_MANUFACTURER, responsible_organization=_MANUFACTURER
                )
            ],
        )
        # highdicom takes the present.
        report["InstanceCreationDate"].value = date
        report["InstanceCreationTime"].value = time
        for equipment in report.ContributingEquipmentSequence:
            equipment["ContributionDateTime"].value = date + time
        return report

    def _fill(self, uid: str, image: Mapping[str, str], copied: Sequence[DataElement]) -> None:
        """Exchange the identifiers, and what is copied from the image."""
        report = self._report
        report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = UID(uid)
        report.StudyInstanceUID = image["StudyInstanceUID"]
        report.SeriesInstanceUID = _uid("series", image["StudyInstanceUID"], *self._job)
        report.pop("SpecificCharacterSet", None)
        for element in copied:
            report[element.tag] = element
        [study] = report.CurrentRequestedProcedureEvidenceSequence
        study.StudyInstanceUID = image["StudyInstanceUID"]
        [series] = study.ReferencedSeriesSequence
        series.SeriesInstanceUID = image["SeriesInstanceUID"]
        [instance] = series.ReferencedSOPSequence
        instance.ReferencedSOPClassUID = image["SOPClassUID"]
        instance.ReferencedSOPInstanceUID = image["SOPInstanceUID"]

    def _measure(
        self,
        uid: str,
        image: Mapping[str, str],
        certainty: float,
        prediction: str,
        unusual: float | None,
        *warnings: str,
    ) -> MeasurementsAndQualitativeEvaluations:
        """What was measured on an image."""
        measurements = [
            Measurement(codes.DCM.CertaintyOfFinding, certainty, _PERCENT),
            Measurement(_THRESHOLD, self._threshold, _PERCENT),
        ]
        if unusual is not None:
            measurements.append(Measurement(_UNUSUAL, unusual, _PERCENT))
        is_present = prediction == CLASSES[1]
        presence = codes.SCT.Present if is_present else codes.SCT.Absent
        group = MeasurementsAndQualitativeEvaluations(
            TrackingIdentifier(_uid("finding", uid), _PNEUMONIA.meaning),
            algorithm_id=self._algorithm,
            finding_type=_PNEUMONIA,
            measurements=measurements,
            qualitative_evaluations=[QualitativeEvaluation(_PREDICTION, presence)],
            source_images=[
                SourceImageForMeasurementGroup(image["SOPClassUID"], image["SOPInstanceUID"])
            ],
        )
        for text in (f"{RESEARCH_ONLY}: {NOT_FOR}", *(f"Warning: {text}" for text in warnings)):
            comment = TextContentItem(codes.DCM.Comment, text, RelationshipTypeValues.CONTAINS)
            group[0].ContentSequence.append(comment)
        return group


def _percent(share: float) -> float:
    return round(100 * share, DECIMALS)


def _uid(*names: object) -> str:
    """A UID that depends on nothing but names. Source: DICOM PS3.5 annex B.2, RFC 9562 (UUID)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, repr(names)).int}"


def _identifier(header: Dataset, keyword: str) -> str:
    """A UID of an image.

    Raises:
        ReportError: there is none, or no valid one.
    """
    uid = identifier(header, keyword)
    if not UID(uid).is_valid:
        raise ReportError(f"no valid {dictionary_description(keyword)} in the file")
    return uid


def _character_set(header: Dataset) -> list[DataElement]:
    """The character set of what is copied; none is the standard's default.

    Raises:
        ReportError: it is none of the standard's.
    """
    try:
        value = header.get("SpecificCharacterSet") or ""
        names = [value] if isinstance(value, str) else list(value)
        is_known = all(name in python_encoding for name in names)
    except Exception:  # Of pydicom, anything.
        is_known = False
    if not is_known:
        raise ReportError("a character set in the file that the standard does not have")
    return [DataElement("SpecificCharacterSet", "CS", value)] if value else []


def _copied(header: Dataset, keyword: str) -> DataElement:
    """An element of an image, empty if the image has none.

    Dates, times and codes that are not valid are left empty, as the standard allows. Names and
    numbers are not: a report on a patient without number may be filed under another patient.

    Raises:
        ReportError: it is no valid text of a single value.
    """
    vr = dictionary_VR(keyword)
    try:
        value = header.get(keyword) or ""
        text = str(value)
        if isinstance(value, MultiValue) or "\ufffd" in text:
            raise ValueError
        validate_value(vr, text, config.RAISE)
    except Exception:  # Of pydicom, anything.
        if vr not in ("CS", "DA", "TM"):
            reason = f"no valid {dictionary_description(keyword)} in the file"
            raise ReportError(reason) from None
        value = ""
    return DataElement(keyword, vr, value)
