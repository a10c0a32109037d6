"""OME-Zarr 0.4 and 0.5, as the package ome-zarr writes it: the contract, and one clear line for what is wrong."""

import json
import pickle
import resource
import shutil

import numpy as np
import pytest

from tests.slides.one_line import assert_one_line
from tests.slides.range_server import serving
from tests.slides.tiff_files import halved, tissue_like
from tests.slides.zarr_files import change, change_array, write_zarr
from wsi_ips.errors import (
    DamagedSlide,
    SlideNotFound,
    SlideReadError,
    SlideUnreachable,
    UnsupportedSlide,
)
from wsi_ips.slides import find_slides, ome_zarr_reader, open_slide, slide_id
from wsi_ips.slides.ome_zarr_reader import OmeZarrReader
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image


@pytest.fixture(params=["0.4", "0.5"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good slide of each version."""
    path = tmp_path_factory.mktemp("good")
    for version in ("0.4", "0.5"):
        write_zarr(path / version, tissue_like(300, 200), version=version)
    return path


@pytest.fixture
def folder(tmp_path, good, version):
    """A good slide, to be spoiled."""
    return shutil.copytree(good / version, tmp_path / "slide.ome.zarr")


class Test04(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        write_zarr(class_folder / "käse.zarr", contract_image(), version="0.4", mpp=MPP)
        return class_folder / "käse.zarr"

    @pytest.fixture
    def slide(self, drawn):
        with open_slide(drawn) as reader:
            yield reader


class Test05(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        write_zarr(class_folder / "käse.zarr", contract_image(), version="0.5", mpp=MPP, axes="tczyx")
        return class_folder / "käse.zarr"

    @pytest.fixture
    def slide(self, drawn):
        with open_slide(drawn) as reader:
            yield reader


class TestOverHttp(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        write_zarr(class_folder / "käse.zarr", contract_image(), mpp=MPP)
        return class_folder

    @pytest.fixture
    def slide(self, drawn):
        with serving(drawn) as server, open_slide(server.url("käse.zarr")) as reader:
            yield reader


def test_over_memory(version):
    image = tissue_like(300, 200)
    url = f"memory://test_over_memory_{version}/a.zarr"
    write_zarr(url, image, version=version)
    with open_slide(url) as slide:
        assert slide.info.path == url
        np.testing.assert_array_equal(
            slide.read((10, 20), level=0, size_px=(200, 150)), image[20:170, 10:210]
        )


@pytest.mark.parametrize("axes", ["cyx", "czyx", "tcyx", "tczyx"])
def test_axes(tmp_path, version, axes):
    image = tissue_like(301, 203)
    write_zarr(tmp_path / "a.zarr", image, version=version, axes=axes)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert slide.info.levels[1].size == (150, 101)
        np.testing.assert_array_equal(slide.read((7, 9), level=0, size_px=(250, 150)), image[9:159, 7:257])


def test_shards(tmp_path):
    image = tissue_like(700, 600)
    write_zarr(tmp_path / "a.zarr", image, chunk=64, shard=256)
    with open_slide(tmp_path / "a.zarr") as slide:
        np.testing.assert_array_equal(
            slide.read((200, 100), level=0, size_px=(300, 400)), image[100:500, 200:500]
        )


def test_as_bioformats2raw_lays_it_out(tmp_path, version):
    image, path = tissue_like(300, 200), tmp_path / "a.zarr"
    path.mkdir()
    write_zarr(path / "0", image, version=version)
    layout = {"bioformats2raw.layout": 3}
    if version == "0.4":
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(layout))
    else:
        attributes = {"ome": {"version": "0.5", **layout}}
        (path / "zarr.json").write_text(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
        )
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(300, 200)), image)


def test_a_missing_chunk_is_the_fill_value(folder, version):
    (folder / ("s0/0/0/0" if version == "0.4" else "s0/c/0/0/0")).unlink()
    change_array(folder, "s0", {"fill_value": 250})
    with open_slide(folder) as slide:
        region = slide.read((0, 0), level=0, size_px=(300, 200))
    assert (region[:128, :128] == 250).all()
    np.testing.assert_array_equal(region[:, 128:], tissue_like(300, 200)[:, 128:])


def test_levels_are_sorted(folder):
    change(folder, lambda ome: ome["multiscales"][0]["datasets"].reverse())
    with open_slide(folder) as slide:
        assert [level.size for level in slide.info.levels] == [(300, 200), (150, 100)]
        assert slide.info.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(
            slide.read((0, 0), level=1, size_px=(150, 100)), halved(tissue_like(300, 200))
        )


@pytest.mark.parametrize(
    ("unit", "stated", "expected"),
    [
        ("micrometer", 0.5, 0.5),
        ("nanometer", 250, 0.25),
        ("millimeter", 0.001, 1),
        (None, 0.5, None),
        ("parsec", 0.5, None),
        ("meter", 1, None),
    ],
)
def test_units(tmp_path, version, unit, stated, expected):
    path = tmp_path / "a.zarr"
    write_zarr(path, tissue_like(300, 200), version=version, mpp=stated)

    def set_unit(ome):
        for axis in ome["multiscales"][0]["axes"][1:]:
            axis["unit"] = unit

    change(path, set_unit)
    with open_slide(path) as slide:
        assert slide.info.mpp == (None if expected is None else pytest.approx(expected))


def test_a_scale_of_the_whole_image_counts_too(folder):
    steps = [{"type": "scale", "scale": [1, 0.5, 0.5]}, {"type": "translation", "translation": [0, 3, 3]}]
    change(folder, lambda ome: ome["multiscales"][0].update(coordinateTransformations=steps))
    with open_slide(folder) as slide:
        assert slide.info.mpp == pytest.approx(0.25)


def test_a_zarr_folder_is_one_slide_of_a_folder(tmp_path):
    for name in ("b.zarr", "deep/a.ome.zarr", "c.ZARR"):
        write_zarr(tmp_path / name, tissue_like(100, 100))
    (tmp_path / "d.svs").touch()
    found = find_slides(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "b.zarr", "c.ZARR", "d.svs", "deep/a.ome.zarr",
    ]  # fmt: skip
    assert [slide_id(path) for path in found] == ["b", "c", "d", "a"]
    assert find_slides(tmp_path / "b.zarr") == [tmp_path / "b.zarr"]


def test_a_zarr_folder_needs_no_suffix(tmp_path):
    write_zarr(tmp_path / "case.1", tissue_like(100, 100))
    assert find_slides(tmp_path) == [tmp_path / "case.1"]
    assert slide_id(tmp_path / "case.1") == "case.1"
    with open_slide(tmp_path / "case.1") as slide:
        assert slide.info.l0_size == (100, 100)


def first(ome):
    return ome["multiscales"][0]


METADATA = {
    "no multiscales": (lambda ome: ome.pop("multiscales"), "without multiscales"),
    "empty multiscales": (lambda ome: ome.update(multiscales=[]), "without multiscales"),
    "multiscales is text": (lambda ome: ome.update(multiscales="x"), "wrong: Input should be"),
    "no datasets": (lambda ome: first(ome).update(datasets=[]), "wrong: datasets"),
    "too many levels": (
        lambda ome: first(ome).update(datasets=first(ome)["datasets"] * 99),
        "wrong: datasets",
    ),
    "no axes": (lambda ome: first(ome).pop("axes"), "wrong: axes"),
    "axes of 0.3": (lambda ome: first(ome).update(axes=["c", "y", "x"]), "wrong: axes.0"),
    "an axis twice": (lambda ome: first(ome)["axes"][0].update(name="x"), "axes are x, y, x"),
    "unknown axis": (lambda ome: first(ome)["axes"][0].update(name="q"), "axes are q, y, x"),
    "no channels": (lambda ome: first(ome)["axes"][0].update(name="z"), "not RGB"),
    "too few axes": (lambda ome: first(ome)["axes"].pop(0), "not RGB"),
    "out of the folder": (lambda ome: first(ome)["datasets"][0].update(path="../../secret"), "no path below"),
    "just out of it": (lambda ome: first(ome)["datasets"][0].update(path="../secret"), "no path below"),
    "out in the middle": (
        lambda ome: first(ome)["datasets"][0].update(path="0/../../secret"),
        "no path below",
    ),
    "absolute": (lambda ome: first(ome)["datasets"][0].update(path="/etc/passwd"), "no path below"),
    "a URL": (lambda ome: first(ome)["datasets"][0].update(path="http://host/0"), "no path below"),
    "a backslash": (lambda ome: first(ome)["datasets"][0].update(path="..\\secret"), "no path below"),
    "not there": (lambda ome: first(ome)["datasets"][0].update(path="9"), "'9' that is not there"),
    "path is no text": (lambda ome: first(ome)["datasets"][0].update(path=0), "wrong: datasets.0.path"),
    "scale too short": (lambda ome: set_scale(ome, [0.5, 0.5]), "not the length of its 3 axes"),
    "scale zero": (lambda ome: set_scale(ome, [1, 0, 0.5]), "wrong: datasets.0"),
    "scale endless": (lambda ome: set_scale(ome, [1, 1e999, 0.5]), "wrong: datasets.0"),
    "scale contradicts": (lambda ome: set_scale(ome, [1, 0.1, 0.1]), "2 times coarser by its shape, 10 by"),
    "stains": (
        lambda ome: ome.update(omero={"channels": [{"color": c} for c in ("0000FF", "00ff00", "FF0000")]}),
        "not RGB",
    ),
}


def set_scale(ome, scale):
    first(ome)["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]


@pytest.mark.parametrize("problem", METADATA)
def test_wrong_metadata_is_one_line(folder, problem):
    edit, words = METADATA[problem]
    change(folder, edit)
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(folder)
    assert words in str(caught.value)
    assert_one_line(caught.value, folder)


def test_another_version(folder, version):
    change(folder, lambda ome: (ome if version == "0.5" else first(ome)).update(version="0.9"))
    with pytest.raises(UnsupportedSlide, match=r"OME-Zarr 0\.9; this reads 0\.4 and 0\.5"):
        open_slide(folder)


def test_rgb_colours_are_no_stains(folder):
    channels = [{"color": colour} for colour in ("ff0000", "00FF00", "0000FF")]
    change(folder, lambda ome: ome.update(omero={"channels": channels}))
    open_slide(folder).close()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((100, 100, 1), np.uint8), "1 channels of uint8"),
        (np.zeros((100, 100, 4), np.uint8), "4 channels of uint8"),
        (np.zeros((100, 100, 3), np.uint16), "3 channels of uint16"),
    ],
)
def test_other_images_than_rgb(tmp_path, version, image, words):
    write_zarr(tmp_path / "a.zarr", image, version=version, levels=1)
    with pytest.raises(UnsupportedSlide, match=f"{words}, not RGB in 8 bits"):
        open_slide(tmp_path / "a.zarr")


@pytest.mark.parametrize(("axes", "shape"), [("tcyx", [2, 3, 100, 100]), ("czyx", [3, 2, 100, 100])])
def test_films_and_stacks(tmp_path, axes, shape):
    path = tmp_path / "a.zarr"
    write_zarr(path, tissue_like(100, 100), axes=axes, levels=1)
    change_array(path, "s0", {"shape": shape})
    with pytest.raises(UnsupportedSlide, match="a stack or a film"):
        open_slide(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shape": [3, 4_000_000_000, 4_000_000_000]}, "claims 4000000000x4000000000 px"),
        ({"shape": [3, 0, 300]}, "claims|not a Zarr"),
        ({"shape": [3, 200, 30]}, "another shape|claims"),
        ({"shape": [3, 200]}, "axes|not a Zarr"),
        ({"shape": [3, -200, 300]}, "not a Zarr|claims"),
        ({"shape": "large"}, "not a Zarr"),
    ],
)
def test_absurd_shapes(folder, values, words):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change_array(folder, "s0", values)
    with pytest.raises(UnsupportedSlide, match=words) as caught:
        open_slide(folder)
    assert_one_line(caught.value, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_absurd_chunks(folder, version):
    chunks = [3, 100_000, 100_000]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    change_array(folder, "s0", {"chunks": chunks} if version == "0.4" else {"chunk_grid": grid})
    with pytest.raises(DamagedSlide, match="claims blocks of 100000x100000 px"):
        open_slide(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"compressor": {"id": "pickle", "protocol": 4}},
        {"filters": [{"id": "pickle", "protocol": 4}]},
        {"filters": [{"id": "json2", "encoding": "utf-8", "dtype": "|u1", "shape": [1]}]},
    ],
)
def test_codecs_that_do_more_than_decompress_are_refused(tmp_path, values):
    path = tmp_path / "a.zarr"
    write_zarr(path, tissue_like(100, 100), version="0.4")
    change_array(path, "s0", values)
    with pytest.raises(UnsupportedSlide, match=r"pickle|json2") as caught:
        open_slide(path)
    assert_one_line(caught.value, path)


def test_a_codec_within_a_shard_is_looked_at_too(tmp_path):
    write_zarr(tmp_path / "a.zarr", tissue_like(300, 300), chunk=64, shard=128, levels=1)
    file = tmp_path / "a.zarr" / "s0" / "zarr.json"
    metadata = json.loads(file.read_text())
    twice = [{"name": name, "configuration": {"level": 1}} for name in ("zstd", "gzip")]
    metadata["codecs"][0]["configuration"]["codecs"] = [{"name": "bytes"}, *twice]
    file.write_text(json.dumps(metadata))
    with pytest.raises(UnsupportedSlide, match="compressed with GzipCodec after another codec"):
        open_slide(tmp_path / "a.zarr")


def test_no_file_of_endless_length_is_read(folder, monkeypatch):
    monkeypatch.setattr(ome_zarr_reader, "LARGEST_READ_BYTES", 20_000)
    with open_slide(folder) as slide, pytest.raises(SlideReadError, match="holds more than 20000 bytes"):
        slide.read((0, 0), level=0, size_px=(64, 64))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"zarr_format": 9}', b"\xff\xfe"])
def test_broken_json(folder, version, content):
    (folder / ("zarr.json" if version == "0.5" else ".zattrs")).write_bytes(content)
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(folder)
    assert_one_line(caught.value, folder)


def test_a_zarr_folder_with_nothing_in_it(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(UnsupportedSlide, match="no Zarr group"):
        open_slide(tmp_path / "a.zarr")


def test_a_single_array_is_no_slide(tmp_path, version):
    write_zarr(tmp_path / "a.zarr", tissue_like(100, 100), version=version)
    with pytest.raises(UnsupportedSlide):
        open_slide(tmp_path / "a.zarr" / "s0")


def test_a_damaged_chunk_is_an_error_and_the_others_are_read(folder, version):
    chunk = folder / ("s0/0/0/0" if version == "0.4" else "s0/c/0/0/0")
    chunk.write_bytes(b"\0" * 50)
    with open_slide(folder) as slide:
        with pytest.raises(
            SlideReadError, match=r"level 0 cannot be read at its pixel \(3, 4\): its chunk s0/(c/)?0/0/0: "
        ) as caught:
            slide.read((3, 4), level=0, size_px=(20, 20))
        assert_one_line(caught.value, folder)
        np.testing.assert_array_equal(
            slide.read((128, 0), level=0, size_px=(100, 100)), tissue_like(300, 200)[:100, 128:228]
        )


def test_a_chunk_is_fetched_once_for_the_patches_in_it(tmp_path, version):
    image = tissue_like(512, 512)
    write_zarr(tmp_path / "a.zarr", image, version=version, chunk=256)
    with serving(tmp_path) as server, open_slide(server.url("a.zarr")) as slide:
        server.requests.clear()
        for x in range(0, 512, 64):
            for y in range(0, 512, 64):
                region = slide.read((x, y), level=0, size_px=(64, 64))
                np.testing.assert_array_equal(region, image[y : y + 64, x : x + 64])
        assert len(server.requests) == 4


def test_what_is_kept_of_a_url_is_bounded(tmp_path, monkeypatch):
    write_zarr(tmp_path / "a.zarr", tissue_like(512, 512), chunk=256)
    sizes = [file.stat().st_size for file in (tmp_path / "a.zarr" / "s0" / "c").rglob("*") if file.is_file()]
    monkeypatch.setattr(ome_zarr_reader, "KEPT_BYTES", max(sizes))
    with serving(tmp_path) as server, open_slide(server.url("a.zarr")) as slide:
        server.requests.clear()
        for x in (0, 256, 0):
            slide.read((x, 0), level=0, size_px=(64, 64))
        assert len(server.requests) == 3


def test_a_slide_that_went_away_after_pickling(folder):
    with open_slide(folder) as slide:
        pickled = pickle.dumps(slide)
    for name in ("zarr.json", ".zgroup", ".zattrs"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(SlideReadError, match="no Zarr group"):
        pickle.loads(pickled).read((0, 0), level=0, size_px=(8, 8))


def test_urls_that_fail(tmp_path, version):
    write_zarr(tmp_path / "a.zarr", tissue_like(300, 200), version=version)
    with serving(tmp_path) as server:
        with pytest.raises(UnsupportedSlide, match="no Zarr group"):
            open_slide(server.url("none.zarr"))
        server.manner = "no ranges"
        with open_slide(server.url("a.zarr/")) as slide:
            region = slide.read((0, 0), level=0, size_px=(300, 200))
            np.testing.assert_array_equal(region, tissue_like(300, 200))
            server.manner = "forbidden"
            with pytest.raises(SlideReadError, match="403"):
                slide.read((0, 0), level=1, size_px=(150, 100))
        with pytest.raises(SlideUnreachable, match="403"):
            open_slide(server.url("a.zarr"))
        server.manner = "silent"
        with pytest.raises(SlideUnreachable, match="in time"):
            OmeZarrReader(server.url("a.zarr"), timeout_s=0.2)
    with pytest.raises(SlideUnreachable, match="cannot be reached"):
        open_slide("http://127.0.0.1:1/a.zarr")
    with pytest.raises(SlideNotFound, match="check the path"):
        open_slide(tmp_path / "none.zarr")
