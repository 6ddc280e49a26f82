"""What a file's name says of it; what it really is, its content tells when it is decoded."""

import posixpath
from typing import Final

IMAGE_SUFFIXES: Final = (
    ".jpeg", ".jpg", ".png", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", "",
)  # fmt: skip
"""Names that may hold a radiograph."""

OTHER_SUFFIXES: Final = frozenset(
    f".{name}"
    for names in (
        "txt md rst log csv tsv json jsonl xml yaml yml toml ini cfg html htm css pdf rtf",
        "doc docx xls xlsx ppt pptx py ipynb js sh bat exe dll lnk url md5 sha1 sha256 sum",
        "db sqlite parquet npy npz h5 hdf5 pkl pt pth safetensors mp3 mp4 avi mov wav",
    )
    for name in names.split()
)
"""Names that evidently hold none."""


def may_be_image(path: str) -> bool:
    """Whether a file has the name of a radiograph, by its path below the folder that was given."""
    suffix = _suffix(path)
    # The last number of a DICOM UID is no suffix.
    return not _is_junk(path) and (suffix in IMAGE_SUFFIXES or suffix[1:].isdigit())


def passed_over(path: str) -> str:
    """The kind of a file that is evidently no radiograph, such as `".txt"`; empty otherwise."""
    if _is_junk(path):
        return "hidden or system file"
    suffix = _suffix(path)
    return suffix if suffix in OTHER_SUFFIXES else ""


def _is_junk(path: str) -> bool:
    parts = path.strip("/").split("/")
    hidden = any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts
    )
    return hidden or parts[-1].lower() in ("thumbs.db", "desktop.ini")


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()
