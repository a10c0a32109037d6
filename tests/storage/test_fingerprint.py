"""A file is known again by what is in it, not by its name, place or date."""

import os
import shutil
from pathlib import Path

import pytest

from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.location import Url


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    path.write_bytes(os.urandom(300_000))
    return path


def test_a_copy_elsewhere_of_another_date_is_the_same(slide: Path, tmp_path: Path) -> None:
    copy = tmp_path / "below" / "b.tif"
    copy.parent.mkdir()
    shutil.copy(slide, copy)
    os.utime(copy, (1, 1))
    assert files_fingerprint([copy]) == files_fingerprint([slide])
    assert len(files_fingerprint([slide])) == 64


@pytest.mark.parametrize("at", [0, 4095, 299_999])
def test_another_content_is_another(slide: Path, at: int) -> None:
    before, image = files_fingerprint([slide]), bytearray(slide.read_bytes())
    image[at] ^= 1
    slide.write_bytes(bytes(image))
    assert files_fingerprint([slide]) != before


def test_one_byte_more_is_another(slide: Path) -> None:
    before = files_fingerprint([slide])
    with slide.open("ab") as file:
        file.write(b"\0")
    assert files_fingerprint([slide]) != before


@pytest.mark.parametrize("length", [0, 1, 4096, 4097])
def test_short_files(tmp_path: Path, length: int) -> None:
    (tmp_path / "s").write_bytes(bytes(length))
    (tmp_path / "t").write_bytes(bytes(length + 1))
    assert files_fingerprint([tmp_path / "s"]) != files_fingerprint([tmp_path / "t"])


def test_every_file_counts(slide: Path, tmp_path: Path) -> None:
    beside = tmp_path / "coords.h5"
    beside.write_bytes(b"1")
    both = files_fingerprint([slide, beside])
    assert both != files_fingerprint([slide])
    beside.write_bytes(b"2")
    assert both != files_fingerprint([slide, beside])


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"1")
    before = files_fingerprint([folder])
    (folder / "1.dcm").rename(folder / "2.dcm")
    assert files_fingerprint([folder]) != before


def test_the_chunks_of_a_zarr_store_count(tmp_path: Path) -> None:
    """Two stores may have the same description, which is all that lies directly in them."""

    def store(name: str, *, place: str = "0/0", pixels: bytes = b"pixels") -> str:
        for row in range(40):
            for column in range(3):
                path = tmp_path / name / "s0" / "c" / str(row) / str(column)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"others")
        (tmp_path / name / "zarr.json").write_text("{}")
        chunk = tmp_path / name / "s0" / "c" / place
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(pixels)
        return files_fingerprint([tmp_path / name])

    first = store("a.zarr")
    assert store("b.zarr") == first, "a copy"
    assert store("c.zarr", pixels=b"pixelt") != first
    assert store("d.zarr", place="0/3") != first
    assert store("e.zarr", place="39/2") != first
    few = store("f.zarr", place="1/1")
    assert store("g.zarr", place="1/1", pixels=b"pixelt") != few, "every one of few files counts"
    (tmp_path / "a.zarr" / "s0" / "above").symlink_to(tmp_path, target_is_directory=True)
    assert files_fingerprint([tmp_path / "a.zarr"]) == first, "links may lead in a circle"


def test_the_data_of_a_mirax_slide_count(tmp_path: Path) -> None:
    (tmp_path / "m.mrxs").write_bytes(b"picture")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"1")
    before = files_fingerprint([tmp_path / "m.mrxs"])
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"2")
    assert files_fingerprint([tmp_path / "m.mrxs"]) != before


def test_of_a_large_store_some_chunks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_ips.storage.fingerprint.MOST_FILES", 100)
    for row in range(40):
        (tmp_path / "c" / str(row)).mkdir(parents=True)
        for column in range(3):
            (tmp_path / "c" / str(row) / str(column)).touch()
    before = files_fingerprint([tmp_path])
    (tmp_path / "c" / "9" / "2").write_bytes(b"the last by name")
    assert files_fingerprint([tmp_path]) != before


HAMAMATSU = """[Virtual Microscope Specimen]
NoLayers=1
ImageFile=s.jpg
ImageFile(1,0) = s(1,0).jpg
MapFile=s_map2.jpg
OptimisationFile=s.opt
MacroImage=s_macro.jpg
ImageFile(2,0)=../outside.jpg
"""


@pytest.mark.parametrize("suffix", [".vms", ".vmu", ".VMS"])
@pytest.mark.parametrize("changed", ["s.jpg", "s(1,0).jpg", "s_map2.jpg", "s.opt"])
def test_the_images_that_a_hamamatsu_index_names_count(tmp_path: Path, suffix: str, changed: str) -> None:
    folder, index = tmp_path / "slides", tmp_path / "slides" / f"s{suffix}"
    folder.mkdir()
    index.write_text(HAMAMATSU)
    for name in (
        "s.jpg",
        "s(1,0).jpg",
        "s_map2.jpg",
        "s.opt",
        "s_macro.jpg",
        "../outside.jpg",
        "another.jpg",
    ):
        (folder / name).write_bytes(b"1")
    before = files_fingerprint([index])
    (folder / "another.jpg").write_bytes(b"2")
    (folder / "../outside.jpg").write_bytes(b"2")
    assert files_fingerprint([index]) == before, "of another slide, or out of reach"
    (folder / changed).write_bytes(b"2")
    assert files_fingerprint([index]) != before
    (folder / changed).unlink()
    assert files_fingerprint([index]) != before


def test_nothing_is_known_of_what_cannot_be_read(slide: Path, tmp_path: Path) -> None:
    assert files_fingerprint([Url("http://host/a.svs")]) == ""
    assert files_fingerprint([slide, tmp_path / "gone"]) == ""
