"""Two networks compared on the same images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxr.metrics.examination import LEVEL
from cxr.metrics.results import Interval
from cxr.metrics.scores import checked, need_both_classes
from cxr.metrics.weighted import draw_patients, weighted_auc

_BLOCK = 128
"""Resamples computed at once."""


def auc_difference(
    y_true: npt.ArrayLike,
    y_score: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    patients: Sequence[object],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUC of scores minus that of reference scores, with a 95 % interval of the difference.

    A resample draws patients with all of their images, once for both, as in `examine`.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        y_score: of the network, higher for pneumonia, (N,).
        reference: scores of the network that it is compared with, (N,).
        patients: key of the patient of each image, N.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: as `roc_auc`, or a class is absent.
    """
    positive, score = checked(y_true, y_score)
    _, other = checked(y_true, reference)
    need_both_classes(positive, "difference in AUC")
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = int(patient.max()) + 1

    def differences(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return weighted_auc(positive, score, weights) - weighted_auc(positive, other, weights)

    generator = np.random.default_rng(seed)
    resampled = [
        differences(
            draw_patients(generator, min(_BLOCK, num_resamples - start), num_patients)[:, patient]
        )
        for start in range(0, num_resamples, _BLOCK)
    ]
    bounds = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.nanquantile(np.concatenate(resampled), bounds)
    value = differences(np.ones((1, len(score))))[0]
    return Interval(float(value), float(low), float(high))
