"""Output folders: nothing is overwritten, and work is resumed only with the same settings."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cxr.errors import SettingsError, StorageError
from cxr.storage import locks
from cxr.storage.files import delete_file, read_json, write_bytes
from cxr.storage.listing import kind, list_pages
from cxr.storage.paths import IN_A_COPY, absolute, failure, is_bucket, is_submitted, join, resolve


def default_output(suffix: str = "") -> str:
    """The output folder of a job that was given none: `runs/<date and time>`, and a suffix.

    Raises:
        SettingsError: the job was submitted to a cluster.
    """
    folder = f"runs/{time.strftime('%Y%m%d-%H%M%S')}{suffix}"
    if is_submitted():
        raise SettingsError(
            f"output: a submitted job needs --output; the default, {folder}, is a relative path,"
            f" and {IN_A_COPY}"
        )
    return absolute(folder)


def is_empty(uri: str) -> bool:
    """Whether nothing exists there, or only an empty folder; a lock is nothing."""
    existing = kind(uri)
    if existing != "folder":
        return existing == "nothing"
    if is_bucket(uri):
        lock = join(absolute(uri), locks.NAME)
        return all(file.uri == lock for page in list_pages(uri) for file in page)
    try:
        return all(path.name == locks.NAME for path in Path(resolve(uri)[1]).iterdir())
    except OSError as error:
        raise failure(uri, "cannot be listed", error) from None


def check_empty(uri: str) -> None:
    """Refuse an output folder that exists.

    Raises:
        StorageError: it is a file, or a folder that is not empty.
    """
    if not is_empty(uri):
        raise StorageError(f"{uri}: exists already. Choose another --output.")


def claim(uri: str) -> str:
    """Check that an output folder is new or empty and can be written; return its absolute form.

    Raises:
        StorageError: it exists, or cannot be written.
    """
    folder = absolute(uri)
    check_empty(folder)
    probe = join(folder, ".cxr")
    write_bytes(probe, b"")
    delete_file(probe)
    return folder


def check_same(
    folder: str,
    name: str,
    settings: Mapping[str, Any],
    what: str,
    names: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Accept an output folder that is new, or that was begun with the same settings.

    Args:
        folder: the output folder.
        name: of the JSON file in it that holds its settings.
        settings: what is wanted now; the file may hold more.
        what: the folder holds, for the message.
        names: of a setting that is a digest, the setting that says in words what it is of. Those
            words stand in the message, and are not compared.

    Returns:
        Whether there is work to resume.

    Raises:
        SettingsError: it was begun with other settings.
        StorageError: it holds something else.
    """
    settings_uri = join(folder, name)
    if kind(settings_uri) == "nothing":
        check_empty(folder)
        return False
    kept = read_json(settings_uri)
    for key in (key for key in settings if key not in names.values()):
        if kept.get(key) != settings[key]:
            shown, before, now = _first_difference(key, kept.get(key), settings[key])
            if key in names:
                before, now = (of.get(names[key], of.get(key)) for of in (kept, settings))
            raise SettingsError(
                f"{folder}: holds {what} with {shown} {before}, not {now}. Choose another"
                " --output, or repeat the first command."
            )
    return True


def _first_difference(key: str, before: object, now: object) -> tuple[str, object, object]:
    """The dotted name of a setting in which two differ, and both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in now:
            if before.get(name) != now[name]:
                return _first_difference(f"{key}.{name}", before.get(name), now[name])
    return key, before, now
