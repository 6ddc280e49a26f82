"""What a run of training and a search have in common: their settings, and how they are resolved."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from cxr import cluster, recipes, storage
from cxr.cluster.settings import CachedComputeSettings
from cxr.errors import SettingsError
from cxr.metrics import DEFAULT_STRESSED, CalibrateOn, check_stress_images, parse_rule
from cxr.recipes import COMPARED, Recipe
from cxr.sources.settings import SetSettings

Version = Literal["v0", "v1", "v2", "v3", "frozen", "best"]

NUM_FOLDS: Final = 5

NUM_FOLDS_OF_PHANTOMS: Final = 2
"""So that half of them validates: VGG16 is slow on CPUs, and there are no more than it can take."""

IMPORTS: Final = ("torchvision", "sklearn.metrics", "matplotlib.figure")
"""What training imports, and takes seconds: to be imported while the cluster starts."""


@dataclass(frozen=True)
class RecipeChoice:
    """Which recipe the flags of a recipe change."""

    version: Version | Literal["all"] = "all"
    """all: the four published versions and our best. Or one of them, or frozen: a dense layer on
    frozen convolutions, which trains in minutes without a GPU."""
    recipe: str | None = None
    """JSON file with a recipe, instead of a version."""

    def read(self) -> list[Recipe]:
        """The recipes as they are before flags change them.

        Raises:
            SettingsError: the file is no recipe.
            StorageError: it cannot be read.
        """
        if self.recipe:
            return [Recipe.from_json(storage.read_bytes(self.recipe).decode())]
        names = COMPARED if self.version == "all" else (self.version,)
        return [recipes.named(name) for name in names]


@dataclass(frozen=True)
class ImageSettings(SetSettings):
    """A labeled set, and which of its images train."""

    test_fraction: float | None = None
    """Share of the patients of a set without a test split that is held out for jobs/evaluate.py."""
    limit: int | None = None
    """Use at most so many training images: whole patients, classes in proportion."""
    folds: int | None = None
    """Patient-disjoint, class-stratified folds that the training images are divided into.
    Default: 5, and 2 with synthetic radiographs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_folds < 2:
            raise SettingsError(f"folds: {self.folds} is below 2.")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit: {self.limit} is below 1.")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise SettingsError(f"test_fraction: {self.test_fraction} is not between 0 and 1.")

    @property
    def num_folds(self) -> int:
        """The number of folds, the default included."""
        if self.folds is not None:
            return self.folds
        return NUM_FOLDS if self.data else NUM_FOLDS_OF_PHANTOMS


@dataclass(frozen=True)
class DataSettings(ImageSettings):
    """What is read and written."""

    weights: str | None = None
    """Pretrained weights: imagenet, none, or a path or URI of a .safetensors or .pth file with
    torchvision's names; phantoms: weights of squeezenet1_1 that this project trained on synthetic
    radiographs, for other networks none. Default: phantoms with synthetic radiographs, else
    imagenet."""
    output: str | None = None
    """Folder or bucket prefix for the results: empty, or not there yet; for a search also that of
    the same search. Default: runs/<date and time>."""


@dataclass(frozen=True)
class SharedSettings(CachedComputeSettings, DataSettings):
    """What training and a search read, write and use."""

    workers: str = "1"
    """Processes that train one network, each with its share of the CPUs, or one GPU: 4, or 1:4 for
    as many as the cluster has room for, which may change on the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cluster.parse_workers(self.workers)

    @property
    def folder(self) -> str:
        """The resolved output."""
        assert self.output is not None
        return self.output


@dataclass(frozen=True)
class RunSettings(SharedSettings):
    """What a run of training reads, writes and uses."""

    fold: int = 0
    """The fold that validates; the others train."""
    members: int = 1
    """Classifiers that are trained of each recipe; a checkpoint averages their probabilities."""
    members_of: Literal["folds", "seeds"] = "folds"
    """folds: the folds 0, 1, ... validate a member each, and train the others. seeds: all members
    have the same fold to validate, and differ in their random start and the order of images."""
    checkpoints: Literal["all", "best"] | None = None
    """Keep the checkpoint of every recipe, or of the one with the best AUC on validation. Default:
    all, and best with synthetic radiographs."""
    operating_point: str = "youden"
    """Rule of the stored threshold, chosen on validation: youden, sensitivity=X, specificity=X, or
    cost=FN:FP,prevalence=P for the costs of a false negative and a false positive."""
    stress_images: int | None = None
    """Validation images, at most, that the trained network scores under each acquisition change;
    0: none, and no robustness table. Default: 256, and 0 with synthetic radiographs."""
    calibrate_on: CalibrateOn = "stressed"
    """Validation images that choose calibration and threshold: clean, or stressed for those and
    the same under acquisition changes, half and half."""
    int8: bool = False
    """Add networks in 8-bit integers, which CPUs run 2 to 4 times as fast, to the checkpoints,
    unless they separate the classes worse. With --resume also to those of a finished run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fold < self.num_folds:
            raise SettingsError(f"fold: {self.fold} is outside 0 to {self.num_folds - 1}.")
        if self.members < 1:
            raise SettingsError(f"members: {self.members} is below 1.")
        if self.validates_by_folds:
            if self.members > self.num_folds:
                raise SettingsError(
                    f"members: {self.members} members need {self.members} folds, there are"
                    f" {self.num_folds}. Raise --folds, or take --members-of seeds."
                )
            if self.fold != 0:
                raise SettingsError(
                    f"fold: {self.fold} cannot be chosen where each member has a fold of its own."
                    " Leave --fold out, or take --members-of seeds."
                )
        parse_rule(self.operating_point)
        check_stress_images(self.num_stressed)

    @property
    def num_stressed(self) -> int:
        """Images that are scored under each acquisition change, the default included."""
        if self.stress_images is not None:
            return self.stress_images
        return DEFAULT_STRESSED if self.data else 0

    @property
    def keeps_all(self) -> bool:
        """Whether every recipe keeps its checkpoint."""
        return self.checkpoints != "best" if self.data else self.checkpoints == "all"

    @property
    def validates_by_folds(self) -> bool:
        """Whether the members of an ensemble have a fold each to validate."""
        return self.members > 1 and self.members_of == "folds"

    @property
    def validation_folds(self) -> tuple[int, ...]:
        """The folds that validate a classifier."""
        return tuple(range(self.members)) if self.validates_by_folds else (self.fold,)


Settings = TypeVar("Settings", bound=SharedSettings)


def resolve(settings: Settings, recipes: Sequence[Recipe], suffix: str = "") -> Settings:
    """Check what can be checked before anything is started, and fill in every default.

    Args:
        settings: of a run or of a search.
        recipes: that it trains.
        suffix: of the output's default name.

    Raises:
        SettingsError: a recipe cannot be built, or two have the same name.
    """
    from cxr.models import classifier  # PyTorch takes seconds, and `--help` needs none.

    for recipe in recipes:
        classifier.check(recipe)
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise SettingsError("two recipes of a run have the same name. Set --name.")
    return dataclasses.replace(
        settings,
        data=storage.absolute(settings.data) if settings.data else None,
        weights=settings.weights or ("imagenet" if settings.data else "phantoms"),
        output=storage.absolute(settings.output or storage.default_output(suffix)),
        cache=storage.absolute(settings.cache),
    )
