"""Figures as inline SVG, one room for each kind of them."""

from cxr.reports.figures.comparison import bars, class_distribution, differences, scatter
from cxr.reports.figures.drawing import PALETTE, figure, fitted, undefined
from cxr.reports.figures.model import (
    SCORE_BINS,
    precision_recall,
    reliability_diagram,
    roc,
    score_histogram,
)
from cxr.reports.figures.training import learning_curves, training_curves

__all__ = [
    "PALETTE",
    "SCORE_BINS",
    "bars",
    "class_distribution",
    "differences",
    "figure",
    "fitted",
    "learning_curves",
    "precision_recall",
    "reliability_diagram",
    "roc",
    "scatter",
    "score_histogram",
    "training_curves",
    "undefined",
]
