"""Paths and URIs, the file system of each, and what a failed request means."""

import os
import posixpath
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from cxr.errors import StorageError
from cxr.storage import s3


def absolute(uri: str) -> str:
    """The URI itself, or the absolute path, also of a `file://` URI; without a slash at the end.

    Options of an `s3://` URI come to stand behind the bucket, see `cxr.buckets`.
    """
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"{uri}: lies on host {parts.netloc!r}. Write file:///path.")
        # Bytes that are no UTF-8 become what Python's file functions take.
        uri = unquote(parts.path, errors="surrogateescape")
    if "://" in uri:
        return s3.canonical(uri).rstrip("/")
    path = Path(uri)
    with suppress(RuntimeError):  # The name of a file, not of a user's folder.
        path = path.expanduser()
    path = path.absolute()
    if ".." in path.parts:
        # As the system takes it: the folder above the one that a link leads to.
        below = len(path.parts) - path.parts[::-1].index("..")
        path = Path(os.path.realpath(Path(*path.parts[:below])), *path.parts[below:])
    return str(path)


def printable(path: str) -> str:
    """The path, or where it is not UTF-8 a `file://` URI that means it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def join(uri: str, *parts: str) -> str:
    """A path below a folder."""
    return posixpath.join(s3.canonical(uri).rstrip("/") or "/", *parts)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        StorageError: a scheme that pyarrow does not know.
        UnavailableError: the object store cannot be reached, or has no such bucket.
    """
    uri = absolute(uri)
    if uri.startswith(s3.SCHEME):
        return s3.enter(uri)
    try:
        if "://" in uri:
            system, path = fs.FileSystem.from_uri(uri)
            return system, path.rstrip("/")
        return fs.LocalFileSystem(), uri
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {error}. Give a path, or an s3:// or gs:// URI.") from None


def run_storage(uri: str) -> dict[str, Any]:
    """A folder as Ray's `RunConfig` takes it, which would give a bucket its own retries, of 2 s."""
    system, path = resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": system}


def default_cache() -> str:
    """The user's cache folder for this project: `$XDG_CACHE_HOME/cxr` or `~/.cache/cxr`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "cxr")


def scratch(name: str) -> Path:
    """Where a file on its way to a bucket is kept on this machine: below the cache folder."""
    return Path(default_cache(), "download", name)


def is_bucket(uri: str) -> bool:
    """Whether the URI is of an object store that `cxr.buckets` knows."""
    return uri.startswith(s3.SCHEME)


def failure(uri: str, what: str, error: OSError | ValueError) -> StorageError:
    """What a failed request comes to: that of one file, or of the whole store."""
    if isinstance(error, OSError) and is_bucket(uri):
        unavailable = s3.failure(absolute(uri), error)
        if unavailable is not None:
            return unavailable
    return StorageError(f"{uri}: {what}: {cause(error)}.")


def cause(error: OSError | ValueError) -> str:
    """The reason that an error gives, without the words around it."""
    # pyarrow: "Failed to open local file '/a'. Detail: [errno 2] No such file or directory"
    said, _, detail = (getattr(error, "strerror", "") or str(error)).partition(". Detail: ")
    reason = detail.partition("] ")[2] or detail
    return s3.cause(said.rstrip(".") + (f" ({reason})" if reason else ""))
