"""From a recipe to a plan: its weights, the folds of its data, pixels and frozen features."""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr import sources, storage
from cxr.datasets import features
from cxr.datasets.folds import assign_folds, hold_out, take
from cxr.datasets.headers import list_labeled_set
from cxr.datasets.pixels import CONTRADICTING, IN_ANOTHER_FOLD, count_reasons, decode_shards
from cxr.datasets.shards import Shards
from cxr.datasets.splits import Splits
from cxr.datasets.variation import views
from cxr.errors import DataError
from cxr.models import classifier, weights
from cxr.models.classifier import Classifier
from cxr.recipes import Recipe
from cxr.sources import LabeledSet, PatientSource
from cxr.training import members
from cxr.training.settings import ImageSettings, RunSettings, SharedSettings
from cxr.training.trainer import Plan

SKIPPED_FILE: Final = "unreadable.json"
"""In the folder of a run or a search, if images were skipped: the reason of each, by URI."""


@dataclass(frozen=True)
class TrainingImages:
    """The radiographs of a run or a search, before any is decoded."""

    listing: pa.Table
    """Those to train and validate on, in a fixed random order, of schema `sources.LISTING`."""
    folds: NDArray[np.int64]
    """The fold of each, (N,)."""
    held_out: pa.Table
    """Those that a test fraction keeps for evaluation, of the same schema; may be empty."""
    has_test: bool
    """Whether there are radiographs to test on, held out or in a test split of the set."""
    patients: PatientSource
    """How the patients are known."""


def list_training_images(
    data: str, settings: SharedSettings, remembered: Splits | None = None
) -> TrainingImages:
    """List a set, and choose what is for training; see `choose_training_images`.

    Args:
        data: folder, prefix, archive or manifest.
        settings: how the set is read, what is chosen, the cache.
        remembered: of the run that is resumed: the patients that it holds out.

    Raises:
        DataError: as `sources.list_set` and `choose_training_images` do.
    """
    labeled = list_labeled_set(data, settings, settings.cache)
    if labeled.skipped:
        print(f"{data}: {sources.in_words(labeled.skipped)}", flush=True)
    print(labeled.patients.sentence, flush=True)
    return choose_training_images(labeled, settings, remembered)


def choose_training_images(
    labeled: LabeledSet, settings: ImageSettings, remembered: Splits | None = None
) -> TrainingImages:
    """Divide what is for training into folds, and hold out what is for evaluation.

    Args:
        labeled: the whole set.
        settings: the test fraction, the number of folds, the limit.
        remembered: of the run that is resumed: the patients that it holds out.

    Raises:
        DataError: there are none, too few patients for the folds, a patient is not known or in two
            splits, or there is a test split besides the test fraction.
    """
    labeled.refuse_shared_patients()
    listing = labeled.split("train")
    held_out = _hold_out(labeled, listing, settings.test_fraction, remembered)
    test = listing.filter(held_out)
    has_test = len(test) > 0 or len(labeled.find_split("test")) > 0
    rows = np.flatnonzero(~held_out)
    labels, patients = listing["label"].to_numpy()[rows], _patient_numbers(listing)[rows]
    if settings.limit is not None:
        taken = take(labels, patients, settings.limit)
        rows, labels, patients = rows[taken], labels[taken], patients[taken]
    folds = assign_folds(labels, patients, settings.num_folds)
    # Shards keep this order, so that a stream of them is not sorted by class.
    order = np.random.default_rng(0).permutation(len(rows))
    return TrainingImages(listing.take(rows[order]), folds[order], test, has_test, labeled.patients)


def _patient_numbers(listing: pa.Table) -> NDArray[np.int64]:
    """The patient of each radiograph, (N,)."""
    numbers: NDArray[np.int64] = listing["patient"].cast(pa.int64()).to_numpy()
    return numbers


def _hold_out(
    labeled: LabeledSet, listing: pa.Table, fraction: float | None, remembered: Splits | None
) -> NDArray[np.bool_]:
    """Whether each radiograph is kept for evaluation, (N,)."""
    if fraction is None:
        return np.zeros(len(listing), dtype=bool)
    if num_test := len(labeled.find_split("test")):
        raise DataError(
            f"{labeled.uri}: has a test split of {num_test:,} radiographs already. Leave out"
            " --test-fraction."
        )
    if remembered:
        return remembered.has_patient(listing["patient_digest"], "test")
    return hold_out(listing["label"].to_numpy(), _patient_numbers(listing), fraction)


def load_model(recipe: Recipe, settings: SharedSettings) -> tuple[Classifier, dict[str, Any]]:
    """Build a recipe's classifier and load its pretrained weights.

    Returns:
        The classifier, and where its weights came from.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    model = classifier.build(recipe)
    if starts_at_random(recipe, settings):
        return model, {"source": "none", "tensors": 0}
    state, source = weights.read_weights(str(settings.weights), recipe.backbone, settings.cache)
    names = weights.load_pretrained(model, recipe, state, source)
    digest = classifier.digest({name: state[name] for name in names})
    return model, {"source": source, "tensors": len(names), "sha256": digest}


def starts_at_random(recipe: Recipe, settings: SharedSettings) -> bool:
    """Whether a recipe takes no pretrained weights."""
    lacks = settings.weights == "phantoms" and recipe.backbone != weights.PHANTOM_BACKBONE
    return settings.weights == "none" or lacks or recipe.pretrained == 0


def runs_frozen_part_once(recipe: Recipe, model: Classifier) -> bool:
    """Whether a recipe trains on cached features: its frozen part runs once over each view.

    With an augmentation and one view it does not, since each epoch draws new changes.
    """
    return model.num_frozen > 0 and (recipe.augmentation == "none" or recipe.views > 1)


def prepare(
    recipes: Sequence[Recipe],
    models: Sequence[tuple[Classifier, dict[str, Any]]],
    listing: pa.Table,
    folds: NDArray[np.int64],
    settings: RunSettings,
    *,
    gpu: bool,
) -> list[Plan]:
    """Decode the pixels of each recipe, and run its frozen part over them where once is enough.

    Args:
        recipes: to train.
        models: of the recipes, from `load_model`.
        listing: the training radiographs.
        folds: the fold of each radiograph, (N,).
        settings: of the run.
        gpu: run the frozen parts on GPUs.

    Returns:
        The plans of the recipes in their order: one each or, with `settings.members`, so many.
    """
    plans: list[Plan] = []
    for recipe, (model, origin) in zip(recipes, models, strict=True):
        started = time.monotonic()
        print(
            f"{recipe.name}: {recipe.backbone} at {recipe.image_px} px,"
            f" {origin['tensors']} pretrained tensors, frozen convolutions: {recipe.frozen},"
            f" normalization: {recipe.normalization}, loading: {recipe.loading}",
            flush=True,
        )
        shards = decode_shards(listing, folds, recipe.image_px, settings.cache)
        for member in members.plan(recipe, settings):
            # Another seed is another start, but for the pretrained weights.
            has_own_start = member.recipe.seed != recipe.seed
            plans.append(
                Plan(
                    recipe=member.recipe,
                    model=load_model(member.recipe, settings)[0] if has_own_start else model,
                    shards=shards,
                    cached=False,
                    train_folds=tuple(k for k in range(settings.num_folds) if k != member.fold),
                    validation_folds=(member.fold,),
                    output=storage.join(settings.folder, member.recipe.name),
                    weights=origin,
                    seconds=time.monotonic() - started,
                )
            )
            started = time.monotonic()
    started = time.monotonic()
    once = [i for i, plan in enumerate(plans) if runs_frozen_part_once(plan.recipe, plan.model)]
    # Over all folds, so that runs which hold out another one and searches use the same views.
    passes = [
        features.Pass(plans[i].shards, plans[i].recipe, plans[i].model, view)
        for i in once
        for view in views(plans[i].recipe)
    ]
    extracted = iter(features.extract(passes, settings.cache, gpu=gpu))
    # The passes share one pool of actors, so each recipe is charged an equal part for each view.
    part = (time.monotonic() - started) / max(len(passes), 1)
    for i in once:
        shards, *drawn = itertools.islice(extracted, plans[i].recipe.views)
        plans[i] = dataclasses.replace(
            plans[i],
            shards=shards,
            drawn=tuple(drawn),
            cached=True,
            seconds=plans[i].seconds + part * plans[i].recipe.views,
        )
    return plans


def write_skipped(shards: Sequence[Shards], output: str) -> dict[str, str]:
    """List the images that were skipped in `SKIPPED_FILE`, and print how many and why.

    Args:
        shards: of the same listing; several where recipes differ in image size or features.
        output: folder of the run or search; what an earlier part of it has listed is kept.

    Returns:
        The reason of each, by URI.
    """
    uri = storage.join(output, SKIPPED_FILE)
    skipped: dict[str, str] = storage.read_json(uri) if storage.kind(uri) == "file" else {}
    for shard in shards:
        failed = shard.failed
        skipped |= dict(zip(failed["uri"].to_pylist(), failed["reason"].to_pylist(), strict=True))
    if skipped:
        storage.write_json(uri, skipped)
        print(f"skipped: {len(skipped):,} images, listed in {uri}", flush=True)
        for reason, count in count_reasons(list(skipped.values())).items():
            print(f"  {count:,} {reason}", flush=True)
    return skipped


def skipped_notes(skipped: Mapping[str, str]) -> list[str]:
    """What a page says of the images that were skipped."""
    notes = []
    duplicates = sum(reason in (IN_ANOTHER_FOLD, CONTRADICTING) for reason in skipped.values())
    if duplicates:
        notes.append(
            f"{duplicates:,} exact duplicates were left out, so that none is on both sides of a"
            f" split or under two labels ({SKIPPED_FILE})."
        )
    if num_unreadable := len(skipped) - duplicates:
        notes.append(
            f"{num_unreadable:,} images could not be used and were skipped ({SKIPPED_FILE})."
        )
    return notes
