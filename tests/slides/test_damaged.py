"""Files that are damaged, hostile or not slides: one clear error, quickly, and no memory for what they claim."""

import pickle
import resource
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slides.philips_files import philips_xml, write_philips
from tests.slides.tiff_files import tissue_like, write_pyramid
from wsi_ips.errors import SlideReadError, UnsupportedSlide, WsiIpsError
from wsi_ips.slides import open_slide
from wsi_ips.slides.tiff import directories
from wsi_ips.slides.tiff.layout import TiffReader


@pytest.fixture
def pyramid(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(700, 500), levels=2, tables_apart=True)
    return path


def header(*, width=256, height=256, tile=(256, 256), table=1, table_at=300):
    """A 1 KB TIFF that states these sizes and no pixels to speak of."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3),
        (284, 3, 1, 1), (322, 4, 1, tile[0]), (323, 4, 1, tile[1]), (324, 4, table, table_at),
        (325, 4, table, 100),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(1024, b"\0")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_a_truncated_file_says_so_on_opening(tmp_path, share):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(1500, 1500), levels=2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedSlide, match=r"truncated|cut short") as caught:
        open_slide(path)
    assert "openslide" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_directory_beyond_the_end_is_a_truncated_file(tmp_path):
    """ASAP and libtiff write directories last, so a cut file has none."""
    path = tmp_path / "slide.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 10_000_000) + bytes(5000))
    with pytest.raises(UnsupportedSlide, match="truncated"):
        open_slide(path)


@pytest.mark.parametrize("text", [b"", b"II", b"hello, this is a text file\n" * 100])
def test_no_image_at_all(tmp_path, text):
    path = tmp_path / "slide.svs"
    path.write_bytes(text)
    with pytest.raises(UnsupportedSlide, match=r"tiff: .*; openslide: ") as caught:
        open_slide(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "claims",
    [
        {"width": 4_000_000_000, "height": 4_000_000_000},
        {"width": 100_000, "height": 100_000},
        {"tile": (4_000_000_000, 4_000_000_000)},
        {"tile": (0, 256)},
        {"width": 0},
        {"width": 4_000_000, "height": 4_000_000, "table": 0x0FFFFFFF},
        {"table": 2},
        {"table_at": 5000},
    ],
)
def test_absurd_headers_are_refused_at_once(tmp_path, claims):
    path = tmp_path / "slide.tif"
    path.write_bytes(header(**claims))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsupportedSlide, match=r"damaged|truncated"):
        open_slide(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_images_that_share_one_huge_value_are_refused(tmp_path, monkeypatch):
    """40 images point to one description of 3 MB: 120 MB, or as many times more as someone likes."""
    monkeypatch.setattr(directories, "LARGEST_SHARE", 1 << 20)
    path = tmp_path / "slide.tif"
    description = b"x" * 3_000_000
    start, length = 8 + len(description), 2 + 2 * 12 + 4
    chain = b"".join(
        struct.pack("<H", 2)
        + struct.pack("<HHII", 256, 4, 1, 256)
        + struct.pack("<HHII", 270, 2, len(description), 8)
        + struct.pack("<I", start + (number + 1) * length if number < 39 else 0)
        for number in range(40)
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + description + chain)
    with pytest.raises(UnsupportedSlide, match="claim more bytes than the file holds"):
        TiffReader(path)


def test_a_jpeg_larger_than_its_tile_is_not_decoded(tmp_path, pyramid):
    """A 65,500 px JPEG packs into a few KB and would unpack to 12 GB."""
    blob = bytearray(pyramid.read_bytes())
    with TiffReader(pyramid) as slide:
        offset = int(slide.tile_layout(0).offsets[4])
    frame = blob.index(b"\xff\xc0", offset)
    blob[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    pyramid.write_bytes(blob)
    with (
        TiffReader(pyramid) as slide,
        pytest.raises(SlideReadError, match="65500x65500 px in a tile of 256x256"),
    ):
        slide.read((256, 256), level=0, size_px=(256, 256))


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate"])
def test_a_bad_tile_is_named_and_the_others_still_read(tmp_path, compression):
    path = tmp_path / "slide.tif"
    write_pyramid(path, tissue_like(700, 500), levels=2, compression=compression)
    with TiffReader(path) as slide:
        layout = slide.tile_layout(1)
        offset, count = int(layout.offsets[1]), int(layout.byte_counts[1])
    blob = bytearray(path.read_bytes())
    blob[offset : offset + count] = bytes(count)
    path.write_bytes(blob)
    with TiffReader(path) as slide:
        with pytest.raises(SlideReadError, match=rf"tile \(1, 0\) of level 1.* byte {offset}") as caught:
            slide.read((500, 0), level=1, size_px=(100, 100))
        assert caught.value.path == path
        assert slide.read((0, 0), level=1, size_px=(256, 250)).std() > 0
        assert slide.read((0, 0), level=0, size_px=(700, 500)).std() > 0


def test_a_jpeg_tile_cut_short_inside_is_an_error_not_grey(pyramid):
    with TiffReader(pyramid) as slide:
        layout = slide.tile_layout(0)
        offset, count = int(layout.offsets[0]), int(layout.byte_counts[0])
    blob = bytearray(pyramid.read_bytes())
    half = count // 2
    blob[offset + half : offset + count] = (b"\xff\xd9" * count)[: count - half]
    pyramid.write_bytes(blob)
    with TiffReader(pyramid) as slide, pytest.raises(SlideReadError, match="tile \\(0, 0\\) of level 0"):
        slide.read((0, 0), level=0, size_px=(10, 10))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_in_a_philips_file_gives_pixels_or_our_own_error(tmp_path, data):
    """As above, with the XML within reach."""
    whole = tmp_path / "whole.tiff"
    if not whole.exists():
        xml = philips_xml([1, 2], label=tissue_like(20, 20))
        write_philips(whole, tissue_like(256, 256), factors=(1, 2), tile=128, xml=xml)
    blob = bytearray(whole.read_bytes())
    start, end = blob.index(b"<?xml"), blob.index(b"</DataObject>\0")
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(st.integers(0, 1000), st.integers(start, end)))
        blob[place] = data.draw(st.sampled_from([0, 0x20, 0x22, 0x2D, 0x30, 0x39, 0x3C, 0xD8, 0xFF]))
    path = tmp_path / "fuzz.tiff"
    path.write_bytes(blob)
    with suppress(WsiIpsError), TiffReader(path) as slide:
        for level in range(len(slide.info.levels)):
            assert slide.read((0, 0), level=level, size_px=(300, 280)).shape == (280, 300, 3)
        for name, (width, height) in slide.info.associated:
            assert slide.read_associated(name).shape == (height, width, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_gives_pixels_or_our_own_error(tmp_path, data):
    """Bytes are changed at random, the header more than the rest. Read natively: OpenSlide guards itself."""
    path = tmp_path / "fuzz.tif"
    if not path.exists():
        write_pyramid(tmp_path / "whole.tif", tissue_like(300, 280), tile=128, levels=2, tables_apart=True)
        path.touch()
    blob = bytearray((tmp_path / "whole.tif").read_bytes())
    limit = data.draw(st.sampled_from([16, 400, 1200, len(blob)]))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, limit - 1))] = data.draw(st.sampled_from([0, 1, 0xD8, 0xFF, 0x7F, 43]))
    path.write_bytes(blob)
    # Anything else than our own error fails the test.
    with suppress(WsiIpsError), TiffReader(path) as slide:
        for level in range(len(slide.info.levels)):
            assert slide.read((0, 0), level=level, size_px=(300, 280)).shape == (280, 300, 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"photometric": "cielab", "shape": (512, 512, 3)}, "CIELAB"),
        (
            {"photometric": "palette", "shape": (512, 512), "colormap": np.zeros((3, 256), np.uint16)},
            "PALETTE",
        ),
        ({"photometric": "ycbcr", "shape": (512, 512, 3)}, "YCBCR"),
        (
            {"photometric": "rgb", "shape": (512, 512, 3), "extratags": [(700, 1, 7, b"<iScan/", True)]},
            "Ventana",
        ),
    ],
)
def test_what_is_left_to_openslide_is_refused_with_its_reason(tmp_path, options, reason):
    path = tmp_path / "slide.tif"
    options = {"software": False, "dtype": np.uint8} | options
    image = np.zeros(options.pop("shape"), options.pop("dtype"))
    tifffile.imwrite(path, image, tile=(256, 256), metadata=None, **options)
    with pytest.raises(UnsupportedSlide, match=reason):
        TiffReader(path)


def test_an_aperio_pyramid_with_unwritten_tiles_is_left_to_openslide(tmp_path):
    """OpenSlide paints such tiles from the level above, and so do we by letting it."""
    path = tmp_path / "slide.svs"
    write_pyramid(path, tissue_like(700, 500), levels=2, description="Aperio x|MPP = 0.5", empty_tiles=[1])
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"
    with pytest.raises(UnsupportedSlide, match="finer level"):
        TiffReader(path)


def test_a_file_that_nobody_opens_is_refused_with_every_reason_and_the_mend(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.float32))
    with pytest.raises(UnsupportedSlide) as caught:
        open_slide(path)
    text = str(caught.value)
    assert "tiff: not tiled: a flat image of 64x64" in text
    assert "--tile --pyramid" in text
    assert "openslide: not a slide format" in text
    assert "image: a plain TIFF with samples of 32 bits" in text


def test_a_mirax_slide_with_missing_data_files(real_data):
    """Levels 2 to 9 are whole. OpenSlide would refuse them all after one failed read: the reader reopens."""
    with open_slide(real_data / "slides" / "mirax-incomplete" / "Mirax2-Fluorescence-2.mrxs") as slide:
        bounds = slide.info.bounds
        assert bounds is not None
        assert (bounds.l0_x, bounds.l0_y, bounds.l0_width, bounds.l0_height) == (9153, 102664, 10439, 7641)
        l0_xy = (bounds.l0_x + 3000, bounds.l0_y + 3000)
        with pytest.raises(SlideReadError, match=r"level 0 .*\(12153, 105664\).*Data0005\.dat"):
            slide.read(l0_xy, level=0, size_px=(256, 256))
        assert slide.read(l0_xy, level=3, size_px=(256, 256)).std() > 5
        for level in range(2, 10):
            assert (slide.read((bounds.l0_x, bounds.l0_y), level=level, size_px=(200, 200)) != 255).any()


def test_a_bad_region_does_not_spoil_what_other_threads_read(real_data):
    """One thread's failed read poisons the handle that the others are reading from."""
    with open_slide(real_data / "slides" / "mirax-incomplete" / "Mirax2-Fluorescence-2.mrxs") as slide:
        bounds = slide.info.bounds
        good = slide.read((bounds.l0_x, bounds.l0_y), level=4, size_px=(300, 300))

        def read(number):
            if number % 3 == 0:
                with pytest.raises(SlideReadError):
                    slide.read((12153, 105664), level=0, size_px=(64, 64))
                return True
            return np.array_equal(slide.read((bounds.l0_x, bounds.l0_y), level=4, size_px=(300, 300)), good)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(90)))
