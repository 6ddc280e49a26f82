"""A trained classifier as a folder: its weights, and all that is needed to use and assess them.

model.safetensors    weights of backbone and head together, by the classifier's names or, of an
                     ensemble, by those of `Ensemble.state`
checkpoint.json      recipe, class names, transform, operating point, calibration, provenance
validation.parquet   label, logit, subtype and a consecutive patient number of each validation
                     image, as it is and under acquisition changes: enough to choose another
                     operating point, nothing that names a patient; see `models.validation`
splits.parquet       salted digests of the patients and images that were trained and validated on,
                     and of the patients that were held out; checkpoints of older versions have none
model.onnx           the same network for ONNX Runtime, normalization included
unusual.safetensors  the distribution of the network's features over the training images; there if
                     they were enough, and checkpoints of older versions have none

A precision that is added later has its own network, validation.parquet, calibration, operating
point and fingerprint: model.int8.onnx, validation.int8.parquet, int8.json. The checkpoint itself,
and scores that were computed with it, stay as they are. In a checkpoint from before there was a
model.onnx it is such an addition, with float32.json.

Loading a checkpoint needs no PyTorch; building its `model` does.
"""

import contextlib
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cxr import storage
from cxr.errors import CheckpointError, CxrError, StorageError
from cxr.labels import CLASSES
from cxr.metrics import CalibrateOn, OperatingPoint, Robustness, Scaling
from cxr.models import validation as validation_images
from cxr.models.precision import ONNX_FILES, Precision
from cxr.models.unusual import FeatureDistribution, read_distribution
from cxr.models.validation import Calibration
from cxr.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from cxr.models.classifier import Classifier
    from cxr.models.ensemble import Ensemble

# Raise it when files that older versions read change, and read or refuse the older ones.
FORMAT: Final = 1

ENSEMBLE_FORMAT: Final = 2
"""Of checkpoints with several members, which versions that know none would read wrongly."""

STARTER: Final = str(Path(__file__).parent / "starter")
"""A checkpoint that the package ships, made by `python -m benchmarks.starter`: for whoever has no
labeled radiographs to train with."""

UNUSUAL_FILE: Final = "unusual.safetensors"
"""The file of `Checkpoint.distribution`."""

# Packages whose versions a checkpoint records.
PACKAGES: Final = (
    *("cxr", "ray", "torch", "torchvision", "onnx", "onnxruntime", "pillow", "pydicom", "numpy"),
)


@dataclass(frozen=True)
class Member:
    """One of the classifiers whose probabilities an ensemble averages."""

    recipe: Recipe
    """As that of the checkpoint, but for name and seed."""
    fold: int
    """That validated it."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier, or several, with its calibration, operating point and provenance."""

    recipe: Recipe
    weights: bytes
    """The content of model.safetensors."""
    operating_point: OperatingPoint
    scaling: Scaling
    """How its logits become probabilities."""
    provenance: dict[str, Any]
    """Data, weights, metrics on validation, package versions, settings of the run."""
    validation: pa.Table
    """Label, logit, subtype, patient (a consecutive number), change and image: `clean_validation`,
    and the same images under acquisition changes, if they were scored."""
    fingerprint: str
    """SHA-256 of checkpoint.json, which contains the SHA-256 of the other files; of an added
    precision that of its own description."""
    folder: str
    """Its path or URI."""
    network: bytes | None
    """The content of model.onnx, or of the ONNX file of an added precision."""
    precision: Precision = "float32"
    splits: pa.Table | None = None
    """Of schema `datasets.splits.SPLITS`; None in a checkpoint that does not have it."""
    name: str = ""
    """Its folder, and when it was written: for messages, where the fingerprint says nothing."""
    robustness: Robustness | None = None
    """Figures on validation images under acquisition changes; None if they were not scored."""
    calibrated_on: CalibrateOn = "clean"
    """Which validation images chose calibration and operating point."""
    distribution: FeatureDistribution | None = None
    """Of the features of the training images, in float32; None in a checkpoint without it."""

    @property
    def clean_validation(self) -> pa.Table:
        """The rows of `validation` of images as they are."""
        return validation_images.clean_rows(self.validation)

    members: tuple[Member, ...] = ()
    """Of an ensemble; empty for a single classifier."""

    @cached_property
    def model(self) -> "Classifier | Ensemble":
        """The classifier with its weights, in evaluation mode; built when it is first asked for.

        Raises:
            CheckpointError: the weights are not those of the recipe.
        """
        import safetensors.torch

        from cxr.models import classifier, ensemble

        try:
            state = safetensors.torch.load(self.weights)
            if self.members:
                return ensemble.build([member.recipe for member in self.members], state).eval()
            model = classifier.build(self.recipe)
            model.load_state_dict(state)
        except (ValueError, RuntimeError, CxrError) as error:
            raise CheckpointError(
                f"checkpoint {self.recipe.name}: the weights do not fit its recipe: {error}"
            ) from None
        return model.eval()

    @property
    def title(self) -> str:
        """The recipe's name, with the number of members, and the precision unless it is float32."""
        members = f" of {len(self.members)} members" if self.members else ""
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return f"{self.recipe.name}{members}{precision}"

    @property
    def note(self) -> str:
        """What everyone must know who reads its figures; empty, except of `STARTER`."""
        return str(self.provenance.get("note", ""))

    @property
    def member_of_fold(self) -> dict[int, int]:
        """The number of the member that each fold validated; empty where one fold validated all.

        No other member was trained without the images of that fold.
        """
        numbers = {member.fold: number for number, member in enumerate(self.members)}
        return numbers if len(numbers) > 1 else {}

    @cached_property
    def onnx(self) -> bytes:
        """The classifier as an ONNX file.

        It is exported now where the checkpoint has none, and kept there if its folder can be
        written.

        Raises:
            CheckpointError: the network cannot be written as ONNX.
        """
        if self.network is not None:
            return self.network
        from cxr.models.export import export

        print(f"{self.folder}: has no {ONNX_FILES['float32']}, exporting it", flush=True)
        content = export(self.model, self.recipe, self.describe())
        with contextlib.suppress(StorageError):
            _add(self, "float32", {ONNX_FILES["float32"]: content}, {})
        return content

    def describe(self) -> dict[str, str]:
        """What the ONNX file says of itself, as text by name; JSON where it is more than a word."""
        return {
            "classes": json.dumps(CLASSES),
            "temperature": repr(self.scaling.temperature),
            "bias": repr(self.scaling.bias),
            "operating_point": json.dumps(self.operating_point.to_dict()),
            "fingerprint": hashlib.sha256(self.weights).hexdigest(),
            "normalization": self.recipe.normalization,
            "image_px": str(self.recipe.image_px),
            "precision": self.precision,
            "cxr": _version("cxr"),
        } | ({"members": str(len(self.members))} if self.members else {})

    def at(self, precision: Precision) -> "Checkpoint":
        """The same classifier in a precision, with that one's calibration and operating point.

        Raises:
            CheckpointError: it has not been made, or a file of it is missing or changed.
        """
        if precision == self.precision:
            return self
        content = _read_addition(self, precision)
        if content is None:
            run = self.folder.rstrip("/").rpartition("/")[0].rpartition("/")[0] or "RUN"
            raise CheckpointError(
                f"{self.folder}: has no {ONNX_FILES[precision]}. Make it from the run that the"
                f" checkpoint is from: python jobs/train.py --resume {run} --int8"
            )
        description, files = content
        return dataclasses.replace(
            self,
            network=files[ONNX_FILES[precision]],
            precision=precision,
            scaling=_read_scaling(description),
            operating_point=OperatingPoint.from_dict(description["operating_point"]),
            provenance=self.provenance | {precision: description["provenance"]},
            validation=_read_validation(files[f"validation.{precision}.parquet"]),
            fingerprint=description["fingerprint"],
            robustness=_read_robustness(description),
            calibrated_on=description.get("calibrated_on", "clean"),
        )

    def choose(self, rule: str | None) -> OperatingPoint:
        """The stored operating point, or one chosen by another rule on the same images."""
        if rule is None or rule == self.operating_point.rule:
            return self.operating_point
        return validation_images.choose(self.validation, self.scaling, rule, self.calibrated_on)


def save(
    folder: str,
    recipe: Recipe,
    model: "Classifier | Ensemble",
    validation: pa.Table,
    provenance: dict[str, Any],
    rule: str = "youden",
    splits: pa.Table | None = None,
    calibrate_on: CalibrateOn = "stressed",
    members: Sequence[Member] = (),
    distribution: FeatureDistribution | None = None,
) -> Checkpoint:
    """Calibrate on the validation images, choose the operating point and write the folder.

    Args:
        folder: path or URI; `checkpoint.json` is written last, so that an incomplete folder is
            not taken for a checkpoint.
        recipe: of the model.
        model: with its trained weights.
        validation: label (int64), logit (float64), subtype, patient of each validation image,
            and rows of changed images from `models.validation.add_changed`, if any; patients are
            numbered, and no other column is kept.
        provenance: JSON values that say where the model comes from.
        rule: by which the operating point is chosen.
        splits: of schema `datasets.splits.SPLITS`, which names no patient.
        calibrate_on: which validation images decide; the clean ones where there are no others.
        members: of an ensemble.
        distribution: of the features of the training images.

    Raises:
        CheckpointError: the members differ in more than their seed.
    """
    import safetensors.torch

    from cxr.models.export import export

    _check_members(folder, recipe, members)
    anonymous = validation_images.anonymize(validation)
    calibration = validation_images.calibrate(anonymous, rule, calibrate_on)
    state = {k: _smallest(v.detach().cpu()) for k, v in model.state().items()}
    complete = provenance | {"packages": package_versions()}
    saved = Checkpoint(
        recipe=recipe,
        weights=safetensors.torch.save(state),
        operating_point=calibration.operating_point,
        scaling=calibration.scaling,
        provenance=complete,
        validation=anonymous,
        fingerprint="",
        folder=folder,
        network=None,
        splits=splits,
        robustness=calibration.robustness,
        calibrated_on=calibration.calibrated_on,
        members=tuple(members),
        distribution=distribution,
    )
    files = {"model.safetensors": saved.weights, "validation.parquet": _parquet(anonymous)}
    if splits is not None:
        files["splits.parquet"] = _parquet(splits)
    if distribution is not None:
        files[UNUSUAL_FILE] = distribution.to_bytes()
    try:
        files[ONNX_FILES["float32"]] = export(model, recipe, saved.describe())
    except CheckpointError as error:
        print(f"{recipe.name}: {error} It can be used on GPUs only.", flush=True)
    content: dict[str, Any] = {
        "format": ENSEMBLE_FORMAT if members else FORMAT,
        "recipe": dataclasses.asdict(recipe),
        "classes": CLASSES,
        "transform": {
            "pixels": "gray, uint8, bone bright",
            "image_px": recipe.image_px,
            "resize": "stretched to a square, Pillow bilinear with antialiasing",
            "normalization": recipe.normalization,
            "channels": "gray repeated to 3",
        },
        **_describe(calibration),
        "provenance": complete,
        "sha256": _sha256(files),
    }
    if members:
        content["members"] = [
            {"recipe": dataclasses.asdict(member.recipe), "classes": CLASSES, "fold": member.fold}
            for member in members
        ]
    fingerprint = _write(folder, "checkpoint.json", files, content)
    network = files.get(ONNX_FILES["float32"])
    return dataclasses.replace(saved, fingerprint=fingerprint, network=network)


def add_int8(
    trained: Checkpoint,
    network: bytes,
    validation: pa.Table,
    provenance: dict[str, Any],
) -> Checkpoint:
    """Add a quantized network to a checkpoint, with its own calibration and operating point.

    Args:
        trained: the checkpoint in float32.
        network: an ONNX file without metadata.
        validation: as in `save`, with the logits of this network.
        provenance: JSON values that say how it was made, and how it compares.

    Raises:
        StorageError: the folder cannot be written.
    """
    from cxr.models.export import metadata_only

    anonymous = validation_images.anonymize(validation)
    calibration = validation_images.calibrate(
        anonymous, trained.operating_point.rule, trained.calibrated_on
    )
    added = dataclasses.replace(
        trained,
        precision="int8",
        scaling=calibration.scaling,
        operating_point=calibration.operating_point,
        validation=anonymous,
        provenance=trained.provenance | {"int8": provenance},
        robustness=calibration.robustness,
        calibrated_on=calibration.calibrated_on,
    )
    network += metadata_only(added.describe())
    files = {ONNX_FILES["int8"]: network, "validation.int8.parquet": _parquet(anonymous)}
    description = {
        **_describe(calibration),
        "provenance": provenance | {"packages": package_versions()},
    }
    fingerprint = _add(trained, "int8", files, description)
    return dataclasses.replace(added, network=network, fingerprint=fingerprint)


def _smallest(tensor: "torch.Tensor") -> "torch.Tensor":
    """In float16 where that loses nothing, as of weights that were rounded to it."""
    if tensor.is_floating_point() and tensor.equal(tensor.half().to(tensor.dtype)):
        tensor = tensor.half()
    return tensor.contiguous()


def _describe(calibration: Calibration) -> dict[str, Any]:
    """What a description says of a calibration."""
    robustness = calibration.robustness
    return {
        "operating_point": calibration.operating_point.to_dict(),
        **dataclasses.asdict(calibration.scaling),
        "calibrated_on": calibration.calibrated_on,
        "robustness": None if robustness is None else robustness.to_json(),
    }


def _read_scaling(description: Mapping[str, Any]) -> Scaling:
    """Of a description, which older versions wrote without a bias."""
    return Scaling(description["temperature"], description.get("bias", 0.0))


def _read_robustness(description: Mapping[str, Any]) -> Robustness | None:
    """Of a description, which older versions wrote without."""
    content = description.get("robustness")
    return None if content is None else Robustness.from_json(content)


def _read_validation(content: bytes) -> pa.Table:
    """Of a Parquet file, to which older versions wrote no changed images."""
    return validation_images.complete(pq.read_table(pa.BufferReader(content)))


def _add(
    trained: Checkpoint, precision: Precision, files: dict[str, bytes], content: dict[str, Any]
) -> str:
    """Write the files of an added precision; returns its fingerprint."""
    description = {"checkpoint": trained.fingerprint, **content, "sha256": _sha256(files)}
    return _write(trained.folder, f"{precision}.json", files, description)


def _read_addition(
    trained: Checkpoint, precision: Precision
) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """Description and files of an added precision; None where there is none.

    Raises:
        CheckpointError: a file is missing or changed, or belongs to another checkpoint.
    """
    uri = storage.join(trained.folder, f"{precision}.json")
    if storage.kind(uri) != "file":
        return None
    try:
        text = storage.read_bytes(uri)
        description = json.loads(text)
        if description["checkpoint"] != trained.fingerprint:
            raise CheckpointError(
                f"{uri}: belongs to another checkpoint than {trained.folder}. Delete it."
            )
        files = _read_files(trained.folder, description["sha256"])
        return description | {"fingerprint": hashlib.sha256(text).hexdigest()}, files
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, StorageError) as error:
        raise CheckpointError(
            f"{uri}: it, or a file that it names, is not complete: {error} Delete it."
        ) from None


def _write(folder: str, name: str, files: dict[str, bytes], content: dict[str, Any]) -> str:
    """Write files, and last the JSON file that describes them; returns the SHA-256 of that one."""
    for file, data in files.items():
        storage.write_bytes(storage.join(folder, file), data)
    text = (json.dumps(content, indent=2) + "\n").encode()
    storage.write_bytes(storage.join(folder, name), text)
    return hashlib.sha256(text).hexdigest()


def _read_files(folder: str, sha256: dict[str, str]) -> dict[str, bytes]:
    files = {name: storage.read_bytes(storage.join(folder, name)) for name in sha256}
    for name, actual in _sha256(files).items():
        if actual != sha256[name]:
            raise CheckpointError(
                f"{folder}/{name}: changed since it was written (SHA-256 {actual[:12]}...,"
                f" not {sha256[name][:12]}...). Copy the checkpoint again."
            )
    return files


def _sha256(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


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
            is a newer one, its classes are not `labels.CLASSES`, a member is missing, or members
            differ in more than their seed.
    """
    if not exists(folder):
        raise CheckpointError(
            f"{folder}: no checkpoint here (checkpoint.json is missing). Give the folder that"
            " jobs/train.py printed as 'checkpoint'."
        )
    try:
        text = storage.read_bytes(storage.join(folder, "checkpoint.json"))
        content = json.loads(text)
        if content["format"] not in (FORMAT, ENSEMBLE_FORMAT):
            raise CheckpointError(
                f"{folder}: format {content['format']}, this version of cxr reads {FORMAT} and"
                f" {ENSEMBLE_FORMAT}."
            )
        described = content["members"] if content["format"] == ENSEMBLE_FORMAT else []
        for part in (content, *described):
            if part["classes"] != list(CLASSES):
                raise CheckpointError(
                    f"{folder}: its outputs are {part['classes']}, this version of cxr expects"
                    f" {list(CLASSES)}, in this order. Train it again."
                )
        files = _read_files(folder, content["sha256"])
        recipe = Recipe.from_json(json.dumps(content["recipe"]))
        members = [
            Member(Recipe.from_json(json.dumps(part["recipe"])), part["fold"]) for part in described
        ]
        _check_members(folder, recipe, members)
        if content["format"] == ENSEMBLE_FORMAT:
            _check_weights(folder, files["model.safetensors"], len(members))
        loaded = Checkpoint(
            recipe=recipe,
            weights=files["model.safetensors"],
            operating_point=OperatingPoint.from_dict(content["operating_point"]),
            scaling=_read_scaling(content),
            provenance=content["provenance"],
            validation=_read_validation(files["validation.parquet"]),
            fingerprint=hashlib.sha256(text).hexdigest(),
            folder=folder,
            network=files.get(ONNX_FILES["float32"]),
            splits=(
                pq.read_table(pa.BufferReader(files["splits.parquet"]))
                if "splits.parquet" in files
                else None
            ),
            name=_name(folder),
            robustness=_read_robustness(content),
            calibrated_on=content.get("calibrated_on", "clean"),
            members=tuple(members),
            distribution=(
                read_distribution(files[UNUSUAL_FILE]) if UNUSUAL_FILE in files else None
            ),
        )
        if loaded.network is None and (exported := _read_addition(loaded, "float32")):
            return dataclasses.replace(loaded, network=exported[1][ONNX_FILES["float32"]])
        return loaded
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: checkpoint.json or a file it lists lacks {error}."
        ) from None
    except (ValueError, TypeError, RuntimeError, CxrError, pa.ArrowException) as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint: {error}") from None


def _check_members(folder: str, recipe: Recipe, members: Sequence[Member]) -> None:
    """Refuse members that differ from the checkpoint's recipe in more than name and seed."""
    for number, member in enumerate(members):
        own = dataclasses.asdict(member.recipe)
        for field, value in dataclasses.asdict(recipe).items():
            if field not in ("name", "seed") and own[field] != value:
                raise CheckpointError(
                    f"{folder}: member {number} has {field} {own[field]!r}, the ensemble {value!r}."
                    " The members of an ensemble may differ in their seed only. Train it again."
                )


def _check_weights(folder: str, weights: bytes, num_members: int) -> None:
    """Refuse a file that does not hold the weights of each member, and of no other."""
    # The names of the tensors, as safetensors has them: a length of 8 bytes, and JSON.
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    names = [name.split(".") for name in header if name.startswith("members.")]
    numbers = sorted({int(parts[1]) for parts in names})
    if num_members < 2 or numbers != list(range(num_members)):
        raise CheckpointError(
            f"{folder}: checkpoint.json describes {num_members} members, and model.safetensors has"
            f" the weights of members {numbers}. Copy the checkpoint again, or train it again."
        )


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
