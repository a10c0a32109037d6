import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.errors import ConfigError, SlideNotFound, UnsupportedSlide
from wsi_ips.slides import READERS, open_slide


@pytest.fixture
def pyramid(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(300, 200))
    return path


def test_native_tiles_come_first(pyramid):
    with open_slide(pyramid) as slide:
        assert slide.info.reader == "tiff"
    with open_slide(str(pyramid), reader="openslide") as slide:
        assert slide.info.reader == "openslide"


def test_the_table_cannot_be_written_to():
    with pytest.raises(TypeError):
        READERS.members["mine"] = "x:Y"


def test_an_unknown_reader_names_the_known_ones(pyramid):
    with pytest.raises(ConfigError, match=r"'bioformats'; known are .*tiff, openslide"):
        open_slide(pyramid, reader="bioformats")


def test_nothing_there(tmp_path):
    with pytest.raises(SlideNotFound, match="check the path"):
        open_slide(tmp_path / "none.svs")


def test_a_folder_without_dicom(tmp_path):
    with pytest.raises(SlideNotFound, match=r"without \.dcm"):
        open_slide(tmp_path)


def test_a_reader_whose_package_is_absent_is_passed_over(pyramid, monkeypatch):
    readers = {"zarr": "no_such_package:Reader", **READERS.members}
    monkeypatch.setattr(READERS, "members", readers)
    with open_slide(pyramid) as slide:
        assert slide.info.reader == "tiff"
    with pytest.raises(UnsupportedSlide, match="pip install no_such_package"):
        open_slide(pyramid, reader="zarr")


@pytest.mark.parametrize(
    ("where", "reader", "extra"),
    [("http://host/slide.svs", "tiffslide", "remote"), ("http://host/slide.zarr", "ome-zarr", "zarr")],
)
def test_an_optional_package_that_is_absent_is_named(monkeypatch, where, reader, extra):
    package, module = {"tiffslide": ("tiffslide", "tiffslide"), "ome-zarr": ("zarr", "ome_zarr")}[reader]
    monkeypatch.delitem(sys.modules, f"wsi_ips.slides.{module}_reader", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UnsupportedSlide, match=rf"{reader}: .* pip install 'wsi_ips\[{extra}\]'\)$"
    ) as caught:
        open_slide(where)
    assert str(caught.value).startswith(where)


def test_dicom_folder(real_data):
    folder = real_data / "slides" / "cmu-1-small-region-dicom"
    with open_slide(folder) as slide:
        assert (slide.info.path, slide.info.vendor, slide.info.l0_size) == (folder, "dicom", (2220, 2967))
        assert slide.info.reader == "dicom"
        assert len(slide.info.levels) == 12
        assert slide.info.mpp == pytest.approx(0.499)
        assert slide.read((0, 0), level=2, size_px=(555, 741)).std() > 5


def test_ndpi_is_read_natively(real_data):
    with open_slide(real_data / "slides" / "fluorescence-dapi.ndpi") as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "hamamatsu")
        assert slide.info.mpp == pytest.approx(0.22818, abs=1e-5)
        assert slide.read((1000, 1000), level=0, size_px=(64, 64)).shape == (64, 64, 3)


def test_importing_the_room_loads_no_reader():
    heavy = {"openslide", "tifffile", "imagecodecs", "torch", "zarr", "fsspec", "tiffslide"}
    code = f"import sys, wsi_ips.slides; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_format_that_no_reader_knows_is_to_be_converted_by_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.vsi").write_bytes(b"II*\x00" + bytes(200))
    with pytest.raises(UnsupportedSlide, match="with QuPath or bfconvert") as caught:
        open_slide(tmp_path / "a.vsi")
    assert "vips" not in str(caught.value)


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.tif")
    path.write_bytes(b"")
    with pytest.raises(
        UnsupportedSlide, match=r"caf\\udce9\.tif: its name is not text in UTF-8; rename it"
    ) as caught:
        open_slide(path)
    str(caught.value).encode("utf-8")
