"""Hamamatsu NDPI, read by its restart intervals, gives what OpenSlide gives."""

import resource
import tracemalloc
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import openslide
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slides.ndpi_files import (
    LONG,
    SHORT,
    NdpiLevel,
    decoded,
    restart_starts,
    small_slide,
    tiled_level,
    write_ndpi,
)
from tests.slides.test_equals_openslide import assert_equal_everywhere
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.streaming.test_stream import every_patch
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import SlideReadError, UnsupportedSlide, WsiIpsError
from wsi_ips.slides import open_slide
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.slides.tiff.restart_intervals import intervals_per_stack
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.testing.readers import HEIGHT, MPP, WIDTH, ReaderContract


@pytest.fixture
def path(tmp_path):
    return tmp_path / "slide.ndpi"


class TwoLevels(TiffReader):
    """Only the two levels that the contract is about, though NDPI has more."""

    def __init__(self, path, **options):
        super().__init__(path, **options)
        self._info = replace(self._info, levels=self._info.levels[:2])


def flat_blocks():
    """(424, 600, 3) uint8. Each of JPEG's 8x8 blocks has one colour: decoding it smaller is averaging it."""
    small = np.minimum(tissue_like(WIDTH // 8, HEIGHT // 8, seed=7), 235)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))


class TestNdpi(ReaderContract):
    @pytest.fixture
    def stored(self):
        level = tiled_level(flat_blocks(), cols=3)
        resolution = (5, (round(1e4 / MPP), 1))
        return replace(level, tags={282: resolution, 283: resolution})

    @pytest.fixture
    def slide(self, path, stored):
        write_ndpi(path, [stored])
        with TwoLevels(path) as reader:
            yield reader

    @pytest.fixture
    def image(self, stored):
        return decoded(stored.jpeg)


def test_a_real_slide(real_data):
    """One column of intervals 3968 px wide, four stored levels."""
    path = real_data / "slides" / "fluorescence-dapi.ndpi"
    assert_equal_everywhere(path, reads=40)
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.info.reader == "tiff"
        assert [left_out.why for left_out in slide.info.left_out] == ["the map of the scan"]
        for level, (width, height) in enumerate(theirs.level_dimensions):
            corner = tuple(
                int(max(0, side - 300) * theirs.level_downsamples[level]) for side in (width, height)
            )
            size = min(width, 300), min(height, 300)
            np.testing.assert_array_equal(
                slide.read(corner, level=level, size_px=size), rgb(theirs.read_region(corner, level, size))
            )
        np.testing.assert_array_equal(slide.read_associated("macro"), rgb(theirs.associated_images["macro"]))


def rgb(image):
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2"])
@pytest.mark.parametrize(("cols", "name"), [(1, "slide.ndpi"), (4, "slide.ndpi"), (2, "slide.tif")])
def test_stored_and_reduced_levels(tmp_path, subsampling, cols, name):
    path = tmp_path / name
    write_ndpi(path, small_slide(cols=cols, subsampling=subsampling))
    assert_equal_everywhere(path)
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.info.reader == "tiff"
        assert [level.size[0] for level in slide.info.levels] == [1024, 512, 256, 128, 64, 32, 16, 8]
        np.testing.assert_array_equal(slide.read_associated("macro"), rgb(theirs.associated_images["macro"]))


def test_a_level_higher_than_a_stack(path):
    """The last stacks have fewer intervals than the others."""
    write_ndpi(path, [tiled_level(tissue_like(64, 1240), cols=2)])
    with TiffReader(path) as slide:
        assert slide.tile_layout(0).rows == 5
    assert_equal_everywhere(path, reads=30)


def test_levels_whose_jpeg_says_another_size_than_their_directory(path):
    """Only where there are no restart markers: it happens in small levels."""
    levels = small_slide()
    levels[2] = replace(levels[2], size=(63, 41))
    write_ndpi(path, levels)
    assert_equal_everywhere(path)
    levels[1] = replace(levels[1], size=(264, 160))
    write_ndpi(path, levels)
    with pytest.raises(UnsupportedSlide, match="264x160 px in its directory and 256x160 px in its JPEG"):
        TiffReader(path)


def shifted(starts):
    return [*starts[1:], starts[-1] + 50]


@pytest.mark.parametrize(
    "change",
    [lambda starts: None, lambda starts: starts[:-1], lambda starts: starts[::-1], shifted,
     lambda starts: [0] * len(starts), lambda starts: [start + 1 for start in starts],
     lambda starts: [2**32 - 1] * len(starts)],
)  # fmt: skip
@pytest.mark.parametrize("cols", [1, 4])
def test_a_list_of_intervals_that_is_absent_or_wrong_is_made_by_a_search(path, monkeypatch, change, cols):
    levels = small_slide(cols=cols)
    write_ndpi(path, levels)
    with TiffReader(path) as slide:
        expected = [slide.read((0, 0), level=level, size_px=(300, 300)) for level in range(4)]
    write_ndpi(path, [replace(level, starts=level.starts and change(level.starts)) for level in levels])
    monkeypatch.setattr("wsi_ips.slides.tiff.restart_intervals.SEARCHED_AT_ONCE", 1000)
    with TiffReader(path) as slide:
        for level, pixels in enumerate(expected):
            np.testing.assert_array_equal(slide.read((0, 0), level=level, size_px=(300, 300)), pixels)


def test_the_search_finds_markers_across_its_blocks(path, monkeypatch):
    level = tiled_level(tissue_like(64, 64), cols=4)
    expected = level.starts
    write_ndpi(path, [replace(level, starts=None)])
    with TiffReader(path) as slide:
        strip = int(slide.tile_layout(0).offsets.min()) - expected[0]
    for at_once in range(1, 40):
        monkeypatch.setattr("wsi_ips.slides.tiff.restart_intervals.SEARCHED_AT_ONCE", at_once)
        with TiffReader(path) as slide:
            offsets = slide.tile_layout(0).offsets
        assert sorted(offsets.ravel() - strip) == expected


@pytest.mark.parametrize("by", [1, 2, "next"])
def test_one_false_entry_is_an_error_and_no_other_pixels(path, by):
    """Opening looks at some of the entries; decoding finds the others out."""
    level = tiled_level(tissue_like(64, 1600), cols=2)
    starts = list(level.starts)
    starts[101] = starts[102] - 3 if by == "next" else starts[101] + by
    write_ndpi(path, [replace(level, starts=starts)])
    truth = decoded(level.jpeg)
    with TiffReader(path) as slide:
        with pytest.raises(SlideReadError, match=r"tile \(0, 1\) of level 0.*marker"):
            slide.read((0, 0), level=0, size_px=(64, 512))
        np.testing.assert_array_equal(slide.read((0, 1024), level=0, size_px=(64, 512)), truth[1024:1536])


@pytest.mark.parametrize("start", [101, 127])
def test_a_marker_of_another_number_is_an_error(path, start):
    """In the middle and at the end of a stack: intervals are numbered, so that none is lost or taken twice."""
    level = tiled_level(tissue_like(64, 1600), cols=2)
    jpeg = bytearray(level.jpeg)
    at = level.starts[start] - 1
    jpeg[at] = 0xD0 + (jpeg[at] + 3) % 8
    write_ndpi(path, [replace(level, jpeg=bytes(jpeg))])
    with (
        TiffReader(path) as slide,
        pytest.raises(SlideReadError, match=r"tile \(0, 1\) of level 0.*marker that is due"),
    ):
        slide.read((0, 0), level=0, size_px=(32, 512))


def test_an_interval_with_more_bytes_than_pixels_can_have_is_damage(path):
    level = tiled_level(tissue_like(64, 1600), cols=2)
    at = level.starts[20] - 2
    jpeg = level.jpeg[:at] + bytes(500_000) + level.jpeg[at:]
    starts = [start + (500_000 if number >= 20 else 0) for number, start in enumerate(level.starts)]
    write_ndpi(path, [replace(level, jpeg=jpeg, starts=starts)])
    with pytest.raises(UnsupportedSlide, match="a piece of 32x8 px in 500"):
        open_slide(path)


def test_too_few_markers_is_a_damaged_file(path):
    level = tiled_level(tissue_like(64, 160))
    at = level.starts[5]
    write_ndpi(path, [replace(level, jpeg=level.jpeg[: at - 2] + b"\0\0" + level.jpeg[at:], starts=None)])
    with pytest.raises(UnsupportedSlide, match="its image 0 has 19 intervals, not 20"):
        open_slide(path)


def repeated(level, times):
    """The level's intervals again and again below each other, in one JPEG."""
    header = level.jpeg[: level.starts[0]]
    ends = [*level.starts[1:], len(level.jpeg)]
    intervals = [level.jpeg[start : end - 2] for start, end in zip(level.starts, ends, strict=True)] * times
    jpeg = header
    for number, interval in enumerate(intervals):
        jpeg += interval + bytes([0xFF, 0xD0 + number % 8])
    jpeg = jpeg[:-1] + b"\xd9"
    return NdpiLevel(jpeg, (level.size[0], level.size[1] * times), level.lens, restart_starts(jpeg))


def with_frame(level, width, height):
    """The JPEG with another size in its frame."""
    at = level.jpeg.index(b"\xff\xc0") + 5
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return replace(level, jpeg=level.jpeg[:at] + sides + level.jpeg[at + 4 :])


@pytest.mark.parametrize(
    ("times", "frame"), [(1040, (0, 0)), (1040, (16, 0)), (1024, (16, 65_535)), (1040, (9, 9))]
)
def test_a_level_too_large_for_a_jpeg(path, times, frame):
    """Beyond 65,500 px the frame's size means nothing."""
    level = with_frame(repeated(tiled_level(tissue_like(16, 64)), times), *frame)
    write_ndpi(path, [level])
    assert_equal_everywhere(path)
    with TiffReader(path) as slide, openslide.OpenSlide(path) as theirs:
        corner = (0, level.size[1] - 700)
        np.testing.assert_array_equal(
            slide.read(corner, level=0, size_px=(16, 700)), rgb(theirs.read_region(corner, 0, (16, 700)))
        )


def test_a_frame_without_size_in_a_small_level(path):
    """OpenSlide does not open it; the directory's size is right."""
    level = tiled_level(tissue_like(128, 96), cols=2)
    write_ndpi(path, [with_frame(level, 0, 0)])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(128, 96)), decoded(level.jpeg))


@pytest.mark.parametrize("size", [(1001, 203), (1001, 800), (65, 8), (7, 5)])
def test_sizes_that_are_no_whole_number_of_blocks(path, size):
    """OpenSlide loses the last tiles; scanners pad their levels."""
    level = tiled_level(tissue_like(*size))
    write_ndpi(path, [level])
    width, height = size
    with TiffReader(path) as slide:
        region = slide.read((-3, -2), level=0, size_px=(width + 10, height + 9))
        assert slide.info.l0_size == size
    np.testing.assert_array_equal(region[2 : 2 + height, 3 : 3 + width], decoded(level.jpeg))
    region[2 : 2 + height, 3 : 3 + width] = 255
    assert (region == 255).all()


def test_chroma_halved_both_ways(path):
    """OpenSlide fails at such files. Against the JPEG decoded whole, only the pixels at the borders of stacks
    differ, where chroma is smoothed."""
    level = tiled_level(tissue_like(256, 1200), cols=2, subsampling="4:2:0")
    write_ndpi(path, [level])
    with TiffReader(path) as slide:
        ours = slide.read((0, 0), level=0, size_px=(256, 1200)).astype(int)
    differs = np.abs(ours - decoded(level.jpeg)).max(axis=2)
    assert differs.max() < 60
    rows, cols = np.nonzero(differs)
    assert set(rows[~np.isin(cols, [127, 128])].tolist()) <= {
        edge - i for edge in range(256, 1200, 256) for i in (0, 1)
    }


def test_one_stack_with_halved_chroma_is_the_jpeg(path):
    level = tiled_level(tissue_like(256, 240), subsampling="4:2:0")
    write_ndpi(path, [level])
    with TiffReader(path) as slide:
        region = slide.read((0, 0), level=0, size_px=(256, 240))
    np.testing.assert_array_equal(region, decoded(level.jpeg))


def test_what_is_no_level_is_left_out(path):
    levels = small_slide()
    levels.insert(1, replace(levels[0], plane=1000))
    levels.append(replace(levels[-1], lens=-2.0, tags={259: (SHORT, [1])}))
    write_ndpi(path, levels)
    assert_equal_everywhere(path, reads=3)
    with TiffReader(path) as slide:
        assert [(item.what, item.why) for item in slide.info.left_out] == [
            ("image 1, 1024x640 px", "another focal plane (1000)"),
            ("image 5, 150x50 px", "the map of the scan"),
        ]


@pytest.mark.slow
@pytest.mark.parametrize("far", [{"first_strip_at": 5 << 30}, {"directories_at": (5 << 30) + 9}])
def test_beyond_4_gb(path, far):
    """Sparse, 5 GiB long."""
    write_ndpi(path, small_slide(cols=4), **far)
    assert_equal_everywhere(path)


@pytest.mark.slow
def test_one_level_of_more_than_4_gb(path):
    """Its list of intervals has the high words in a tag of their own. All but the last row are mostly holes."""
    width, n, apart = 32_000, 3400, 1_400_000
    row = tiled_level(tissue_like(width, 8), cols=1)
    header, interval = row.jpeg[: row.starts[0]], row.jpeg[row.starts[0] : -2]
    starts = [len(header) + apart * number for number in range(n - 3)]
    for _ in range(3):  # the last four, a stack, lie close together
        starts.append(starts[-1] + len(interval) + 2)
    count = starts[-1] + len(interval) + 2
    level = replace(with_frame(replace(row, jpeg=header), width, 8 * n), starts=starts, size=(width, 8 * n))
    level.tags[279] = (LONG, [count])
    write_ndpi(path, [level], directories_at=16 + count)
    with path.open("r+b") as file:
        for number, start in enumerate(starts[1:]):
            file.seek(16 + start - 2)
            file.write(bytes([0xFF, 0xD0 + number % 8]))
        file.write(interval + b"\xff\xd9")
        for start in starts[-4:-1]:
            file.seek(16 + start)
            file.write(interval)
    assert count > 1 << 32
    corner = (30_000, 8 * n - 8)
    with TiffReader(path) as slide, openslide.OpenSlide(path) as theirs:
        row_number = slide.tile_layout(0).rows - 1
        data = slide.fetch_tiles(0, [row_number])[0]
        ours = slide.read(corner, level=0, size_px=(500, 20))
        np.testing.assert_array_equal(ours[:8], rgb(theirs.read_region(corner, 0, (500, 8))))
        np.testing.assert_array_equal(ours[:8], decoded(row.jpeg)[:, 30_000:30_500])
        assert len(data) == 4 * len(interval) + 8


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_a_truncated_file_says_so(path, share):
    write_ndpi(path, small_slide())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedSlide, match=r"truncated") as caught:
        open_slide(path)
    assert "openslide" not in str(caught.value)


def test_a_truncated_file_of_more_than_4_gb_says_so(path):
    path.write_bytes(b"II*\0" + (5 << 30).to_bytes(8, "little") + bytes(5000))
    with pytest.raises(UnsupportedSlide, match="truncated: its directory should be at byte 5368709120"):
        open_slide(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tags": {259: (SHORT, [22610])}, "jpeg": b"II\xbc\x01" + bytes(1000)}, "JPEG XR"),
        ({"jpeg": b"II\xbc\x01" + bytes(1000)}, "its image 0 cannot be decoded: not a JPEG"),
        ({"tags": {65421: (SHORT, [])}}, "which lens"),
        ({"lens": -1.0}, "without a level"),
        ({"size": (1000, 640)}, "1000x640 px in its directory"),
    ],
)
def test_what_is_not_read_is_refused_with_its_reason(path, change, reason):
    levels = small_slide()
    write_ndpi(path, [replace(levels[0], **change), levels[3]])
    with pytest.raises(UnsupportedSlide, match=reason):
        open_slide(path)


def test_levels_out_of_order_are_refused(path):
    levels = small_slide()
    write_ndpi(path, levels[1::-1])
    with pytest.raises(UnsupportedSlide, match="fine to coarse"):
        TiffReader(path)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (4_000_000_000, 4_000_000_000)},
        {"size": (100_000, 0)},
        {"size": (65_536, 4_000_000)},
        {"tags": {279: (LONG, [1 << 40])}},
        {"tags": {279: (LONG, [0])}},
        {"tags": {273: (LONG, [(1 << 64) - 1])}},
    ],
)
def test_absurd_headers_are_refused_at_once(path, change):
    level = with_frame(tiled_level(tissue_like(256, 64)), 0, 0)
    write_ndpi(path, [replace(level, **change)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsupportedSlide, match=r"damaged|truncated|claims"):
        open_slide(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_a_list_longer_than_the_file_is_not_read(path):
    level = tiled_level(tissue_like(256, 64))
    write_ndpi(path, [level])
    blob = bytearray(path.read_bytes())
    entry = blob.rindex((65426).to_bytes(2, "little") + LONG.to_bytes(2, "little"))
    blob[entry + 4 : entry + 8] = b"\xff\xff\xff\x0f"
    path.write_bytes(blob)
    assert_equal_everywhere(path, reads=3)


def test_a_loop_of_directories_ends(path):
    write_ndpi(path, small_slide())
    blob = bytearray(path.read_bytes())
    first = int.from_bytes(blob[4:12], "little")
    n = int.from_bytes(blob[first : first + 2], "little")
    blob[first + 2 + 12 * n :][:8] = blob[4:12]
    blob[first + 2 + 12 * n : first + 10 + 12 * n] = blob[4:12]
    path.write_bytes(blob)
    with pytest.raises(UnsupportedSlide, match="loop"):
        open_slide(path)


def test_a_tiff_named_ndpi_is_a_tiff(path):
    write_pyramid(path, tissue_like(700, 500), levels=2)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor) == ("tiff", "generic-tiff")


def test_a_damaged_interval_is_an_error_and_the_others_still_read(path):
    level = tiled_level(tissue_like(64, 1100), cols=2)
    jpeg = bytearray(level.jpeg)
    jpeg[level.starts[10] + 4 : level.starts[11] - 2] = bytes(level.starts[11] - level.starts[10] - 6)
    write_ndpi(path, [replace(level, jpeg=bytes(jpeg))])
    truth = decoded(level.jpeg)
    with TiffReader(path) as slide:
        with pytest.raises(SlideReadError, match=r"tile \(0, 0\) of level 0"):
            slide.read((0, 0), level=0, size_px=(10, 10))
        np.testing.assert_array_equal(slide.read((0, 512), level=0, size_px=(64, 588)), truth[512:])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_gives_pixels_or_our_own_error(tmp_path, data):
    """Bytes are changed at random, in directories more than elsewhere. Read natively: OpenSlide guards itself."""
    path, whole = tmp_path / "fuzz.ndpi", tmp_path / "whole.ndpi"
    if not whole.exists():
        write_ndpi(whole, small_slide(cols=2, size=(256, 128)), first_strip_at=20_000, directories_at=16)
    blob = bytearray(whole.read_bytes())
    low, high = data.draw(
        st.sampled_from([(0, 16), (16, 3000), (16, 3000), (20_000, 21_000), (0, len(blob))])
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(low, min(high, len(blob)) - 1))
        blob[at] = data.draw(st.sampled_from([0, 1, 0xD8, 0xFF, 0x7F, 43]))
    path.write_bytes(blob)
    with suppress(WsiIpsError), TiffReader(path) as slide:
        for level in range(len(slide.info.levels)):
            assert slide.read((0, 0), level=level, size_px=(300, 280)).shape == (280, 300, 3)
        for name, _ in slide.info.associated:
            slide.read_associated(name)


@pytest.mark.parametrize(
    ("interval", "level_width", "intervals"),
    [
        ((512, 8), 16_384, 32),
        ((2048, 8), 20_480, 32),
        ((4096, 8), 4096, 32),
        ((4096, 8), 102_400, 16),
        ((40_000, 8), 40_000, 2),
        ((65_504, 8), 65_504, 2),
        ((65_504, 16), 65_504, 1),
        ((63, 600), 63, 1),
    ],
)
def test_stacks_are_256_px_high_or_as_much_less_as_memory_wants(interval, level_width, intervals):
    assert intervals_per_stack(interval, level_width) == intervals


class Counting(TiffReader):
    """Counts how often each tile is decoded."""

    def __init__(self, path):
        super().__init__(path)
        self.decoded = Counter()

    def decode_tile(self, level, number, data, out):
        self.decoded[number] += 1
        super().decode_tile(level, number, data, out)


@pytest.mark.parametrize("cols", [1, 2])
@pytest.mark.parametrize("patch_mpp", [0.25, 0.3, 1.0])
@pytest.mark.parametrize("by", [0, 77])
def test_a_stream_decodes_each_stack_once(path, cols, patch_mpp, by):
    """Patches of 256 px on stacks thousands of pixels wide."""
    image = tissue_like(4096, 600, seed=3)
    level = tiled_level(image, cols=cols)
    write_ndpi(path, [level])
    coords = every_patch(size=(4096, 600), patch_px=256, mpp=0.25, patch_mpp=patch_mpp)
    coords = replace(coords, l0_xy_N2=coords.l0_xy_N2 + by)
    with Counting(path) as slide:
        stream = PatchStream(slide, coords, config=StreamingConfig(batch=7, threads=2))
        pixels = np.concatenate([chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy() for chunk in stream])
        counts = set(slide.decoded.values())
        assert counts == {1}
        if patch_mpp != 0.3:
            read_level = 2 if patch_mpp == 1.0 else 0
            for l0_xy, patch in zip(coords.l0_xy_N2.tolist(), pixels, strict=True):
                np.testing.assert_array_equal(patch, slide.read(l0_xy, level=read_level, size_px=(256, 256)))


@pytest.mark.parametrize(
    ("size", "cols", "row_of_stacks_px", "most_mb"),
    # A single column of 40,000 px; and a slide 131,072 px wide at 1/16, the cache too.
    [((40_000, 280), 1, None, 56), ((8192, 600), 4, 1 << 20, 20)],
)
def test_a_stream_over_a_wide_slide_stays_within_its_cache(
    path, monkeypatch, size, cols, row_of_stacks_px, most_mb
):
    """Patches that no stack is aligned with: each stack waits for the next row of patches."""
    cache_mb = 128
    if row_of_stacks_px:
        monkeypatch.setattr("wsi_ips.slides.tiff.restart_intervals.ROW_OF_STACKS_PX", row_of_stacks_px)
        cache_mb //= 16
    write_ndpi(path, [tiled_level(np.tile(tissue_like(1000, size[1]), (1, 41, 1))[:, : size[0]], cols=cols)])
    coords = every_patch(size=size, patch_px=256, mpp=0.25, patch_mpp=0.25)
    coords = replace(coords, l0_xy_N2=coords.l0_xy_N2 - 77)
    config = StreamingConfig(batch=8, threads=2, tile_cache_mb=cache_mb)
    with Counting(path) as slide:
        tracemalloc.start()
        for _ in PatchStream(slide, coords, config=config):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert set(slide.decoded.values()) == {1}
    # Chunks and stored bytes included: only the stacks that are needed again wait.
    assert peak < most_mb << 20


def test_stacks_as_jpegs_for_another_decoder(path):
    """Whole stacks of stored levels; what is no whole tile, or a reduced level, is decoded here."""
    write_ndpi(path, [tiled_level(tissue_like(64, 600), cols=2)])
    with TiffReader(path) as slide:
        for number in range(6):
            data = slide.fetch_tiles(0, [number])[0]
            jpeg = slide.tile_jpeg(0, number, data)
            if number >= 4:
                assert jpeg is None
                continue
            assert jpeg is not None
            np.testing.assert_array_equal(decoded(jpeg), slide.read_tile(0, number % 2, number // 2))
        assert slide.tile_jpeg(1, 0, slide.fetch_tiles(1, [0])[0]) is None


def test_a_next_directory_that_no_file_could_reach_is_a_truncated_file(path):
    write_ndpi(path, small_slide(), first_strip_at=20_000, directories_at=16)
    blob = bytearray(path.read_bytes())
    first = int.from_bytes(blob[4:12], "little")
    after = first + 2 + 12 * int.from_bytes(blob[first : first + 2], "little")
    blob[after : after + 8] = b"\xff" * 8
    path.write_bytes(blob)
    with pytest.raises(UnsupportedSlide):
        open_slide(path)
