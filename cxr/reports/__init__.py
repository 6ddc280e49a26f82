"""What a person reads: a page on a labeled set before training, a page on one model, a page and a
table on several, a page on the scores of an archive, a page on explained images, a page on a search
over settings, and the model card of a checkpoint, in Markdown.

A page is one HTML file that loads nothing: its style sheet and figures (SVG) are inside it,
thumbnails are base64 JPEG, and there is no script. It can be mailed, archived and opened without a
network. Its text is a template in `templates/`, its figures are functions in `figures/`.
"""

from cxr.reports.checking import CheckReport, Duplicates, Sample, Sizes, SplitCounts, checking_page
from cxr.reports.comparison import comparison_page, comparison_table
from cxr.reports.evaluation import EvaluationReport, WrongImage, evaluation_page
from cxr.reports.explanation import ExplanationReport, explanation_page
from cxr.reports.figures.comparison import class_distribution
from cxr.reports.model_card import MODEL_CARD, model_card
from cxr.reports.scoring import FailureGroup, ScoredImage, ScoringReport, scoring_page
from cxr.reports.thumbnails import overlay, thumbnail
from cxr.reports.tuning import TuningReport, tuning_page

__all__ = [
    "MODEL_CARD",
    "CheckReport",
    "Duplicates",
    "EvaluationReport",
    "ExplanationReport",
    "FailureGroup",
    "Sample",
    "ScoredImage",
    "ScoringReport",
    "Sizes",
    "SplitCounts",
    "TuningReport",
    "WrongImage",
    "checking_page",
    "class_distribution",
    "comparison_page",
    "comparison_table",
    "evaluation_page",
    "explanation_page",
    "model_card",
    "overlay",
    "scoring_page",
    "thumbnail",
    "tuning_page",
]
