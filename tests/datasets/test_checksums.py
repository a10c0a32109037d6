import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.datasets import checksums
from wsi_ips.datasets.checksums import read_checksums, verify_folder
from wsi_ips.errors import DatasetError
from wsi_ips.progress import Advance


def md5_line(folder: Path, name: str, *, mark: str = " ") -> str:
    return f"{hashlib.md5((folder / name).read_bytes()).hexdigest()} {mark}{name}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.tif").write_bytes(name.encode() * 1000)
    lines = [md5_line(tmp_path, f"images/{name}.tif", mark="* "[name == "a"]) for name in "abc"]
    (tmp_path / "checksums.md5").write_text("".join(lines))
    return tmp_path


def test_a_whole_folder_has_nothing_bad(folder: Path) -> None:
    found = verify_folder(folder)
    assert (found.checked, list(found.bad), list(found.unlisted)) == (3, [], [])
    assert list(found.lists) == [folder / "checksums.md5"]


@given(st.integers(0, 999), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("sums")
    content = bytearray(b"x" * 1000)
    (folder / "x.tif").write_bytes(content)
    (folder / "checksums.md5").write_text(md5_line(folder, "x.tif"))
    content[place] ^= flip
    (folder / "x.tif").write_bytes(content)
    assert [line.split(":")[0] for line in verify_folder(folder).bad] == ["altered"]


def test_what_is_amiss_has_a_line_each_and_other_files_are_counted(folder: Path) -> None:
    images = folder / "images"
    (images / "a.tif").write_bytes(b"shorter")
    (images / "b.tif").unlink()
    (images / "c.tif").unlink()
    (images / "c.tif").mkdir()
    (images / "d.tif").touch()
    (folder / "notes.txt").touch()
    found = verify_folder(folder)
    assert found.checked == 3
    assert [line.split(":")[0] for line in found.bad] == ["altered", "missing", "not a file"]
    assert hashlib.md5(b"shorter").hexdigest() in found.bad[0]
    assert list(found.unlisted) == [images / "d.tif", folder / "notes.txt"]


def test_sha256_beside_md5_and_lists_in_the_data_sets_below(tmp_path: Path) -> None:
    for name in ("CAMELYON16", "CAMELYON17"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").write_bytes(name.encode())
    (tmp_path / "CAMELYON16" / "checksums.md5").write_text(md5_line(tmp_path / "CAMELYON16", "x.tif"))
    (tmp_path / "CAMELYON16" / "checksums.txt").write_text(f"{'0' * 64}  x.tif\n")
    (tmp_path / "CAMELYON17" / "checksums.md5").write_text(md5_line(tmp_path / "CAMELYON17", "x.tif").upper()[:32]
                                                           + "  x.tif\n")  # fmt: skip
    found = verify_folder(tmp_path)
    assert (len(found.lists), found.checked, len(found.bad)) == (3, 2, 1)
    assert "sha256" in found.bad[0]


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/passwd", "C:/secret", "..\\secret", "a\\..\\..\\b"]
)
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "checksums.md5").write_text(f"{'0' * 32}  ok.tif\n{'0' * 32}  {name}\n")
    with pytest.raises(DatasetError, match=r"line 2: .* leads out of the folder"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("line", ["hello world", "0" * 31 + "  a", "0" * 40 + "  a", "0" * 32, "<html>"])
def test_a_line_that_is_no_checksum_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "checksums.md5"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DatasetError, match=r"checksums.md5: line 2: is no checksum"):
        read_checksums(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_checksums(path)


def test_linked_folders_are_followed_and_loops_end(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("disk")
    (folder / "images").rename(elsewhere / "images")
    (folder / "images").symlink_to(elsewhere / "images")
    (elsewhere / "images" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "nowhere").symlink_to(folder / "absent")
    (folder / "images" / "new.tif").touch()
    found = verify_folder(folder)
    assert not found.bad
    assert list(found.unlisted) == [folder / "images" / "new.tif"]


def test_a_file_that_cannot_be_read_is_bad(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> dict[str, str]:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checksums, "_hashes", fail)
    found = verify_folder(folder)
    assert found.bad[0] == f"cannot be read: {folder / 'images' / 'a.tif'} (Input/output error)"
    assert len(found.bad) == 3


def test_progress_counts_blocks_and_memory_stays_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "STEP_BYTES", 300)
    monkeypatch.setattr(checksums, "_READ_BYTES", 128)
    steps: list[str] = []
    totals: list[int] = []

    @contextmanager
    def progress(what: str, *, total: int) -> Iterator[Advance]:
        totals.append(total)

        def advance(note: str = "") -> None:
            steps.append(note)

        yield advance

    assert not verify_folder(folder, progress=progress).bad
    assert totals == [12]
    assert steps == ["a.tif"] * 4 + ["b.tif"] * 4 + ["c.tif"] * 4
