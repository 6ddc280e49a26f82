"""Folds and subsets keep each patient together and the classes in proportion."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cxr.datasets.folds import assign_folds, hold_out, take
from cxr.errors import DataError


def drawn_set(num_patients: int = 300) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Labels and patients, about a quarter normal, one to several images a patient, shuffled."""
    rng = np.random.default_rng(3)
    sizes = rng.geometric(0.6, num_patients)
    labels = np.repeat((np.arange(num_patients) % 4 > 0).astype(np.int64), sizes)
    patients = np.repeat([f"p{i}" for i in range(num_patients)], sizes)
    order = rng.permutation(len(labels))
    return labels[order], patients[order]


def test_no_patient_spans_two_folds() -> None:
    labels, patients = drawn_set()
    folds = assign_folds(labels, patients, 5)
    for patient in np.unique(patients):
        assert len(np.unique(folds[patients == patient])) == 1


def test_every_image_has_a_fold_and_folds_are_stratified() -> None:
    labels, patients = drawn_set()
    folds = assign_folds(labels, patients, 5)
    assert folds.dtype == np.int64
    assert sorted(np.unique(folds)) == [0, 1, 2, 3, 4]
    for fold in range(5):
        assert np.mean(folds == fold) == pytest.approx(0.2, abs=0.02)
        assert np.mean(labels[folds == fold]) == pytest.approx(np.mean(labels), abs=0.03)


def test_folds_follow_the_seed() -> None:
    labels, patients = drawn_set()
    first, again, other = (assign_folds(labels, patients, 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("num_folds", [2, 5, 11])
@pytest.mark.parametrize("mixed", [False, True])
def test_folds_are_those_of_scikit_learn(num_folds: int, mixed: bool) -> None:
    labels, patients = drawn_set()
    if mixed:  # Patients with images of both classes.
        labels = np.random.default_rng(num_folds).integers(0, 2, len(labels))
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=num_folds)
    folds = assign_folds(labels, patients, num_folds, seed=num_folds)
    for fold, (_, members) in enumerate(splitter.split(labels, labels, patients)):
        assert np.flatnonzero(folds == fold).tolist() == members.tolist()


def test_folds_stay_what_they_were() -> None:
    """Cached pixels, and checkpoints that are compared, depend on them."""
    labels, patients = drawn_set(40)
    # As scikit-learn 1.9.1 assigned them.
    text = "2403120043401310333241403103310141422341413204222412200201234"
    assert "".join(map(str, assign_folds(labels, patients, 5))) == text
    numbers = np.unique(patients, return_inverse=True)[1]
    assert "".join(map(str, assign_folds(labels, numbers, 5))) == text


def test_too_few_patients_are_refused() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    patients = np.array(["a", "a", "b", "b", "c", "d", "e", "f", "g"])
    with pytest.raises(DataError, match=r"NORMAL: 2 patients cannot fill 3 .*fewer --folds"):
        assign_folds(labels, patients, 3)


@pytest.mark.parametrize("limit", [10, 50, 123, 400])
def test_whole_patients_are_taken_and_classes_in_proportion(limit: int) -> None:
    labels, patients = drawn_set()
    taken = take(labels, patients, limit)
    assert len(np.unique(taken)) == len(taken)
    assert limit - 2 <= len(taken) <= limit
    assert np.array_equal(taken, np.sort(taken))
    chosen = np.isin(patients, patients[taken])
    assert np.array_equal(np.flatnonzero(chosen), taken)
    assert abs(labels[taken].sum() - limit * labels.mean()) <= 1.5


def test_a_patient_too_large_for_the_limit_is_passed_over() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    patients = np.array(["a", "a", "a", "b", "c", "d", "d", "d", "e", "f"])
    for seed in range(5):
        assert take(labels, patients, 4, seed).tolist() == [3, 4, 8, 9]


def test_what_is_taken_follows_the_seed() -> None:
    labels, patients = drawn_set()
    first, again, other = (take(labels, patients, 60, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_are_taken_where_there_are_no_more() -> None:
    labels, patients = drawn_set(20)
    assert np.array_equal(take(labels, patients, len(labels)), np.arange(len(labels)))
    assert np.array_equal(take(labels, patients, 10**6), np.arange(len(labels)))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_a_test_fraction_holds_out_whole_patients_of_each_class(fraction: float) -> None:
    labels, patients = drawn_set()
    held_out = hold_out(labels, patients, fraction)
    assert not set(patients[held_out]) & set(patients[~held_out])
    for label, num_patients in ((0, 75), (1, 225)):
        own = held_out & (labels == label)
        assert len(np.unique(patients[own])) == round(fraction * num_patients)


def test_patients_of_both_classes_are_held_out_in_proportion() -> None:
    labels = np.tile([0, 0, 1, 0, 1, 1], 20)
    patients = np.array([f"{letter}{i}" for i in range(20) for letter in "aabbcc"])
    held_out = hold_out(labels, patients, 0.25)
    assert {letter: sum(p[0] == letter for p in set(patients[held_out])) for letter in "abc"} == {
        "a": 5, "b": 5, "c": 5,
    }  # fmt: skip


def test_who_is_held_out_follows_the_seed_and_not_the_order() -> None:
    labels, patients = drawn_set()
    first, again, other = (hold_out(labels, patients, 0.2, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(hold_out(labels[::-1], patients[::-1], 0.2), first[::-1])


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.1, r"test fraction 0\.1: no NORMAL is left to test on; 3 patients have it"),
        (0.9, "no NORMAL is left to train on"),
    ],
)
def test_a_fraction_that_leaves_a_class_empty_is_refused(fraction: float, message: str) -> None:
    labels, patients = np.repeat([0, 1], [3, 30]), np.arange(33).astype(str)
    with pytest.raises(DataError, match=message):
        hold_out(labels, patients, fraction)
