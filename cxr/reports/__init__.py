"""What a person reads after a run: a page on one model, a page and a table on several, a page on
the scores of a bulk job, a page on a search over settings.

Pages are single HTML files that load nothing: figures are inline SVG, thumbnails base64 JPEG, and
there is no script. They can be mailed, archived and opened without a network.
"""

from cxr.reports.comparison import comparison_page, comparison_table
from cxr.reports.evaluation import EvaluationReport, WrongImage, evaluation_page
from cxr.reports.figures import class_distribution
from cxr.reports.page import thumbnail
from cxr.reports.scoring import FailedKind, ScoringReport, SuspiciousImage, scoring_page
from cxr.reports.tuning import TuningReport, tuning_page

__all__ = [
    "EvaluationReport",
    "FailedKind",
    "ScoringReport",
    "SuspiciousImage",
    "TuningReport",
    "WrongImage",
    "class_distribution",
    "comparison_page",
    "comparison_table",
    "evaluation_page",
    "scoring_page",
    "thumbnail",
    "tuning_page",
]
