"""Slides at a URL: the contract, pixels equal to the native reader's, few bytes, one clear line for what fails."""

import pickle
import resource
import struct
import sys
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import tifffile

from tests.slides.one_line import assert_one_line
from tests.slides.range_server import serving
from tests.slides.test_damaged import header
from tests.slides.tiff_files import halved, tissue_like, write_pyramid
from wsi_ips.errors import (
    ReaderNotInstalled,
    SlideNotFound,
    SlideReadError,
    SlideUnreachable,
    UnsupportedSlide,
    WsiIpsError,
)
from wsi_ips.slides import find_slides, open_slide, slide_id
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.slides.tiffslide_reader import TiffSlideReader
from wsi_ips.storage.location import Url
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image

APERIO = "Aperio Image Library v11.2.1 \r\n1304x976 (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as state:
        yield state


@pytest.fixture
def memory():
    """Puts bytes at a ``memory://`` URL."""
    filesystem = fsspec.filesystem("memory")
    placed = []

    def place(data, name="slide.tif"):
        placed.append(f"/{uuid4()}/{name}")
        filesystem.pipe(placed[-1], data)
        return f"memory:/{placed[-1]}"

    yield place
    for path in placed:
        filesystem.rm(path)


def write_contract_slide(folder):
    path = folder / "käse.tif"
    write_pyramid(path, contract_image(), mpp=MPP, tile=128, levels=2, compression="lzw")
    return path


@pytest.fixture(scope="class")
def contract_slide(class_folder):
    return write_contract_slide(class_folder)


class TestOverHttp(ReaderContract):
    @pytest.fixture
    def slide(self, contract_slide):
        with serving(contract_slide.parent) as server, open_slide(server.url(contract_slide.name)) as reader:
            yield reader


class TestOverMemory(ReaderContract):
    @pytest.fixture
    def slide(self, contract_slide, memory):
        with TiffSlideReader(memory(contract_slide.read_bytes())) as reader:
            yield reader


class TestOfAFile(ReaderContract):
    @pytest.fixture
    def slide(self, contract_slide):
        with open_slide(contract_slide, reader="tiffslide") as reader:
            yield reader


def test_a_url_stays_a_url(tmp_path, server):
    write_contract_slide(tmp_path)
    url = server.url("käse.tif?token=a/b.tif")
    with open_slide(url) as slide:
        assert slide.info.path == url
        assert isinstance(slide.info.path, Url)
        assert slide.info.reader == "tiffslide"
        assert isinstance(pickle.loads(pickle.dumps(slide.info)).path, Url)
    assert find_slides(url) == [url]
    assert slide_id(url) == "käse"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/a/b.svs", "b"),
        ("https://host/a/b.ome.tif?x=/c.svs#d", "b"),
        ("https://host/a.zarr/", "a"),
        ("s3://bucket/x.ome.zarr", "x"),
        ("memory://a.b.svs", "a.b"),
        ("http://host/a%20b.tif", "a b"),
        ("http://host/..%2F..%2Fetc%5Cpasswd.tif", "passwd"),
    ],
)
def test_the_slide_id_of_a_url_is_a_plain_file_name(url, expected):
    assert slide_id(url) == expected


@pytest.mark.parametrize("url", ["http://host", "http://host/", "http://host/?a=b.svs"])
def test_a_url_without_a_name_is_no_slide(url):
    with pytest.raises(WsiIpsError, match="names no slide"):
        slide_id(url)


def test_a_file_url_is_a_path(tmp_path):
    path = write_contract_slide(tmp_path)
    with open_slide(path.as_uri()) as slide:
        assert (slide.info.path, slide.info.reader) == (path, "tiff")


def test_a_region_costs_a_few_blocks_not_the_file(tmp_path, server):
    path = tmp_path / "large.tif"
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    write_pyramid(path, noise, compression="none", levels=3)
    with open_slide(server.url("large.tif")) as slide:
        opening = server.sent_bytes
        region = slide.read((1100, 900), level=0, size_px=(256, 256))
        reading = server.sent_bytes - opening
    np.testing.assert_array_equal(region, noise[900:1156, 1100:1356])
    assert opening < 1_000_000
    # Four tiles of 196,608 bytes were touched, and fetched in whole blocks.
    assert reading < 1_400_000
    assert path.stat().st_size > 30_000_000


def test_reading_a_region_again_costs_nothing(tmp_path, server):
    write_contract_slide(tmp_path)
    with open_slide(server.url("käse.tif")) as slide:
        slide.read((0, 0), level=0, size_px=(200, 200))
        before = len(server.requests)
        slide.read((0, 0), level=0, size_px=(200, 200))
        assert len(server.requests) == before


FILES = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:4:0": {"subsampling": "4:4:0"},
    "tables apart": {"tables_apart": True},
    "no data in some tiles": {"empty_tiles": (0, 7)},
    "predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "not compressed": {"compression": "none"},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "no resolution": {"mpp": None},
}


@pytest.mark.parametrize("kind", FILES)
def test_equal_to_the_native_reader(tmp_path, memory, kind):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1301, 977), levels=3, **FILES[kind])
    assert_equal(path, memory(path.read_bytes()), seed=1)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_equal_on_an_aperio_file(tmp_path, memory, compression):
    path = tmp_path / "slide.svs"
    write_pyramid(path, tissue_like(1301, 977), description=APERIO, compression=compression)
    assert_equal(path, memory(path.read_bytes()), seed=2)


def test_equal_on_a_real_aperio_slide(real_data, memory):
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    assert_equal(path, memory(path.read_bytes()), seed=3)


def assert_equal(path, url, *, seed):
    rng = np.random.default_rng(seed)
    with TiffReader(path) as native, open_slide(url) as remote:
        assert remote.info.levels == native.info.levels
        assert remote.info.vendor == native.info.vendor
        assert remote.info.mpp == pytest.approx(native.info.mpp)
        for level in range(len(native.info.levels)):
            for _ in range(6):
                size = tuple(rng.integers(1, 400, 2).tolist())
                at = tuple(int(rng.integers(-100, side)) for side in native.info.l0_size)
                np.testing.assert_array_equal(
                    remote.read(at, level=level, size_px=size), native.read(at, level=level, size_px=size)
                )


def test_where_tag_and_jpeg_disagree_on_colours_the_jpeg_is_believed(tmp_path, memory):
    """Not equal to the native reader, which does as OpenSlide does."""
    path, image = tmp_path / "slide.tif", tissue_like(512, 512)
    write_pyramid(path, image, photometric="rgb", subsampling="4:4:4")
    with TiffReader(path) as native, open_slide(memory(path.read_bytes())) as remote:
        by_tag = native.read((0, 0), level=0, size_px=(512, 512)).astype(int)
        by_jpeg = remote.read((0, 0), level=0, size_px=(512, 512)).astype(int)
    assert np.abs(by_jpeg - image).mean() < 8
    assert np.abs(by_tag - image).mean() > 30


def test_an_ome_tiff_pyramid(tmp_path, memory):
    image = tissue_like(640, 512)
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        options = {"tile": (128, 128), "photometric": "rgb"}
        writer.write(image, subifds=1, metadata=metadata, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
                     **options)  # fmt: skip
        writer.write(halved(image), subfiletype=1, **options)
    with open_slide(memory(path.read_bytes(), "slide.ome.tif")) as slide:
        assert [level.size for level in slide.info.levels] == [(640, 512), (320, 256)]
        assert slide.info.mpp == pytest.approx(0.5)
        region = slide.read((100, 60), level=1, size_px=(90, 80))
    np.testing.assert_array_equal(region, halved(image)[30:110, 50:140])


def test_an_ome_tiff_opens_no_other_files(tmp_path, memory):
    secret = tmp_path / "secret.tif"
    write_pyramid(secret, tissue_like(256, 256))
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeZ="1" SizeC="3" '
        'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">'
        f'<UUID FileName="{secret}">urn:uuid:00000000-0000-0000-0000-000000000001</UUID></TiffData></Pixels>'
        "</Image></OME>"
    )
    path = tmp_path / "slide.ome.tif"
    image = tissue_like(256, 256, seed=1)
    write_pyramid(path, image, compression="lzw", description=xml)
    for where in (memory(path.read_bytes()), path):
        with open_slide(where, reader="tiffslide") as slide:
            np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(256, 256)), image)


def test_no_such_file(server, memory):
    for url in (server.url("none.svs"), memory(b"") + "x"):
        with pytest.raises(SlideNotFound, match="check the URL") as caught:
            open_slide(url)
        assert caught.value.path == url
        assert_one_line(caught.value, url)


def test_nobody_answers():
    with pytest.raises(SlideUnreachable, match="cannot be reached") as caught:
        open_slide("http://127.0.0.1:1/slide.svs")
    assert_one_line(caught.value, "http://127.0.0.1:1/slide.svs")


def test_a_server_that_says_nothing_ends_by_the_time_limit(server):
    server.manner = "silent"
    with pytest.raises(SlideUnreachable, match="does not answer in time"):
        TiffSlideReader(server.url("slide.svs"), timeout_s=0.2)


def test_forbidden(server):
    server.manner = "forbidden"
    with pytest.raises(SlideUnreachable, match="403"):
        open_slide(server.url("slide.svs"))


@pytest.mark.parametrize("manner", ["no ranges", "says no ranges"])
def test_a_server_without_ranges(tmp_path, server, manner):
    write_pyramid(tmp_path / "slide.tif", tissue_like(1500, 1500), levels=3, compression="none")
    server.manner = manner
    with pytest.raises(SlideUnreachable, match="range requests; download the file") as caught:
        open_slide(server.url("slide.tif"))
    assert_one_line(caught.value, server.url("slide.tif"))


def test_an_unknown_protocol():
    with pytest.raises(SlideUnreachable, match="no protocol 'gopher'; known are http") as caught:
        open_slide("gopher://host/slide.svs")
    assert_one_line(caught.value, "gopher://host/slide.svs")


def test_a_protocol_whose_package_is_absent_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ReaderNotInstalled, match="pip install gcsfs"):
        TiffSlideReader("gs://bucket/slide.svs")


def test_a_path_made_of_a_url_is_named(tmp_path):
    with pytest.raises(SlideNotFound, match="give a URL as text"):
        open_slide(Path("http://host/slide.svs"))


def test_readers_of_files_read_no_urls():
    with pytest.raises(UnsupportedSlide, match="tiff: reads files, not URLs"):
        open_slide("http://host/slide.svs", reader="tiff")


def test_the_network_may_fail_and_come_back(tmp_path, server):
    path = tmp_path / "slide.tif"
    image = tissue_like(1200, 900)
    write_pyramid(path, image, compression="none")
    with open_slide(server.url("slide.tif")) as slide:
        server.manner = "forbidden"
        with pytest.raises(SlideReadError, match=r"level 0 .*refuses with 403; try again") as caught:
            slide.read((600, 600), level=0, size_px=(99, 99))
        assert_one_line(caught.value, server.url("slide.tif"))
        server.manner = "ranges"
        server.requests.clear()
        np.testing.assert_array_equal(
            slide.read((600, 600), level=0, size_px=(99, 99)), image[600:699, 600:699]
        )
        assert "HEAD /slide.tif" in server.requests, "the second try starts from a new handle"


@pytest.mark.parametrize(
    "claims",
    [
        {"width": 4_000_000_000, "height": 4_000_000_000},
        {"tile": (4_000_000_000, 4_000_000_000)},
        {"tile": (0, 256)},
        {"width": 0},
        {"width": 4_000_000, "height": 4_000_000, "table": 0x0FFFFFFF},
        {"table": 2},
        {"table_at": 5000},
    ],
)
def test_absurd_claims_are_refused(memory, claims):
    url = memory(header(**claims))
    with pytest.raises(WsiIpsError) as caught:
        open_slide(url)
    assert_one_line(caught.value, url)


def test_a_sparse_slide_of_absurd_size(memory):
    """One tile that fits its claim: the sides are refused, not the table."""
    url = memory(header(width=1 << 25, height=256, tile=(1 << 25, 256)))
    with pytest.raises(UnsupportedSlide, match="claims 33554432x256 px"):
        open_slide(url)


@pytest.mark.parametrize(
    "data", [b"", b"II", b"no slide\n" * 100, b"II*\0" + struct.pack("<I", 10**7) + bytes(500)]
)
def test_no_slide_at_all(memory, data):
    url = memory(data)
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(url)
    assert_one_line(caught.value, url)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_cut_file_says_so_on_opening(tmp_path, memory, share):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1500, 1500), compression="none")
    whole = path.read_bytes()
    with pytest.raises(UnsupportedSlide, match="truncated"):
        open_slide(memory(whole[: int(len(whole) * share)]))


def test_a_damaged_tile_is_an_error_and_the_others_are_read(tmp_path, memory):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(512, 256), compression="deflate")
    with TiffReader(path) as native:
        offset = int(native.tile_layout(0).offsets[0])
        good = native.read((256, 0), level=0, size_px=(256, 256))
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    with open_slide(memory(bytes(data))) as slide:
        with pytest.raises(SlideReadError, match="level 0 cannot be read"):
            slide.read((0, 0), level=0, size_px=(64, 64))
        np.testing.assert_array_equal(slide.read((256, 0), level=0, size_px=(256, 256)), good)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_tile_that_claims_to_be_huge_is_not_decoded(tmp_path, memory, compression):
    """A few hundred kilobytes may claim 12 GB; here 300 MB."""
    path = tmp_path / "slide.svs"
    write_pyramid(path, tissue_like(256, 256), compression=compression, description=APERIO)
    data = bytearray(path.read_bytes())
    start = b"\xff\xc0\x00\x11\x08" if compression == "jpeg" else b"\xff\x4f\xff\x51"
    at = data.index(start) + (5 if compression == "jpeg" else 8)
    data[at : at + 4] = (
        struct.pack(">HH", 10_000, 10_000) if compression == "jpeg" else struct.pack(">I", 10**8)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        open_slide(memory(bytes(data))) as slide,
        pytest.raises(SlideReadError, match=r"not \(256, 256, 3\)") as caught,
    ):
        slide.read((0, 0), level=0, size_px=(64, 64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert_one_line(caught.value, "memory://")


def test_vendors_that_lie_otherwise_are_refused(real_data, memory):
    path = real_data / "slides" / "fluorescence-dapi.ndpi"
    with pytest.raises(UnsupportedSlide, match="Hamamatsu NDPI"):
        open_slide(path, reader="tiffslide")


def test_a_flat_tiff_is_refused(real_data):
    with pytest.raises(UnsupportedSlide, match="not tiled"):
        open_slide(real_data / "slides" / "flat-kidney.tif", reader="tiffslide")


def test_the_resolution_is_believed_as_by_the_readers_of_files(tmp_path):
    """Not 300 dpi, which an image program wrote; that of the OME-XML, which tiffslide passes over."""
    path, pixels = tmp_path / "a.ome.tif", tissue_like(300, 200)
    options = {"tile": (128, 128), "photometric": "rgb"}
    tifffile.imwrite(path, pixels, resolution=(300, 300), resolutionunit="INCH", metadata=None, **options)
    with TiffSlideReader(path) as slide:
        assert slide.info.mpp is None
    tifffile.imwrite(path, pixels, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata=None,
                     **options)  # fmt: skip
    with TiffSlideReader(path) as slide:
        assert slide.info.mpp == pytest.approx(0.5)
    metadata = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata, **options)
    with TiffSlideReader(path) as slide:
        assert slide.info.mpp == pytest.approx(0.25)
