"""Patient-disjoint, class-stratified folds of the training data."""

from math import fsum, inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.errors import DataError
from cxr.labels import CLASSES


def assign_folds(
    labels: NDArray[np.integer[Any]], patients: NDArray[Any], num_folds: int, seed: int = 0
) -> NDArray[np.int64]:
    """Assign every radiograph to a fold so that no patient is in two.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient of each radiograph, as text or number, (N,).
        num_folds: how many folds of nearly equal size and class balance.
        seed: which of the many possible assignments.

    Returns:
        int64 (N,), values 0 to num_folds - 1.

    Raises:
        DataError: a class has fewer patients than there are folds.

    Source: scikit-learn's StratifiedGroupKFold, whose folds these are to the last patient. That one
    takes 0.24 ms a patient, two minutes for half a million, and a Python object for each image.
    """
    for label, name in enumerate(CLASSES):
        num_patients = len(np.unique(patients[labels == label]))
        if num_patients < num_folds:
            raise DataError(
                f"{name}: {num_patients} patients cannot fill {num_folds} patient-disjoint folds."
                " Give more radiographs, or fewer --folds."
            )
    names, codes = np.unique(patients, return_inverse=True)
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    shuffled = np.empty_like(order)
    shuffled[order] = np.arange(len(order))
    codes = shuffled[codes]
    sizes = np.zeros((len(names), len(CLASSES)))
    np.add.at(sizes, (codes, labels), 1)
    # Those of many images of one class first.
    sequence = np.argsort(-np.std(sizes, axis=1), kind="stable")
    fold_of = np.empty(len(names), dtype=np.int64)
    totals = sizes.sum(axis=0).tolist()
    counts = [[0.0] * len(CLASSES) for _ in range(num_folds)]
    for patient, size in zip(sequence.tolist(), sizes[sequence].tolist(), strict=True):
        fold = _find_best_fold(counts, totals, size)
        counts[fold] = [count + own for count, own in zip(counts[fold], size, strict=True)]
        fold_of[patient] = fold
    return fold_of[codes]


def _find_best_fold(counts: list[list[float]], totals: list[float], size: list[float]) -> int:
    """The fold that a patient leaves most equal to the others, or the smallest of such folds.

    In plain numbers, since a numpy call takes longer than all of these. The operations and their
    order are those of scikit-learn, so that folds which are equal but for rounding are the same.

    Args:
        counts: images of each class in each fold, num_folds lists of (C,).
        totals: images of each class, (C,).
        size: images of each class of the patient, (C,).
    """
    shares = [[fold[label] / total for fold in counts] for label, total in enumerate(totals)]
    best, best_spread, best_count = 0, inf, inf
    for number, fold in enumerate(counts):
        spread = 0.0
        for own, total, count, added in zip(shares, totals, fold, size, strict=True):
            share = own[number]
            own[number] = (count + added) / total
            spread += _spread(own)
            own[number] = share
        spread /= len(totals)
        num_images = fsum(fold)
        # As numpy.isclose.
        is_equal = abs(spread - best_spread) <= 1e-8 + 1e-5 * abs(best_spread) < inf
        if spread < best_spread or (is_equal and num_images < best_count):
            best, best_spread, best_count = number, spread, num_images
    return best


def _spread(values: list[float]) -> float:
    """The standard deviation, as numpy computes that of a column."""
    # Not by `sum`, which rounds less since Python 3.12.
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    total = 0.0
    for value in values:
        total += (value - mean) * (value - mean)
    return sqrt(total / len(values))


def hold_out(
    labels: NDArray[np.integer[Any]], patients: NDArray[Any], fraction: float, seed: int = 0
) -> NDArray[np.bool_]:
    """Choose a share of the patients to test on, the same share of those of each class.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient of each radiograph, as text or number, (N,).
        fraction: share of the patients, between 0 and 1; rounded to whole patients in each class.
            Patients with images of both classes are a group of their own.
        seed: which patients.

    Returns:
        Whether each radiograph is held out, (N,).

    Raises:
        DataError: there are no radiographs of a class among those held out, or among the others.
    """
    _, codes = np.unique(patients, return_inverse=True)
    classes = np.zeros((codes.max() + 1, len(CLASSES)), dtype=bool)
    classes[codes, labels] = True
    groups = classes @ (2 ** np.arange(len(CLASSES)))
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(classes), dtype=bool)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        chosen[members[: round(fraction * len(members))]] = True
    held_out: NDArray[np.bool_] = chosen[codes]
    for label, name in enumerate(CLASSES):
        num_patients = int(classes[:, label].sum())
        for rows, part in ((held_out, "test on"), (~held_out, "train on")):
            if not (labels[rows] == label).any():
                raise DataError(
                    f"test fraction {fraction}: no {name} is left to {part}; {num_patients}"
                    " patients have it. Choose another --test-fraction, or give more radiographs."
                )
    return held_out


def take(
    labels: NDArray[np.integer[Any]], patients: NDArray[Any], limit: int, seed: int = 0
) -> NDArray[np.int64]:
    """Choose whole patients at random, class by class in proportion, up to a number of images.

    A patient with more images than a class still needs is skipped for a smaller one.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient of each radiograph, as text or number, (N,).
        limit: maximum number of radiographs.
        seed: which patients.

    Returns:
        int64, sorted positions of the chosen radiographs, `limit` or a few less; all if there are
        no more.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    quota = round(limit * float(np.mean(labels == 1)))
    taken = []
    for label, count in ((0, limit - quota), (1, quota)):
        members = np.flatnonzero(labels == label)
        names, codes = np.unique(patients[members], return_inverse=True)
        sizes = np.bincount(codes, minlength=len(names))
        chosen = []
        for patient in rng.permutation(len(names)):
            if sizes[patient] <= count:
                chosen.append(patient)
                count -= sizes[patient]
        taken.append(members[np.isin(codes, chosen)])
    return np.sort(np.concatenate(taken))
