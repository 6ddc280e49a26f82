"""Download the data set into a folder or bucket: fetch, unpack, check, list.

Everything can be repeated. The next call keeps what an interrupted one has done; the manifest is
written last, and if there is one, its files are verified and nothing is fetched.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cxr import labels, storage
from cxr.download import checking, unpacking
from cxr.download.checking import Findings
from cxr.download.publishers import LICENSE, Archive
from cxr.download.transfer import fetch, sha256
from cxr.errors import DataError, DownloadError, StorageError

MANIFEST: Final = "manifest.parquet"
_LICENSE_FILE: Final = "LICENSE.txt"
_SOURCE: Final = "source.json"

_ADVICE: Final = (
    "Or fetch it elsewhere and give --url FILE; behind a firewall, HTTPS_PROXY and"
    " REQUESTS_CA_BUNDLE are used."
)


@dataclass(frozen=True)
class ArchiveSource:
    """The source of the set: a published file, or one that the user names."""

    archive: Archive | None
    """To be fetched; None for a file that exists already."""
    file: str = ""
    """Path or URI of a file that exists already; it is read where it is and not deleted."""
    sha256: str = ""
    """Of that file, if the user gives it."""

    @property
    def address(self) -> str:
        """Identifies the source."""
        return self.archive.origin.address if self.archive else storage.absolute(self.file)

    @property
    def expected(self) -> str:
        """SHA-256 of the file; empty if unknown."""
        return self.archive.origin.sha256 if self.archive else self.sha256


def get(source: ArchiveSource, to: str) -> Findings:
    """Download the set, or verify that it is complete.

    Args:
        source: where the set comes from.
        to: folder or bucket prefix. Its `.download` folder, or for a bucket the cache folder of
            this machine, holds the archive until all of it is unpacked and checked.

    Returns:
        The findings of the check; manifest, license and source are written beside the set.

    Raises:
        DownloadError: the archive cannot be fetched.
        DataError: it is damaged, or not the set.
        StorageError: the folder cannot be written, or holds something else.
    """
    to = storage.absolute(to)
    _check_folder(source, to)
    manifest = storage.join(to, MANIFEST)
    if storage.kind(manifest) == "file":
        before, findings = storage.read_table(manifest), checking.examine(to)
        changed = checking.differences(before, findings.manifest)
        if not changed:
            print(f"{to}: all {len(before):,} files are there and unchanged; nothing is fetched.")
            return findings
        print(f"{to}: {len(changed):,} files are missing, new or changed, the first"
              f" {changed[0]}; getting the archive again.", flush=True)  # fmt: skip
        storage.delete_file(manifest)
    storage.write_bytes(storage.join(to, _LICENSE_FILE), LICENSE.encode())
    storage.write_json(
        storage.join(to, _SOURCE), {"address": source.address, "sha256": source.expected}
    )
    archive = obtain(source, to)
    try:
        planned = unpacking.plan(archive)
        done = unpacking.unpack(archive, planned, to)
    except DataError as error:
        if source.archive is None:
            raise
        aside = Path(archive + ".wrong")
        Path(archive).replace(aside)
        raise DataError(f"{error} The file is kept aside as {aside} and not used again.") from None
    print(f"{done.num_written:,} files written, {done.num_kept:,} were there; passed over:"
          f" {unpacking.listed(planned.passed_over)}", flush=True)  # fmt: skip
    findings = checking.examine(to)
    storage.write_table(manifest, findings.manifest)
    if source.archive:
        Path(archive).unlink()
        _remove_if_empty(Path(archive).parent)
    return findings


def obtain(source: ArchiveSource, to: str) -> str:
    """Fetch the archive, or check the one that is here already; its path or URI.

    Raises:
        DownloadError: it cannot be fetched, or has another SHA-256 than expected.
    """
    if source.archive is None:
        if source.sha256:
            with storage.open_file(source.file) as file:
                actual = sha256(file)
            if actual != source.sha256:
                raise DownloadError(
                    f"{source.file}: has SHA-256 {actual}, not {source.sha256}: damaged, or another"
                    " file. It is not used."
                )
        return source.file
    name = source.archive.name
    here = Path(to, ".download", name)
    if "://" in to:
        # Another job's file may have this name.
        both = hashlib.sha256(f"{to} {source.address}".encode()).hexdigest()
        here = storage.scratch(both[:12]) / name
    fetch(source.archive.origin, here, _ADVICE)
    return str(here)


def _check_folder(source: ArchiveSource, to: str) -> None:
    """Refuse a folder with radiographs from another source: they would be mixed.

    Raises:
        StorageError: it has some.
    """
    source_uri = storage.join(to, _SOURCE)
    if storage.kind(source_uri) == "file":
        before = storage.read_json(source_uri)
        same = before.get("address") == source.address
        if not same and (not source.expected or before.get("sha256") != source.expected):
            raise StorageError(
                f"{to}: holds what came from {before.get('address')}, not {source.address}. Choose"
                " another --to."
            )
        return
    taken = [s for s in labels.SPLITS if not storage.is_empty(storage.join(to, s))]
    if taken:
        raise StorageError(
            f"{to}: has a folder {taken[0]!r} that this job did not make. Choose another --to."
        )


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
