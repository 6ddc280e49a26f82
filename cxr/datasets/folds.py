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
