"""Paired comparison of settings: scikit-learn's AUC, and intervals that know what is shared."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from cxr.metrics.results import Effect, Interval
from cxr.tuning import effects

N, FOLDS = 400, 4
GENERATOR = np.random.default_rng(0)
LABEL = GENERATOR.integers(0, 2, N)
PATIENT = [f"p{i // 2}" for i in range(N)]
FOLD = np.arange(N) // 2 % FOLDS
SHARED = LABEL + GENERATOR.normal(0, 1.2, N)
"""What all settings see of an image, so that their scores move together."""

GRID = {"normalization": ("none", "unit"), "class_weighting": ("none", "focal")}
SETTINGS = [
    {"normalization": a, "class_weighting": b}
    for a in GRID["normalization"]
    for b in GRID["class_weighting"]
]
LOGITS = np.stack(
    [
        SHARED + GENERATOR.normal(0, 0.1, N) + (0.4 * LABEL if s["normalization"] == "unit" else 0)
        for s in SETTINGS
    ]
)

MEMBERS = np.flatnonzero(np.arange(N) % 5 < 2)
"""Images that are also judged under two changes."""

STRESSED = np.stack([LOGITS[:, MEMBERS] * [1, -1][c] ** (MEMBERS % 3 == 1) for c in (0, 1)], axis=1)
"""The first change changes nothing; under the second, some logits have the other sign."""


@pytest.fixture(scope="module")
def judged() -> effects.Judged:
    return effects.judge(LABEL, FOLD, PATIENT, LOGITS, MEMBERS, STRESSED, num_resamples=400)


def test_each_folds_figures_are_scikit_learns(judged: effects.Judged) -> None:
    for t in range(len(SETTINGS)):
        for k in range(FOLDS):
            label, scores = LABEL[k == FOLD], LOGITS[t][k == FOLD]
            assert judged.auc.values[t, k] == pytest.approx(roc_auc_score(label, scores))
            false, true, thresholds = roc_curve(label, scores)
            called = scores >= thresholds[np.argmax(true - false)]
            assert judged.balanced_accuracy.values[t, k] == pytest.approx(
                balanced_accuracy_score(label, called)
            )


def test_a_difference_is_averaged_over_the_other_factor(judged: effects.Judged) -> None:
    found = effects.compare(SETTINGS, judged.auc, GRID, N, N // 2)
    assert [(e.factor, e.level, e.reference) for e in found] == [
        ("normalization", "unit", "none"),
        ("class_weighting", "focal", "none"),
    ]
    means = judged.auc.values.mean(axis=1)
    expected = ((means[2] - means[0]) + (means[3] - means[1])) / 2
    assert found[0].difference.value == pytest.approx(expected)
    assert found[0].difference.low > 0
    assert found[1].difference.low < 0 < found[1].difference.high


def test_a_paired_interval_is_narrower_than_either_figures(judged: effects.Judged) -> None:
    paired = effects.compare(SETTINGS, judged.auc, GRID, N, N // 2)[0].difference
    alone = judged.auc.interval(0)
    assert alone is not None
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_failed_setting_is_left_out_with_its_partner() -> None:
    logits = LOGITS.copy()
    logits[2, 7] = np.nan
    judged = effects.judge(LABEL, FOLD, PATIENT, logits, MEMBERS, STRESSED, num_resamples=50)
    assert judged.auc.interval(2) is None
    found = effects.compare(SETTINGS, judged.auc, GRID, N, N // 2)
    means = judged.auc.values.mean(axis=1)
    assert found[0].difference.value == pytest.approx(means[3] - means[1])
    assert found[1].difference.value == pytest.approx(means[1] - means[0])


def test_the_stressed_auc_is_the_mean_of_scikit_learns_over_changes(judged: effects.Judged) -> None:
    for t in range(len(SETTINGS)):
        for k in range(FOLDS):
            chosen = FOLD[MEMBERS] == k
            expected = [
                roc_auc_score(LABEL[MEMBERS][chosen], scores[chosen]) for scores in STRESSED[t]
            ]
            assert judged.change_aucs[t, :, k] == pytest.approx(expected)
            assert judged.stressed_auc.values[t, k] == pytest.approx(np.mean(expected))
    assert (judged.change_aucs[:, 1] < judged.change_aucs[:, 0]).all()


def test_images_as_they_are_and_under_changes_share_the_resamples() -> None:
    """Under a change that changes nothing, each resample of all images has the same AUC."""
    judged = effects.judge(
        LABEL, FOLD, PATIENT, LOGITS, np.arange(N), LOGITS[:, None], num_resamples=50
    )
    assert np.array_equal(judged.stressed_auc.values, judged.auc.values)
    assert np.array_equal(judged.stressed_auc.resampled, judged.auc.resampled)


def test_without_changed_images_the_stressed_auc_is_undefined_and_all_else_is_equal(
    judged: effects.Judged,
) -> None:
    alone = effects.judge(
        LABEL, FOLD, PATIENT, LOGITS, MEMBERS[:0], STRESSED[:, :, :0], num_resamples=400
    )
    assert alone.stressed_auc.interval(0) is None
    assert np.array_equal(alone.auc.resampled, judged.auc.resampled)


def test_resamples_repeat(judged: effects.Judged) -> None:
    again = effects.judge(LABEL, FOLD, PATIENT, LOGITS, MEMBERS, STRESSED, num_resamples=400)
    assert np.array_equal(again.auc.resampled, judged.auc.resampled)
    assert np.array_equal(again.stressed_auc.resampled, judged.stressed_auc.resampled)


def test_the_answer_is_a_sentence_with_its_interval_and_n(judged: effects.Judged) -> None:
    found = effects.compare(SETTINGS, judged.auc, GRID, N, N // 2)
    difference = found[0].difference
    assert effects.sentence(found, "normalization") == (
        f"normalization: unit against none helps: AUC {difference.value:+.4f}"
        f" [{difference.low:+.4f}, {difference.high:+.4f}], n = 400 images of 200 patients."
    )
    assert effects.sentence([], "normalization") == (
        "normalization: no two values could be compared."
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict", "remark"),
    [
        (0.001, 0.009, "helps", ""),
        (-0.009, -0.001, "hurts", ""),
        (-0.001, 0.009, "leaves it open", ", beyond the margin of 0.005 around 0"),
        (-0.050, 0.001, "leaves it open", ", beyond the margin of 0.005 around 0"),
        (-0.005, 0.005, "shows no difference", ", inside the margin of 0.005 around 0"),
        (0.001, 0.002, "shows no difference", ", inside the margin of 0.005 around 0"),
        (-0.002, -0.001, "shows no difference", ", inside the margin of 0.005 around 0"),
    ],
)
def test_only_an_interval_inside_the_margin_shows_no_difference(
    low: float, high: float, verdict: str, remark: str
) -> None:
    middle = (low + high) / 2
    effect = Effect("head_width", "8", "4", Interval(middle, low, high), 1_000, 700)
    assert effects.sentence([effect], "head_width") == (
        f"head width: 8 against 4 {verdict}: AUC {middle:+.4f} [{low:+.4f}, {high:+.4f}]{remark},"
        " n = 1,000 images of 700 patients."
    )
