"""Which DICOM files are one slide, how each slide of a folder is named, and what a run takes for its content."""

import shutil
from pathlib import Path

import pytest

from tests.slides.dicom_files import set_all, write_image, write_series
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.commands.info import describe_slides
from wsi_ips.commands.recipe import make_job
from wsi_ips.commands.tile import TileJob, tile
from wsi_ips.errors import DamagedSlide, SeveralSlides, SlideNotFound, UnsupportedSlide
from wsi_ips.progress import silent
from wsi_ips.slides import find_slides, open_slide, slide_id, unique_slide_ids
from wsi_ips.slides.dicom import series
from wsi_ips.slides.folder import files_of
from wsi_ips.slides.resolution import SlideMpp, read_mpp_table
from wsi_ips.storage.fingerprint import files_fingerprint

SMALL, LARGE = tissue_like(200, 100), tissue_like(400, 300)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with two slides: files of ``b`` before files of ``a`` in the second half of the alphabet."""
    for name, image in (("a", SMALL), ("b", LARGE)):
        write_series(tmp_path / name, image, levels=2, series=name)
        for file in (tmp_path / name).iterdir():
            file.rename(tmp_path / f"{name}_{file.name}")
        (tmp_path / name).rmdir()
    return tmp_path


def test_each_series_of_a_folder_is_a_slide(two):
    found = find_slides(two)
    assert found == [two / "a_level0.dcm", two / "b_level0.dcm"]
    assert [slide_id(path) for path in found] == ["a_level0", "b_level0"]
    for path, size in zip(found, [(200, 100), (400, 300)], strict=True):
        with open_slide(path) as slide:
            assert (slide.info.l0_size, slide.info.path, len(slide.info.levels)) == (size, path, 2)


def test_any_file_opens_its_own_series(two):
    for name, size in (("a", (200, 100)), ("b", (400, 300))):
        for reader in ("dicom", "openslide"):
            with open_slide(two / f"{name}_level1.dcm", reader=reader) as slide:
                assert slide.info.l0_size == size


def test_a_folder_of_several_slides_is_not_opened_as_one(two):
    for reader in (None, "dicom", "openslide"):
        with pytest.raises(SeveralSlides, match=r"holds 2 slides .*: a_level0\.dcm, b_level0\.dcm"):
            open_slide(two, reader=reader)


def test_a_label_or_annotation_beside_them_names_no_slide(two):
    """Files sorted before a level's keep the slide's name as it is; a series without a level is no slide."""
    write_image(two / "0.dcm", SMALL, series="a", kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    write_image(two / "1.dcm", SMALL, series="c", kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    write_image(two / "2.dcm", SMALL, series="d", change=_of_class("1.2.840.10008.5.1.4.1.1.91.1"))
    assert [path.name for path in find_slides(two)] == ["a_level0.dcm", "b_level0.dcm"]
    assert dict(open_slide(two / "a_level0.dcm").info.associated) == {"label": (200, 100)}


def test_files_named_by_their_uid(tmp_path):
    names = [f"1.2.840.{number}.7.1" for number in (1, 2)]
    for name in names:
        write_image(tmp_path / name, SMALL, series=name)
    assert [path.name for path in find_slides(tmp_path)] == names
    assert list(unique_slide_ids(find_slides(tmp_path))) == names
    with open_slide(tmp_path / names[1]) as slide:
        assert slide.info.reader == "dicom"


def test_one_series_is_the_folder_whatever_lies_beside_it(tmp_path):
    write_series(tmp_path / "case", LARGE, levels=2, suffix="")
    (tmp_path / "case" / "notes.txt").write_text("DICM")
    (tmp_path / "case" / "LICENSE").write_text("free")
    (tmp_path / "case" / "other.dcm").write_text("no DICOM at all")
    write_image(
        tmp_path / "case" / "ct.dcm", SMALL, series="x", change=_of_class("1.2.840.10008.5.1.4.1.1.2")
    )
    write_pyramid(tmp_path / "case" / "b.tif", SMALL)
    assert find_slides(tmp_path) == [tmp_path / "case", tmp_path / "case" / "b.tif"]
    with open_slide(tmp_path / "case") as slide:
        assert (slide.info.l0_size, len(slide.info.levels)) == ((400, 300), 2)
        assert [each.what for each in slide.info.left_out] == ["other.dcm"]


def test_other_dicom_is_no_slide(tmp_path):
    write_image(tmp_path / "ct.dcm", SMALL, change=_of_class("1.2.840.10008.5.1.4.1.1.2"))
    with pytest.raises(SlideNotFound, match="no slide in this folder"):
        find_slides(tmp_path)
    with pytest.raises(SlideNotFound, match=r"without \.dcm"):
        open_slide(tmp_path)
    with pytest.raises(UnsupportedSlide, match="dicom: no whole-slide image"):
        open_slide(tmp_path / "ct.dcm")


def test_other_dicom_that_is_written_in_other_ways(tmp_path):
    """Big-endian or deflated files of other kinds lie beside slides, and are none of our business."""
    write_series(tmp_path, LARGE, levels=2)
    for number, syntax in enumerate(["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]):
        write_image(tmp_path / f"ct{number}.dcm", SMALL, change=_of_class("1.2.840.10008.5.1.4.1.1.2"))
        _replace(
            tmp_path / f"ct{number}.dcm", b"1.2.840.10008.1.2.1\0", syntax.encode(), from_body=b"\xff" * 60
        )
    with open_slide(tmp_path) as slide:
        assert len(slide.info.levels) == 2
    write_image(tmp_path / "wsi.dcm", SMALL)
    _replace(tmp_path / "wsi.dcm", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")
    with pytest.raises(DamagedSlide, match=r"wsi\.dcm .*written big-endian"):
        open_slide(tmp_path)


def test_a_series_without_a_level_says_so(tmp_path):
    write_image(tmp_path / "a.dcm", SMALL, kind="ORIGINAL\\PRIMARY")
    assert find_slides(tmp_path) == [tmp_path]
    with pytest.raises(UnsupportedSlide, match="no ImageType says VOLUME"):
        open_slide(tmp_path)


@pytest.mark.parametrize("left", [b"", bytes(5000), None])
def test_a_broken_download_among_the_files_is_named(tmp_path, left):
    """Without it the slide would open, and a finer level be missing."""
    write_series(tmp_path, LARGE, levels=2)
    whole = (tmp_path / "level0.dcm").read_bytes()
    (tmp_path / "level0.dcm").write_bytes(whole[:200] if left is None else left)
    assert find_slides(tmp_path) == [tmp_path]
    with pytest.raises(DamagedSlide, match=r"level0\.dcm .*cannot be read as DICOM"):
        open_slide(tmp_path)


def test_files_of_other_kinds_are_not_opened(tmp_path, monkeypatch):
    """A folder of 100,000 features is listed without a look into them."""
    write_series(tmp_path, SMALL)
    for name in ("a.h5", "b.csv", "c.tif", ".hidden", "d.dcm.part", "e.DS_Store"):
        (tmp_path / name).write_bytes(bytes(200))
    looked_into = []
    look = series._look
    monkeypatch.setattr(series, "_look", lambda path: looked_into.append(path.name) or look(path))
    assert find_slides(tmp_path) == [tmp_path, tmp_path / "c.tif"]
    assert looked_into == ["level0.dcm"]


def test_hidden_files_are_not_looked_into(tmp_path):
    """A Mac leaves ._level0.dcm beside level0.dcm."""
    write_series(tmp_path, LARGE, levels=2)
    (tmp_path / "._level0.dcm").write_bytes(bytes(4096))
    for path in (tmp_path, tmp_path / "level0.dcm"):
        with open_slide(path) as slide:
            assert (len(slide.info.levels), slide.info.left_out) == (2, ())


def test_a_suffix_of_their_own(tmp_path):
    """A file that is named by the user is read whatever it is called, with the others that are called so."""
    write_series(tmp_path, LARGE, levels=2, suffix=".ima")
    with pytest.raises(SlideNotFound):
        find_slides(tmp_path)
    with open_slide(tmp_path / "level1.ima") as slide:
        assert len(slide.info.levels) == 2


def test_resolutions_by_name(two, tmp_path):
    table = tmp_path / "mpp.csv"
    table.write_text("wsi,mpp\na_level0.dcm,0.25\nb_level0,0.5\n1.2.840.1,0.75\n")
    mpp = SlideMpp(None, read_mpp_table(table))
    assert [mpp(slide_id(path)) for path in find_slides(two)] == [0.25, 0.5]
    assert mpp(slide_id("1.2.840.1")) == 0.75


def test_tile_writes_every_slides_patches(cases_folder, tmp_path):
    folder = cases_folder / "dicom" / "two_slides_in_one_folder"
    job = make_job(
        {"command": "tile", "slides": str(folder), "out": str(tmp_path), "tiling": {"patch_mpp": 2.0}},
        source="test",
    )
    assert isinstance(job, TileJob)
    assert tile(job, silent).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "patches").iterdir()) == [
        "slideA_level-0-frames-0-30.h5",
        "slideB_level-1-frames-0-9.h5",
    ]


def test_info_describes_every_slide(two):
    done = describe_slides(two, as_json=False)
    assert (done.exit_code, len(done.lines)) == (0, 2)
    assert "200x100 px" in done.lines[0]
    assert "reader dicom" in done.lines[1]


def test_content_is_the_series_and_nothing_else(two):
    before = {name: files_fingerprint(files_of(two / f"{name}_level0.dcm")) for name in "ab"}
    assert files_of(two / "a_level1.dcm") == [two / "a_level0.dcm", two / "a_level1.dcm"]
    write_image(two / "b_level1.dcm", tissue_like(200, 150, seed=9), series="b")
    (two / "notes.txt").write_text("seen")
    after = {name: files_fingerprint(files_of(two / f"{name}_level0.dcm")) for name in "ab"}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_content_of_a_folder_is_all_its_series(tmp_path):
    write_series(tmp_path / "a", LARGE, levels=2, suffix="")
    before = files_fingerprint(files_of(tmp_path / "a"))
    (tmp_path / "a" / "notes.txt").write_text("seen")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert files_fingerprint(files_of(tmp_path / "b")) == before
    write_image(tmp_path / "a" / "level2", tissue_like(100, 75), series="series")
    assert files_fingerprint(files_of(tmp_path / "a")) != before
    (tmp_path / "b" / "level1.dcm").write_bytes(b"")
    assert files_fingerprint(files_of(tmp_path / "b")) != before


def test_two_slides_of_the_shared_case(cases_folder):
    folder = cases_folder / "dicom" / "two_slides_in_one_folder"
    slides = unique_slide_ids(find_slides(folder))
    sizes = []
    for path in slides.values():
        with open_slide(path) as slide:
            assert slide.info.reader == "dicom"
            sizes.append(slide.info.l0_size)
    assert sizes == [(2220, 2967), (1110, 1483)]
    assert list(slides) == ["slideA_level-0-frames-0-30", "slideB_level-1-frames-0-9"]


def _replace(path, old, new, *, from_body=None):
    """Another transfer syntax, whose length in the file changes with it; the body is then nonsense."""
    data = path.read_bytes()
    at = data.index(old)
    assert data[at - 2] == len(old)
    new += b"\0" * (len(new) % 2)
    data = data[: at - 2] + bytes([len(new), 0]) + new + data[at + len(old) :]
    if from_body is not None:
        at = data.index(b"\x08\x00\x08\x00")
        data = data[:at] + from_body
    path.write_bytes(data)


def _of_class(sop_class):
    def change(file):
        set_all(SOPClassUID=sop_class)(file)
        file.file_meta.MediaStorageSOPClassUID = sop_class

    return change
