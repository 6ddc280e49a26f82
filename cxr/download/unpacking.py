"""Unpack a downloaded archive into the set's folders: members are checked first, then streamed.

Nothing is unpacked if a member cannot be read, has a wrong size or a name that leads elsewhere.
Members go from the archive, also from one within it, to the destination without another copy; one
thread reads them in order, several write. Memory holds the list of names and a few files, however
large the archive is.
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
from cxr.sources import SEPARATOR, Reader, Step, archive_kind, passed_over

THREADS: Final = 8
"""Files written concurrently."""

IN_FLIGHT_BYTES: Final = 64 * 2**20
"""Bytes read and not yet written; more only if a single file is larger."""

MAX_TOTAL_BYTES: Final = 64 * 2**30
"""Largest total size; fifty times the size of the unpacked set."""

_SET_FOLDER: Final = "chest_xray"
"""Name of the set's folder in every form in which it is published."""

_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{8}\.part$")
"""Names under which `storage` writes local files before they are complete."""

_EVIL: Final = re.compile(r"^/|^[A-Za-z]:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]")
"""Names that start at the root or at a Windows drive, lead through the folder above, or contain
control characters."""


class Planned(NamedTuple):
    """One radiograph to unpack."""

    path: str
    """Below the destination: `split/CLASS/name`."""
    steps: tuple[Step, ...]
    """From the archive to its bytes; the last one has their size and checksum."""


class Plan(NamedTuple):
    """What to unpack of an archive."""

    files: list[Planned]
    """In the order of the archive."""
    passed_over: Counter[str]
    """Members that are no radiographs of the set, by type."""


class Unpacked(NamedTuple):
    """What was done."""

    num_written: int
    num_kept: int
    """Files that existed with the same content."""


def plan(archive: str) -> Plan:
    """Choose what to unpack of an archive, and refuse an archive that cannot be trusted.

    Args:
        archive: path or URI of a zip or tar that holds `train|val|test / NORMAL|PNEUMONIA`, itself
            or in an archive within.

    Raises:
        DataError: not an archive, cut off, or with members that are encrypted, damaged, too large
            or named so that they would land elsewhere; or without a radiograph of the set.
        StorageError: it cannot be read.
    """
    skipped: Counter[str] = Counter()
    images: list[tuple[str, str, Planned]] = []
    for name, steps in _members(archive, skipped):
        parts = PurePosixPath(name.replace(SEPARATOR, "/")).parts
        root, (split, label) = parts[:-3], parts[-3:-1] if len(parts) > 2 else ("", "")
        if split not in labels.SPLITS or label not in labels.CLASSES or archive_kind(name):
            skipped["other files"] += 1
            continue
        images.append(("/".join(root), name, Planned("/".join(parts[-3:]), steps)))
    in_set = [image for image in images if _is_set(image[0])]
    if in_set and len(in_set) < len(images):
        # Version 3 of the record also has retinal scans, in folders of their own.
        skipped["other files"] += len(images) - len(in_set)
        images = in_set
    if not images:
        raise DataError(
            f"{archive}: no radiographs found. Expected {'|'.join(labels.SPLITS)} /"
            f" {'|'.join(labels.CLASSES)}, in a zip or tar; passed over {listed(skipped)}."
        )
    files: dict[str, Planned] = {}
    for _, name, planned in images:
        first = files.setdefault(planned.path, planned)
        if first is not planned:
            one, other = first.steps[-1], planned.steps[-1]
            if (one.size, one.crc) != (other.size, other.crc) or one.crc < 0:
                raise DataError(
                    f"{archive}: two different files are called {planned.path}, the second one"
                    f" {name}. Nothing was unpacked."
                )
            skipped["second copies"] += 1
    total = sum(planned.steps[-1].size for planned in files.values())
    if total > MAX_TOTAL_BYTES:
        raise DataError(
            f"{archive}: unpacks to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}: not the set, or"
            " a bomb. Nothing was unpacked."
        )
    return Plan(sorted(files.values(), key=_offsets), skipped)


def unpack(archive: str, planned: Plan, destination: str) -> Unpacked:
    """Write what is planned, several files at a time, each atomically.

    Files that exist with the right content are kept, so that the next call resumes an interrupted
    one.

    Args:
        archive: path or URI of the archive.
        planned: what `plan` returned.
        destination: folder or bucket prefix.

    Raises:
        DataError: a member is damaged.
        StorageError: the archive cannot be read, or the destination cannot be written or is full.
    """
    destination = storage.absolute(destination)
    sizes = _sizes(destination)
    missing: list[Planned] = []
    existing: list[Planned] = []
    for file in planned.files:
        same = sizes.get(file.path) == file.steps[-1].size and file.steps[-1].crc >= 0
        (existing if same else missing).append(file)
    with ThreadPoolExecutor(THREADS) as pool:
        kept = list(pool.map(lambda file: _is_written(destination, file), existing))
    missing += [file for file, is_right in zip(existing, kept, strict=True) if not is_right]
    missing.sort(key=_offsets)
    _check_room(destination, sum(file.steps[-1].size for file in missing))
    _stream(archive, missing, destination)
    return Unpacked(len(missing), sum(kept))


def _members(archive: str, skipped: Counter[str]) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """Names and steps of all members that may be of the set, also of archives within."""
    with Reader() as reader:
        waiting: list[tuple[str, tuple[Step, ...], str]] = [("", (), _kind(archive))]
        while waiting:
            outer, steps, kind = waiting.pop(0)
            address = f"{archive}{SEPARATOR}{outer}" if outer else archive
            try:
                members = list(reader.members(archive, steps, kind))
            except DataError as error:
                raise DataError(f"{address}: {error}. Fetch it again.") from None
            for member in members:
                if member.link:
                    skipped["links"] += 1
                    continue
                name = member.name.replace("\\", "/")  # As some Windows programs write it.
                if _EVIL.search(name):
                    raise DataError(
                        f"{address}: a member is named {member.name!r}, to land outside of its"
                        " folder. Nothing was unpacked; do not trust this file."
                    )
                if name and (other_type := passed_over(name)):
                    skipped[other_type] += 1
                elif member.step is None or member.status:
                    inside = f"{SEPARATOR}{member.name}" if member.name else ""
                    raise DataError(
                        f"{address}{inside}: {member.reason}. Nothing was unpacked. Fetch it"
                        " again, or another file."
                    )
                else:
                    inner = f"{outer}{SEPARATOR}{name}" if outer else name
                    nested, member_steps = archive_kind(name), (*steps, member.step)
                    if nested and not steps:
                        waiting.append((inner, member_steps, nested))
                    else:
                        yield inner, member_steps


def _kind(archive: str) -> str:
    """The kind of an archive: by its first bytes, since a URL need not end in a file's name."""
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


def _offsets(file: Planned) -> tuple[int, ...]:
    return tuple(step.offset for step in file.steps)


def _sizes(destination: str) -> dict[str, int]:
    """Sizes of the existing radiographs; what a killed process has half written is deleted."""
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


def _is_written(destination: str, file: Planned) -> bool:
    data = storage.read_bytes(storage.join(destination, file.path))
    return zlib.crc32(data) == file.steps[-1].crc


def _check_room(destination: str, needed: int) -> None:
    if "://" in destination:
        return
    folder = next(path for path in (Path(destination), *Path(destination).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{destination}: has room for {free:,} bytes, and {needed:,} are to come. Make room or"
            " choose another folder."
        )


def _stream(archive: str, files: Iterable[Planned], destination: str) -> None:
    files = list(files)
    total = sum(file.steps[-1].size for file in files)
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
            for file in files:
                try:
                    data = reader.read(archive, file.steps)
                except DataError as error:
                    raise DataError(f"{archive}: {file.path}: {error}. Fetch it again.") from None
                while pending and (
                    len(pending) >= THREADS or sum(pending.values()) + len(data) > IN_FLIGHT_BYTES
                ):
                    settle()
                target = storage.join(destination, file.path)
                pending[pool.submit(storage.write_bytes, target, data)] = len(data)
                del data
            while pending:
                settle()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def listed(counts: Counter[str]) -> str:
    """Counts by type, in words."""
    named = [f"{count:,} {name}" for name, count in sorted(counts.items()) if count]
    return ", ".join(named) or "nothing"
