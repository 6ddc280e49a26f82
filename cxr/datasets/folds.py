"""Patient-disjoint, class-stratified folds of the training data."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cxr.errors import DataError
from cxr.labels import CLASSES


def assign_folds(
    labels: NDArray[np.int64], patients: NDArray[np.str_], num_folds: int, seed: int = 0
) -> NDArray[np.int64]:
    """Assign every radiograph to a fold so that no patient is in two.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient key of each radiograph, (N,).
        num_folds: how many folds of nearly equal size and class balance.
        seed: which of the many possible assignments.

    Returns:
        int64 (N,), values 0 to num_folds - 1.

    Raises:
        DataError: a class has fewer patients than there are folds.

    Source: scikit-learn's StratifiedGroupKFold.
    """
    for label, name in enumerate(CLASSES):
        num_patients = len(np.unique(patients[labels == label]))
        if num_patients < num_folds:
            raise DataError(
                f"{name}: {num_patients} patients cannot fill {num_folds} patient-disjoint folds."
                " Give more radiographs, or fewer --folds."
            )
    folds = np.empty(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for fold, (_, members) in enumerate(splitter.split(labels, labels, patients)):
        folds[members] = fold
    return folds


def hold_out(
    labels: NDArray[np.int64], patients: NDArray[np.str_], fraction: float, seed: int = 0
) -> NDArray[np.bool_]:
    """Choose a share of the patients to test on, the same share of those of each class.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient key of each radiograph, (N,).
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
    labels: NDArray[np.int64], patients: NDArray[np.str_], limit: int, seed: int = 0
) -> NDArray[np.int64]:
    """Choose whole patients at random, class by class in proportion, up to a number of images.

    A patient with more images than a class still needs is skipped for a smaller one.

    Args:
        labels: class index of each radiograph, (N,).
        patients: patient key of each radiograph, (N,).
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
