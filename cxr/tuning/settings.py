"""The settings of a search beside those that it shares with training."""

from dataclasses import dataclass
from typing import Literal

from cxr.errors import SettingsError
from cxr.training.settings import SharedSettings

Select = Literal["stressed", "clean"]
"""The images by which settings are ranked: changed as between scanners, or as they are."""


@dataclass(frozen=True)
class SearchSettings(SharedSettings):
    """What a search reads, writes and uses, and how it ranks."""

    select: Select = "stressed"
    """Rank settings by their mean AUC under acquisition changes (noise, blur, gamma, zoom, ...), or
    by the AUC on images as they are. May differ when a search is run again."""
    stress_images: int = 128
    """Validation images of each fold that are changed, 0 for none; each change of each
    normalization is a pass over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stress_images < 0:
            raise SettingsError(f"stress_images: {self.stress_images} is below 0.")

    @property
    def ranks_stressed(self) -> bool:
        """Whether settings are ranked by changed images."""
        return self.select == "stressed" and self.stress_images > 0
