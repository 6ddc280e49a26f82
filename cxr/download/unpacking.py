"""A downloaded archive into the set's folders: members are checked first, then streamed.

Nothing is unpacked that could not be read, lies about its size or has a name that leads elsewhere.
Members go from their place in the archive, also in one within it, to the destination, without
another copy; one thread reads them in order, several write. So memory holds the list of names and
a few files, however large the archive is.
"""

import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from cxr import labels, storage
from cxr.errors import DataError, StorageError
from cxr.progress import Progress
from cxr.sources import SEPARATOR, Reader, Step, archive_kind, may_be_image, passed_over

THREADS: Final = 8
"""Files that are written at a time."""

IN_FLIGHT_BYTES: Final = 64 * 2**20
"""Read and not yet written: more only where a single file is larger."""

MAX_TOTAL_BYTES: Final = 64 * 2**30
"""Fifty times what the set unpacks to."""

_SET_FOLDER: Final = "chest_xray"
"""What the set's folder is called in every form in which it is published."""

_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{8}\.part$")
"""Names under which `storage` writes local files before they are whole."""

_EVIL: Final = re.compile(r"^/|^[A-Za-z]:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]")
"""From the root, from a Windows drive, through the folder above; or with control characters."""


class Planned(NamedTuple):
    """One radiograph, and where its bytes are."""

    path: str
    """Below the destination: `split/CLASS/name`."""
    place: tuple[Step, ...]
    """Steps from the archive to its bytes; the last one has their size and checksum."""


class Plan(NamedTuple):
    """What an archive holds of the set."""

    files: list[Planned]
    """In the order of the archive."""
    passed_over: Counter[str]
    """Members that are no radiographs of the set, by kind."""


class Unpacked(NamedTuple):
    """What was done."""

    num_written: int
    num_kept: int
    """There already, with the content that the archive has."""


def plan(archive: str) -> Plan:
    """What is to be unpacked of an archive, and whether it can be trusted with it.

    Args:
        archive: path or URI of a zip or tar that holds `train|val|test / NORMAL|PNEUMONIA`, itself
            or in an archive within.

    Raises:
        DataError: not an archive, cut off, or with members that are encrypted, damaged, too large
            or named so that they would land elsewhere; or without a radiograph of the set.
        StorageError: it cannot be read.
    """
    skipped: Counter[str] = Counter()
    found: list[tuple[str, str, Planned]] = []
    for name, place in _members(archive, skipped):
        parts = PurePosixPath(name.replace(SEPARATOR, "/")).parts
        root, (split, label) = parts[:-3], parts[-3:-1] if len(parts) > 2 else ("", "")
        if split not in labels.SPLITS or label not in labels.CLASSES or not may_be_image(name):
            skipped["other files"] += 1
            continue
        found.append(("/".join(root), name, Planned("/".join(parts[-3:]), place)))
    named = [each for each in found if _is_set(each[0])]
    if named and len(named) < len(found):
        # Version 3 of the record has retinal scans, too, in folders of their own.
        skipped["other files"] += len(found) - len(named)
        found = named
    if not found:
        raise DataError(
            f"{archive}: no radiographs found. Expected {'|'.join(labels.SPLITS)} /"
            f" {'|'.join(labels.CLASSES)}, in a zip or tar; passed over {listed(skipped)}."
        )
    files: dict[str, Planned] = {}
    for _, name, each in found:
        first = files.setdefault(each.path, each)
        if first is not each:
            one, other = first.place[-1], each.place[-1]
            if (one.size, one.crc) != (other.size, other.crc) or one.crc < 0:
                raise DataError(
                    f"{archive}: two different files are called {each.path}, the second one"
                    f" {name}. Nothing was unpacked."
                )
            skipped["second copies"] += 1
    total = sum(each.place[-1].size for each in files.values())
    if total > MAX_TOTAL_BYTES:
        raise DataError(
            f"{archive}: unpacks to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}: not the set, or"
            " a bomb. Nothing was unpacked."
        )
    return Plan(sorted(files.values(), key=_offsets), skipped)


def unpack(archive: str, planned: Plan, destination: str) -> Unpacked:
    """Write what is planned, several files at a time, each whole or not at all.

    What is there already with the right content stays, so that an interrupted call is taken up by
    the next one.

    Args:
        archive: path or URI of the archive.
        planned: what `plan` said of it.
        destination: folder or bucket prefix.

    Raises:
        DataError: a member is damaged.
        StorageError: the archive cannot be read or the destination not written, or has no room.
    """
    destination = storage.absolute(destination)
    sizes = _sizes(destination)
    missing: list[Planned] = []
    there: list[Planned] = []
    for each in planned.files:
        same = sizes.get(each.path) == each.place[-1].size and each.place[-1].crc >= 0
        (there if same else missing).append(each)
    with ThreadPoolExecutor(THREADS) as pool:
        kept = list(pool.map(lambda each: _is_written(destination, each), there))
    missing += [each for each, right in zip(there, kept, strict=True) if not right]
    missing.sort(key=_offsets)
    _check_room(destination, sum(each.place[-1].size for each in missing))
    _stream(archive, missing, destination)
    return Unpacked(len(missing), sum(kept))


def _members(archive: str, skipped: Counter[str]) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """Names and places of all that may be of the set, archives within opened."""
    with Reader() as reader:
        waiting: list[tuple[str, tuple[Step, ...], str]] = [("", (), _kind(archive))]
        while waiting:
            outer, steps, kind = waiting.pop(0)
            where = f"{archive}{SEPARATOR}{outer}" if outer else archive
            try:
                members = list(reader.members(archive, steps, kind))
            except DataError as error:
                raise DataError(f"{where}: {error}. Fetch it again.") from None
            for member in members:
                if member.link:
                    skipped["links"] += 1
                    continue
                name = member.name.replace("\\", "/")  # As some Windows programs write it.
                if _EVIL.search(name):
                    raise DataError(
                        f"{where}: a member is named {member.name!r}, to land outside of its"
                        " folder. Nothing was unpacked; do not trust this file."
                    )
                if name and (kind_of := passed_over(name)):
                    skipped[kind_of] += 1
                elif member.step is None or member.status:
                    inside = f"{SEPARATOR}{member.name}" if member.name else ""
                    raise DataError(
                        f"{where}{inside}: {member.reason}. Nothing was unpacked. Fetch it"
                        " again, or another file."
                    )
                else:
                    inner = f"{outer}{SEPARATOR}{name}" if outer else name
                    nested, place = archive_kind(name), (*steps, member.step)
                    if nested and not steps:
                        waiting.append((inner, place, nested))
                    else:
                        yield inner, place


def _kind(archive: str) -> str:
    """What an archive is: by its first bytes, since addresses need not end in a file's name."""
    with storage.open_file(archive) as file:
        try:
            start = file.read(4)
        except OSError as error:
            raise StorageError(f"{archive}: cannot be read: {error.strerror}.") from None
    if start == b"PK\x03\x04":
        return "zip"
    kind = archive_kind(archive)
    if not kind or kind == "zip":
        raise DataError(
            f"{archive}: not a zip archive, and not named like a tar. Is it a web page, or cut off?"
        )
    return kind


def _is_set(root: str) -> bool:
    parts = PurePosixPath(root).parts
    return bool(parts) and parts[-1].removesuffix(".zip") == _SET_FOLDER


def _offsets(each: Planned) -> tuple[int, ...]:
    return tuple(step.offset for step in each.place)


def _sizes(destination: str) -> dict[str, int]:
    """Bytes of the radiographs that are there; what a killed process left half is deleted."""
    sizes = {}
    for split in labels.SPLITS:
        folder = storage.join(destination, split)
        if storage.kind(folder) == "folder":
            for file in storage.list_files(folder):
                if _UNFINISHED.search(file.uri):
                    storage.delete_file(file.uri)
                else:
                    sizes[storage.absolute(file.uri)[len(destination) + 1 :]] = file.size
    return sizes


def _is_written(destination: str, each: Planned) -> bool:
    data = storage.read_bytes(storage.join(destination, each.path))
    return zlib.crc32(data) == each.place[-1].crc


def _check_room(destination: str, needed: int) -> None:
    if "://" in destination:
        return
    folder = next(path for path in (Path(destination), *Path(destination).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{destination}: has room for {free:,} bytes, and {needed:,} are to come. Make room or"
            " choose another place."
        )


def _stream(archive: str, files: Iterable[Planned], destination: str) -> None:
    files = list(files)
    total = sum(each.place[-1].size for each in files)
    pending: dict[Future[None], int] = {}
    with (
        Reader() as reader,
        Progress("unpacked", total, unit="bytes") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def settle() -> None:
            for done in wait(pending, return_when=FIRST_COMPLETED).done:
                progress.add(pending.pop(done))
                done.result()

        try:
            for each in files:
                try:
                    data = reader.read(archive, each.place)
                except DataError as error:
                    raise DataError(f"{archive}: {each.path}: {error}. Fetch it again.") from None
                while pending and (
                    len(pending) >= THREADS or sum(pending.values()) + len(data) > IN_FLIGHT_BYTES
                ):
                    settle()
                place = storage.join(destination, each.path)
                pending[pool.submit(storage.write_bytes, place, data)] = len(data)
                del data
            while pending:
                settle()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def listed(counts: Counter[str]) -> str:
    """Counts by kind, in words."""
    named = [f"{count:,} {kind}" for kind, count in sorted(counts.items()) if count]
    return ", ".join(named) or "nothing"
