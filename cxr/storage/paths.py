"""Paths and URIs, their file systems, and what a failed request means."""

import functools
import os
import posixpath
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from cxr.errors import SettingsError, StorageError
from cxr.storage import s3

_UNUSUAL: Final = re.compile(r"//|/\.{0,2}$|/\.{1,2}/")
"""What an absolute path has if it can be written shorter."""

SUBMITTED_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the program of a submitted job, and for no other process."""

IN_A_COPY: Final = (
    "a submitted job runs in a temporary copy of your working directory, which Ray deletes. Give a"
    " path from / that every node reaches, or an s3:// URI."
)
"""Why such a job takes no relative path, and what it takes, for messages."""


def absolute(uri: str) -> str:
    """The URI itself, or the absolute path, also for a `file://` URI; without a trailing slash.

    Options of an `s3://` URI are moved behind the bucket, see `cxr.storage.s3`.

    Raises:
        SettingsError: a relative path in a submitted job, other than a file that was sent with it.
        StorageError: a `file://` URI of another host.
    """
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"{uri}: lies on host {parts.netloc!r}. Write file:///path.")
        # Bytes that are not UTF-8 become the escapes that Python's file functions take.
        uri = unquote(parts.path, errors="surrogateescape")
    if "://" in uri:
        return s3.canonical(uri).rstrip("/")
    if uri.startswith("/") and not _UNUSUAL.search(uri):  # A tenth of the time, for listings.
        return uri
    path = Path(uri)
    with suppress(RuntimeError):  # `~name` is a file, not the home of a user.
        path = path.expanduser()
    if not path.is_absolute() and is_submitted() and not path.is_file():
        raise SettingsError(f"{uri}: is a relative path, and {IN_A_COPY}")
    path = path.absolute()
    if ".." in path.parts:
        # As the operating system does: the parent of the folder that a link leads to.
        below = len(path.parts) - path.parts[::-1].index("..")
        path = Path(os.path.realpath(Path(*path.parts[:below])), *path.parts[below:])
    return str(path)


def is_submitted() -> bool:
    """Whether this is the program of a job that `ray job submit` has sent to a cluster."""
    return SUBMITTED_JOB in os.environ


def printable(path: str) -> str:
    """The path, or its `file://` URI if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def join(uri: str, *parts: str) -> str:
    """Append parts to a path or URI."""
    return posixpath.join(s3.canonical(uri).rstrip("/") or "/", *parts)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        StorageError: the scheme is neither `file` nor `s3`.
        UnavailableError: the object store cannot be reached, or has no such bucket.
    """
    uri = absolute(uri)
    if uri.startswith(s3.SCHEME):
        return s3.enter(uri)
    if "://" in uri:
        scheme = uri.partition("://")[0]
        raise StorageError(
            f"{uri}: scheme {scheme!r} is not supported. Give a path or an s3:// URI."
        )
    return _local(), uri


@functools.cache
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


def run_storage(uri: str) -> dict[str, Any]:
    """A folder as Ray's `RunConfig` takes it; Ray's own file system would retry for 2 s only."""
    system, path = resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": system}


def default_cache() -> str:
    """The user's cache folder for this project: `$XDG_CACHE_HOME/cxr` or `~/.cache/cxr`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "cxr")


def scratch(name: str) -> Path:
    """Local path, below the cache folder, of a file that is going to be moved into a bucket."""
    return Path(default_cache(), "download", name)


def is_bucket(uri: str) -> bool:
    """Whether the URI is of an object store."""
    return uri.startswith(s3.SCHEME)


def failure(uri: str, what: str, error: OSError | ValueError) -> StorageError:
    """The error of a failed request: of one file, or of the whole object store."""
    if isinstance(error, OSError) and is_bucket(uri):
        unavailable = s3.failure(absolute(uri), error)
        if unavailable is not None:
            return unavailable
    return StorageError(f"{uri}: {what}: {cause(error)}.")


def cause(error: OSError | ValueError) -> str:
    """The reason that an error gives, without the words around it."""
    # pyarrow: "Failed to open local file '/a'. Detail: [errno 2] No such file or directory"
    text, _, detail = (getattr(error, "strerror", "") or str(error)).partition(". Detail: ")
    reason = detail.partition("] ")[2] or detail
    return s3.cause(text.rstrip(".") + (f" ({reason})" if reason else ""))
