"""Readers of other packages: found by their entry point, asked last, and never in the way."""

import sys

import pytest

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.errors import ConfigError, ReaderBroken, SlideNotFound, UnsupportedSlide
from wsi_ips.slides import open_slide

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
        assert (slide.info.l0_size, slide.info.path) == ((9, 8), odd)


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
    with pytest.raises(UnsupportedSlide, match="text: KeyError: 'a bug'"):
        open_slide(odd)
    with pytest.raises(UnsupportedSlide, match="KeyError: 'a bug'"):
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
