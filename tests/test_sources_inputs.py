"""Whatever the inputs are, every file that may be a radiograph is listed once, or explained."""

import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources, storage
from cxr.errors import DataError, StorageError
from cxr.images.read import read_images
from cxr.sources import Reader
from cxr.sources.archives import members
from tests.support.archives import FILES, MAKERS, inside, place, tarred, zipped
from tests.support.folders import as_nobody, readable_folder
from tests.support.s3 import Store

Row = dict[str, Any]


def plant(root: Path, *paths: str) -> Path:
    """Files of as many bytes as their names have letters; listings do not look inside."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * len(Path(path).name))
    return root


def found_below(root: Path, *inputs: str | Path) -> list[str]:
    """Paths below a folder of the files that the inputs name, in their listed order."""
    found = sources.list_inputs([str(each) for each in inputs or (root,)])
    return [uri.removeprefix(f"{root}/") for uri in found.files]


def rows_of(*inputs: str | Path) -> list[Row]:
    """All rows that the inputs lead to, archives read."""
    found = sources.list_inputs([str(each) for each in inputs])
    rows: list[Row] = found.table().to_pylist()
    for archive, wanted in found.archives.items():
        rows += sources.list_archive(archive, wanted)[0].to_pylist()
    uris = [row["uri"] for row in rows]
    assert len(uris) == len(set(uris))
    return rows


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with readable_folder() as path:
        yield path


# --- folders -------------------------------------------------------------------------------------


def test_every_file_that_may_be_an_image_is_listed(tmp_path: Path) -> None:
    names = ("1.2.840.10008.7", "a.JPG", "b.png", "c.dcm", "d/e.dicom", "film.raw", "no_suffix")
    plant(tmp_path, *names)
    found = sources.list_inputs([str(tmp_path)])
    table = found.table()
    assert table.schema == sources.INVENTORY
    assert table["uri"].to_pylist() == [f"{tmp_path}/{name}" for name in names]
    assert table["file"].to_pylist() == table["uri"].to_pylist()
    assert table["size"].to_pylist() == [len(Path(name).name) for name in names]
    assert table["modified_ns"][0].as_py() == (tmp_path / names[0]).stat().st_mtime_ns
    assert set(table["status"].to_pylist()) == {""}


def test_junk_and_evident_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "notes.txt", "more/NOTES.TXT", "list.csv", ".DS_Store", ".git/x.png",
          "more/._a.png", "__MACOSX/a.png", "Thumbs.db", "desktop.ini")  # fmt: skip
    found = sources.list_inputs([str(tmp_path)])
    assert list(found.files) == [f"{tmp_path}/a.png"]
    assert found.skipped == {".txt": 2, ".csv": 1, "hidden or system file": 6}


SYSTEM_FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "System Volume Information"),
    *(".Trashes", ".Spotlight-V100", ".snapshot", "~snapshot", ".AppleDouble", "lost+found"),
)


def test_thumbnails_and_bins_of_network_drives_are_counted(tmp_path: Path) -> None:
    names = [f"{folder}/a.png/SYNOPHOTO_THUMB_M.jpg" for folder in SYSTEM_FOLDERS]
    plant(tmp_path, "a.png", *names, *(f"deeper/{name}" for name in names))
    found = sources.list_inputs([str(tmp_path)])
    assert list(found.files) == [f"{tmp_path}/a.png"]
    assert found.skipped == {"hidden or system file": 2 * len(SYSTEM_FOLDERS)}
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(dict.fromkeys(("a.png", *names), b"x")))
    table, skipped = sources.list_archive(str(path), None)
    assert table["uri"].to_pylist() == [f"{path}!/a.png"]
    assert skipped == {"hidden or system file": len(SYSTEM_FOLDERS)}


def test_the_same_junk_is_counted_in_archives(tmp_path: Path) -> None:
    names = ("a.png", "notes.txt", "more/NOTES.TXT", ".DS_Store", "more/._a.png", "__MACOSX/a.png")
    for kind, make in (("zip", zipped), ("tar", tarred)):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(make(dict.fromkeys(names, b"x")))
        table, skipped = sources.list_archive(str(path), None)
        assert table["uri"].to_pylist() == [f"{path}!/a.png"]
        assert skipped == {".txt": 2, "hidden or system file": 3}


def test_what_is_named_itself_is_listed_whatever_its_name(tmp_path: Path) -> None:
    plant(tmp_path, ".hidden.png", "notes.txt", ".cache/a.png")
    assert found_below(tmp_path, tmp_path / ".hidden.png") == [".hidden.png"]
    assert found_below(tmp_path, tmp_path / "notes.txt") == ["notes.txt"]
    assert found_below(tmp_path, tmp_path / ".cache") == [".cache/a.png"]
    found = sources.list_inputs([str(tmp_path / "notes.txt"), str(tmp_path / ".cache" / "a.png"),
                                 str(tmp_path)])  # fmt: skip
    assert len(found.files) == 2
    assert found.skipped == {"hidden or system file": 1}


def test_one_file_may_be_named_in_several_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, "with space/a.jpeg", "~b.jpeg")
    (tmp_path / "link").symlink_to("with space")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "with space" / "a.jpeg"
    ways = (str(path), path.as_uri(), "with space/a.jpeg", "./with space/../with space/a.jpeg",
            "link/../with space/a.jpeg")  # fmt: skip
    assert found_below(tmp_path, *ways) == ["with space/a.jpeg"]
    assert found_below(tmp_path, "~b.jpeg") == ["~b.jpeg"]


def test_empty_and_huge_files_are_explained_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(members.MAX_FILE_BYTES + 1)
    rows = rows_of(tmp_path)
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("unreadable", "the file is empty"),
        ("refused", "larger than 512 MiB"),
    ]


def test_names_that_are_not_utf_8_are_listed_and_read(tmp_path: Path) -> None:
    thorax = tmp_path / os.fsdecode(b"Thorax_\xe9.png")
    folder = tmp_path / os.fsdecode(b"folder_\xff")
    folder.mkdir()
    thorax.write_bytes(b"x")
    (folder / "#50% ?.png").write_bytes(b"x")
    (folder / "in.zip").write_bytes(zipped(FILES))
    rows = rows_of(tmp_path)
    uris = [row["uri"] for row in rows]
    files = [
        f"file://{tmp_path}/Thorax_%E9.png",
        f"file://{tmp_path}/folder_%FF/%2350%25%20%3F.png",
    ]
    assert uris == [*files, *(f"file://{tmp_path}/folder_%FF/in.zip!/{name}" for name in FILES)]
    with Reader() as reader:
        for row in rows:
            assert reader.read(row["file"], place(row)) == FILES.get(inside(row), b"x")
    # What was listed may be named, and so may what the shell makes of the name.
    for uri in uris:
        assert uri in [row["uri"] for row in rows_of(uri)]
    assert sorted(row["uri"] for row in rows_of(str(thorax), tmp_path)) == sorted(uris)
    by_glob = rows_of(f"{tmp_path}/*_?.png", f"{tmp_path}/**/#*")
    assert [row["uri"] for row in by_glob] == files


# --- what a folder should not hold ---------------------------------------------------------------


def test_links_are_followed_and_folders_listed_once(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", "far.png")
    root = plant(tmp_path / "root", "b/near.png", "b/c/deep.png")
    (root / "a_link").symlink_to(root / "b" / "c")
    (root / "link.png").symlink_to(root / "b" / "near.png")
    (root / "out").symlink_to(elsewhere)
    (root / "z_out_again").symlink_to(elsewhere)
    # A folder's own name is preferred to that of a link to it.
    assert found_below(root) == ["b/c/deep.png", "b/near.png", "link.png", "out/far.png"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "a/b/x.png")
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "a" / "same").symlink_to(".")
    (root / "self").symlink_to("self")
    (root / "one.png").symlink_to("other.png")
    (root / "other.png").symlink_to("one.png")
    rows = rows_of(root)
    assert [(row["uri"].removeprefix(f"{root}/"), row["reason"]) for row in rows] == [
        ("a/b/x.png", ""),
        *((name, "cannot be read: Too many levels of symbolic links")
          for name in ("one.png", "other.png", "self")),
    ]  # fmt: skip


def test_broken_links_pipes_and_sockets_are_explained(tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "broken.zip").symlink_to("gone.zip")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe.tar")
    rows = {row["uri"].removeprefix(f"{tmp_path}/"): row for row in rows_of(tmp_path)}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "broken.png": ("unreadable", "cannot be read: No such file or directory"),
        "broken.zip": ("unreadable", "cannot be read: No such file or directory"),
        "pipe.dcm": ("unreadable", "cannot be read: not a regular file"),
        "pipe.tar": ("unreadable", "cannot be read: not a regular file"),
    }
    for name in ("pipe.dcm", "pipe.tar"):  # Nor are they waited for when they are named.
        [row] = rows_of(tmp_path / name)
        assert row["reason"] == "cannot be read: not a regular file"


def test_folders_that_cannot_be_listed_and_files_that_cannot_be_read_are_explained(
    folder: Path,
) -> None:
    plant(folder, "closed/a.png", "closed.txt/a.png", "no.png", "no.zip", "open.png")
    for name in ("closed", "closed.txt", "no.png", "no.zip"):
        (folder / name).chmod(0)
    with as_nobody():
        rows = rows_of(folder)
        reasons = {}
        for row, image in zip(rows, read_images(rows, 64), strict=True):
            reasons[row["uri"].removeprefix(f"{folder}/")] = image.reason
        with pytest.raises(StorageError, match=r"closed: cannot be listed: Permission denied\.$"):
            sources.list_inputs([str(folder / "closed")])
    assert reasons == {
        "closed/": "a folder that cannot be listed: Permission denied",
        "closed.txt/": "a folder that cannot be listed: Permission denied",
        "no.png": "cannot be read: Permission denied",
        "no.zip": "cannot be read: Permission denied",
        "open.png": "not a JPEG, PNG, TIFF, BMP or DICOM file",
    }


# --- globs ---------------------------------------------------------------------------------------

TREE = ("2023/a.png", "2023/b.dcm", "2024-01/a.png", "2024-02/deep/er/a.png", "2024-02/x1.png",
        "2024-02/x2.png", "[odd]/a.png", "top.png", "top.txt", "x^.png")  # fmt: skip


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.png", ["top.png", "x^.png"]),
        ("*", [*TREE[:8], "x^.png"]),
        ("**/*.png", [name for name in TREE if name.endswith(".png")]),
        ("**", [*TREE[:8], "x^.png"]),
        ("*/a.png", ["2023/a.png", "2024-01/a.png", "[odd]/a.png"]),
        ("2024-*/**/a.png", ["2024-01/a.png", "2024-02/deep/er/a.png"]),
        ("2024-0?", ["2024-01/a.png", "2024-02/deep/er/a.png", "2024-02/x1.png", "2024-02/x2.png"]),
        ("2024-02/d*", ["2024-02/deep/er/a.png"]),
        ("2024-02/x[1-2].png", ["2024-02/x1.png", "2024-02/x2.png"]),
        ("2024-02/x[!1].png", ["2024-02/x2.png"]),
        ("202[34]*/?.png", ["2023/a.png", "2024-01/a.png"]),
        ("[[]odd]/*.png", ["[odd]/a.png"]),
        ("[odd]/a.p?g", None),
        ("[odd]", ["[odd]/a.png"]),
        ("x[][^&~|]*", ["x^.png"]),
        ("top.p[n-a]g", None),
        ("top.pn[g", None),
        ("2024-02/**/er/*", ["2024-02/deep/er/a.png"]),
        ("nothing*", None),
        ("a+b*", None),
    ],
)
def test_globs_match_as_a_shell_does(tmp_path: Path, glob: str, expected: list[str] | None) -> None:
    plant(tmp_path, *TREE)
    if expected is None:
        with pytest.raises(DataError, match=r"(no file matches|not found)"):
            found_below(tmp_path, f"{tmp_path}/{glob}")
    else:
        assert found_below(tmp_path, f"{tmp_path}/{glob}") == expected


def test_globs_find_archives_and_count_others(tmp_path: Path) -> None:
    plant(tmp_path, "a.txt", "b.txt", "a.png")
    (tmp_path / "a.zip").write_bytes(zipped(FILES))
    found = sources.list_inputs([f"{tmp_path}/a*"])
    assert list(found.files) == [f"{tmp_path}/a.png"]
    assert found.archives == {f"{tmp_path}/a.zip": None}
    assert found.skipped == {".txt": 1}


def test_a_glob_enters_only_folders_in_which_something_may_match(folder: Path) -> None:
    plant(folder, "2023/a.png", "2024/a.png", "2024/other/a.png", "2024/x/y/a.png")
    for name in ("2023", "2024/other"):
        (folder / name).chmod(0)
    with as_nobody():
        assert found_below(folder, f"{folder}/2024/x/**/*.png") == ["2024/x/y/a.png"]
        assert found_below(folder, f"{folder}/2*4/*.png") == ["2024/a.png"]
        # What cannot be listed may hold a match.
        assert found_below(folder, f"{folder}/2*/*.png") == ["2023/", "2024/a.png"]


def test_a_glob_in_a_bucket_is_matched(s3: Store) -> None:
    root = f"{s3.bucket()}/xrays"
    storage.for_all(lambda uri: storage.write_bytes(uri, b"x"), [f"{root}/{n}" for n in TREE])
    found = sources.list_inputs([f"{root}/2024-*/**/a.png", f"{root}/2023"])
    assert list(found.files) == [
        f"{root}/{name}"
        for name in ("2024-01/a.png", "2024-02/deep/er/a.png", "2023/a.png", "2023/b.dcm")
    ]


# --- manifests -----------------------------------------------------------------------------------


def test_a_manifest_names_files_members_and_archives(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "else where", "far.png")
    root = plant(tmp_path / "root", "a.png", "b/notes.txt", "pipe?.png")
    for kind, make in MAKERS.values():
        (root / f"a.{kind}").write_bytes(make(FILES))
    uris = ["a.png", "./a.png", "b/../a.png", "b/notes.txt", "pipe?.png", f"{elsewhere}/far.png",
            (elsewhere / "far.png").as_uri(), "a.zip!/last.png", "a.zip!/./last.png",
            "a.tar.gz!/folder", "a.tar", "gone.png", "gone.zip!/a.png", "a.zip!/gone.png",
            "nonsense://host/a.png", "file://server/a.png"]  # fmt: skip
    (root / "manifest.csv").write_text("uri,site\n" + "".join(f"{uri},1\n" for uri in uris))
    pq.write_table(pa.table({"uri": uris}), root / "manifest.PARQUET")
    expected = {
        f"{root}/a.png": "",
        f"{root}/b/notes.txt": "",
        f"{root}/pipe?.png": "",
        f"{elsewhere}/far.png": "",
        f"{root}/a.zip!/last.png": "",
        f"{root}/a.zip!/gone.png": "no such member",
        f"{root}/a.tar.gz!/folder/second.dcm": "",
        f"{root}/a.tar.gz!/folder/deeper/third": "",
        **{f"{root}/a.tar!/{name}": "" for name in FILES},
        f"{root}/gone.png": "cannot be read: No such file or directory",
        f"{root}/gone.zip": "cannot be read: No such file or directory",
        f"{root}/gone.zip!/a.png": "no such member",
    }
    for name in ("manifest.csv", "manifest.PARQUET"):
        rows = {row["uri"]: row["reason"] for row in rows_of(root / name)}
        assert rows.pop("nonsense://host/a.png").startswith("scheme 'nonsense' is not supported")
        assert rows.pop("file://server/a.png").startswith("lies on host 'server'")
        assert rows == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\na.png,0\n", r"lacks column uri; found path, label\."),
        ("uri,label\na.png,0\n\n,1\n", r"column uri is empty in row 2 \(line 4\)\."),
        ("uri\n", "no radiographs found"),
        ("", "not a folder, an archive or a manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=rf"m\.csv: .*{reason}"):
        sources.list_inputs([str(tmp_path / "m.csv")])


def test_a_manifest_may_name_a_column_twice_and_hold_any_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,uri\na.png,b.png\na\0b.png,c\n")
    rows = rows_of(tmp_path / "m.csv")
    assert [row["uri"] for row in rows] == [f"{tmp_path}/a.png", f"{tmp_path}/a\0b.png"]
    assert rows[1]["reason"] == "cannot be read: embedded null byte"


def test_a_file_knows_the_row_of_the_manifest_that_names_it(tmp_path: Path) -> None:
    root = plant(tmp_path, "a.png", "b.png", "unnamed.png")
    for kind in ("zip", "tar.gz"):
        (root / f"a.{kind}").write_bytes(dict(MAKERS.values())[kind](FILES))
    (root / "m.csv").write_text(
        "File;Age\n ./a.png ;41\nb.png;42\na.zip!/./last.png;43\na.tar.gz!/folder;44\na.png;45\n"
        "nonsense://x/a.png;46\ngone.png;47\na.zip!/gone.png;48\n"
    )
    found = sources.list_inputs([str(root / "m.csv"), str(root / "unnamed.png")], ["uri=File"])
    tables = [sources.list_archive(*archive)[0] for archive in found.archives.items()]
    assert {set(table["manifest_row"].to_pylist()) == {-1} for table in tables} == {True}
    table = pa.concat_tables([found.table(), *map(found.join_entries, tables)])
    assert table.schema == sources.INVENTORY
    manifest = str(root / "m.csv")
    assert {
        row["uri"].removeprefix(f"{root}/"): (row["written"], row["manifest"], row["manifest_row"])
        for row in table.to_pylist()
    } == {
        "a.png": (" ./a.png ", manifest, 0),
        "b.png": ("b.png", manifest, 1),
        "unnamed.png": ("", "", -1),
        "a.zip!/last.png": ("a.zip!/./last.png", manifest, 2),
        "a.tar.gz!/folder/second.dcm": ("", manifest, 3),
        "a.tar.gz!/folder/deeper/third": ("", manifest, 3),
        "nonsense://x/a.png": ("nonsense://x/a.png", manifest, 5),
        "gone.png": ("gone.png", manifest, 6),
        "a.zip!/gone.png": ("a.zip!/gone.png", manifest, 7),
    }
    assert found.manifests[manifest]["Age"].to_pylist() == [str(age) for age in range(41, 49)]


def test_all_members_of_an_archive_that_a_manifest_names_know_its_row(tmp_path: Path) -> None:
    nested = {"in.zip": zipped({"b/c.png": b"1"}), "a.png": b"2"}
    (tmp_path / "nest.zip").write_bytes(zipped(nested))
    (tmp_path / "m.csv").write_text("uri\nnest.zip!/in.zip\nnest.zip\n")
    found = sources.list_inputs([str(tmp_path / "m.csv")])
    [(file, paths)] = found.archives.items()
    table = found.join_entries(sources.list_archive(file, paths)[0])
    rows = {inside(row): row["manifest_row"] for row in table.to_pylist()}
    assert rows == {"a.png": 1, "in.zip!/b/c.png": 0}


def test_paths_of_windows_in_a_manifest_are_relative_to_it(tmp_path: Path) -> None:
    root = plant(tmp_path, "sub/a.png", "with\\backslash.png")
    (root / "sub" / "a.zip").write_bytes(zipped(FILES))
    entries = ["sub\\a.png", "sub\\a.zip!/last.png", "./with\\backslash.png", "C:\\x\\a.png",
               "\\\\server\\x.png"]  # fmt: skip
    (root / "m.csv").write_text("\n".join(["uri", *entries]))
    rows = {row["uri"]: row["reason"] for row in rows_of(root / "m.csv")}
    for entry in entries[3:]:
        assert rows.pop(entry).startswith("an absolute path of Windows. Write paths relative to")
    assert rows == {
        f"{root}/sub/a.png": "",
        f"{root}/sub/a.zip!/last.png": "",
        f"{root}/with\\backslash.png": "",
    }


def test_tables_beside_the_images_are_passed_over(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "m.csv", "m.csv.gz", "m.TSV.GZ", "m.xlsx", "a.nii.gz")
    found = sources.list_inputs([str(tmp_path)])
    assert found.skipped == {".csv": 1, ".csv.gz": 1, ".tsv.gz": 1, ".xlsx": 1}
    assert found.manifests == {}


# --- members by name -----------------------------------------------------------------------------


@pytest.fixture
def nest(tmp_path: Path) -> Path:
    """An archive with archives in it, and with names of all sorts."""
    path = tmp_path / "wow!" / "nest.zip"
    path.parent.mkdir()
    inner = zipped({"a.png": b"1", "b/c.png": b"2", "b/.hidden.png": b"3", "deep.tar": b"4"})
    path.write_bytes(
        zipped(
            {"a.png": b"5", "folder/b.png": b"6", "folder/notes.txt": b"7", ".cache/c.png": b"8",
             "in.zip": inner, "in.tar": tarred({"./a.png": b"9"}), "bad.zip": b"no archive",
             "/etc/d.png": b"10", "../e.png": b"11", "a.png#2": b"12", "folder!/f.png": b"13"}
        )
    )  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", b"14")
    return path


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("a.png", ["a.png", "a.png#3"]),
        ("a.png#2", ["a.png#2"]),
        ("a.png#3", ["a.png#3"]),
        ("folder", ["folder/b.png"]),
        ("./folder/", ["folder/b.png"]),
        ("folder//b.png", ["folder/b.png"]),
        ("folder/notes.txt", ["folder/notes.txt"]),
        (".cache", [".cache/c.png"]),
        ("in.zip", ["in.zip!/a.png", "in.zip!/b/c.png", "in.zip!/deep.tar"]),
        ("in.zip!/", ["in.zip!/a.png", "in.zip!/b/c.png", "in.zip!/deep.tar"]),
        ("in.zip!/b", ["in.zip!/b/c.png"]),
        ("in.zip!/b/.hidden.png", ["in.zip!/b/.hidden.png"]),
        ("in.tar!/a.png", ["in.tar!/./a.png"]),
        ("/etc/d.png", ["/etc/d.png"]),
        ("../e.png", ["../e.png"]),
        ("folder!", ["folder!/f.png"]),
        ("bad.zip!/x.png", ["bad.zip", "bad.zip!/x.png"]),
        ("gone", ["gone"]),
        ("a", ["a"]),
        ("in.zip!/gone", ["in.zip!/gone"]),
    ],
)
def test_members_and_folders_of_an_archive_may_be_named(
    nest: Path, wanted: str, expected: list[str]
) -> None:
    rows = rows_of(f"{nest}!/{wanted}")
    assert [inside(row) for row in rows] == expected
    for row in rows:
        if "gone" in expected or wanted in ("a", "in.zip!/gone"):
            assert row["reason"] == "no such member"


def test_every_listed_member_may_be_named(nest: Path) -> None:
    every = rows_of(nest)
    assert len(every) == 12
    for row in every:
        again = {each["uri"]: each for each in rows_of(row["uri"])}
        assert again[row["uri"]] == row
    assert rows_of(*(row["uri"] for row in every)) == every


def test_a_member_may_be_named_beside_its_folder(nest: Path) -> None:
    wanted = (
        "folder",
        "folder/b.png",
        "folder/notes.txt",
        "in.zip",
        "in.zip!/b",
        "in.zip!/b/c.png",
    )
    rows = rows_of(*(f"{nest}!/{path}" for path in wanted))
    assert [(inside(row), row["status"]) for row in rows] == [
        ("folder/b.png", ""),
        ("folder/notes.txt", ""),
        ("in.zip!/a.png", ""),
        ("in.zip!/b/c.png", ""),
        ("in.zip!/deep.tar", "unreadable"),
    ]


def test_what_was_not_named_is_neither_listed_nor_counted(nest: Path) -> None:
    table, skipped = sources.list_archive(str(nest), ["a.png", "gone", "gone"])
    assert table["uri"].to_pylist() == [f"{nest}!/{name}" for name in ("a.png", "a.png#3", "gone")]
    assert skipped == {}
    assert sources.list_archive(str(nest), ["folder"])[1] == {".txt": 1}


def test_links_are_explained_where_they_were_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("link.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(entry)
    [row] = rows_of(f"{path}!/link.png")
    assert (row["status"], row["reason"]) == ("unreadable", "link or device in an archive")


# --- several inputs ------------------------------------------------------------------------------


def test_what_several_inputs_name_is_listed_once(tmp_path: Path) -> None:
    plant(tmp_path, "a/x.png", "a/y.png", "a/notes.txt", "b/z.png")
    (tmp_path / "a" / "in.zip").write_bytes(zipped(FILES))
    (tmp_path / "m.csv").write_text("uri\na/x.png\na/in.zip!/last.png\na/in.zip!/gone.png\n")
    every = rows_of(tmp_path)
    assert len(every) == 3 + len(FILES)
    inputs: list[str | Path] = [
              tmp_path / "a" / "x.png", tmp_path / "a", f"{tmp_path}/a/../a/*",
              f"{tmp_path}/**/*.png", tmp_path / "m.csv", f"{tmp_path}/a/in.zip!/last.png",
              tmp_path / "a" / "in.zip", tmp_path, tmp_path]  # fmt: skip
    for given in (inputs, inputs[::-1]):
        rows = rows_of(*given)
        assert sorted(row["uri"] for row in rows) == sorted(row["uri"] for row in every)
        found = sources.list_inputs([str(each) for each in given])
        assert found.skipped == {".txt": 1, ".csv": 1}
    only = rows_of(tmp_path / "m.csv", f"{tmp_path}/a/in.zip!/last.png")
    assert [row["uri"].removeprefix(f"{tmp_path}/a/") for row in only] == [
        "x.png",
        "in.zip!/last.png",
        "in.zip!/gone.png",
    ]


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plant(tmp_path, "texts/a.txt", "texts/b.txt", "texts/.hidden", "x.zip")
    for given in ("none", "none.zip", "none.zip!/a.png", "empty!/a.png", "none\0.png"):
        with pytest.raises(DataError, match=r": not found\. Give files, folders, bucket prefixes"):
            sources.list_inputs([str(tmp_path), f"{tmp_path}/{given}"])
    with pytest.raises(DataError, match=r"empty: no radiographs found. Passed over: nothing\."):
        sources.list_inputs([f"{tmp_path}/empty"])
    passed_over = r"Passed over: 1 hidden or system file, 2 \.txt\."
    with pytest.raises(DataError, match=passed_over):
        sources.list_inputs([f"{tmp_path}/texts"])
    with pytest.raises(StorageError, match=r"foo://b/a: .*Give a path or an s3:// URI"):
        sources.list_inputs(["foo://b/a"])


def test_a_bucket_prefix_is_listed(s3: Store) -> None:
    root = f"{s3.bucket()}/xrays"
    for name in ("a.png", "notes.txt", "b/c.dcm"):
        storage.write_bytes(f"{root}/{name}", b"x" * 5)
    storage.write_bytes(f"{root}/in.zip", zipped(FILES))
    found = sources.list_inputs([f"{root}/"])
    assert list(found.files) == [f"{root}/a.png", f"{root}/b/c.dcm"]
    assert found.archives == {f"{root}/in.zip": None}
    assert found.skipped == {".txt": 1}
    [row] = rows_of(f"{root}/in.zip!/last.png")
    assert Reader().read(row["file"], place(row)) == FILES["last.png"]
    assert storage.read_bytes(f"{root}/a.png") == b"x" * 5
