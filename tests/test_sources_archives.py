"""Members of archives of every kind come back as they were put in; what is damaged is explained."""

import errno
import gzip
import io
import itertools
import random
import struct
import sys
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr import sources, storage
from cxr.errors import CxrError, DataError, StorageError
from cxr.images.read import read_images
from cxr.sources import Reader
from cxr.sources.archives import members, streams
from cxr.sources.archives import reader as reader_module
from tests.support.archives import (
    EVERY,
    FILES,
    MAKERS,
    Files,
    Row,
    inside,
    noise,
    place,
    tarred,
    zipped,
    zipped_64,
    zipped_to_pipe,
)
from tests.support.folders import bucket


def listed(file: Path | str) -> list[Row]:
    rows: list[Row] = sources.list_archive(str(file), None)[0].to_pylist()
    uris = [row["uri"] for row in rows]
    assert len(uris) == len(set(uris))
    return rows


def read_all(rows: list[Row], reader: Reader | None = None) -> Files:
    """The bytes of the rows that can be read, by path in the archive."""
    found = {}
    with reader or Reader() as opened:
        for row in rows:
            if not row["status"]:
                found[inside(row)] = opened.read(row["file"], place(row))
    return found


def attempt(reader: Reader, row: Row) -> bytes | str:
    """The bytes of a row, or why there are none."""
    try:
        return reader.read(row["file"], place(row))
    except CxrError as error:
        return str(error)


def saved(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- whole archives ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_every_kind_of_archive_gives_back_its_members(tmp_path: Path, name: str) -> None:
    kind, make = EVERY[name]
    rows = listed(saved(tmp_path, f"a.{kind}", make(FILES)))
    assert [inside(row) for row in rows] == list(FILES)
    assert [row["size"] for row in rows] == [len(data) for data in FILES.values()]
    assert {row["status"] for row in rows} == {""}
    assert read_all(rows) == FILES


@pytest.mark.parametrize("name", EVERY)
def test_members_are_read_in_any_order_and_again(tmp_path: Path, name: str) -> None:
    kind, make = EVERY[name]
    rows = listed(saved(tmp_path, f"a.{kind}", make(FILES)))
    order = [*reversed(rows), *rows, *random.Random(0).choices(rows, k=10)]
    with Reader() as reader:
        for row in order:
            assert reader.read(row["file"], place(row)) == FILES[inside(row)]


@pytest.mark.parametrize("suffix", members.SUFFIXES)
def test_the_name_tells_the_kind_in_small_and_capital_letters(tmp_path: Path, suffix: str) -> None:
    make = dict(MAKERS.values())[members.SUFFIXES[suffix]]
    for name in (f"a{suffix}", f"B.2{suffix.upper()}"):
        assert read_all(listed(saved(tmp_path, name, make(FILES)))) == FILES


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_without_members_has_no_rows(tmp_path: Path, name: str) -> None:
    kind, make = MAKERS[name]
    assert listed(saved(tmp_path, f"a.{kind}", make({}))) == []


@pytest.mark.parametrize("name", MAKERS)
def test_empty_members_are_explained_and_folders_are_no_members(tmp_path: Path, name: str) -> None:
    kind, make = MAKERS[name]
    rows = listed(saved(tmp_path, f"a.{kind}", make({"empty.png": b"", "full.png": b"x"})))
    assert [(inside(row), row["status"], row["reason"]) for row in rows] == [
        ("empty.png", "unreadable", "the file is empty"),
        ("full.png", "", ""),
    ]
    folders = io.BytesIO()
    with zipfile.ZipFile(folders, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/deeper/", b"")
        archive.writestr("written\\on Windows\\", b"")
    assert listed(saved(tmp_path, "folders.zip", folders.getvalue())) == []
    with tarfile.open(tmp_path / "folders.tar", "w") as tar:
        tar.add(tmp_path, "folder", recursive=False)
    assert listed(tmp_path / "folders.tar") == []


def test_long_names_and_their_headers_are_read(tmp_path: Path) -> None:
    files = {f"{'folder/' * 60}{letter * 90}.png": letter.encode() for letter in "ab"}
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert read_all(listed(saved(tmp_path, "a.tar", tarred(files, format)))) == files


@pytest.mark.parametrize("name", EVERY)
def test_an_archive_in_a_bucket_is_read_as_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bucket(monkeypatch, tmp_path)
    kind, make = EVERY[name]
    path = saved(tmp_path, f"a.{kind}", make(FILES))
    assert read_all(listed(f"mock://a.{kind}")) == FILES
    assert storage.read_bytes(f"mock://a.{kind}") == path.read_bytes()


def test_a_bucket_that_fails_is_not_taken_for_a_damaged_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "a.tar.gz", EVERY["tar.gz"][1](FILES))
    rows = listed(path)

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return offset + path.stat().st_size * (whence == io.SEEK_END)

        def readinto(self, _: Any) -> int:
            raise OSError(errno.EIO, "Timeout")

    monkeypatch.setattr(storage, "open_file", lambda *_: io.BufferedReader(Failing()))
    reader = Reader()
    with pytest.raises(StorageError, match=r"a\.tar\.gz: cannot be read: Timeout\.$"):
        reader.read(str(path), place(rows[0]))
    for kind in ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz"):
        [row] = listed(f"{tmp_path}/a.{kind}")
        assert (row["status"], row["reason"]) == ("unreadable", "cannot be read: Timeout")


# --- archives in archives ------------------------------------------------------------------------

SMALL: Files = {"x/a.png": noise(20_000, 7), "b.dcm": b"chest " * 5_000}
NESTED = [*itertools.product(MAKERS, MAKERS)]


@pytest.mark.parametrize(("outer", "inner"), NESTED, ids=[f"{i} in {o}" for o, i in NESTED])
def test_an_archive_in_an_archive_is_read(tmp_path: Path, outer: str, inner: str) -> None:
    (outer_kind, make_outer), (inner_kind, make_inner) = MAKERS[outer], MAKERS[inner]
    other = {"c.png": noise(100, 8)}
    path = saved(
        tmp_path,
        f"out.{outer_kind}",
        make_outer(
            {
                "before.png": b"before",
                f"in.{inner_kind}": make_inner(SMALL),
                "between.png": b"between",
                f"second.{inner_kind}": make_inner(other),
                "after.png": b"after",
            }
        ),
    )
    expected = {
        **{f"{name}.png": name.encode() for name in ("before", "between", "after")},
        **{f"in.{inner_kind}!/{name}": data for name, data in SMALL.items()},
        **{f"second.{inner_kind}!/{name}": data for name, data in other.items()},
    }
    rows = listed(path)
    assert [inside(row) for row in rows] == list(expected)
    assert read_all(rows) == expected
    with Reader() as reader:
        for row in random.Random(1).sample(rows * 3, 3 * len(rows)):
            assert reader.read(row["file"], place(row)) == expected[inside(row)]
    sequential = reader_module.is_sequential(place(rows[3]))
    assert sequential == (not (outer in ("zip stored", "tar") and inner[:3] in ("zip", "tar"))
                          or "." in inner)  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_two_levels_deep_is_explained(tmp_path: Path, name: str) -> None:
    kind, make = MAKERS[name]
    deep = make({f"middle.{kind}": make({f"deep.{kind}": make(SMALL), "seen.png": b"seen"})})
    rows = listed(saved(tmp_path, f"a.{kind}", deep))
    assert [(inside(row), row["status"], row["reason"]) for row in rows] == [
        (
            f"middle.{kind}!/deep.{kind}",
            "unreadable",
            "an archive nested deeper than one level; unpack it first",
        ),
        (f"middle.{kind}!/seen.png", "", ""),
    ]


ONE: Files = {"one.png": noise(3_000, 10)}
MORE: Files = {"two.png": noise(70_000, 11), "folder/three.dcm": noise(90_000, 12)}
LAST: Files = {"four.png": noise(500, 13)}
DAMAGED_ZIP = "one of the zips joined in this file is damaged; {} members found"


def moved(data: bytes, offset: int) -> bytes:
    """A zip whose offsets count from a place before its beginning, as `zip -A` writes them."""
    changed = bytearray(data)
    end = changed.rindex(b"PK\5\6")
    at = struct.unpack_from("<I", changed, end + 16)[0]
    struct.pack_into("<I", changed, end + 16, at + offset)
    while changed[at : at + 4] == b"PK\1\2":
        local = struct.unpack_from("<I", changed, at + 42)[0]
        struct.pack_into("<I", changed, at + 42, local + offset)
        at += 46 + sum(struct.unpack_from("<3H", changed, at + 28))
    return bytes(changed)


@pytest.mark.parametrize("make", [zipped, zipped_64, zipped_to_pipe])
@pytest.mark.parametrize("between", [b"", b"garbage" * 100])
def test_members_of_joined_zips_are_all_read(
    tmp_path: Path, make: Callable[[Files], bytes], between: bytes
) -> None:
    one, more, last = make(ONE), make(MORE), make(LAST)
    program = b"MZ" + noise(5_000, 14)
    for name, data, files in (
        ("two", one + between + more, ONE | MORE),
        ("three", one + between + more + between + last, ONE | MORE | LAST),
        ("small behind", more + between + last, MORE | LAST),
        ("empty behind", more + between + make({}), MORE),
        ("empty before", make({}) + between + more, MORE),
        ("behind a program", program + one + between + more, ONE | MORE),
        ("one behind a program", program + more, MORE),
    ):
        rows = listed(saved(tmp_path, f"{name}.zip", data))
        assert {inside(row): row["status"] for row in rows} == dict.fromkeys(files, ""), name
        assert read_all(rows) == files, name


def test_joined_zips_with_offsets_of_the_whole_file_are_read(tmp_path: Path) -> None:
    one = zipped(ONE)
    rows = listed(saved(tmp_path, "a.zip", one + moved(zipped(MORE), len(one))))
    assert read_all(rows) == ONE | MORE


def test_joined_zips_of_the_same_names_have_a_row_each(tmp_path: Path) -> None:
    rows = listed(saved(tmp_path, "a.zip", zipped(ONE) + zipped({"one.png": b"other"})))
    assert [inside(row) for row in rows] == ["one.png", "one.png#2"]
    assert rows[1]["warnings"] == ["member 2 of this name in the archive"]
    assert read_all(rows) == ONE | {"one.png#2": b"other"}


@pytest.mark.parametrize(
    ("cut", "found"), [(40, 0), (30_000, 0), (69_990, 0), (80_000, 1), (-30, 2)]
)
def test_what_joined_zips_lack_has_a_row(tmp_path: Path, cut: int, found: int) -> None:
    rows = listed(saved(tmp_path, "a.zip", zipped(ONE) + zipped(MORE)[:cut]))
    complete = ONE | dict(list(MORE.items())[:found])
    assert read_all(rows) == complete
    *_, last = rows
    assert (last["uri"], last["status"]) == (str(tmp_path / "a.zip"), "unreadable")
    if 0 < cut < 2**16:
        assert last["reason"] == DAMAGED_ZIP.format(found)
    # The first one is damaged.
    rows = listed(saved(tmp_path, "b.zip", zipped(ONE)[:2_000] + zipped(MORE)))
    assert read_all(rows) == MORE
    assert [row["reason"] for row in rows if row["status"]] == [DAMAGED_ZIP.format(0)]


def test_thousands_of_joined_zips_are_explained(tmp_path: Path) -> None:
    rows = listed(saved(tmp_path, "a.zip", zipped({}) * 5_000 + zipped(ONE)))
    assert [(inside(row), row["reason"]) for row in rows if row["status"]] == [
        ("", "more than 100 zips in one file")
    ]
    assert read_all(rows) == ONE


def test_parts_of_a_split_zip_are_named(tmp_path: Path) -> None:
    data = bytearray(zipped(MORE))
    at = data.rindex(b"PK\5\6")
    struct.pack_into("<2H", data, at + 4, 2, 2)
    join = "join the parts first: zip -s 0 NAME.zip --out JOINED.zip"
    for name, content, reason in (
        ("a.zip", bytes(data[100_000:]), f"the last part of a split zip; {join}"),
        ("b.zip", b"PK\7\x08" + bytes(data[:100_000]), f"a part of a split zip; {join}"),
    ):
        (row,) = listed(saved(tmp_path, name, content))
        assert (row["status"], row["reason"]) == ("unreadable", reason)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("a.7z", "type 7z"), ("A.RAR", "type RAR"), ("a.tar.lz4", "type lz4")),
        *(("a.tar.lzma", "type LZMA"), ("a.tar.br", "type Brotli"), ("a.tar.Z", "type compress")),
        *(("a.cab", "type cabinet"), ("a.iso", "type disk image"), ("a.dcm.gz", "type gzip")),
        *(("a.z01", "a part of a split zip"), ("a.z12", "a part of a split zip")),
        *(("a.zip.001", "a part of a split .zip"), ("a.7z.002", "a part of a split .7z")),
        *(("a.tar.gz.003", "a part of a split .gz"), ("a.part2.rar", "a part of a split RAR")),
    ],
)
def test_archives_that_are_not_read_are_named(tmp_path: Path, name: str, words: str) -> None:
    path = saved(tmp_path, name, b"any bytes")
    outer = saved(tmp_path, "outer.zip", zipped({name: b"any bytes"}))
    for row in (*sources.list_inputs([str(path)]).table().to_pylist(), *listed(outer)):
        assert row["status"] == "unreadable"
        assert words in row["reason"]
        assert "unpack it" in row["reason"] or "join the parts first" in row["reason"]


@pytest.mark.parametrize(
    ("kind", "start", "words"),
    [
        ("zip", b"Rar!\x1a\7\1\0", "not a zip archive, but a file of type RAR"),
        ("zip", b"7z\xbc\xaf\x27\x1c", "not a zip archive, but a file of type 7z"),
        ("tar", gzip.compress(b"x", mtime=0), "not a tar archive, but a file of type gzip"),
        ("tar.gz", b"BZh9", "not a tar.gz archive, but a file of type bzip2"),
        ("tar.gz", b"PK\3\4", "not a tar.gz archive, but a file of type zip"),
    ],
)
def test_an_archive_with_the_suffix_of_another_is_named(
    tmp_path: Path, kind: str, start: bytes, words: str
) -> None:
    (row,) = listed(saved(tmp_path, f"a.{kind}", start + bytes(99)))
    assert (row["status"], row["reason"]) == ("unreadable", words)


@pytest.mark.parametrize("outer", MAKERS)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.zst"])
def test_a_file_that_only_has_the_name_of_an_archive_is_explained(
    tmp_path: Path, outer: str, kind: str
) -> None:
    outer_kind, make = MAKERS[outer]
    files = {f"in.{kind}": b"no archive\n" * 100, f"none.{kind}": b"", "a.png": b"x"}
    rows = listed(saved(tmp_path, f"a.{outer_kind}", make(files)))
    assert [(inside(row), row["status"], row["reason"]) for row in rows] == [
        ("a.png", "", ""),
        (f"in.{kind}", "unreadable", f"not a {kind} archive"),
        (f"none.{kind}", "unreadable", "the archive is empty"),
    ]


def test_many_archives_in_a_compressed_one_are_read_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = {f"{i}.zip": zipped({"a.png": noise(9_000, i)}) for i in range(50)}
    path = saved(tmp_path, "a.tar.gz", gzip.compress(tarred(inner)))
    opened = []
    unpack = streams.UNPACKERS["tar.gz"]

    def counted(packed: Any) -> Any:
        opened.append(1)
        return unpack(packed)

    monkeypatch.setitem(streams.UNPACKERS, "tar.gz", counted)
    rows = listed(path)
    assert len(opened) == 2  # The list, then the archives in it.
    opened.clear()
    assert len(read_all(rows)) == 50
    assert len(opened) == 1


# --- names ---------------------------------------------------------------------------------------


def test_names_that_are_not_utf_8_are_listed_in_print(tmp_path: Path) -> None:
    # zipfile writes what is not ASCII as UTF-8: the flag that says so is taken away again.
    marked = bytearray(zipped({"Thorax_é.png": b"x"}))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        struct.pack_into("<H", marked, marked.index(signature) + flags, 0)
    [row] = listed(saved(tmp_path, "a.zip", bytes(marked)))
    assert inside(row) == "Thorax_é.png".encode().decode("cp437")
    name = b"Thorax_\xe9.png".decode("utf-8", "surrogateescape")
    for format in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        path = saved(tmp_path, "a.tar", tarred({name: b"x", "b.png": b"y"}, format))
        rows = listed(path)
        assert [inside(row) for row in rows] == ["Thorax_\\xe9.png", "b.png"]
        assert list(read_all(rows).values()) == [b"x", b"y"]


def test_members_without_a_name_have_rows(tmp_path: Path) -> None:
    unnamed = zipped({"a": b"abc", "b.png": b"x"}).replace(b"\1\0\0\0a", b"\1\0\0\0\0")
    local = zipped({"a": b"abc", "b.png": b"x"})
    for data in (local.replace(b"a", b"\0", 2), unnamed):
        rows = listed(saved(tmp_path, "a.zip", data))
        assert [inside(row) for row in rows][-1] == "b.png"
        assert len(rows) == 2
    rows = listed(saved(tmp_path, "a.tar", tarred({"": b"abc", "b.png": b"x"})))
    assert [inside(row) for row in rows] == ["(no name)", "b.png"]
    assert list(read_all(rows).values()) == [b"abc", b"x"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_have_a_row_each(tmp_path: Path) -> None:
    names = ["a.png", "a.png", "a.png#2", "a.png", "./a.png", "a.png#2"]
    buffers = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(buffers[0], "w") as a, tarfile.open(fileobj=buffers[1], mode="w") as b:
        for number, name in enumerate(names):
            a.writestr(name, bytes([number]))
            entry = tarfile.TarInfo(name)
            entry.size = 1
            b.addfile(entry, io.BytesIO(bytes([number])))
    for kind, buffer in zip(("zip", "tar"), buffers, strict=True):
        rows = listed(saved(tmp_path, f"a.{kind}", buffer.getvalue()))
        read = read_all(rows)
        assert list(read.values()) == [bytes([number]) for number in range(6)]
        assert list(read)[:5] == ["a.png", "a.png#2", "a.png#2#2", "a.png#3", "./a.png"]
        assert [row["warnings"] for row in rows][:2] == [
            [],
            ["member 2 of this name in the archive"],
        ]


def test_links_and_devices_in_a_tar_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("real.png")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"real"))
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
                 tarfile.FIFOTYPE)  # fmt: skip
        for kind in kinds:
            entry = tarfile.TarInfo(f"{kind.decode()}.png")
            entry.type, entry.linkname = kind, "real.png"
            archive.addfile(entry)
        entry = tarfile.TarInfo("contiguous.png")
        entry.type, entry.size = tarfile.CONTTYPE, 3
        archive.addfile(entry, io.BytesIO(b"abc"))
        entry = tarfile.TarInfo("of a type that nobody knows.png")
        entry.type, entry.size = b"Z", 3
        archive.addfile(entry, io.BytesIO(b"def"))
    table, skipped = sources.list_archive(str(path), None)
    assert skipped == {"link or device in an archive": 5}
    assert list(read_all(table.to_pylist()).values()) == [b"real", b"abc", b"def"]


# --- cut, damaged and hostile archives -----------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERY if name != "zip after a program"])
def test_what_comes_before_a_cut_is_read_and_the_rest_explained(tmp_path: Path, name: str) -> None:
    kind, make = EVERY[name]
    files = {f"{i}.png": noise(3_000, i) + b"\0" * 3_000 for i in range(8)}
    whole = make(files)
    end_of_tar = 8 * (512 + 6_144) + 512  # Padding follows the first block of its end mark.
    most = 0
    for cut in range(len(whole) - 1, 0, -997):
        rows = listed(saved(tmp_path, f"a.{kind}", whole[:cut]))
        if kind == "tar" and cut >= end_of_tar:
            assert read_all(rows) == files
            continue
        assert [inside(row) for row in rows] == [*list(files)[: len(rows) - 1], ""]
        assert rows[-1]["status"] == "unreadable"
        reasons = ["the archive is cut short or damaged", f"not a {kind} archive"]
        assert rows[-1]["reason"].startswith(tuple(reasons[: 1 + (len(rows) == 1)]))
        with Reader() as reader:
            read = [attempt(reader, row) for row in rows[:-1]]
        if read and isinstance(read[-1], str):  # The one that the cut goes through.
            assert read.pop() == "the archive is damaged or cut short here"
        assert read == list(files.values())[: len(read)]
        most = max(most, len(read))
    # Zstandard decodes whole blocks only; the other says nowhere where its members end.
    if kind != "tar.zst" and name != "zip stored to a pipe":
        assert most >= 7


@pytest.mark.parametrize("name", MAKERS)
def test_half_an_archive_gives_back_half_of_its_members(tmp_path: Path, name: str) -> None:
    kind, make = MAKERS[name]
    files = {f"{i}.png": noise(250_000, i) for i in range(8)}
    whole = make(files)
    rows = listed(saved(tmp_path, f"a.{kind}", whole[: len(whole) // 2]))
    with Reader() as reader:
        read = [attempt(reader, row) for row in rows if not row["status"]]
    sound = [data for data in read if isinstance(data, bytes)]
    assert sound == list(files.values())[: len(sound)]
    # bzip2 decodes whole blocks only, of 900,000 bytes.
    assert len(sound) >= (2 if kind == "tar.bz2" else 3)


def test_a_member_of_unknown_end_ends_the_list_of_a_cut_archive(tmp_path: Path) -> None:
    data = zipped_to_pipe(FILES, zipfile.ZIP_STORED)
    [row] = listed(saved(tmp_path, "a.zip", data[:-30]))
    assert row["reason"] == "the archive is cut short or damaged; 0 members were found"


def test_an_archive_cut_within_an_inner_one_gives_back_what_came_before(tmp_path: Path) -> None:
    inner = tarred({f"{i}.png": noise(50_000, i) for i in range(6)})
    for kind in ("tar", "tar.gz"):
        whole = {"in.tar": inner} if kind == "tar" else {"in.tar.gz": gzip.compress(inner)}
        for make, name in ((tarred, "a.tar"), (lambda f: zipped(f, zipfile.ZIP_STORED), "a.zip")):
            data = make(whole)
            rows = listed(saved(tmp_path, name, data[: len(data) // 2]))
            explained = [row for row in rows if row["status"]]
            if name == "a.zip":  # A member that is not whole is not listed.
                assert [inside(row) for row in rows] == [""]
                continue
            assert [inside(row) for row in explained] == ["", f"in.{kind}"]
            assert len(rows) - len(explained) >= 3
            row = next(row for row in rows if inside(row).endswith("0.png"))
            assert Reader().read(row["file"], place(row)) == noise(50_000, 0)


def test_a_damaged_directory_leaves_the_members(tmp_path: Path) -> None:
    for name in ("zip stored", "zip deflated", "zip to a pipe", "zip64"):
        data = bytearray(EVERY[name][1](FILES))
        at = data.rindex(b"PK\1\2")
        data[at : at + 4] = b"gone"
        rows = listed(saved(tmp_path, "a.zip", bytes(data)))
        assert read_all(rows) == FILES
        assert [(inside(row), row["reason"]) for row in rows if row["status"]] == [
            ("", "the archive is cut short or damaged; 5 members were found")
        ]


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    files = {f"{i}.png": noise(2_000, i) for i in range(5)}
    data = bytearray(tarred(files, tarfile.GNU_FORMAT))
    data[data.index(b"3.png")] ^= 0xFF
    rows = listed(saved(tmp_path, "a.tar", bytes(data)))
    assert [inside(row) for row in rows] == ["0.png", "1.png", "2.png", ""]
    assert rows[-1]["reason"] == "the archive is cut short or damaged; 3 members were found"


def test_a_tar_that_another_follows_says_so(tmp_path: Path) -> None:
    rows = listed(saved(tmp_path, "a.tar", tarred(FILES) + tarred({"lost.png": b"x"})))
    assert read_all(rows) == FILES
    assert [inside(row) for row in rows if row["status"]] == [""]


def test_a_wrong_checksum_at_the_end_leaves_the_members(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tarred(FILES)))
    data[-6] ^= 0xFF
    rows = listed(saved(tmp_path, "a.tar.gz", bytes(data)))
    assert read_all(rows) == FILES
    assert [inside(row) for row in rows if row["status"]] == [""]


def test_a_negative_size_in_a_tar_ends_the_list(tmp_path: Path) -> None:
    first = tarfile.TarInfo("a.png")
    first.size = 100
    second = tarfile.TarInfo("b.png")
    second.size = -1024  # From which tarfile itself returns to the first for ever.
    headers = [entry.tobuf(tarfile.GNU_FORMAT) for entry in (first, second)]
    data = headers[0] + bytes(512) + headers[1] + bytes(1024)
    for name, packed in (("a.tar", data), ("a.tar.gz", gzip.compress(data))):
        rows = listed(saved(tmp_path, name, packed))
        assert [inside(row) for row in rows] == ["a.png", ""]


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [300 * 2**20, 2**40, 2**70, -512])
def test_a_header_without_end_is_not_read_into_memory(
    tmp_path: Path, type: bytes, size: int
) -> None:
    entry = tarfile.TarInfo("a.png")
    entry.type, entry.size = type, size
    data = entry.tobuf(tarfile.GNU_FORMAT) + bytes(40 * 2**20)
    for name, packed in (("a.tar", data), ("a.tar.gz", gzip.compress(data, 1))):
        path = saved(tmp_path, name, packed)
        with peak_below(4 * 2**20):
            [row] = listed(path)
        assert (inside(row), row["reason"]) == ("", f"not a {name[2:]} archive")


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64 + 5, 2**87])
def test_impossible_sizes_in_a_tar_are_explained(tmp_path: Path, size: int) -> None:
    entry = tarfile.TarInfo("a.png")
    entry.size = size
    data = tarred({"0.png": b"x"})[:1024] + entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    for name, packed in (("a.tar", data), ("a.tar.gz", gzip.compress(data))):
        rows = listed(saved(tmp_path, name, packed))
        assert [inside(row) for row in rows if not row["status"]] == ["0.png"]
        assert inside(rows[-1]) == ""


def test_impossible_sizes_in_a_zip_are_explained(tmp_path: Path) -> None:
    data = zipped_64({"a.png": b"abc", "b.png": b"def"})
    at = data.index(b"PK\1\2")
    entry = bytearray(data[at : data.index(b"PK\1\2", at + 4)])
    for changed in ({20: 2**32 - 2}, {24: 2**32 - 1}, {42: 2**32 - 2}):
        broken = bytearray(entry)
        for offset, value in changed.items():
            struct.pack_into("<I", broken, offset, value)
        rows = listed(saved(tmp_path, "a.zip", data[:at] + broken + data[at + len(entry) :]))
        by_name = {inside(row): row for row in rows}
        assert by_name["b.png"]["status"] == ""
        refused = by_name.get("a.png") or by_name[""]
        if not refused["status"]:
            with pytest.raises(DataError):
                Reader().read(refused["file"], place(refused))


def test_impossible_64_bit_numbers_in_a_zip_are_explained(tmp_path: Path) -> None:
    data = zipped({"a.png": b"abc", "b.png": b"def", "c.png": b"ghi"}, zipfile.ZIP_STORED)
    start, length = data.index(b"PK\1\2"), 46 + len("a.png")
    entries = [data[start + i * length : start + (i + 1) * length] for i in range(3)]
    for i in (0, 1):  # Size, packed and offset of two members move to a field of their own.
        extra = struct.pack("<2H3Q", 1, 24, 2**64 - 1, 2**64 - 1 - i, 2**63 + 5)
        entry = bytearray(entries[i] + extra)
        struct.pack_into("<2I", entry, 20, 2**32 - 1, 2**32 - 1)
        struct.pack_into("<H", entry, 30, len(extra))
        struct.pack_into("<I", entry, 42, 2**32 - 1)
        entries[i] = bytes(entry)
    directory = b"".join(entries)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), start, 0)
    rows = listed(saved(tmp_path, "a.zip", data[:start] + directory + end))
    assert [(inside(row), row["status"], row["reason"]) for row in rows] == [
        ("a.png", "unreadable", "the archive is damaged or cut short here"),
        ("b.png", "unreadable", "the archive is damaged or cut short here"),
        ("c.png", "", ""),
    ]
    assert read_all(rows) == {"c.png": b"ghi"}


class peak_below:
    """Fails where Python takes more memory meanwhile than so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, kind: object, *_: object) -> None:
        _current, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kind or peak < self.limit, f"{peak:,} bytes"


def with_declared_size(files: Files, size: int) -> bytes:
    """A zip whose first member claims to unpack to so many bytes."""
    data = bytearray(zipped(files))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(signature) + at, size)
    return bytes(data)


def test_a_member_is_never_inflated_beyond_its_declared_size(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.zip", with_declared_size({"a.png": bytes(50 * 2**20)}, 1000))
    [row] = listed(path)
    with peak_below(2 * 2**20), pytest.raises(DataError, match="size is not what the archive says"):
        Reader().read(row["file"], place(row))
    [row] = listed(saved(tmp_path, "b.zip", with_declared_size({"a.png": b"abc"}, 400 * 2**20)))
    assert (row["status"], row["reason"]) == (
        "refused",
        "unpacks to more than 200 times its size, as zip bombs do",
    )


def test_bombs_and_what_is_too_large_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = "unpacks to more than 200 times its size, as zip bombs do"
    [row] = listed(saved(tmp_path, "a.zip", zipped({"a.png": bytes(17 * 2**20)})))
    assert (row["status"], row["reason"]) == ("refused", bomb)
    monkeypatch.setattr(members, "MAX_FILE_BYTES", 2**20)
    for name in ("zip stored", "zip deflated", "tar", "tar.gz"):
        kind, make = MAKERS[name]
        rows = listed(saved(tmp_path, f"a.{kind}", make({"a.png": noise(2**20 + 1), "b": b"x"})))
        assert [(row["status"], row["reason"]) for row in rows] == [
            ("refused", "larger than 1 MiB"),
            ("", ""),
        ], name
        # An archive in an archive is no picture: it may be larger.
        inner = zipped({"a.png": noise(900_000), "b.png": noise(900_000, 1)})
        rows = listed(saved(tmp_path, f"a.{kind}", make({"in.zip": inner})))
        assert [(inside(row), row["status"]) for row in rows] == [
            ("in.zip!/a.png", ""),
            ("in.zip!/b.png", ""),
        ], name


@pytest.mark.parametrize("name", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_compressed_tar_is_not_unpacked_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, make = MAKERS[name]
    monkeypatch.setattr(reader_module, "STREAM_RATIO_COUNTS_FROM", 2**20)
    data = make({"a.png": b"abc", "zeros.png": bytes(20 * 2**20), "lost.png": b"x"})
    rows = listed(saved(tmp_path, f"a.{kind}", data))
    assert [inside(row) for row in rows] == ["a.png", "zeros.png", ""]
    assert (rows[-1]["status"], rows[-1]["reason"]) == (
        "refused",
        "unpacks to more than 200 times its size, as zip bombs do",
    )
    reader = Reader()
    assert reader.read(rows[0]["file"], place(rows[0])) == b"abc"


def test_an_inner_archive_that_memory_would_not_hold_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_NESTED_BYTES", 2**16)
    inner = zipped({"a.png": noise(2**16)})
    files = {"in.zip": inner, "b.png": b"x"}
    rows = listed(saved(tmp_path, "a.tar.gz", MAKERS["tar.gz"][1](files)))
    assert [(inside(row), row["status"]) for row in rows] == [
        ("b.png", ""),
        ("in.zip", "unreadable"),
    ]
    assert rows[1]["reason"].endswith("unpack the outer one first")
    # Stored, it is read in its place.
    stored = zipped({"in.zip": inner}, zipfile.ZIP_STORED)
    assert len(read_all(listed(saved(tmp_path, "b.zip", stored)))) == 1


@pytest.mark.parametrize("inner", ["zip deflated", "zip to a pipe", "tar", "tar.gz"])
def test_a_large_archive_that_is_packed_in_a_zip_is_read_without_holding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    monkeypatch.setattr(reader_module, "HELD_BYTES", 2**10)
    monkeypatch.setattr(reader_module, "MAX_NESTED_BYTES", 2**10)
    make = EVERY[inner][1]
    data = zipped({f"in.{inner.split()[0]}": make(FILES), "b.png": b"x"})
    path = saved(tmp_path, "a.zip", data)
    rows = listed(path)
    assert len(rows) == len(FILES) + 1
    assert {name.split("!/")[-1]: got for name, got in read_all(rows).items()} == FILES | {
        "b.png": b"x"
    }
    # Backwards, too, at the cost of inflating again.
    with Reader() as reader:
        for row in reversed(rows):
            name = inside(row).split("!/")[-1]
            assert reader.read(row["file"], place(row)) == (FILES | {"b.png": b"x"})[name]


def test_members_that_reach_into_others_are_refused(tmp_path: Path) -> None:
    files = {f"{i}.png": noise(500, i) for i in range(4)}
    data = zipped(files, zipfile.ZIP_STORED)
    entries = [data.index(b"PK\1\2", data.index(b"PK\1\2") + i * 51) for i in range(4)]

    def rows(field: int, entry: int, value: int) -> list[Row]:
        changed = bytearray(data)
        struct.pack_into("<I", changed, entries[entry] + field, value)
        return listed(saved(tmp_path, "a.zip", bytes(changed)))

    bomb = "reaches into another member, as zip bombs do"
    packed, offset = 20, 42
    # Long enough for all: the sound members in it are not blamed.
    reasons = [row["reason"] for row in rows(packed, 0, 1_700)]
    assert reasons == [bomb, "", "", ""]
    # Twice the same bytes.
    assert [row["reason"] for row in rows(offset, 2, 0)] == [bomb, "", bomb, ""]
    # Where no member begins: the one around that place is not blamed.
    assert [row["reason"] for row in rows(offset, 2, 10)] == ["", "", bomb, ""]


def test_damaged_members_are_told_from_sound_ones(tmp_path: Path) -> None:
    data = zipped({"a.png": b"soft " * 1000, "b.png": b"hard " * 1000})
    at = data.index(b"a.png") + 5
    broken = data[:at] + b"\xff" * 8 + data[at + 8 :]
    rows = listed(saved(tmp_path, "a.zip", broken))
    with Reader() as reader:
        with pytest.raises(DataError, match=r"^the member is damaged$"):
            reader.read(rows[0]["file"], place(rows[0]))
        assert reader.read(rows[1]["file"], place(rows[1])) == b"hard " * 1000
    stored = zipped({"a.png": b"soft " * 1000}, zipfile.ZIP_STORED).replace(b"soft", b"sofT", 1)
    [row] = listed(saved(tmp_path, "b.zip", stored))
    with pytest.raises(DataError, match=r"^the member's checksum is wrong$"):
        Reader().read(row["file"], place(row))


@pytest.mark.parametrize("name", EVERY)
def test_mutated_archives_are_listed_and_read_without_any_other_error(
    tmp_path: Path, name: str
) -> None:
    kind, make = EVERY[name]
    inner_kind, make_inner = MAKERS["tar.gz"]
    whole = make({"a.png": noise(900), "b.png": b"soft " * 200, "c.zip": zipped(SMALL),
                  f"d.{inner_kind}": make_inner(SMALL)})  # fmt: skip
    chance = random.Random(name)
    path = tmp_path / f"a.{kind}"
    for _ in range(40):
        mutated = bytearray(whole)
        for _ in range(chance.choice((1, 2, 5))):
            at = chance.randrange(len(mutated))
            match chance.randrange(4):
                case 0:
                    mutated[at] ^= 1 << chance.randrange(8)
                case 1:
                    mutated[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0"))
                case 2:
                    del mutated[at : at + chance.choice((1, 5, 512))]
                case 3:
                    mutated[at:at] = chance.randbytes(chance.choice((1, 5, 512)))
        path.write_bytes(mutated)
        rows = listed(path)
        reader = Reader()
        for row in rows:
            assert (row["reason"] == "") == (row["status"] == "")
            if not row["status"]:
                data = attempt(reader, row)
                assert isinstance(data, str) or len(data) == row["size"]
        reader.close()


def test_reasons_do_not_quote_the_archive(tmp_path: Path) -> None:
    secret = b"Wilhelm P4711 "
    for kind in dict(MAKERS.values()):
        for data in (secret * 60, MAKERS["tar"][1]({"a.png": secret})[:300] + secret * 99):
            [row] = listed(saved(tmp_path, f"a.{kind}", data))
            assert (inside(row), row["reason"]) == ("", f"not a {kind} archive")


# --- open files ----------------------------------------------------------------------------------


@pytest.fixture
def unclosed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files that were left for Python to close."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        monkeypatch.setattr(sys, "unraisablehook", lambda hint: found.append(str(hint.exc_value)))
        yield found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("outer", MAKERS)
def test_nothing_stays_open(tmp_path: Path, unclosed: list[str], outer: str) -> None:
    kind, make = MAKERS[outer]
    files = {"a.png": b"x", "in.zip": zipped(SMALL), "in.tar.gz": MAKERS["tar.gz"][1](SMALL),
             "no.zip": b"no archive", "no.tar.zst": b"no archive"}  # fmt: skip
    whole = make(files)
    before = open_files()
    for data in (whole, whole[: len(whole) // 2], b"", b"no archive", whole[:-3] + b"xyz"):
        rows = listed(saved(tmp_path, f"a.{kind}", data))
        with Reader() as reader:
            for row in [*rows, *reversed(rows)]:
                if not row["status"]:
                    attempt(reader, row)
    assert unclosed == []
    assert open_files() == before


def test_nothing_stays_open_when_rows_are_read_to_the_end_or_not(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.tar.gz", MAKERS["tar.gz"][1]({"in.zip": zipped(FILES)}))
    rows = listed(path)
    before = open_files()
    reading = read_images(rows, 64)
    next(reading)
    del reading
    assert open_files() == before
    assert len(list(read_images(rows, 64))) == len(FILES)
    assert open_files() == before


def test_a_reader_that_was_closed_opens_again(tmp_path: Path) -> None:
    rows = listed(saved(tmp_path, "a.zip", zipped(SMALL)))
    reader = Reader()
    for _ in range(2):
        assert reader.read(rows[0]["file"], place(rows[0])) == SMALL["x/a.png"]
        reader.close()
        reader.close()


def test_an_archive_that_vanishes_is_explained(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.zip", zipped(SMALL))
    rows = listed(path)
    path.unlink()
    with pytest.raises(StorageError, match=r"a\.zip: cannot be read: No such file or directory\.$"):
        Reader().read(rows[0]["file"], place(rows[0]))
    [row] = listed(path)
    assert row["reason"] == "cannot be read: No such file or directory"
