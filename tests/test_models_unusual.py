"""Distances to the training images: what they are, what they flag, and what is kept of an image."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from cxr.errors import CheckpointError
from cxr.images.read import read_image
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import checkpoint, classifier, weights
from cxr.models.export import export
from cxr.models.unusual import FeatureDistribution, fit_distribution, read_distribution
from cxr.recipes import RECIPES
from tests.support.checkpoints import SMALL, write_checkpoint

RNG = np.random.default_rng(0)

MIX = RNG.normal(size=(8, 8))


def features(num: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Correlated features of so many images of one kind."""
    independent = np.random.default_rng(seed).normal(shift, 1, (num, 8))
    return (independent @ MIX + 5).astype(np.float32)


@pytest.fixture(scope="module")
def distribution() -> FeatureDistribution:
    fitted = fit_distribution(features(400, 1), features(2_000, 2))
    assert fitted is not None
    return fitted


def test_distances_are_those_of_scikit_learn_s_shrunk_covariance(
    distribution: FeatureDistribution,
) -> None:
    fitted = LedoitWolf().fit(features(400, 1).astype(np.float64))
    others = features(5, 3)
    expected = [mahalanobis(row, fitted.location_, fitted.precision_) for row in others]
    assert distribution.distances(others) == pytest.approx(expected, rel=1e-3)


def test_one_percent_of_validation_and_of_images_like_it_is_unusual(
    distribution: FeatureDistribution,
) -> None:
    for seed in (2, 3):
        distances = distribution.distances(features(2_000, seed))
        assert (distances > distribution.threshold).mean() == pytest.approx(0.01, abs=0.006)
    far = distribution.distances(features(100, 4, shift=6.0))
    assert (far > distribution.threshold).all()


def test_percentiles_are_among_validation_images(distribution: FeatureDistribution) -> None:
    own = np.sort(distribution.distances(features(2_000, 2)))
    percentiles = distribution.percentiles(own)
    assert (percentiles[0], percentiles[-1]) == (0, 100)
    assert percentiles[1_000] == pytest.approx(50, abs=0.1)
    beyond = distribution.percentiles(np.array([0.0, 1e6]))
    assert beyond.tolist() == [0, 100]
    assert np.array_equal(own > distribution.threshold, percentiles > 99)


@pytest.mark.parametrize("num", [(99, 200), (200, 99)])
def test_too_few_images_have_no_distribution(num: tuple[int, int]) -> None:
    assert fit_distribution(features(num[0], 1), features(num[1], 2)) is None


def test_features_that_never_change_have_no_distribution() -> None:
    constant = np.full((200, 8), 3, np.float32)
    assert fit_distribution(constant, constant) is None
    broken = features(200, 1)
    broken[7, 3] = np.inf
    assert fit_distribution(broken, features(200, 2)) is None


def test_a_feature_that_never_changed_in_training_is_unusual_where_it_does() -> None:
    training, validation = features(400, 1), features(200, 2)
    training[:, 0] = validation[:, 0] = 0  # As a map that no training image activates.
    fitted = fit_distribution(training, validation)
    assert fitted is not None
    other = validation[:1].copy()
    other[:, 0] = 10 * training.std()
    assert fitted.distances(other) > fitted.threshold


def test_it_is_one_of_the_checkpoint_s_files_and_changes_its_fingerprint(
    tmp_path: Path, distribution: FeatureDistribution
) -> None:
    without = checkpoint.load(write_checkpoint(tmp_path / "without"))
    assert without.distribution is None  # As of older versions.
    folder = tmp_path / "with"
    checkpoint.save(
        str(folder), SMALL, classifier.build(SMALL), without.validation, {},
        distribution=distribution,
    )  # fmt: skip
    loaded = checkpoint.load(str(folder))
    assert loaded.distribution is not None
    for name, value in vars(distribution).items():
        assert np.array_equal(getattr(loaded.distribution, name), value), name
    assert loaded.fingerprint != without.fingerprint
    (folder / "unusual.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unusual\.safetensors"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a distribution of features"):
        read_distribution(content)


def pad(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images between two black stripes, as wide as they are."""
    padded = np.zeros_like(images)
    padded[:, :, 56:168] = images[:, :, ::2]
    return padded


def test_real_radiographs_that_are_changed_are_flagged_and_others_are_not(
    real_data: Path, real_weights: Path
) -> None:
    """Frozen SqueezeNet on Kermany et al. 2018, as the recipe `frozen` has it."""
    recipe = RECIPES["frozen"]
    model = classifier.build(recipe)
    state, source = weights.read_weights(
        str(real_weights / "squeezenet1_1-features.safetensors"), recipe.backbone, ""
    )
    weights.load_pretrained(model, recipe, state, source)
    engine = OnnxEngine(export(model, recipe, {}), "logits", 1, appended="features")
    paths = sorted((real_data / "chest_xray" / "train").rglob("*.jpeg"))
    chosen = np.random.default_rng(0).choice(len(paths), 900, replace=False)
    pixels = np.stack([read_square(paths[index], recipe.image_px) for index in chosen])
    features = engine.run(pixels)[:, 2:]
    fitted = fit_distribution(features[:500], features[500:700])
    assert fitted is not None

    def flagged(images: NDArray[np.uint8]) -> float:
        distances = fitted.distances(engine.run(np.ascontiguousarray(images))[:, 2:])
        return float((distances > fitted.threshold).mean())

    some = pixels[700:760]
    noise = np.random.default_rng(0).normal(0, 40, some.shape)
    assert flagged(np.rot90(some, 1, (1, 2))) > 0.95
    assert flagged((some + noise).clip(0, 255).astype(np.uint8)) > 0.95
    assert flagged(pad(some)) > 0.7
    assert flagged(255 - some) > 0.5
    # 200 others: at 1 % more than 12 have a probability below 0.0001, and the threshold is one of
    # the two highest of 200 itself.
    others = fitted.distances(features[700:])
    assert (others > fitted.threshold).mean() < 0.06


def read_square(path: Path, image_px: int) -> NDArray[np.uint8]:
    row = {"file": str(path), "place": [], "status": "", "reason": "", "warnings": []}
    pixels = read_image(row, image_px).pixels
    assert pixels is not None
    return pixels


def test_a_distribution_says_what_it_is_of_and_an_older_one_is_of_the_features() -> None:
    fitted = fit_distribution(features(400, 1), features(400, 2), "middle")
    assert fitted is not None
    assert read_distribution(fitted.to_bytes()).output == "middle"
    tensors = safetensors.numpy.load(fitted.to_bytes())
    del tensors["output"]
    assert read_distribution(safetensors.numpy.save(tensors)).output == "features"
    tensors["output"] = np.frombuffer(b"other", np.uint8)
    with pytest.raises(CheckpointError, match="not a distribution"):
        read_distribution(safetensors.numpy.save(tensors))


def test_no_image_is_kept(distribution: FeatureDistribution) -> None:
    """All that is kept has the size of the features, whatever the number of images."""
    more = fit_distribution(features(4_000, 1), features(2_000, 2))
    assert more is not None
    assert len(more.to_bytes()) == len(distribution.to_bytes())
    kept = {field.name for field in dataclasses.fields(FeatureDistribution)}
    assert kept == {"mean", "whitening", "quantiles", "num_training", "num_validation", "output"}
