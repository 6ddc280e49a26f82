"""How much of a heatmap lies at the border of its image."""

import numpy as np
import pytest

from cxr.metrics import BORDER_AREA, border_share


def test_the_border_is_the_outer_tenth_of_each_side() -> None:
    heatmap = np.zeros((100, 100), np.float32)
    heatmap[10:90, 10:90] = 0.25
    assert border_share(heatmap) == pytest.approx(0)
    heatmap[:10, :10] = 1.0  # A corner of 100 pixels, where 6,400 have a quarter.
    assert border_share(heatmap) == pytest.approx(100 / 1700)


def test_a_heatmap_without_preference_has_the_share_of_the_area() -> None:
    assert border_share(np.ones((40, 40), np.float32)) == pytest.approx(BORDER_AREA)
    assert pytest.approx(0.36) == BORDER_AREA


def test_a_heatmap_of_zeros_has_no_share() -> None:
    assert border_share(np.zeros((8, 8), np.float32)) is None
