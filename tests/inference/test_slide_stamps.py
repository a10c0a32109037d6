"""Stamps of slides: whatever may have changed a slide changes its stamp, and each is few questions."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_ips.inference.slide_stamps import Stamps, answer, asked_again, stamp
from wsi_ips.slides.folder import files_of
from wsi_ips.storage.fingerprint import files_fingerprint

DICOM = b"\0" * 128 + b"DICM"


def mirax(folder: Path) -> Path:
    (folder / "m").mkdir()
    (folder / "m" / "Data0000.dat").write_bytes(b"pixels")
    (folder / "m.mrxs").write_bytes(b"slide")
    return folder / "m.mrxs"


def zarr(folder: Path) -> Path:
    (folder / "z.zarr" / "0").mkdir(parents=True)
    (folder / "z.zarr" / ".zattrs").write_bytes(b"{}")
    (folder / "z.zarr" / "0" / "0.0").write_bytes(b"pixels")
    return folder / "z.zarr"


def dicom_file(folder: Path) -> Path:
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(DICOM)
    return folder / "a.dcm"


def dicom_folder(folder: Path) -> Path:
    (folder / "d").mkdir()
    return dicom_file(folder / "d").parent


def hamamatsu(folder: Path) -> Path:
    (folder / "h.jpg").write_bytes(b"pixels")
    (folder / "h.vms").write_text("[Virtual Microscope Specimen]\nImageFile=h.jpg\nImageFile(1,0)=another\n")
    return folder / "h.vms"


def plain(folder: Path) -> Path:
    (folder / "s.svs").write_bytes(b"pixels")
    return folder / "s.svs"


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "file": (plain, "s.svs"),
    "MIRAX": (mirax, "m/Data0000.dat"),
    "Zarr": (zarr, "z.zarr/0/0.0"),
    "Hamamatsu": (hamamatsu, "h.jpg"),
    "DICOM file": (dicom_file, "b.dcm"),
    "DICOM folder": (dicom_folder, "d/b.dcm"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_slide_that_changed_changes_its_stamp(kind: str, tmp_path: Path) -> None:
    make, inside = KINDS[kind]
    slide = make(tmp_path)
    before = Stamps.of(slide, ())
    assert before.slide
    assert answer(asked_again(str(slide), before.slide)) == before.slide
    path = tmp_path / inside
    about, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert answer(asked_again(str(slide), before.slide)) != before.slide
    path.unlink()
    assert answer(asked_again(str(slide), before.slide)) != before.slide


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "file"])
def test_a_file_that_joins_a_slide_changes_its_stamp(kind: str, tmp_path: Path) -> None:
    make, inside = KINDS[kind]
    slide = make(tmp_path)
    before = Stamps.of(slide, ())
    shutil.copy2(tmp_path / inside, (tmp_path / inside).with_name("another"))
    assert answer(asked_again(str(slide), before.slide)) != before.slide


def test_slides_of_one_folder_are_looked_at_once(tmp_path: Path) -> None:
    first = dicom_file(tmp_path)
    told = [Stamps.of(path, ()).slide for path in (first, tmp_path / "b.dcm")]
    assert len({asked_again(str(tmp_path / name), text) for name, text in zip("ab", told, strict=True)}) == 1


def test_what_the_file_system_cannot_tell_has_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = zarr(tmp_path)
    assert Stamps.of(slide, None).slide == ""
    assert Stamps.of(slide, [tmp_path / "gone.h5"]).slide == ""
    assert Stamps.of(tmp_path / "gone.svs", ()).slide == ""
    (slide / "link").symlink_to(tmp_path, target_is_directory=True)
    assert Stamps.of(slide, ()).slide == "", "what a link leads to may change by itself"
    (slide / "link").unlink()
    (tmp_path / "h.vms").write_text("ImageFile=h.jpg")
    of_earlier_versions = stamp(tmp_path / "h.vms")
    assert answer(asked_again(str(tmp_path / "h.vms"), of_earlier_versions)) == ""
    monkeypatch.setattr("wsi_ips.inference.slide_stamps.MOST_FILES", 3)
    assert Stamps.of(slide, ()).slide
    (slide / "0" / "0.1").touch()
    assert Stamps.of(slide, ()).slide == "", "these are too many files to look at"
    assert answer(("a kind of a later version", str(slide))) == ""


def test_the_stamp_of_a_file_is_that_of_earlier_versions(tmp_path: Path) -> None:
    slide = plain(tmp_path)
    about = slide.stat()
    assert Stamps.of(slide, ()).slide == stamp(slide)
    assert stamp(slide) == f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"


@pytest.mark.parametrize("kind", ["MIRAX", "Zarr", "Hamamatsu"])
def test_whatever_a_fingerprint_reads_is_in_the_stamp(kind: str, tmp_path: Path) -> None:
    make, inside = KINDS[kind]
    slide = make(tmp_path)
    before, stamped = files_fingerprint(files_of(slide)), Stamps.of(slide, ()).slide
    (tmp_path / inside).write_bytes(b"others")
    assert files_fingerprint(files_of(slide)) != before
    assert Stamps.of(slide, ()).slide != stamped
