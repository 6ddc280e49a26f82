"""How settings, intervals and outcomes are written on the page of a search."""

from collections.abc import Mapping

from cxr.metrics.results import Interval, TrialResult
from cxr.reports import page
from cxr.reports.page import UNDEFINED
from cxr.reports.tuning.results import TuningReport

FAILED = "failed"


def sample_of(report: TuningReport) -> str:
    """The folds, images and patients: the caption of everything on the page."""
    return (
        f"Cross-validation on {report.data}: {page.count(report.num_images, 'image')} of "
        f"{page.count(report.num_patients, 'patient')} in {page.count(report.num_folds, 'fold')}"
    )


def brackets(interval: Interval) -> str:
    """The bounds: `[0.991, 0.997]`."""
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def shown(value: str | float) -> str:
    """One value of a factor."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if value % 1 else f"{value:g}"


def named(setting: Mapping[str, str | float]) -> list[str]:
    """Values with the names of their factors: `learning_rate 0.001`."""
    return [f"{factor} {shown(value)}" for factor, value in setting.items()]


def setting_of(report: TuningReport, trial: TrialResult) -> tuple[str, list[str]]:
    """The values of the grid's factors, `per_image, balanced`, and the others with their names.

    Without a grid, the names and values of all, and nothing else.
    """
    words = [shown(trial.setting[factor]) for factor in report.grid if factor in trial.setting]
    others = named(
        {name: value for name, value in trial.setting.items() if name not in report.grid}
    )
    return (", ".join(words), others) if words else (", ".join(others), [])


def outcome(trial: TrialResult) -> str:
    """The word for a trial without an AUC."""
    return FAILED if trial.failed else UNDEFINED
