"""What a file's name says about it; what the file really is, its content shows when decoded."""

import posixpath
from typing import Final

OTHER_SUFFIXES: Final = frozenset(
    f".{name}"
    for names in (
        "txt md rst log csv tsv json jsonl xml yaml yml toml ini cfg html htm css pdf rtf",
        "doc docx xls xlsx ppt pptx py ipynb js sh bat exe dll lnk url md5 sha1 sha256 sum",
        "db sqlite parquet npy npz h5 hdf5 pkl pt pth safetensors mp3 mp4 avi mov wav",
    )
    for name in names.split()
)
"""Suffixes of files that are evidently no images."""


def passed_over(path: str) -> str:
    """The type of a file that is evidently no image, such as `".txt"`; empty for any other.

    Args:
        path: of the file, below the folder or archive that was given.
    """
    parts = path.strip("/").split("/")
    hidden = any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts
    )
    if hidden or parts[-1].lower() in ("thumbs.db", "desktop.ini"):
        return "hidden or system file"
    suffix = posixpath.splitext(path)[1].lower()
    return suffix if suffix in OTHER_SUFFIXES else ""
