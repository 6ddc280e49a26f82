"""Everything that defines a model and its training, and the four published versions as values.

v0 to v3 are the versions of the 2019 experiment that this project continues. A recipe implements
what a version *intended*; `docs/versions.md` lists where the experiment's notebooks differ from it.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from cxr.errors import SettingsError

Convolutions = int | Literal["all"]
Normalization = Literal["none", "unit", "imagenet", "per_image", "equalize"]
ClassWeighting = Literal["none", "fixed", "balanced", "effective", "focal"]
Pooling = Literal["flatten", "average"]
Augmentation = Literal["none", "affine", "acquisition"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["decay", "one_cycle", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
Loading = Literal["memory", "stream"]

# Loss weights of normal and pneumonia with `fixed`: those of the 2019 experiment.
FIXED_CLASS_WEIGHTS: Final = (1.0, 0.4)

# With `effective`, n images of a class count as (1 - beta^n) / (1 - beta): Cui et al. 2019, arXiv
# 1901.05555.
EFFECTIVE_NUMBER_BETA: Final = 0.999

# With `focal`, an image's loss is multiplied by (1 - probability of its class)^gamma: Lin et al.
# 2017, arXiv 1708.02002, whose best value this is.
FOCAL_GAMMA: Final = 2.0


_NOT_NEGATIVE: Final = (
    "learning_rate_decay",
    "weight_decay",
    "augmentation_strength",
    "gradient_clipping",
)
_SHARES: Final = ("warmup", "ema", "label_smoothing")


@dataclass(frozen=True)
class Recipe:
    """One way to build and train a classifier of chest radiographs."""

    name: str = "v2"
    """Name of the recipe in the run's folder and reports."""
    backbone: str = "vgg16"
    """A network by torchvision's name: alexnet, vgg16, squeezenet1_1, densenet121, resnet50,
    efficientnet_b0, mobilenet_v3_large, convnext_tiny, regnet_y_400mf, ..."""
    pretrained: Convolutions = "all"
    """Number of leading convolutions that take pretrained weights; all: the whole backbone."""
    frozen: Convolutions = "all"
    """Number of leading convolutions that training does not change; at most --pretrained."""
    image_px: int = 224
    """Side of the square that radiographs are resized to, in pixels."""
    normalization: Normalization = "none"
    """none: gray levels 0-255. unit: 0-1. imagenet: channel statistics of ImageNet. per_image: mean
    0 and standard deviation 1 of each radiograph. equalize: histogram equalization, then as
    imagenet."""
    class_weighting: ClassWeighting = "none"
    """Weights of the classes in the loss. none: equal. fixed: 1.0 normal, 0.4 pneumonia. balanced:
    inverse class frequency. effective: inverse effective number of images. focal: equal, but images
    that are classified well already count less."""
    pooling: Pooling = "flatten"
    """Input of the head. flatten: every value of the backbone's maps. average: the mean of each
    map."""
    hidden: tuple[int, ...] = (1024, 512)
    """Widths of the head's dense layers before the last one, which has one unit per class."""
    dropout: tuple[float, ...] = (0.0, 0.7, 0.5)
    """Dropout rate before each dense layer of the head, the last one included."""
    augmentation: Augmentation = "none"
    """affine: small random rotations, shifts, zooms and changes of exposure. acquisition: larger
    ones, and blur, gamma and noise, as between scanners and hospitals."""
    augmentation_strength: float = 1.0
    """Multiplies the range of every change that the augmentation draws."""
    views: int = 1
    """Views of each training image that a frozen backbone runs over once: the image as it is, and
    views - 1 draws of the augmentation. 1: with an augmentation, it runs in every epoch anew."""
    optimizer: Optimizer = "adam"
    """The optimizer; its other settings are PyTorch's defaults."""
    learning_rate: float = 1e-3
    """Learning rate of the first step; with --schedule one_cycle or cosine the highest one."""
    learning_rate_decay: float = 0.0
    """Inverse-time decay per step: rate = learning_rate / (1 + learning_rate_decay * step)."""
    schedule: Schedule = "decay"
    """decay: as --learning-rate-decay says. one_cycle: PyTorch's OneCycleLR. cosine: a linear
    warm-up, then down to 0 along a cosine. Both over all --epochs."""
    warmup: float = 0.1
    """Share of the steps of one_cycle or cosine in which the learning rate rises."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each trained layer to the one before it; below 1, early
    layers change more slowly."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is
    validated and kept; at most (1 + n) / (10 + n) after n steps. 0: none."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    gradient_clipping: float = 0.0
    """Largest norm of the gradient of all weights together; 0: no limit."""
    weight_decay: float = 0.0
    """Weight decay, as the optimizer defines it."""
    batch_size: int = 15
    """Radiographs per step, over all workers together."""
    epochs: int = 3
    """Maximum number of passes over the training data."""
    precision: Precision = "auto"
    """Number format of convolutions and matrix products in training steps. auto: bfloat16 on GPUs,
    float32 on CPUs. bfloat16: also on CPUs, 1.7 times as fast with AMX, but losses then depend on
    the number of workers from the third digit on. A device without bfloat16 uses float32."""
    patience: int = 5
    """Epochs without a better validation AUC after which training stops early."""
    loading: Loading = "stream"
    """memory: the training data are kept in the workers' memory. stream: they are read in every
    epoch."""
    seed: int = 0
    """Seed of the random weights, of dropout and of the order of radiographs."""

    def __post_init__(self) -> None:
        for field, hint in get_type_hints(Recipe).items():
            if not _is_a(getattr(self, field), hint):
                raise SettingsError(
                    f"{field}: {getattr(self, field)!r} is not possible. {_expected(hint)}"
                )
        for field in ("image_px", "views", "batch_size", "epochs", "patience"):
            if getattr(self, field) < 1:
                raise SettingsError(f"{field}: {getattr(self, field)} is below 1.")
        for field in ("learning_rate", *_NOT_NEGATIVE, *_SHARES, "layer_decay"):
            if not math.isfinite(getattr(self, field)):
                raise SettingsError(f"{field}: {getattr(self, field)} is not a number.")
        if self.learning_rate <= 0:
            raise SettingsError(f"learning_rate: {self.learning_rate} is not above 0.")
        if not 0 < self.layer_decay <= 1:
            raise SettingsError(f"layer_decay: {self.layer_decay} is not above 0 and at most 1.")
        for field in (*_NOT_NEGATIVE, "pretrained", "frozen", "seed"):
            value = getattr(self, field)
            if value != "all" and value < 0:
                raise SettingsError(f"{field}: {value} is below 0.")
        for field in _SHARES:
            if not 0 <= getattr(self, field) < 1:
                raise SettingsError(f"{field}: {getattr(self, field)} is outside 0 to 1.")
        if any(width < 1 for width in self.hidden):
            raise SettingsError(f"hidden: {self.hidden} has a layer narrower than 1.")
        if any(not 0 <= rate < 1 for rate in self.dropout):
            raise SettingsError(f"dropout: {self.dropout} has a rate outside 0 to 1.")
        if len(self.dropout) != len(self.hidden) + 1:
            raise SettingsError(
                f"dropout: {len(self.dropout)} rates for {len(self.hidden) + 1} dense layers"
                f" (hidden {self.hidden} and the last one). Give one rate per layer, 0 for none."
            )
        if not _at_most(self.frozen, self.pretrained):
            raise SettingsError(
                f"frozen: {self.frozen} convolutions would not be trained, but only"
                f" {self.pretrained} are pretrained. Lower --frozen or raise --pretrained."
            )

    def to_json(self) -> str:
        """The recipe as an indented JSON object with one key per field."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote; missing fields have their defaults.

        Raises:
            SettingsError: not a JSON object, an unknown field, or an impossible value.
        """
        try:
            values: object = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"not a recipe: {error}.") from None
        if not isinstance(values, dict):
            raise SettingsError(f"not a recipe: a JSON {type(values).__name__}, not an object.")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise SettingsError(
                f"unknown recipe field {', '.join(unknown)}. Choices: {', '.join(known)}."
            )
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)


def _at_most(inner: Convolutions, outer: Convolutions) -> bool:
    if outer == "all":
        return True
    return inner != "all" and inner <= outer


def _is_a(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if args := get_args(hint):
        return any(_is_a(value, arg) for arg in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not isinstance(value, bool)


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"Choices: {', '.join(get_args(hint))}."
    if hint == Convolutions:
        return "Give a number of convolutions, or all."
    if get_origin(hint) is tuple:
        return f"Expected a list of {get_args(hint)[0].__name__}."
    return f"Expected {getattr(hint, '__name__', hint)}."


_V1 = Recipe(
    name="v1",
    class_weighting="fixed",
    learning_rate=1e-4,
    learning_rate_decay=1e-5,
    batch_size=1,
    epochs=1,
    loading="memory",
)
_V2 = dataclasses.replace(
    _V1, name="v2", learning_rate=1e-3, batch_size=15, epochs=3, loading="stream"
)

RECIPES: Final[dict[str, Recipe]] = {
    "v0": Recipe(
        name="v0",
        backbone="alexnet",
        pretrained=2,
        frozen=2,
        image_px=128,
        hidden=(16,),
        dropout=(0.4, 0.4),
        batch_size=10,
        epochs=2,
        loading="memory",
    ),
    "v1": _V1,
    "v2": _V2,
    "v3": dataclasses.replace(_V2, name="v3", normalization="unit", epochs=1),
    "frozen": Recipe(
        name="frozen",
        backbone="squeezenet1_1",
        normalization="imagenet",
        class_weighting="balanced",
        pooling="average",
        hidden=(),
        dropout=(0.2,),
        optimizer="adamw",
        batch_size=64,
        epochs=30,
        loading="memory",
    ),
    "best": Recipe(
        name="best",
        backbone="squeezenet1_1",
        frozen=0,
        image_px=160,
        normalization="imagenet",
        class_weighting="balanced",
        pooling="average",
        hidden=(),
        dropout=(0.3,),
        augmentation="acquisition",
        augmentation_strength=0.5,
        optimizer="adamw",
        learning_rate=6e-4,
        schedule="one_cycle",
        warmup=0.3,
        ema=0.99,
        label_smoothing=0.05,
        gradient_clipping=1.0,
        weight_decay=0.01,
        batch_size=32,
        epochs=10,
        patience=10,
        loading="memory",
    ),
}
"""The published versions by name, and two of this project: `best`, which validation under
acquisition changes chose (docs/best.md), and `frozen`, which trains in minutes without a GPU."""

COMPARED: Final = ("v0", "v1", "v2", "v3", "best")
"""What `--version all` trains and compares."""


def named(version: str) -> Recipe:
    """The recipe of a version, by its name in `RECIPES`.

    Raises:
        SettingsError: no version has this name.
    """
    if version not in RECIPES:
        raise SettingsError(f"unknown version {version!r}. Choices: {', '.join(RECIPES)}, all.")
    return RECIPES[version]
