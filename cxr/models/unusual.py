"""Images unlike those that a model learned from, known by what the network computes of them.

The distance of an image is the Mahalanobis distance of its features (the output `features` or
`middle` of model.onnx) to those of the training images. What a reader gets is its percentile among
validation images: they are like the training images, but trained nothing. Among the training images
themselves a new image of the same kind would seem unusual, since the covariance was fitted to them:
with 2,000 images and the 512 features of frozen SqueezeNet their 99th percentile is 27.9, that of
other images of the hospital 36.9.

Using a distribution needs NumPy alone, fitting one scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cxr.errors import CheckpointError

WARN_ABOVE: Final = 99.0
"""Percentile among validation images above which an image is unusual: 1 % of them are."""

WARNING: Final = "unlike the training images"
"""What a row of the scores says of an unusual image."""

MIN_IMAGES: Final = 100
"""Of training and of validation: fewer have no 99th percentile, and a covariance of chance."""

FeatureOutput: TypeAlias = Literal["features", "middle"]
"""Outputs of a network that a distribution can be of."""

_OUTPUTS: Final[Mapping[str, FeatureOutput]] = {name: name for name in get_args(FeatureOutput)}

_PERCENTS: Final = np.linspace(0, 100, 101)


@dataclass(frozen=True, eq=False)
class FeatureDistribution:
    """The features of a model's training images: their mean and shrunk covariance.

    No image can be told from it: it holds averages over all of them, and quantiles of distances.
    """

    mean: NDArray[np.float32]
    """(D,)."""
    whitening: NDArray[np.float32]
    """(D, D), upper triangular, float16 times a power of two: the distance of x is the norm of
    (x - mean) @ whitening."""
    quantiles: NDArray[np.float64]
    """Distances of validation images at 0, 1, ..., 100 %, (101,)."""
    num_training: int
    """Images that mean and covariance are of."""
    num_validation: int
    """Images that the quantiles are of."""
    output: FeatureOutput = "features"
    """Of the network, that this is the distribution of."""

    @property
    def threshold(self) -> float:
        """The distance above which an image is unusual."""
        return float(np.interp(WARN_ABOVE, _PERCENTS, self.quantiles))

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The distance of each image, float64 (N,), from its features, float32 (N, D)."""
        whitened = (features - self.mean) @ self.whitening
        distances: NDArray[np.float64] = np.linalg.norm(whitened.astype(np.float64), axis=1)
        return distances

    def percentiles(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Percentile among validation images, 0 to 100, float64 (N,), of distances (N,)."""
        percentiles: NDArray[np.float64] = np.interp(distances, self.quantiles, _PERCENTS)
        return percentiles

    def to_bytes(self) -> bytes:
        """The content of a file of a checkpoint."""
        size = len(self.mean)
        scale = _scale(self.whitening)
        tensors: dict[str, NDArray[Any]] = {
            "mean": self.mean,
            "whitening": (self.whitening[np.triu_indices(size)] / scale).astype(np.float16),
            "scale": np.array([scale], np.float32),
            "quantiles": self.quantiles,
            "num_images": np.array([self.num_training, self.num_validation]),
            "output": np.frombuffer(self.output.encode(), np.uint8),
        }
        content: bytes = safetensors.numpy.save(tensors)
        return content


def read_distribution(content: bytes) -> FeatureDistribution:
    """The inverse of `FeatureDistribution.to_bytes`.

    Raises:
        CheckpointError: it is no such file.
    """
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
        num_training, num_validation = tensors.pop("num_images").tolist()
        size, [scale] = len(tensors["mean"]), tensors.pop("scale")
        # Checkpoints of older versions, which lack it, describe the features.
        output = tensors.pop("output", np.frombuffer(b"features", np.uint8)).tobytes().decode()
        triangle, tensors["whitening"] = tensors["whitening"], np.zeros((size, size), np.float32)
        tensors["whitening"][np.triu_indices(size)] = triangle.astype(np.float32) * scale
        return FeatureDistribution(
            num_training=num_training,
            num_validation=num_validation,
            output=_OUTPUTS[output],
            **tensors,
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not a distribution of features ({type(error).__name__}).") from None


def fit_distribution(
    training: NDArray[np.float32],
    validation: NDArray[np.float32],
    output: FeatureOutput = "features",
) -> FeatureDistribution | None:
    """The distribution of training features, and the distances of validation features to it.

    Args:
        training: float32 (N, D).
        validation: float32 (M, D), of other patients.
        output: of the network, that they are.

    Returns:
        None where there is nothing to learn from: either has fewer than `MIN_IMAGES`, or a feature
        is not finite, or the features of all training images are the same.

    Source: Ledoit and Wolf 2004, doi 10.1016/S0047-259X(03)00096-4, as in scikit-learn.
    """
    from scipy.linalg import solve_triangular
    from sklearn.covariance import ledoit_wolf

    if min(len(training), len(validation)) < MIN_IMAGES:
        return None
    features = training.astype(np.float64)
    if not np.isfinite(features).all() or not np.isfinite(validation).all():
        return None
    if not features.std(axis=0).any():
        return None
    covariance, _ = ledoit_wolf(features)
    # Shrunk, so that it is positive definite even where a feature is constant.
    lower = np.linalg.cholesky(covariance)
    whitening = solve_triangular(lower, np.eye(len(lower)), lower=True).T.astype(np.float32)
    scale = _scale(whitening)
    whitening = (whitening / scale).astype(np.float16).astype(np.float32) * scale
    fitted = FeatureDistribution(
        mean=features.mean(axis=0).astype(np.float32),
        whitening=np.ascontiguousarray(whitening),
        quantiles=np.zeros(len(_PERCENTS)),
        num_training=len(training),
        num_validation=len(validation),
        output=output,
    )
    quantiles = np.percentile(fitted.distances(validation), _PERCENTS)
    return FeatureDistribution(**{**vars(fitted), "quantiles": quantiles})


def _scale(whitening: NDArray[np.float32]) -> np.float32:
    """A power of two by which float16 holds every value: the largest is then from 16,384 on."""
    return np.float32(np.exp2(np.ceil(np.log2(np.abs(whitening).max())) - 15))
