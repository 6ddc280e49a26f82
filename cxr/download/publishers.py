"""Where the radiographs of Kermany et al. 2018 are published, and how the right file is known.

The record is Mendeley Data rscbjbr9sj, doi 10.17632/rscbjbr9sj. Its version 2 has the radiographs
in a file of their own. Version 3, the current one, has a single file, in which they lie beside
seven times as many bytes of retinal scans, under new names. Kaggle has a copy with 16 images of
train moved to val. Addresses, sizes and checksums were taken from public programs that fetch
these files, since the record itself could not be asked; what none of them states is left out.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from cxr.download.transfer import Origin
from cxr.errors import DownloadError, SettingsError

Source = Literal["mendeley", "mendeley3", "kaggle"]

_FILES: Final = "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files"

LICENSE: Final = """\
Chest radiographs of children, one to five years old, Guangzhou Women and Children's Medical Center.
License: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
Cite: Kermany, Daniel; Zhang, Kang; Goldbaum, Michael (2018), "Labeled Optical Coherence Tomography
  (OCT) and Chest X-Ray Images for Classification", Mendeley Data, V2, doi: 10.17632/rscbjbr9sj.2
  Kermany et al. (2018), "Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep
  Learning", Cell 172(5), 1122-1131, doi: 10.1016/j.cell.2018.02.010
"""
"""Stored beside the data; the license asks for name, source and license wherever the images go."""

Counts = dict[str, tuple[int, int]]
"""Images of each split: normal, pneumonia."""

PUBLISHED_COUNTS: Final[dict[str, Counts]] = {
    "Kaggle": {"train": (1341, 3875), "val": (8, 8), "test": (234, 390)},
    "Mendeley Data": {"train": (1349, 3883), "test": (234, 390)},
}
"""The two layouts. Mendeley Data's: Cell 172:1122, "5,232 chest X-ray images from children,
including 3,883 characterized as depicting pneumonia [...] and 1,349 normal", then "tested with 234
normal images and 390 pneumonia images". Kaggle's: its val holds 8 and 8 of them."""


@dataclass(frozen=True)
class Archive:
    """A file that holds the set."""

    name: str
    """Its published name."""
    origin: Origin


def archive(source: Source, mirror: str = "") -> Archive:
    """The file of a publisher.

    Args:
        source: `mendeley`: version 2, radiographs alone (1.2 GB); `mendeley3`: version 3 (8.4 GB);
            `kaggle`: its copy, which needs the user's token (2.5 GB, every image twice).
        mirror: address of a folder that holds the published files, instead of the publisher's.

    Raises:
        DownloadError: there is no token for Kaggle, or it cannot be read.
    """
    if source == "kaggle":
        return _kaggle(mirror)
    if source == "mendeley":
        # All three agree in four public repositories that fetch this file.
        name = "ChestXRay2017.zip"
        url = f"{_FILES}/f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
        size: int | None = 1_235_512_464
        sha256 = "13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36"
    elif source == "mendeley3":
        # The checksum stands in one public script; its size is nowhere given to the byte.
        name = "ZhangLabData.zip"
        url = f"{_FILES}/810b2ce2-11c3-4424-996e-3bef36600907/file_downloaded"
        size = None
        sha256 = "acbc42869440eec719361942d0ba560f132742230262f22e78bfb93eb5ea4563"
    else:
        raise SettingsError(f"unknown source {source!r}. Choices: {', '.join(get_args(Source))}.")
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
    return Archive(name, Origin(url, size, sha256))


def _kaggle(mirror: str) -> Archive:
    """Kaggle zips a data set anew, so neither size nor checksum is fixed: the counts are checked.

    Address, variables and file as in Kaggle's own client, kagglehub: `clients.py`, `config.py`.
    """
    name = "chest-xray-pneumonia.zip"
    if mirror:
        return Archive(name, Origin(f"{mirror.rstrip('/')}/{name}"))
    endpoint = os.environ.get("KAGGLE_API_ENDPOINT", "https://www.kaggle.com").rstrip("/")
    url = f"{endpoint}/api/v1/datasets/download/paultimothymooney/chest-xray-pneumonia"
    return Archive(name, Origin(url, auth=_token()))


def _token() -> tuple[str, str]:
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if user and key:
        return user, key
    folder = os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle"
    file = Path(folder, "kaggle.json")
    try:
        content = json.loads(file.read_text())
        return str(content["username"]), str(content["key"])
    except FileNotFoundError:
        raise DownloadError(
            "Kaggle gives its files to users only. Make a token (kaggle.com, Settings, API) and set"
            f" KAGGLE_USERNAME and KAGGLE_KEY, or put its kaggle.json at {file}. --source mendeley"
            " needs none."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        # Not the error's own text, which may quote the key.
        raise DownloadError(
            f"{file}: not a token of Kaggle's. Expected JSON with username and key."
        ) from None
