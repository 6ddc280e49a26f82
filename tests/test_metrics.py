"""Figures against scikit-learn, brute force and cases written out by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from cxr import metrics
from cxr.errors import DataError, SettingsError
from cxr.metrics import OperatingPoint, Scaling, weighted

Case = tuple[np.ndarray, np.ndarray]

HALF = OperatingPoint("youden", 0.5, 0.0, 0.0, 1)


def random_case(seed: int, n: int = 300, *, ties: bool = False) -> Case:
    """Labels and overlapping probabilities, (n,) each; with `ties` on a grid of 0.1."""
    generator = np.random.default_rng(seed)
    y_true = (generator.random(n) < 0.7).astype(np.int64)
    y_true[:2] = (0, 1)
    probs = 1 / (1 + np.exp(-generator.normal(2 * y_true - 0.5, 1.5)))
    return y_true, probs.round(1) if ties else probs


def examine(y_true: Any, probs: Any, **changes: Any) -> metrics.Examination:
    settings: dict[str, Any] = {
        "patients": [f"p{index}" for index in range(len(y_true))],
        "subtypes": [""] * len(y_true),
        "operating_point": HALF,
        "num_resamples": 50,
    }
    return metrics.examine(y_true, probs, **(settings | changes))


# ---------------------------------------------------------------- AUC


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_scikit_learn(ties: bool) -> None:
    y_true, probs = random_case(0, ties=ties)
    assert metrics.roc_auc(y_true, probs) == sk.roc_auc_score(y_true, probs)


def test_auc_by_hand() -> None:
    # Of the four pairs three are in order.
    assert metrics.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert metrics.roc_auc([0, 1], [0.3, 0.3]) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_none(label: int) -> None:
    assert metrics.roc_auc([label] * 3, [0.1, 0.5, 0.9]) is None


@pytest.mark.parametrize(
    ("y_true", "score", "message"),
    [
        ([], [], "empty"),
        ([0, 1], [0.5], r"labels \(2,\) and scores \(1,\)"),
        ([0, 2], [0.5, 0.5], "other than 0"),
        ([0, 1], [0.5, np.nan], "1 of 2 scores are not finite"),
    ],
)
def test_unusable_scores_are_refused(y_true: list[int], score: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.roc_auc(y_true, score)


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    "known", [Scaling(0.4), Scaling(1.0), Scaling(3.0, 1.5), Scaling(0.8, -2.0)]
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_scaling_recovers_a_known_one(known: Scaling, size: float) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, size=50_000)
    y_true = (generator.random(50_000) < metrics.probabilities(logits, known)).astype(int)
    fitted = metrics.fit_scaling(y_true, logits * size)
    low, high = metrics.TEMPERATURE_BOUNDS
    if low < known.temperature * size < high:
        assert fitted.temperature == pytest.approx(known.temperature * size, rel=0.05)
        assert fitted.bias == pytest.approx(known.bias, abs=0.05)
    else:
        assert fitted.temperature == pytest.approx(np.clip(known.temperature * size, low, high))


def test_a_scaling_is_the_unpenalized_logistic_regression_on_the_logit() -> None:
    generator = np.random.default_rng(4)
    y_true = generator.integers(2, size=300)
    logits = generator.normal(4 * y_true, 3)
    fitted = metrics.fit_scaling(y_true, logits)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], y_true)
    assert 1 / fitted.temperature == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert fitted.bias == pytest.approx(model.intercept_[0], abs=1e-4)


def test_a_scaling_lowers_the_log_loss_and_keeps_the_order() -> None:
    generator = np.random.default_rng(2)
    y_true = generator.integers(2, size=400)
    logits = generator.normal(8 * y_true - 1, 6)
    before = metrics.probabilities(logits, Scaling())
    after = metrics.probabilities(logits, metrics.fit_scaling(y_true, logits))
    assert sk.log_loss(y_true, after) < sk.log_loss(y_true, before)
    assert metrics.roc_auc(y_true, after) == metrics.roc_auc(y_true, before)
    assert after.mean() == pytest.approx(y_true.mean(), abs=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_logits_that_0_separates_are_left_as_they_are(scale: float) -> None:
    logits = np.array([-2, -1, 1, 2]) * scale
    assert metrics.fit_scaling([0, 0, 1, 1], logits) == Scaling()
    moved = metrics.fit_scaling([0, 0, 1, 1], logits + 7 * scale)
    assert moved.temperature == 1
    assert moved.bias == pytest.approx(-7 * scale)


def test_a_temperature_stays_in_its_bounds() -> None:
    low, high = metrics.TEMPERATURE_BOUNDS
    # All logits on the wrong side: the flatter the better.
    wrong = metrics.fit_scaling([1, 1, 0, 0], [-900, -800, 800, 900])
    assert wrong.temperature == pytest.approx(high, rel=1e-3)
    # Right but for a sliver.
    almost = metrics.fit_scaling([0, 1, 0, 1], [-1.0, 1.0, 1e-9, -1e-9])
    assert low <= almost.temperature < 0.1
    equal = metrics.fit_scaling([0, 1, 1, 1], [2.0, 2.0, 2.0, 2.0])
    assert metrics.probabilities([2.0], equal) == pytest.approx([0.75])


def test_a_scaling_needs_both_classes() -> None:
    with pytest.raises(DataError, match="all 2 images are pneumonia"):
        metrics.fit_scaling([1, 1], [0.5, 1.5])


def test_probabilities_by_hand() -> None:
    result = metrics.probabilities(np.array([0, 2, -1e30], np.float32), Scaling(2.0))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, [0.5, 0.7310585786300049, 0.0])
    np.testing.assert_allclose(metrics.probabilities([2.0], Scaling(2.0, -1.0)), [0.5])
    with pytest.raises(SettingsError, match="temperature 0"):
        Scaling(0.0)
    with pytest.raises(SettingsError, match="bias nan"):
        Scaling(1.0, math.nan)


# ---------------------------------------------------------------- operating point


def rates(y_true: np.ndarray, probs: np.ndarray, threshold: float) -> tuple[float, float]:
    called = probs >= threshold
    return float(called[y_true == 1].mean()), float((~called)[y_true == 0].mean())


def brute_force(y_true: np.ndarray, probs: np.ndarray, rule: str) -> tuple[float, float]:
    """Sensitivity and specificity of the best of all cuts, tried one by one."""
    cuts = sorted({*probs.tolist(), 2.0})
    reached = [rates(y_true, probs, cut) for cut in cuts]
    name, _, target = rule.partition("=")
    if name == "youden":
        return max(reached, key=lambda both: (round(sum(both), 12), both[0]))
    if name == "cost":
        costs, prevalence = target.split(",prevalence=")
        miss, alarm = map(float, costs.split(":"))
        sick = float(prevalence)
        return min(
            reached,
            key=lambda both: (
                round(sick * miss * (1 - both[0]) + (1 - sick) * alarm * (1 - both[1]), 12),
                -both[0],
            ),
        )
    if name == "sensitivity":
        return [both for both in reached if both[0] >= float(target)][-1]
    return next(both for both in reached if both[1] >= float(target))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        *("youden", "sensitivity=0.95", "sensitivity=1", "specificity=0.99", "specificity=0.5"),
        *("cost=1:1,prevalence=0.5", "cost=20:1,prevalence=0.1", "cost=1:3,prevalence=0.4"),
    ],
)
def test_operating_point_is_that_of_brute_force(rule: str, ties: bool) -> None:
    for seed in range(20):
        y_true, probs = random_case(seed, n=60, ties=ties)
        point = metrics.choose_operating_point(y_true, probs, rule)
        expected = brute_force(y_true, probs, rule)
        assert (point.sensitivity, point.specificity) == pytest.approx(expected)
        assert rates(y_true, probs, point.threshold) == pytest.approx(expected)
        assert (point.n, point.rule) == (60, rule)


def test_threshold_lies_midway_between_scores() -> None:
    y_true, probs = [0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]
    assert metrics.choose_operating_point(y_true, probs).threshold == pytest.approx(0.4)
    highest = metrics.choose_operating_point(y_true, probs, "sensitivity=0.5")
    assert highest.threshold == pytest.approx(0.75)
    lowest = metrics.choose_operating_point(y_true, probs, "specificity=0.5")
    assert lowest.threshold == pytest.approx(0.15)


def test_threshold_between_neighboring_floats_still_cuts() -> None:
    low = 0.5
    high = float(np.nextafter(low, 1))
    point = metrics.choose_operating_point([0, 1], [low, high])
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)
    np.testing.assert_array_equal(point.predict([low, high]), [False, True])


def test_threshold_is_finite_when_nothing_may_be_predicted_positive() -> None:
    # A normal image has the highest score there is.
    point = metrics.choose_operating_point([0, 1], [1.0, 0.2], "specificity=1")
    assert np.isfinite(point.threshold)
    assert (point.sensitivity, point.specificity) == (0.0, 1.0)
    assert not point.predict([1.0, 0.2]).any()


def test_equal_youden_indices_take_the_more_sensitive() -> None:
    # Cuts at .25 and at .65 both reach 1.5 in sum.
    point = metrics.choose_operating_point([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.7])
    assert (point.sensitivity, point.specificity) == (1.0, 0.5)


@pytest.mark.parametrize(
    "rule",
    ["", "Youden", "sensitivity", "sensitivity=", "sensitivity=0", "specificity=1.1", "f1=1"],
)
def test_unknown_rule_lists_the_choices(rule: str) -> None:
    with pytest.raises(SettingsError, match=r"Choices: youden, sensitivity=.*, specificity="):
        metrics.choose_operating_point([0, 1], [0.1, 0.9], rule)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("cost=0:1,prevalence=0.1", "both costs must be finite numbers above 0"),
        ("cost=5:-1,prevalence=0.1", "both costs must be"),
        ("cost=inf:1,prevalence=0.1", "both costs must be"),
        ("cost=five:1,prevalence=0.1", "both costs must be"),
        ("cost=5:1,prevalence=0", "prevalence must be between 0 and 1, exclusive"),
        ("cost=5:1,prevalence=1", "prevalence must be"),
        ("cost=5:1,prevalence=10%", "prevalence must be"),
        ("cost=5:1", "unknown operating point rule 'cost=5:1'. Choices: youden,"),
        ("cost=5,prevalence=0.1", "unknown operating point rule"),
    ],
)
def test_a_cost_or_prevalence_outside_its_range_is_refused(rule: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        metrics.parse_rule(rule)
    assert reason in str(caught.value)


def test_equal_costs_at_even_prevalence_are_youden_s_index() -> None:
    for seed in range(10):
        case = random_case(seed, n=40, ties=True)
        even = metrics.choose_operating_point(*case, "cost=2:2,prevalence=0.5")
        assert even.threshold == metrics.choose_operating_point(*case).threshold


# ---------------------------------------------------------------- acquisition changes


@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.9", "specificity=0.9"])
def test_clean_and_changed_images_count_alike_however_many_there_are(rule: str) -> None:
    y_true, probs = random_case(1, n=80)
    other_y_true, other_probs = random_case(2, n=30)
    reached = []
    for copies in (1, 7):
        point = metrics.choose_operating_point(
            [*y_true, *np.tile(other_y_true, copies)],
            [*probs, *np.tile(other_probs, copies)],
            rule,
            is_changed=[False] * 80 + [True] * 30 * copies,
        )
        assert (point.sensitivity, point.specificity) == rates(y_true, probs, point.threshold)
        changed = rates(other_y_true, other_probs, point.threshold)
        assert (point.stressed_sensitivity, point.stressed_specificity) == changed
        assert point.n == 80
        reached.append(point)
    assert reached[0] == reached[1]
    both = [
        np.mean([rates(y_true, probs, cut), rates(other_y_true, other_probs, cut)], axis=0)
        for cut in sorted({*probs, *other_probs, 2.0})
    ]
    own = np.mean([rates(y_true, probs, reached[0].threshold), changed], axis=0)
    if rule == "youden":
        assert own.sum() == pytest.approx(max(pair.sum() for pair in both))
    elif rule == "sensitivity=0.9":
        assert own[0] == pytest.approx(min(pair[0] for pair in both if pair[0] >= 0.9 - 1e-12))
    else:
        assert own[1] == pytest.approx(min(pair[1] for pair in both if pair[1] >= 0.9 - 1e-12))


def test_the_calibration_weighs_clean_and_changed_images_alike() -> None:
    y_true, logits = np.array([0, 1, 0, 1]), np.array([-3.0, 2.0, 1.0, 0.5])
    other, other_logits = np.array([1, 0]), np.array([-4.0, -1.0])
    fitted = [
        metrics.fit_scaling(
            [*y_true, *np.tile(other, copies)],
            [*logits, *np.tile(other_logits, copies)],
            [False] * 4 + [True] * 2 * copies,
        )
        for copies in (1, 2, 5)
    ]
    # Twice the two is four, as many as the others: plain pooling.
    pooled = metrics.fit_scaling(
        [*y_true, *np.tile(other, 2)], [*logits, *np.tile(other_logits, 2)]
    )
    for scaling in fitted:
        assert scaling.temperature == pytest.approx(pooled.temperature, rel=1e-4)
        assert scaling.bias == pytest.approx(pooled.bias, abs=1e-4)
    assert pooled.temperature > metrics.fit_scaling(y_true, logits).temperature + 0.1


def test_figures_under_changes_are_those_of_an_examination_of_each() -> None:
    y_true, probs = random_case(5, n=60)
    _, other = random_case(6, n=60)
    patients = [f"p{i // 2}" for i in range(60)]
    result = metrics.examine_changes(
        y_true, probs, {"blur": other, "noise": 1 - probs}, patients=patients, operating_point=HALF,
        num_resamples=50, seed=3,
    )  # fmt: skip
    for prob, figures in zip(
        (probs, other, 1 - probs), (result.clean, *result.changes.values()), strict=True
    ):
        alone = metrics.examine(
            y_true, prob, patients=patients, subtypes=[""] * 60, operating_point=HALF,
            num_resamples=50, seed=3,
        )  # fmt: skip
        estimates = alone.threshold_free | alone.at_operating_point.estimates
        assert figures == {name: estimates[name] for name in figures}
    for name in ("auc", "sensitivity", "specificity"):
        values = [figures[name].value for figures in result.changes.values()]
        assert result.mean[name].value == pytest.approx(np.mean(np.array(values, float)))
        lowest = result.lowest(name)
        assert lowest == min(value for value in values if value is not None)
        assert result.changes[result.worst(name)][name].value == lowest
    mean, blur = result.mean["auc"], result.changes["blur"]["auc"]
    assert mean.low is not None
    assert mean.high is not None
    assert blur.low is not None
    assert blur.high is not None
    # Blur and noise are unrelated here: their mean varies less than either.
    assert mean.high - mean.low < blur.high - blur.low


def test_figures_under_changes_survive_json_and_stay_undefined() -> None:
    result = metrics.examine_changes(
        [1, 1], [0.2, 0.9], {"blur": [0.6, 0.7]}, patients=["a", "b"], operating_point=HALF,
        num_resamples=10,
    )  # fmt: skip
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert metrics.Robustness.from_json(content) == result
    assert result.mean["auc"].value is None
    assert (result.worst("auc"), result.lowest("auc")) == ("", None)
    assert content["worst"] == {"auc": "", "sensitivity": "blur", "specificity": ""}


def test_without_changes_there_is_no_table() -> None:
    with pytest.raises(DataError, match="no acquisition change"):
        metrics.examine_changes([0, 1], [0, 1], {}, patients=["a", "b"], operating_point=HALF)
    for number in (-1, 1):
        with pytest.raises(SettingsError, match=f"stress_images: {number} is neither 0"):
            metrics.check_stress_images(number)
    metrics.check_stress_images(0)
    metrics.check_stress_images(2)


def test_operating_point_needs_both_classes_and_probabilities() -> None:
    with pytest.raises(DataError, match="all 2 images are normal"):
        metrics.choose_operating_point([0, 0], [0.1, 0.9])
    with pytest.raises(DataError, match="expected 0-1"):
        metrics.choose_operating_point([0, 1], [-3.0, 4.0])


def test_operating_point_survives_json() -> None:
    point = metrics.choose_operating_point(*random_case(3), "sensitivity=0.95")
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point


# ---------------------------------------------------------------- examination


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_those_of_scikit_learn(ties: bool) -> None:
    y_true, probs = random_case(4, ties=ties)
    point = OperatingPoint("youden", 0.31, 0.0, 0.0, 1)
    result = examine(y_true, probs, operating_point=point)

    assert result.threshold_free["auc"].value == pytest.approx(sk.roc_auc_score(y_true, probs))
    assert result.threshold_free["average_precision"].value == pytest.approx(
        sk.average_precision_score(y_true, probs)
    )
    assert result.threshold_free["brier"].value == pytest.approx(sk.brier_score_loss(y_true, probs))
    for at, threshold in ((result.at_half, 0.5), (result.at_operating_point, 0.31)):
        predicted = probs >= threshold
        expected = {
            "accuracy": sk.accuracy_score(y_true, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(y_true, predicted),
            "sensitivity": sk.recall_score(y_true, predicted),
            "specificity": sk.recall_score(y_true, predicted, pos_label=0),
            "ppv": sk.precision_score(y_true, predicted),
            "npv": sk.precision_score(y_true, predicted, pos_label=0),
            "f1": sk.f1_score(y_true, predicted),
        }
        values = {name: at.estimates[name].value for name in expected}
        assert values == pytest.approx(expected)
        counts = at.confusion
        assert [
            [counts.true_negative, counts.false_positive],
            [counts.false_negative, counts.true_positive],
        ] == sk.confusion_matrix(y_true, predicted).tolist()
        assert at.threshold == threshold


@pytest.mark.parametrize("ties", [False, True])
def test_resampled_metrics_are_those_of_scikit_learn_with_sample_weight(ties: bool) -> None:
    y_true, probs = random_case(5, n=80, ties=ties)
    weights = np.random.default_rng(5).integers(3, size=(10, 80)).astype(np.float64)
    positive = y_true.astype(bool)
    ranked = weighted.threshold_free(positive, probs, weights)
    predicted = weighted.at_threshold(positive, probs >= 0.5, np.full(80, ""), weights)
    for row, weight in enumerate(weights):
        for name, function in (
            ("auc", sk.roc_auc_score),
            ("average_precision", sk.average_precision_score),
            ("brier", sk.brier_score_loss),
        ):
            expected = function(y_true, probs, sample_weight=weight)
            assert ranked[name][row] == pytest.approx(expected), name
        for name, function in (
            ("balanced_accuracy", sk.balanced_accuracy_score),
            ("ppv", sk.precision_score),
            ("f1", sk.f1_score),
        ):
            expected = function(y_true, probs >= 0.5, sample_weight=weight)
            assert predicted[name][row] == pytest.approx(expected), name


def test_calibration_error_by_hand() -> None:
    # Bins are fifteenths: .01 and .05 share the first, 1.0 belongs to the last.
    y_true, probs = [0, 1, 1, 1], [0.01, 0.05, 0.5, 1.0]
    result = examine(y_true, probs).threshold_free["expected_calibration_error"]
    assert result.value == pytest.approx((2 * abs(0.03 - 0.5) + abs(0.5 - 1) + 0) / 4)
    mean_prob, share, counts = metrics.reliability(y_true, probs)
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert mean_prob[[0, 7, 14]].tolist() == pytest.approx([0.03, 0.5, 1.0])
    assert share[[0, 7, 14]].tolist() == [0.5, 1.0, 1.0]
    assert np.isnan(mean_prob[1])


def test_subtypes_have_sensitivities_and_counts_of_their_own() -> None:
    result = examine(
        [1, 1, 1, 1, 1, 0],
        [0.9, 0.8, 0.1, 0.9, 0.1, 0.2],
        subtypes=["bacteria", "bacteria", "bacteria", "virus", "virus", ""],
        patients=["a", "a", "b", "c", "d", "e"],
    )
    bacteria = result.at_half.estimates["sensitivity_bacteria"]
    virus = result.at_half.estimates["sensitivity_virus"]
    assert bacteria.value == pytest.approx(2 / 3)
    assert (bacteria.n, bacteria.num_patients) == (3, 2)
    assert (virus.value, virus.n, virus.num_patients) == (0.5, 2, 2)
    assert (result.num_images, result.num_patients) == (6, 5)
    assert (result.num_normal, result.num_pneumonia) == (1, 5)


def test_a_subtype_of_no_image_has_no_metric() -> None:
    unknown = examine([1, 1, 0], [0.9, 0.8, 0.2]).at_half.estimates
    assert not [name for name in unknown if name.startswith("sensitivity_")]
    viral = examine([1, 1, 0], [0.9, 0.8, 0.2], subtypes=["virus", "", ""]).at_half.estimates
    assert [name for name in viral if name.startswith("sensitivity_")] == ["sensitivity_virus"]


def test_metrics_say_how_many_images_they_are_based_on() -> None:
    result = examine([0, 0, 1, 1, 1], [0.1, 0.9, 0.2, 0.8, 0.7]).at_half.estimates
    sizes = {name: result[name].n for name in ("accuracy", "sensitivity", "specificity")}
    assert sizes == {"accuracy": 5, "sensitivity": 3, "specificity": 2}
    assert {name: result[name].n for name in ("ppv", "npv", "f1")} == {"ppv": 3, "npv": 2, "f1": 4}


def test_metrics_without_a_class_are_undefined_not_invented() -> None:
    result = examine([1, 1, 1], [0.9, 0.8, 0.2], num_resamples=20)
    for estimate in (
        result.threshold_free["auc"],
        result.at_half.estimates["specificity"],
        result.at_half.estimates["balanced_accuracy"],
    ):
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert estimate.num_undefined == 20
    assert result.at_half.estimates["sensitivity"].value == pytest.approx(2 / 3)


def test_undefined_resamples_are_counted() -> None:
    # The one normal image is missing from a share of (1 - 1/4)^4 = .32 of the resamples.
    result = examine([0, 1, 1, 1], [0.1, 0.4, 0.6, 0.9], num_resamples=1000)
    auc = result.threshold_free["auc"]
    assert auc.value == 1.0
    assert 250 < auc.num_undefined < 380
    assert (auc.low, auc.high) == (1.0, 1.0)


def test_interval_covers_the_true_value_at_about_its_level() -> None:
    generator = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        called = (generator.random(150) < 0.8).astype(float)
        estimate = examine(np.ones(150), called, num_resamples=200).at_half.estimates["sensitivity"]
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.8 <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99


def test_interval_by_patient_is_wider_than_by_image() -> None:
    y_true, probs = (np.repeat(column, 4) for column in random_case(7, n=100))
    by_image = examine(y_true, probs, num_resamples=500)
    patients = [f"p{index // 4}" for index in range(400)]
    by_patient = examine(y_true, probs, num_resamples=500, patients=patients)
    for name in ("auc", "brier"):
        image, patient = by_image.threshold_free[name], by_patient.threshold_free[name]
        assert patient.value == image.value
        assert None not in (image.low, image.high, patient.low, patient.high)
        # Four copies of an image add no information, so intervals by image are half as wide.
        ratio = (patient.high - patient.low) / (image.high - image.low)  # type: ignore[operator]
        assert 1.6 < ratio < 2.5
    assert (by_image.num_patients, by_patient.num_patients) == (400, 100)


def test_same_seed_gives_the_same_intervals() -> None:
    case = random_case(8)
    assert examine(*case, seed=3) == examine(*case, seed=3)
    assert examine(*case, seed=3) != examine(*case, seed=4)


def test_metrics_json_is_plain_and_undefined_is_null() -> None:
    text = json.dumps(examine([1, 1], [0.9, 0.2]).to_json(), allow_nan=False)
    read = json.loads(text)
    assert read["threshold_free"]["auc"]["value"] is None
    assert read["at_half"]["confusion"] == {
        "true_negative": 0,
        "false_positive": 0,
        "false_negative": 1,
        "true_positive": 1,
    }
    assert read["at_operating_point"]["estimates"]["accuracy"]["value"] == 0.5
    assert read["operating_point"]["rule"] == "youden"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patients": ["a"]}, "2 images, 1 patients and 2 subtypes"),
        ({"subtypes": []}, "2 images, 2 patients and 0 subtypes"),
    ],
)
def test_examination_refuses_uneven_columns(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        examine([0, 1], [0.1, 0.9], **changes)
    with pytest.raises(SettingsError, match="num_resamples 0"):
        examine([0, 1], [0.1, 0.9], num_resamples=0)


def test_most_wrong_lists_only_errors_the_largest_first() -> None:
    y_true, probs = [0, 1, 1, 0, 1], [0.6, 0.1, 0.9, 0.95, 0.45]
    assert metrics.most_wrong(y_true, probs, HALF, limit=3) == [3, 1, 0]
    assert metrics.most_wrong([0, 1], [0.1, 0.9], HALF, limit=3) == []


def test_interval_is_that_of_scikit_learn_on_the_resampled_images() -> None:
    """As large as the test split, with more resamples than are held at once."""
    y_true, probs = random_case(9, n=624)
    patient = np.arange(624) // 3
    result = examine(y_true, probs, patients=patient.astype(str).tolist(), num_resamples=300)
    # The images of each patient, patients in the order of their keys.
    images = [np.flatnonzero(patient == int(key)) for key in sorted(set(patient.astype(str)))]
    drawn = np.random.default_rng(0).integers(len(images), size=(300, len(images)))
    rows = [np.concatenate([images[index] for index in resample]) for resample in drawn]
    aucs = [sk.roc_auc_score(y_true[row], probs[row]) for row in rows]
    auc = result.threshold_free["auc"]
    assert (auc.low, auc.high) == pytest.approx(np.quantile(aucs, [0.025, 0.975]), abs=1e-12)
    assert auc.value == pytest.approx(sk.roc_auc_score(y_true, probs), abs=1e-12)


# ---------------------------------------------------------------- subgroups


def subgroups(columns: dict[str, list[str]], y_true: Any, probs: Any) -> list[metrics.Subgroup]:
    return metrics.examine_subgroups(
        columns,
        y_true,
        probs,
        patients=[f"p{index // 2}" for index in range(len(y_true))],
        operating_point=HALF,
        num_resamples=50,
    )


def test_a_subgroup_has_the_figures_of_its_images_alone() -> None:
    y_true, probs = random_case(10, n=200)
    sexes = ["F" if index % 4 < 2 else "M" for index in range(200)]
    [female, male] = subgroups({"sex": sexes}, y_true, probs)
    members = np.asarray(sexes) == "M"
    alone = examine(
        y_true[members], probs[members], patients=[f"p{i // 2}" for i in np.flatnonzero(members)]
    )
    assert (female.value, male.value) == ("F", "M")
    assert male.estimates["auc"] == alone.threshold_free["auc"]
    assert male.estimates["sensitivity"] == alone.at_half.estimates["sensitivity"]
    assert (male.num_images, male.num_patients) == (100, 50)
    assert female.num_normal + male.num_normal == int((y_true == 0).sum())


def test_subgroups_are_in_the_order_of_their_numbers_and_empty_cells_come_last() -> None:
    ages = ["10-19", "", "5-9", "0-4"]
    groups = subgroups({"age": ages, "sex": ["M"] * 4}, [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8])
    named = [(group.column, group.value) for group in groups]
    assert named == [
        ("age", "0-4"),
        ("age", "5-9"),
        ("age", "10-19"),
        ("age", "not given"),
        ("sex", "M"),
    ]


def test_a_subgroup_with_few_patients_of_a_class_is_called_small() -> None:
    # 20 patients with two normal images each, 20 or 19 patients with one or two of pneumonia.
    def of(num_pneumonia: int) -> metrics.Subgroup:
        y_true = [0] * 40 + [1] * num_pneumonia
        [group] = subgroups({"sex": ["F"] * len(y_true)}, y_true, [0.5] * len(y_true))
        return group

    assert not of(39).is_small
    assert of(39).size == "n = 20 normal, 20 pneumonia"
    assert of(38).is_small
    assert of(38).size == "small: n = 20 normal, 19 pneumonia"


def test_an_undefined_figure_of_a_subgroup_says_why() -> None:
    [group] = subgroups({"sex": ["F", "F"]}, [0, 0], [0.1, 0.9])
    content = json.loads(json.dumps(group.to_json(), allow_nan=False))
    assert content["estimates"]["auc"]["value"] is None
    assert content["estimates"]["auc"]["undefined_because"] == "no pneumonia images"
    assert content["estimates"]["specificity"]["value"] == 0.5
    assert content["estimates"]["specificity"]["undefined_because"] == ""
    assert content["is_small"] is True


def test_a_column_of_names_is_refused_without_showing_one() -> None:
    metrics.check_values("age", [f"band {number}" for number in range(20)] + [""])
    with pytest.raises(SettingsError, match="'name' has 21 values, more than 20") as refused:
        metrics.check_values("name", [f"Roentgen {number}" for number in range(21)])
    assert "Roentgen" not in str(refused.value)


# Two networks -------------------------------------------------------------------------------------


def test_a_difference_in_auc_is_that_of_scikit_learn_with_patients_drawn_once_for_both() -> None:
    y_true, score = random_case(3, 60)
    other = np.random.default_rng(4).normal(y_true, 1.0)
    patients = [f"p{i // 2}" for i in range(60)]
    difference = metrics.auc_difference(y_true, score, other, patients=patients, num_resamples=40)
    expected = sk.roc_auc_score(y_true, score) - sk.roc_auc_score(y_true, other)
    assert difference.value == pytest.approx(expected)
    drawn = weighted.draw_patients(np.random.default_rng(0), 40, 30)
    order = np.unique(patients, return_inverse=True)[1]
    resampled = [
        sk.roc_auc_score(y_true, score, sample_weight=counts[order])
        - sk.roc_auc_score(y_true, other, sample_weight=counts[order])
        for counts in drawn
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert difference.low == pytest.approx(low)
    assert difference.high == pytest.approx(high)


def test_equal_scores_differ_by_nothing_and_one_class_is_refused() -> None:
    y_true, score = random_case(5, 60)
    patients = range(60)
    difference = metrics.auc_difference(y_true, score, 2 * score, patients=patients)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="no difference in AUC without both classes"):
        metrics.auc_difference(np.ones(60), score, score, patients=patients)
