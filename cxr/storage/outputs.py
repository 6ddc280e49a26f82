"""Places for results: what exists is not overwritten, and work goes on only in its own terms."""

from collections.abc import Mapping
from typing import Any

from cxr.errors import SettingsError, StorageError
from cxr.storage.files import delete_file, read_json, write_bytes
from cxr.storage.listing import info_below, kind
from cxr.storage.paths import absolute, join


def is_empty(uri: str) -> bool:
    """True where nothing is, or a folder without anything in it."""
    what = kind(uri)
    return what == "nothing" or (what == "folder" and not info_below(uri, recursive=False))


def check_empty(uri: str) -> None:
    """Refuse a place for results at which something lies.

    Raises:
        StorageError: it is a file, or a folder that is not empty.
    """
    if not is_empty(uri):
        raise StorageError(f"{uri}: exists already. Choose another --output.")


def claim(uri: str) -> str:
    """The absolute form of a place for results, at which nothing lies yet and which is writable.

    Raises:
        StorageError: something is there, or it cannot be written.
    """
    place = absolute(uri)
    check_empty(place)
    probe = join(place, ".cxr")
    write_bytes(probe, b"")
    delete_file(probe)
    return place


def check_same(folder: str, name: str, asked: Mapping[str, Any], what: str) -> bool:
    """Accept a place where nothing lies, or one whose work was asked for in the same terms.

    Args:
        folder: the place for results.
        name: of the JSON file in it that keeps what was asked for.
        asked: what is asked for now; more may be kept.
        what: lies there, for the message.

    Returns:
        Whether work lies there to go on with.

    Raises:
        SettingsError: it was asked for in other terms.
        StorageError: something else lies there.
    """
    place = join(folder, name)
    if kind(place) == "nothing":
        check_empty(folder)
        return False
    kept = read_json(place)
    for key, value in asked.items():
        if kept.get(key) != value:
            raise SettingsError(
                f"{folder}: holds {what} with {key} {kept.get(key)}, not {value}. Choose another"
                " --output, or repeat the first command."
            )
    return True
