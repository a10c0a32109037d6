"""Readers of other packages: found by their entry point, asked last, and never in the way."""

import sys

import pytest

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.commands.info import describe_slides
from wsi_ips.errors import ConfigError, ReaderBroken, SlideNotFound, SlideReadError, UnsupportedSlide
from wsi_ips.slides import find_slides, open_slide, slide_id
from wsi_ips.slides.folder import find_slides_by_id, left_out_of

READER = '''
from pathlib import Path
from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.base import Level, SlideInfo
from wsi_ips.slides.image_reader import MemoryReader
import numpy as np

class TextReader(MemoryReader):
    """Opens what starts with "slide", as white."""
    def __init__(self, path):
        text = path.read_text() if path.is_file() else "slide"
        if text == "bug":
            raise KeyError("a bug")
        if not text.startswith("slide"):
            raise UnsupportedSlide(path, "does not start with slide", "write it")
        super().__init__(np.full((8, 9, 3), 255, np.uint8), name=str(path))

class TileFolders(MemoryReader):
    """Opens a folder that holds 0.tile, and files that are called so."""
    suffixes = (".tiles", ".Tile")
    def __init__(self, path):
        if not (path / "0.tile").is_file() and path.suffix != ".tile":
            raise UnsupportedSlide(path, "holds no 0.tile")
        super().__init__(np.full((8, 9, 3), 255, np.uint8), name=str(path))

class Clipped(TileFolders):
    """Forgets the white beyond the edge."""
    def read(self, l0_xy, *, level, size_px):
        return super().read(l0_xy, level=level, size_px=size_px)[:4]

def nothing(path):
    return "a slide"

class Misspelt(TileFolders):
    suffixes = ".tiles"
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with these entry points on ``sys.path``; its module is ``other_reader``."""

    def install(entries, *, name="other-package"):
        site = tmp_path / f"site_{name}"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[wsi_ips.readers]\n{lines}")
        (site / "other_reader.py").write_text(READER)
        (site / "other_broken.py").write_text("raise RuntimeError('no licence')\n")
        monkeypatch.syspath_prepend(site)

    yield install
    for module in ("other_reader", "other_broken"):
        sys.modules.pop(module, None)


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_text("slide of white")
    return path


@pytest.fixture
def pyramid(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(300, 200))
    return path


def test_it_opens_what_ours_refuse(install, odd):
    with pytest.raises(UnsupportedSlide):
        open_slide(odd)
    install({"text": "other_reader:TextReader"})
    for slide in (open_slide(odd), open_slide(odd, reader="text")):
        assert (slide.info.l0_size, slide.info.path, slide.info.reader) == ((9, 8), odd, "text")


def test_a_folder_may_be_a_slide_too(install, tmp_path):
    (tmp_path / "case").mkdir()
    with pytest.raises(SlideNotFound, match=r"without \.dcm"):
        open_slide(tmp_path / "case")
    install({"text": "other_reader:TextReader"})
    assert open_slide(tmp_path / "case").info.l0_size == (9, 8)


def test_ours_come_first_and_load_no_other(install, pyramid):
    install({"broken": "other_broken:Reader", "text": "other_reader:TextReader"})
    with open_slide(pyramid) as slide:
        assert slide.info.reader == "tiff"
    assert not {"other_reader", "other_broken"} & set(sys.modules)


def test_a_name_of_ours_stays_ours(install, odd, pyramid):
    install({"tiff": "other_reader:TextReader"})
    with pytest.raises(UnsupportedSlide):
        open_slide(odd)
    with open_slide(pyramid, reader="tiff") as slide:
        assert slide.info.l0_size == (300, 200)


@pytest.mark.parametrize("target", ["other_broken:Reader", "no_such_module:Reader", "other_reader:Nothing"])
def test_a_broken_one_does_not_stop_the_next(install, odd, target):
    install({"broken": target})
    install({"text": "other_reader:TextReader"}, name="good-package")
    assert open_slide(odd).info.l0_size == (9, 8)


def test_a_broken_one_says_so_when_asked_for(install, odd):
    install({"broken": "other_broken:Reader"})
    with pytest.raises(
        ReaderBroken, match="reader broken of the package other-package does not load: RuntimeError: no"
    ):
        open_slide(odd, reader="broken")


def test_its_reason_stands_among_the_others(install, odd):
    install({"broken": "other_broken:Reader", "text": "other_reader:TextReader"})
    odd.write_text("something else")
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(odd)
    assert "tiff: " in str(caught.value)
    assert "text: does not start with slide, write it" in str(caught.value)
    assert "broken: reader broken of the package other-package does not load" in str(caught.value)


def test_a_bug_of_theirs_is_a_refusal(install, odd):
    install({"text": "other_reader:TextReader"})
    odd.write_text("bug")
    said = "the reader text of the package other-package 1.0 raised KeyError: 'a bug'"
    with pytest.raises(
        UnsupportedSlide, match=f"no reader could open it .*text: {said}.*; tell the authors of that package$"
    ):
        open_slide(odd)
    with pytest.raises(UnsupportedSlide, match=said):
        open_slide(odd, reader="text")


def test_an_unknown_name_lists_them_all(install, pyramid):
    install({"text": "other_reader:TextReader"})
    with pytest.raises(
        ConfigError, match=r"'bioformats'; known are .*tiff, openslide, image, ome-zarr, tiffslide, text"
    ):
        open_slide(pyramid, reader="bioformats")


def test_a_missing_file_is_missing_for_them_too(install, tmp_path):
    install({"text": "other_reader:TextReader"})
    with pytest.raises(SlideNotFound, match="no such file"):
        open_slide(tmp_path / "none.txt", reader="text")


@pytest.fixture
def tile_folders(tmp_path):
    """Two slides that are folders, one that is a file, and a mask."""
    slides = tmp_path / "slides"
    for name in ("a.tiles", "sub/b.TILES", "c"):
        (slides / name).mkdir(parents=True)
        (slides / name / "0.tile").touch()
    for name in ("d.tile", "d_mask.tile", "notes.txt"):
        (slides / name).touch()
    return slides


def test_folders_and_files_with_a_declared_suffix_are_slides(install, tile_folders):
    with pytest.raises(SlideNotFound, match="known suffixes"):
        find_slides(tile_folders)
    install({"tiles": "other_reader:TileFolders"})
    found = find_slides(tile_folders)
    assert found == [tile_folders / name for name in ("a.tiles", "c/0.tile", "d.tile", "sub/b.TILES")]
    assert list(find_slides_by_id(tile_folders)) == ["a", "0", "d", "b"]
    left = left_out_of(tile_folders)
    assert [(part.what.rpartition("/")[2], part.why.partition(",")[0]) for part in left] == [
        ("1 file .txt", "no suffix of a slide's"),
        ("d_mask.tile", "a mask"),
    ]
    (tile_folders / "none").mkdir()
    with pytest.raises(SlideNotFound, match=r"known suffixes: .*\.tile \.tiles"):
        find_slides(tile_folders / "none")


def test_a_named_folder_is_asked_for_before_it_is_searched(install, tile_folders):
    install({"tiles": "other_reader:TileFolders"})
    for name in ("a.tiles", "c"):
        assert find_slides(tile_folders / name) == [tile_folders / name]
        lines = describe_slides(tile_folders / name, as_json=False).lines
        assert lines[0].startswith(f"{tile_folders / name}: 9x8 px")


def test_info_of_a_folder_goes_on_without_a_broken_reader(install, tile_folders, pyramid, caplog):
    install({"broken": "other_broken:Reader", "misspelt": "other_reader:Misspelt"})
    assert find_slides(pyramid.parent) == [pyramid]
    assert [record.getMessage() for record in caplog.records] == [
        "reader broken of the package other-package does not load: RuntimeError: no licence; "
        "its slides are not looked for in folders",
        "reader misspelt of the package other-package 1.0: its suffixes are '.tiles', not a tuple of endings "
        "such as ('.tiles',); its slides are not looked for in folders",
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "Clipped",
            r"returned \(4, 8, 3\) uint8 for 8x8 px at the corner of level 0, not \(8, 8, 3\) uint8; tell",
        ),
        ("nothing", "returned a str, whose info is no SlideInfo; tell its authors"),
    ],
)
def test_a_wrong_reader_is_named(install, tile_folders, target, said):
    install({"wrong": f"other_reader:{target}"})
    (tile_folders / "d.tile").touch()
    with pytest.raises(SlideReadError, match=f"the reader wrong of the package other-package 1.0 {said}"):
        open_slide(tile_folders / "d.tile")
    assert find_slides(tile_folders / "c") == [tile_folders / "c"]


def test_no_reader_of_others_is_imported_for_a_slide(install, pyramid):
    install({"tiles": "other_reader:TileFolders"})
    assert find_slides(pyramid) == [pyramid]
    assert slide_id(pyramid) == "slide"
    assert "other_reader" not in sys.modules
