"""How well scores separate pneumonia from normal, with intervals.

Intervals come from resampling patients, not images: several radiographs of one child are not
independent, and an interval that assumes so is too narrow.
"""

from cxr.metrics.examination import (
    LEVEL,
    AtThreshold,
    Confusion,
    Estimate,
    Examination,
    examine,
    most_wrong,
    reliability,
)
from cxr.metrics.heatmaps import BORDER, BORDER_AREA, border_share
from cxr.metrics.operating_point import RULES, OperatingPoint, choose_operating_point, parse_rule
from cxr.metrics.paired import auc_difference
from cxr.metrics.robustness import (
    DEFAULT_STRESSED,
    CalibrateOn,
    Robustness,
    check_stress_images,
    examine_changes,
)
from cxr.metrics.scores import (
    TEMPERATURE_BOUNDS,
    Bools,
    Floats,
    Scaling,
    fit_scaling,
    probabilities,
    roc_auc,
)
from cxr.metrics.subgroups import Subgroup, check_values, examine_subgroups
from cxr.metrics.weighted import NUM_BINS, divide, draw_patients, weighted_auc

__all__ = [
    "BORDER",
    "BORDER_AREA",
    "DEFAULT_STRESSED",
    "LEVEL",
    "NUM_BINS",
    "RULES",
    "TEMPERATURE_BOUNDS",
    "AtThreshold",
    "Bools",
    "CalibrateOn",
    "Confusion",
    "Estimate",
    "Examination",
    "Floats",
    "OperatingPoint",
    "Robustness",
    "Scaling",
    "Subgroup",
    "auc_difference",
    "border_share",
    "check_stress_images",
    "check_values",
    "choose_operating_point",
    "divide",
    "draw_patients",
    "examine",
    "examine_changes",
    "examine_subgroups",
    "fit_scaling",
    "most_wrong",
    "parse_rule",
    "probabilities",
    "reliability",
    "roc_auc",
    "weighted_auc",
]
