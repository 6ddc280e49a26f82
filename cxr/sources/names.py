"""What a file's name says about it; what the file really is, its content shows when decoded."""

import posixpath
import re
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

SYSTEM_NAMES: Final = frozenset(
    name.lower()
    for name in (
        # macOS and Windows.
        *("__MACOSX", "Network Trash Folder", "Temporary Items", "Thumbs.db", "ehthumbs.db"),
        *("desktop.ini", "$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
        # Synology, QNAP, NetApp, ext4: thumbnails, bins and snapshots of network drives.
        *("@eaDir", "@tmp", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),
        *("~snapshot", "lost+found"),
    )
)
"""Files and folders that systems make, in lower case; those that begin with a dot are hidden, such
as `.Trashes`, `.snapshot` and `.AppleDouble`."""

_OTHER_ARCHIVES: Final = {
    suffix: name
    for name, suffixes in {
        "7z": ".7z .cb7",
        "RAR": ".rar .cbr",
        "lz4": ".lz4",
        "LZMA": ".lzma .tlz",
        "lzip": ".lz",
        "Brotli": ".br",
        "compress": ".z .taz",
        "lzop": ".lzo",
        "cabinet": ".cab",
        "disk image": ".iso .dmg .wim .vhd .vhdx .vmdk",
        "LHA": ".lzh .lha",
        "ARJ": ".arj",
        "ACE": ".ace",
        "StuffIt": ".sit .sitx",
        "cpio": ".cpio",
        "gzip": ".gz",
        "bzip2": ".bz2",
        "xz": ".xz",
        "Zstandard": ".zst .zstd",
    }.items()
    for suffix in suffixes.split()
}
"""Names of archives and compressed files that are not read, by suffix. Compressed tars that are
read are recognized before."""

_SPLIT_ZIP: Final = re.compile(r"\.z\d\d+$")
_SPLIT_RAR: Final = re.compile(r"\.r\d\d$|\.part\d+\.rar$")
_SPLIT: Final = re.compile(r"\.(zip|zipx|7z|rar|tar|tgz|t[bx]z2?|gz|bz2|xz|zst|lz4|iso)\.\d{2,4}$")

JOIN_ZIP: Final = "join the parts first: zip -s 0 NAME.zip --out JOINED.zip"

_MAGIC: Final = {
    b"PK\3\4": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\7": "RAR",
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "compress",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
    b"MSCF": "cabinet",
}
"""Names of archives and compressed files by their first bytes."""


def unread_archive(path: str) -> str:
    """Why a file of this name is not read, if it is an archive that cannot be; empty otherwise."""
    lower = path.lower()
    if _SPLIT_ZIP.search(lower):
        return f"a part of a split zip; {JOIN_ZIP}"
    if _SPLIT_RAR.search(lower):
        return "a part of a split RAR archive; unpack it, or pack it as .zip or .tar.gz"
    if split := _SPLIT.search(lower):
        return f"a part of a split .{split[1]} file; join the parts first: cat NAME.* > NAME"
    name = _OTHER_ARCHIVES.get(posixpath.splitext(lower)[1])
    if not name:
        return ""
    return f"a file of type {name}, which is not read; unpack it, or pack it as .zip or .tar.gz"


def type_by_content(start: bytes) -> str:
    """The type of an archive or compressed file by its first bytes; empty for any other file."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")


def passed_over(path: str) -> str:
    """The type of a file that is evidently no image, such as `".txt"`; empty for any other.

    Args:
        path: of the file, below the folder or archive that was given.
    """
    parts = path.strip("/").split("/")
    if any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in SYSTEM_NAMES
        for part in parts
    ):
        return "hidden or system file"
    stem, suffix = posixpath.splitext(path.lower())
    if suffix == ".gz":  # `.csv.gz` is a table.
        inner = posixpath.splitext(stem)[1]
        return inner + suffix if inner in OTHER_SUFFIXES else ""
    return suffix if suffix in OTHER_SUFFIXES else ""
