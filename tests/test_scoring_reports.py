"""Structured Reports: what they say, of whom, and that nothing else names the patient."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from highdicom.sr import MeasurementReport, srread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cxr import storage
from cxr.errors import SettingsError
from cxr.images.decoding.evidence import COPIED, read_evidence
from cxr.images.read import read_images
from cxr.metrics import OperatingPoint
from cxr.models import checkpoint
from cxr.scoring.columns import scores_schema
from cxr.scoring.parts import REPORT
from cxr.scoring.report_settings import ReportSettings, check_installed
from cxr.scoring.structured_reports import ReportError, StructuredReports
from tests.support.jobs import Ended, execute
from tests.support.radiographs import BIG_ENDIAN, IMPLICIT, PATIENT, dicom, drawn, radiograph
from tests.support.s3 import Store

POINT = OperatingPoint("youden", 0.25, 0.95, 0.9, 400)
SETTINGS = ReportSettings("/out/scores", "best x5", "f" * 64, POINT, "2026-01-31T23:59:58")
ROW = {
    "sha256": "0" * 64, "prob_pneumonia": 0.97123456789, "prediction": "PNEUMONIA",
    "unusual": 99.25, "warnings": ["no window in the file"],
}  # fmt: skip
UIDS = {"StudyInstanceUID": "1.2.840.1", "SeriesInstanceUID": "1.2.840.1.7"}
PLANTED = {
    "PatientAddress": "Pleicherwall 8", "PatientComments": "Handaufnahme",
    "OtherPatientIDs": "Q4712", "InstitutionName": "Juliusspital", "OperatorsName": "Zehnder^L",
    "StudyDescription": "Thorax bei Verdacht", "IssuerOfPatientID": "Wuerzburg",
}  # fmt: skip
"""Of the image's header; no document has to have it."""


def encode(row: dict[str, Any], header: Dataset) -> tuple[str, bytes]:
    return StructuredReports(SETTINGS).encode(row, header)


def read(content: bytes) -> Any:
    return srread(BytesIO(content))


def numbers(report: Any) -> dict[str, float]:
    """The measurements of a report by name, in percent."""
    content: MeasurementReport = report.content
    [group] = content.get_image_measurement_groups()
    for item in group.get_measurements():
        assert item.unit == codes.UCUM.Percent
    return {item.name.meaning: item.value for item in group.get_measurements()}


def texts(report: Any, name: Any) -> list[str]:
    """The texts of a name, anywhere in a report."""
    values = []
    waiting = [report]
    while waiting:
        item = waiting.pop(0)
        waiting += item.get("ContentSequence", [])
        if item.get("ValueType") == "TEXT" and item.name == name:
            values.append(str(item.TextValue))
    return values


@pytest.fixture(scope="module")
def report() -> Any:
    header = read_evidence(dicom(drawn(), **UIDS, **PLANTED))
    return read(encode(ROW, header)[1])


def test_a_report_says_probability_threshold_prediction_and_percentile(report: Any) -> None:
    assert report.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert numbers(report) == {
        "Certainty of Finding": 97.1235,
        "Threshold of the operating point": 25.0,
        "Percentile of the distance to the training images": 99.25,
    }
    [group] = report.content.get_image_measurement_groups()
    assert group.finding_type.meaning == "Pneumonia"
    [prediction] = group.get_qualitative_evaluations()
    assert prediction.name.meaning == "Prediction at the operating point"
    assert prediction.value == codes.SCT.Present


def test_a_report_names_the_model_and_says_research_use_only(report: Any) -> None:
    assert texts(report, codes.DCM.AlgorithmName) == ["best x5"]
    assert texts(report, codes.DCM.AlgorithmVersion) == ["f" * 64]
    assert texts(report, codes.DCM.AlgorithmParameters) == [
        "operating point youden: on 400 validation images sensitivity 0.950, specificity 0.900"
    ]
    assert texts(report, codes.DCM.Comment) == [
        "Research use only: not for diagnosis or treatment, and verified by nobody",
        "Warning: no window in the file",
    ]
    assert report.SeriesDescription == "Research use only: best x5"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_a_report_refers_to_its_image(report: Any) -> None:
    cr_image = "1.2.840.10008.5.1.4.1.1.1"
    [group] = report.content.get_image_measurement_groups()
    [image] = group.source_images
    assert (image.referenced_sop_class_uid, image.referenced_sop_instance_uid) == (
        cr_image, "1.2.3"
    )  # fmt: skip
    assert report.get_evidence() == [("1.2.840.1", "1.2.840.1.7", "1.2.3", cr_image)]
    assert report.StudyInstanceUID == "1.2.840.1"
    assert report.SeriesInstanceUID not in ("1.2.840.1.7", report.SOPInstanceUID)
    assert report.Modality == "SR"


def test_of_the_patient_a_report_holds_what_the_standard_requires(report: Any) -> None:
    assert {name: report[name].value for name in PATIENT} == PATIENT
    for name in set(COPIED) - PATIENT.keys():
        assert report[name].is_empty  # Type 2: there, and empty where it is not known.
    # No other element of the groups of patient and study.
    assert {element.keyword for element in report if element.tag.group == 0x0010} == {
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex"
    }  # fmt: skip
    file = BytesIO()
    report.save_as(file)
    for value in PLANTED.values():
        assert value.encode() not in file.getvalue()


def test_a_row_without_percentile_gives_a_report_without(report: Any) -> None:
    row = ROW | {"unusual": None, "prediction": "NORMAL", "warnings": []}
    other = read(encode(row, read_evidence(dicom(drawn(), **UIDS)))[1])
    assert len(numbers(other)) == 2
    [group] = other.content.get_image_measurement_groups()
    assert group.get_qualitative_evaluations()[0].value == codes.SCT.Absent
    assert other.SOPInstanceUID != report.SOPInstanceUID
    assert other.SeriesInstanceUID == report.SeriesInstanceUID


def test_the_same_image_score_and_folder_give_the_same_bytes() -> None:
    first = read_evidence(dicom(drawn(), **UIDS, PatientSex="F", StudyID="7"))
    umlaut = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Röntgen^Wilhelm"}
    second = read_evidence(dicom(drawn(), **{**UIDS, **umlaut}))
    alone = [encode(ROW, header) for header in (first, second)]
    together = StructuredReports(SETTINGS)
    # What belongs to one image is not found in the report on the next.
    assert [together.encode(ROW, header) for header in (second, first)] == alone[::-1]
    later = dataclasses.replace(SETTINGS, begun="2026-02-01T00:00:00")
    assert StructuredReports(later).encode(ROW, first)[0] != alone[0][0]


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Müller^Jörg"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Мария^Склодовская"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_are_copied_in_their_character_set(
    character_set: str | list[str], name: str, syntax: str
) -> None:
    tags: dict[str, object] = {"SpecificCharacterSet": character_set, "PatientName": name}
    header = read_evidence(dicom(drawn(), syntax, None, **UIDS, **tags))
    copy = pydicom.dcmread(BytesIO(encode(ROW, header)[1]))
    assert str(copy.PatientName) == name
    assert copy.SpecificCharacterSet == character_set


def test_text_without_a_character_set_keeps_its_bytes() -> None:
    data = dicom(drawn(), **UIDS, PatientName="Roentgen^Anna").replace(b"Roentgen", b"R\xf6ntgen.")
    assert b"R\xf6ntgen.^Anna" in encode(ROW, read_evidence(data))[1]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPInstanceUID": None}, "no valid SOP Instance UID in the file"),
        ({"SOPClassUID": None}, "no valid SOP Class UID in the file"),
        ({"StudyInstanceUID": None}, "no valid Study Instance UID in the file"),
        ({"SeriesInstanceUID": "Curie"}, "no valid Series Instance UID in the file"),
        ({"SeriesInstanceUID": "1.02"}, "no valid Series Instance UID in the file"),
        ({"PatientID": "1" * 65}, "no valid Patient ID in the file"),
        ({"PatientID": ["1", "2"]}, "no valid Patient ID in the file"),
        ({"SpecificCharacterSet": "Curie"}, "a character set in the file that the standard does"),
        ({"NumberOfFrames": 12}, "12 frames, and the score is of the first"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # Of the values that are written here.
def test_without_what_is_required_there_is_a_reason(tags: dict[str, object], reason: str) -> None:
    header = read_evidence(dicom(drawn(), **{**UIDS, **tags}))
    with pytest.raises(ReportError, match=reason) as raised:
        encode(ROW, header)
    assert "Curie" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_dates_and_codes_that_are_not_valid_are_left_empty() -> None:
    tags = {"PatientBirthDate": "1845", "StudyTime": "noon", "StudyDate": "20261131x"}
    header = read_evidence(dicom(drawn(), **{**UIDS, **tags}, PatientSex="female!"))
    report = read(encode(ROW, header)[1])
    for name in (*tags, "PatientSex"):
        assert report[name].is_empty
    assert report.PatientID == PATIENT["PatientID"]


@pytest.mark.parametrize("data", [b"", b"broken", dicom(drawn())[:200]])
def test_a_header_that_cannot_be_read_is_no_error(data: bytes) -> None:
    with pytest.raises(ReportError, match="no valid SOP Class UID"):
        encode(ROW, read_evidence(data))


def scores_of(files: Sequence[Path]) -> tuple[pa.Table, list[Dataset | None]]:
    """Rows of the scores of files, all of the same probability, and the headers of the scored."""
    listed = [
        {"file": str(file), "place": [], "status": "", "reason": "", "warnings": []}
        for file in files
    ]
    images = list(read_images(listed, 64, keep_evidence=True))
    rows = [
        ROW
        | {
            "uri": str(file), "file": str(file), "sha256": image.sha256, "format": image.format,
            "status": "scored" if image.status == "ok" else image.status,
            "warnings": list(image.warnings), REPORT: None,
        }
        for file, image in zip(files, images, strict=True)
    ]  # fmt: skip
    schema = scores_schema(None, [], dicom_sr=True)
    whole = [dict.fromkeys(schema.names) | row for row in rows]
    evidence = [image.evidence for image in images if image.status == "ok"]
    return pa.Table.from_pylist(whole, schema=schema), evidence


def reports_in(output: Path) -> dict[str, bytes]:
    """The files in the folder of reports by their path from the scores folder."""
    folder = output / "structured-reports"
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_part_has_the_reports_of_its_dicom_images_and_no_other_file(tmp_path: Path) -> None:
    output = tmp_path / "out"
    files = [tmp_path / name for name in ("a.dcm", "b.jpeg", "c.dcm", "d.dcm", "e.dcm")]
    contents = [
        dicom(drawn(), **UIDS), radiograph(), dicom(drawn(), Modality="CT", **UIDS),
        dicom(drawn(), SeriesInstanceUID="1.2"), dicom(drawn(seed=1), **UIDS),
    ]  # fmt: skip
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    left = output / "structured-reports" / "part-000000007" / "2.25.1.dcm.ab.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a killed process")
    settings = dataclasses.replace(SETTINGS, folder=str(output / "scores"))
    scores, evidence = scores_of(files)
    written = StructuredReports(settings).write(7, scores, evidence)
    paths = written[REPORT].to_pylist()
    assert [path is not None for path in paths] == [True, False, False, False, True]
    assert written["warnings"].to_pylist()[3][-1] == (
        "no Structured Report: no valid Study Instance UID in the file"
    )
    # But for these two columns, the scores are as they were.
    others = [name for name in scores.column_names if name not in (REPORT, "warnings")]
    assert written.select(others).equals(scores.select(others))
    reports = reports_in(output)
    assert reports.keys() == {path for path in paths if path}
    assert all(Path(path).stem.startswith("2.25.") for path in reports)
    StructuredReports(settings).write(7, scores, evidence)
    assert reports_in(output) == reports


def test_reports_are_written_to_a_bucket(s3: Store, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(drawn(), **UIDS))
    output = f"{s3.bucket()}/out"
    left = f"{output}/structured-reports/part-000000007/2.25.1.dcm"
    storage.write_bytes(left, b"of scores that were computed anew")
    settings = dataclasses.replace(SETTINGS, folder=f"{output}/scores")
    written = StructuredReports(settings).write(7, *scores_of([tmp_path / "a.dcm"]))
    [path] = written[REPORT].to_pylist()
    assert [file.uri for file in storage.list_files(output)] == [f"{output}/{path}"]
    assert read(storage.read_bytes(f"{output}/{path}")).SOPInstanceUID == Path(path).stem


def validate(file: Path) -> None:
    """Have dcmtk and dicom3tools check a report, where they are installed."""
    if shutil.which("dsrdump"):
        done = subprocess.run(["dsrdump", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert not done.stderr
        assert "Comprehensive SR Document" in done.stdout
    if shutil.which("dciodvfy"):
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr


@pytest.mark.parametrize(
    "name", ["chest_mono1_15bit_jpeg2000", "chest_mono2_8bit_jpeg", "hip_mono2_10bit_rle"]
)
def test_reports_on_real_files_are_valid(name: str, real_data: Path, tmp_path: Path) -> None:
    data = (real_data / "dicom" / f"{name}.dcm").read_bytes()
    image = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
    uid, content = encode(ROW, read_evidence(data))
    file = tmp_path / f"{uid}.dcm"
    file.write_bytes(content)
    validate(file)
    report = srread(file)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID",
                    "StudyDate", "StudyTime", "AccessionNumber", "StudyInstanceUID"):  # fmt: skip
        assert report[keyword].value == image.get(keyword, "")
    assert report.get_evidence()[0][2] == image.SOPInstanceUID


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(SettingsError, match=r"highdicom is not installed\. pip install -e '\.\["):
        check_installed()
    ended = execute(
        "score", "--checkpoint", str(tmp_path / "none"), "--input", str(tmp_path), "--output",
        str(tmp_path / "out"), "--dicom-sr",
    )  # fmt: skip
    assert ended.code != 0
    assert "dicom_sr: highdicom is not installed. pip install -e '.[dicom]'" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four radiographs that get a report, one of them in a zip, and six files that do not."""
    folder = tmp_path_factory.mktemp("archive")
    tags = {**UIDS, **PLANTED}
    frames = drawn().tobytes() * 2
    files = {
        "PA": dicom(drawn(), **tags, ReferringPhysicianName="Koelliker^Albert"),
        "twin": dicom(drawn(), **tags, ReferringPhysicianName="Koelliker^Albert"),
        "AP": dicom(drawn(seed=2), **{**tags, "SOPInstanceUID": "1.2.4"}),
        "CT": dicom(drawn(seed=3), **tags, Modality="CT"),
        "frames": dicom(drawn(seed=4), **tags, NumberOfFrames=2, PixelData=frames),
        "no study": dicom(drawn(seed=5), **{**tags, "StudyInstanceUID": None}),
        "photo.jpeg": radiograph(6),
        "broken.dcm": dicom(drawn(seed=7), **tags)[:-100],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "old.zip", "w") as members:
        members.writestr("x.dcm", dicom(drawn(seed=8), **{**UIDS, "SOPInstanceUID": "1.2.5"}))
        members.writestr("y.jpeg", radiograph(9))
    return folder


@pytest.fixture(scope="module")
def scored(
    ray_cluster: None,
    archive: Path,
    small_checkpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Ended, Path]:
    output = tmp_path_factory.mktemp("reported") / "scores"
    return score(small_checkpoint, archive, output, "--dicom-sr"), output


def score(checkpoint_folder: str, archive: Path, output: Path, *words: str) -> Ended:
    return execute(
        "score", "--checkpoint", checkpoint_folder, "--output", str(output), *words,
        "--input", str(archive),
    )  # fmt: skip


def rows_in(output: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(output / "scores")
    return {Path(row["file"]).name: row for row in table.to_pylist()}


@pytest.mark.cluster
def test_a_job_writes_a_report_for_each_dicom_image(
    scored: tuple[Ended, Path], small_checkpoint: str
) -> None:
    ended, output = scored
    assert ended.code == 0, ended.err
    rows = rows_in(output)
    paths = {name: row[REPORT] for name, row in rows.items() if row[REPORT]}
    assert paths.keys() == {"PA", "twin", "AP", "x.dcm"}
    assert reports_in(output).keys() == set(paths.values())
    trained = checkpoint.load(small_checkpoint)
    for name, path in paths.items():
        validate(output / path)
        report = srread(output / path)
        probability = rows[name]["prob_pneumonia"]
        assert numbers(report) == {
            "Certainty of Finding": pytest.approx(100 * probability, abs=1e-4),
            "Threshold of the operating point": pytest.approx(
                100 * trained.operating_point.threshold, abs=1e-4
            ),
        }
        assert texts(report, codes.DCM.AlgorithmVersion) == [trained.fingerprint]
        assert Path(path).stem == report.SOPInstanceUID
    instance = {"PA": "1.2.3", "twin": "1.2.3", "AP": "1.2.4", "x.dcm": "1.2.5"}
    for name, path in paths.items():
        assert srread(output / path).get_evidence()[0][2] == instance[name]


@pytest.mark.cluster
def test_what_has_no_report_is_counted_with_its_reason(scored: tuple[Ended, Path]) -> None:
    ended, output = scored
    rows = rows_in(output)
    assert rows["frames"]["warnings"][-1].endswith("2 frames, and the score is of the first")
    assert rows["no study"]["warnings"][-1] == (
        "no Structured Report: no valid Study Instance UID in the file"
    )
    assert rows["no study"]["prob_pneumonia"] is not None
    assert (rows["CT"]["status"], rows["broken.dcm"]["status"]) == ("refused", "unreadable")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["structured_reports"] == {"images": 4, "not_dicom": 2, "not_possible": 2}
    [line] = [line for line in ended.out.splitlines() if line.startswith("structured reports:")]
    assert "of 4 images; 2 are not DICOM and have none; 2 DICOM images have none" in line
    page = " ".join((output / "index.html").read_text().split())
    assert "not_dicom" in page
    assert "no Structured Report: no valid Study Instance UID in the file" in page


@pytest.mark.cluster
def test_the_patient_is_named_in_the_required_fields_of_reports_alone(
    scored: tuple[Ended, Path],
) -> None:
    ended, output = scored
    required = (*PATIENT.values(), "Koelliker", "Roentgen")
    contents = [ended.out, ended.err]
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            contents.append(str(pq.read_table(path).to_pylist()))
        if path.suffix == ".dcm":
            report = pydicom.dcmread(path)
            assert report.PatientID == PATIENT["PatientID"]
            for keyword in COPIED:
                report[keyword].value = ""
            file = BytesIO()
            report.save_as(file)
            contents.append(file.getvalue().decode("latin-1"))
        elif path.is_file():
            contents.append(path.read_bytes().decode("latin-1"))
        contents.append(path.name)
    for content in contents:
        assert not [planted for planted in (*required, *PLANTED.values()) if planted in content]


@pytest.mark.cluster
def test_a_resumed_job_leaves_the_same_reports(
    scored: tuple[Ended, Path], archive: Path, small_checkpoint: str
) -> None:
    output = scored[1]
    reports, rows = reports_in(output), rows_in(output)
    for path in (output / "scores").iterdir():
        path.unlink()
    folder = output / Path(next(iter(reports))).parent
    (folder / "2.25.1.dcm.0123abcd.part").write_bytes(b"of a killed process")
    next(folder.glob("*.dcm")).unlink()
    assert score(small_checkpoint, archive, output, "--dicom-sr").code == 0
    assert reports_in(output) == reports
    assert rows_in(output) == rows
    ended = score(small_checkpoint, archive, output)
    assert ended.code == 1
    assert "holds scores with dicom_sr True, not False." in ended.err
