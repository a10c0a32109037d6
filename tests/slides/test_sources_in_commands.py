"""``wsi-ips`` takes a URL and an OME-Zarr folder wherever it takes a slide, and says the same of them."""

import csv
import json

import pytest

from tests.commands.console import make_console
from tests.slides.range_server import serving
from tests.slides.zarr_files import write_zarr
from wsi_ips.slides import open_slide


@pytest.fixture
def console(monkeypatch, capsys):
    return make_console(monkeypatch, capsys)


@pytest.fixture
def local(small_data):
    return sorted(small_data.slides.glob("*.tif"))[0]


@pytest.fixture
def zarr_folder(local, tmp_path):
    with open_slide(local) as slide:
        image = slide.read((0, 0), level=0, size_px=slide.info.l0_size)
        levels = len(slide.info.levels)
        write_zarr(tmp_path / f"{local.stem}.ome.zarr", image, levels=levels, mpp=slide.info.known_mpp())
    return tmp_path / f"{local.stem}.ome.zarr"


@pytest.fixture
def server(local):
    with serving(local.parent) as state:
        yield state


def predicted(out):
    with (out / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def test_info(console, local, server, zarr_folder):
    for where, reader in ((server.url(local.name), "tiffslide"), (str(zarr_folder), "ome-zarr")):
        said = console("info", where, "--json")
        described = json.loads(said.out)
        with open_slide(local) as slide:
            assert (described["path"], described["reader"]) == (where, reader)
            assert (described["width"], described["height"]) == slide.info.l0_size
            assert described["mpp"] == pytest.approx(slide.info.mpp)


def test_predict_and_overlay_from_a_url(console, local, server, small_checkpoint, tmp_path):
    url = server.url(local.name)
    for where, out in ((local, "path"), (url, "url")):
        said = console("predict", where, "--checkpoint", small_checkpoint, "--out", tmp_path / out)
        assert said.code == 0, said.err
    assert predicted(tmp_path / "url") == predicted(tmp_path / "path")
    assert json.loads((tmp_path / "url" / "run.json").read_text())["config"]["slides"] == url
    overlay = tmp_path / "url" / "overlays" / f"{local.stem}.png"
    before = overlay.read_bytes()
    overlay.unlink()
    assert console("overlay", tmp_path / "url", "--open-urls").code == 0
    assert overlay.stat().st_size == pytest.approx(len(before), rel=0.5)
    overlay.unlink()
    assert console("overlay", tmp_path / "url", "--slides", url).code == 0
    assert overlay.exists()


def test_predict_a_zarr_folder_and_a_folder_of_them(console, zarr_folder, small_checkpoint, tmp_path):
    for where, out in ((zarr_folder, "slide"), (zarr_folder.parent, "folder")):
        said = console("predict", where, "--checkpoint", small_checkpoint, "--out", tmp_path / "out" / out)
        assert said.code == 0, said.err + said.out
        assert predicted(tmp_path / "out" / out)["status"] == "ok"


def test_tile_from_a_url(console, local, server, tmp_path):
    assert console("tile", server.url(local.name), "--out", tmp_path, "--patch-px", "64").code == 0
    assert (tmp_path / "patches" / f"{local.stem}.h5").is_file()


@pytest.mark.parametrize("command", ["info", "tile", "predict"])
def test_a_url_that_fails_is_one_line(console, server, small_checkpoint, tmp_path, command):
    url, out = server.url("none.svs"), tmp_path / "out"
    options = {
        "info": [],
        "tile": ["--out", out],
        "predict": ["--out", out, "--checkpoint", small_checkpoint],
    }
    said = console(command, url, *options[command])
    assert said.code == 2
    assert said.complaint == f"wsi-ips: {url}: the server has no such file (404); check the URL"
    assert not out.exists()


def test_a_recipe_names_a_url(console, local, server, tmp_path):
    recipe = tmp_path / "tile.yaml"
    recipe.write_text(f"command: tile\nslides: {server.url(local.name)}\nout: {tmp_path / 'out'}\n")
    assert console("run", recipe).code == 0
    assert (tmp_path / "out" / "patches" / f"{local.stem}.h5").is_file()
