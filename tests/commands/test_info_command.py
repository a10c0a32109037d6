"""``wsi-ips info``: what a slide is, what comes with it, and what of a file was left out."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.commands.console import Console
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.errors import PixelsNotSquare
from wsi_ips.slides import open_slide


def described(console, *arguments):
    said = console("info", *arguments, "--json")
    assert said.code == 0
    return [json.loads(line) for line in said.out.splitlines()]


def test_a_slide_by_itself_is_described_in_several_lines(console, tmp_path):
    write_pyramid(tmp_path / "a.tif", tissue_like(700, 500), levels=2)
    first, *others = console("info", tmp_path / "a.tif").out.splitlines()
    assert "700x500 px, 0.5000 µm/px, generic-tiff, reader tiff, levels 700x500 (1/1), 350x250 (1/2)" in first
    assert "  ICC profile: none" in others
    assert console("info", tmp_path).out.splitlines() == [first]


def test_a_colour_profile_is_told(console, tmp_path):
    Image.fromarray(tissue_like(64, 64)).save(tmp_path / "a.png", icc_profile=b"profile")
    assert described(console, tmp_path / "a.png")[0]["icc_profile"]
    assert "ICC profile: yes (it is not applied)" in console("info", tmp_path / "a.png").out


def test_pages_that_are_no_level_are_told(console, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for side in (200, 60):
            writer.write(tissue_like(side, side), photometric="rgb", metadata=None)
    assert described(console, tmp_path / "a.tif")[0]["left_out"] == [
        {"what": "page 1, 60x60 px", "why": "a plain image has one level"}
    ]
    assert "left out: page 1, 60x60 px" in console("info", tmp_path / "a.tif").out


def test_pixels_that_are_not_square_are_described_and_not_tiled(console, cases_folder, tmp_path):
    path = cases_folder / "resolution" / "aniso_cm.tif"
    slide = described(console, path)[0]
    assert (slide["mpp_x"], slide["mpp_y"]) == pytest.approx((0.25, 0.5))
    assert "0.2500 by 0.5000 µm/px" in console("info", path).out
    said = console("tile", path, "--out", tmp_path / "out")
    assert said.code == 2
    assert "0.25 µm wide and 0.5 µm high" in said.complaint
    assert console("tile", path, "--out", tmp_path / "out", "--slide-mpp", "0.5").code == 0


def test_a_print_resolution_is_none(console, cases_folder, tmp_path):
    path = cases_folder / "resolution" / "dpi300.tif"
    assert described(console, path)[0]["mpp"] is None
    said = console("tile", path, "--out", tmp_path / "out")
    assert said.code == 2
    assert "--slide-mpp" in said.complaint


def test_pictures_are_written(console, real_data, tmp_path):
    path = real_data / "slides" / "fluorescence-dapi.ndpi"
    said = console("info", path, "--macro", tmp_path / "macro.png", "--thumbnail", tmp_path / "small.png")
    assert said.code == 0
    assert "macro, 1188x406 px, as stored" in said.out
    assert "thumbnail, 835x1024 px, made from the slide's levels" in said.out
    with open_slide(path) as slide:
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "macro.png")), slide.read_associated("macro")
        )
        whole = slide.read((0, 0), level=2, size_px=slide.info.levels[2].size)
    thumbnail = np.asarray(Image.open(tmp_path / "small.png"))
    assert np.abs(thumbnail.mean(axis=(0, 1)) - whole.mean(axis=(0, 1))).max() < 1


def test_a_picture_that_a_slide_lacks(console, tmp_path):
    write_pyramid(tmp_path / "a.tif", tissue_like(300, 200))
    said = console("info", tmp_path / "a.tif", "--label", tmp_path / "label.png")
    assert said.code == 2
    assert "comes with no label picture" in said.complaint
    assert not (tmp_path / "label.png").exists()


def test_pictures_of_a_folder_are_refused(console, tmp_path):
    for name in ("a.tif", "b.tif"):
        write_pyramid(tmp_path / name, tissue_like(300, 200))
    said = console("info", tmp_path, "--thumbnail", tmp_path / "t.png")
    assert said.code == 2
    assert "one slide at a time" in said.complaint


def test_what_is_said_of_pixels_that_are_not_square_travels_from_a_worker():
    error = PixelsNotSquare.of("a.tif", 0.25, 0.5)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "0.25 µm wide and 0.5 µm high" in str(error)


def test_what_of_a_folder_is_no_slide_is_told(console, tmp_path):
    write_pyramid(tmp_path / "a.tif", tissue_like(300, 200))
    (tmp_path / "below").mkdir()
    write_pyramid(tmp_path / "below" / "b.svs", tissue_like(300, 200))
    write_pyramid(tmp_path / "a_mask.tif", tissue_like(300, 200))
    for name in ("x.xml", "y.xml", "below/z.png", ".hidden", "notes"):
        (tmp_path / name).write_text("text")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "elsewhere.svs")
    said = console("info", tmp_path)
    assert said.code == 0
    left_out = [line for line in said.out.splitlines() if line.startswith("left out: ")]
    assert left_out == [
        "left out: 1 file .png: plain images are read where they are named one by one, or in a manifest",
        "left out: 2 files .xml: no suffix of a slide's",
        "left out: 1 file without a suffix: not a DICOM slide",
        f"left out: {tmp_path / 'a_mask.tif'}: a mask, by its name",
        f"left out: {tmp_path / 'gone.svs'}: a link that leads nowhere",
    ]
    assert "left out" not in console("info", tmp_path, "--json").out.replace("left_out", "")


def test_a_folder_of_one_slide_has_its_picture_and_one_of_several_names_them(
    console: Console, tmp_path: Path
) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    write_pyramid(folder / "one.tif", tissue_like(512, 400))
    assert console("info", folder, "--thumbnail", tmp_path / "t.png").code == 0
    assert (tmp_path / "t.png").is_file()
    (folder / "cut.tif").write_bytes((folder / "one.tif").read_bytes()[:300])
    several = console("info", folder, "--thumbnail", tmp_path / "u.png")
    assert several.complaint.endswith("name one of: cut.tif, one.tif")
    said = console("info", folder)
    assert said.code == 3
    assert said.out.splitlines()[-1] == "1 of 2 slides opened"
