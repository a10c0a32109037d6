"""What a file says of its resolution, from the header to ``info`` and ``tile``."""

import json

import numpy as np
import pytest
import tifffile

from tests.slides.tiff_files import tissue_like

UNKNOWN = "does not say how many µm a pixel covers; give it with --slide-mpp or --mpp-csv"
PER_CM = 2.54


def written(path, x, y, unit):
    """A tiled TIFF with tissue on glass that states (x, y) pixels per ``unit``."""
    slide = np.full((1024, 1024, 3), 245, np.uint8)
    slide[200:800, 200:800] = tissue_like(600, 600) // 4 + np.array([150, 60, 140], np.uint8)
    tifffile.imwrite(path, slide, tile=(256, 256), photometric="rgb", compression="deflate",
                     resolution=(x, y), resolutionunit=unit, metadata=None)  # fmt: skip
    return path


def stated(console, path):
    """µm per pixel, and (x, y) of it."""
    said = console("info", path, "--json")
    assert said.code == 0
    return json.loads(said.out)["mpp"]


@pytest.mark.parametrize("dpi", [72, 96, 300, 600])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_the_resolution_of_print_is_none(console, tmp_path, dpi, unit):
    """What image programs write by default: 300 dpi would be 85 µm per pixel."""
    value = dpi if unit == "INCH" else dpi / PER_CM
    path = written(tmp_path / "a.tif", value, value, unit)
    assert stated(console, path) is None
    said = console("tile", path, "--out", tmp_path / "out")
    assert said.code == 2
    assert f"{path.name}: {UNKNOWN}" in said.err + said.out


@pytest.mark.parametrize("mpp", [0.25, 0.5])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_the_resolution_of_scanners_is_believed(console, tmp_path, mpp, unit):
    per_unit = (25_400 if unit == "INCH" else 10_000) / mpp
    path = written(tmp_path / "a.tif", per_unit, per_unit, unit)
    assert stated(console, path) == pytest.approx(mpp)
    assert console("tile", path, "--out", tmp_path / "out").code == 0


def test_300_dpi_of_a_case(console, cases_folder, tmp_path):
    path = cases_folder / "resolution" / "dpi300.tif"
    assert "resolution unknown" in console("info", path).out
    said = console("tile", path, "--out", tmp_path / "out")
    assert said.code == 2
    assert UNKNOWN in said.err + said.out
    assert console("tile", path, "--out", tmp_path / "out", "--slide-mpp", "0.5").code == 0


def test_pixels_that_are_not_square_of_a_case(console, cases_folder, tmp_path):
    path = cases_folder / "resolution" / "aniso_cm.tif"
    assert "0.2500 by 0.5000 µm/px" in console("info", path).out
    said = console("tile", path, "--out", tmp_path / "out")
    assert said.code == 2
    assert "its pixels are not square: 0.25 µm wide and 0.5 µm high" in said.err + said.out
    assert not list((tmp_path / "out").glob("**/*.h5"))


def test_the_physical_size_of_an_ome_tiff_of_a_case(console, cases_folder, tmp_path):
    path = cases_folder / "resolution" / "ome_physical_size.ome.tif"
    assert stated(console, path) == 0.5
    assert "levels 1536x1536 (1/1), 768x768 (1/2), 384x384 (1/4)" in console("info", path).out
    assert console("tile", path, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("command", ["info", "tile"])
def test_32_bit_samples_of_a_case_are_refused_at_opening(console, cases_folder, tmp_path, command):
    path = cases_folder / "tiff" / "bremen_sea_ice_conc_2022_9_9.tif"
    options = ("--out", tmp_path / "out") if command == "tile" else ()
    said = console(command, path, *options)
    assert said.code == 2
    assert "its samples are floating-point numbers of 32 bits" in said.err + said.out
