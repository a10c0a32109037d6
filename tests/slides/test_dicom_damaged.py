"""DICOM files that are cut, contradict themselves or each other, or are hostile.

OpenSlide's library crashes over some of these, so they never reach it: :class:`DamagedSlide` ends the search for a
reader.
"""

import resource
import struct
from contextlib import suppress
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slides.dicom_files import (
    JPEG,
    NATIVE,
    RLE,
    optical_paths,
    set_all,
    undefined_lengths,
    write_concatenation,
    write_image,
    write_series,
)
from tests.slides.tiff_files import tissue_like
from wsi_ips.errors import DamagedSlide, SlideReadError, WsiIpsError
from wsi_ips.slides import open_slide
from wsi_ips.slides.dicom import elements
from wsi_ips.slides.dicom.elements import BrokenHeader, read_header
from wsi_ips.slides.dicom.layout import DicomReader

IMAGE = tissue_like(400, 300)
SPARSE = {"positions": True, "organization": "TILED_SPARSE"}
PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00"
BASIC_TABLE = 12
"""Bytes from the pixels' element to the item that holds the table."""


@pytest.mark.parametrize("kind", [{}, {"table": "none"}, {"table": "extended"}, {"syntax": NATIVE}, SPARSE],
                         ids=["basic", "walked", "extended", "native", "sparse"])  # fmt: skip
@pytest.mark.parametrize("share", [0.001, 0.01, 0.04, 0.3, 0.9, 0.999])
def test_a_cut_file_says_so_on_opening(tmp_path, kind, share):
    write_series(tmp_path, IMAGE, levels=2, **{"syntax": JPEG, **kind})
    path = tmp_path / "level0.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DamagedSlide, match=r"cut short|damaged") as caught:
        open_slide(tmp_path)
    assert "level0.dcm" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        set_all(NumberOfFrames=2**31),
        set_all(NumberOfFrames=0),
        set_all(NumberOfFrames=13),
        set_all(NumberOfFrames=11),
        set_all(TotalPixelMatrixColumns=2**32 - 1),
        set_all(TotalPixelMatrixColumns=2**24, TotalPixelMatrixRows=2**24),
        set_all(TotalPixelMatrixColumns=0),
        set_all(TotalPixelMatrixRows=None),
        set_all(Rows=0),
        set_all(Columns=65535, Rows=65535),
    ],
    ids=lambda change: None,
)
@pytest.mark.parametrize("kind", [{}, {"table": "none"}, {"syntax": NATIVE}, SPARSE],
                         ids=["basic", "walked", "native", "sparse"])  # fmt: skip
def test_counts_that_cannot_be_are_refused_at_once(tmp_path, change, kind):
    write_image(tmp_path / "a.dcm", IMAGE, **{"syntax": JPEG, **kind}, change=change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = process_time()
    with pytest.raises(DamagedSlide) as caught:
        open_slide(tmp_path)
    assert str(tmp_path / "a.dcm") in str(caught.value)
    assert process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


@pytest.mark.parametrize("kind", ["basic", "none"])
def test_an_item_longer_than_the_file(tmp_path, kind):
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE, syntax=JPEG, table=kind)
    blob = bytearray(path.read_bytes())
    last = blob.rindex(b"\xfe\xff\x00\xe0")
    blob[last + 4 : last + 8] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(blob)
    with pytest.raises(DamagedSlide, match="4294967280 bytes"):
        open_slide(tmp_path)


def test_an_offset_table_that_cannot_be_right_is_not_believed(tmp_path):
    """Beyond 4 GiB its 32 bits wrap around: the items are walked instead."""
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE, syntax=JPEG)
    with open_slide(tmp_path) as slide:
        right = slide.read((0, 0), level=0, size_px=(400, 300))
    blob = bytearray(path.read_bytes())
    table = blob.index(PIXELS) + BASIC_TABLE + 8
    blob[table + 40 : table + 48] = bytes(8)
    path.write_bytes(blob)
    with open_slide(tmp_path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(400, 300)), right)


def test_an_offset_table_that_points_into_a_frame_is_noticed(tmp_path):
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE, syntax=JPEG)
    blob = bytearray(path.read_bytes())
    table = blob.index(PIXELS) + BASIC_TABLE + 8
    (second,) = struct.unpack_from("<I", blob, table + 4)
    struct.pack_into("<I", blob, table + 4, second + 10)
    path.write_bytes(blob)
    with DicomReader(tmp_path) as slide:
        for col in (0, 1):
            with pytest.raises(SlideReadError, match=rf"tile \({col}, 0\) of level 0.*DICOM item"):
                slide.read_tile(0, col, 0)
        assert slide.read_tile(0, 2, 0).std() > 5


def test_an_offset_table_of_an_odd_length(tmp_path):
    """One item less, its bytes in the table: it is no table for these frames, and the frames begin behind it."""
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE, syntax=JPEG, table="none")
    blob = path.read_bytes()
    at = blob.index(PIXELS) + BASIC_TABLE
    path.write_bytes(blob[:at] + b"\xfe\xff\x00\xe0\x06\x00\x00\x00" + bytes(6) + blob[at + 8 :])
    with open_slide(tmp_path) as slide:
        assert slide.read((0, 0), level=0, size_px=(400, 300)).std() > 5


@pytest.mark.parametrize("spacing", [("1e300", "1e-99"), ("1e-320", "1"), ("nan", "inf"), ("0", "-1")])
def test_spacings_that_are_no_numbers(tmp_path, spacing):
    for name, image in (("a", IMAGE), ("b", tissue_like(200, 150))):
        path = tmp_path / f"{name}.dcm"
        write_image(path, image, change=set_all(Manufacturer="Philips"))
        if name == "b":
            blob, stated = path.read_bytes(), b"0.0005\\0.0005 "
            assert blob.count(stated) == 1
            path.write_bytes(blob.replace(stated, "\\".join(spacing).encode().ljust(len(stated))))
    with open_slide(tmp_path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1.0, 2.0]


def test_an_extended_offset_table_of_another_length(tmp_path):
    def one_less(file):
        file.ExtendedOffsetTableLengths = file.ExtendedOffsetTableLengths[:-8]

    write_image(tmp_path / "a.dcm", IMAGE, syntax=JPEG, table="extended", change=one_less)
    with pytest.raises(DamagedSlide, match="extended offset table has another length"):
        open_slide(tmp_path)


def test_an_extended_offset_table_beyond_the_end(tmp_path):
    def far(file):
        file.ExtendedOffsetTable = file.ExtendedOffsetTable[:-8] + struct.pack("<Q", 2**63 + 5)

    write_image(tmp_path / "a.dcm", IMAGE, syntax=JPEG, table="extended", change=far)
    with pytest.raises(DamagedSlide, match="beyond the file's end"):
        open_slide(tmp_path)


def test_a_bad_frame_is_named_and_the_others_still_read(tmp_path):
    write_series(tmp_path, IMAGE, levels=2, syntax=JPEG)
    with DicomReader(tmp_path) as slide:
        layout = slide.tile_layout(1)
        offset, count = int(layout.offsets[1]), int(layout.byte_counts[1])
    path = tmp_path / "level1.dcm"
    blob = bytearray(path.read_bytes())
    blob[offset + 8 : offset + count] = bytes(count - 8)
    path.write_bytes(blob)
    with DicomReader(tmp_path) as slide:
        with pytest.raises(SlideReadError, match=rf"tile \(1, 0\) of level 1.* byte {offset} of level1\.dcm"):
            slide.read((300, 0), level=1, size_px=(50, 50))
        assert slide.read((0, 0), level=1, size_px=(128, 128)).std() > 0
        assert slide.read((0, 0), level=0, size_px=(400, 300)).std() > 0


@pytest.mark.parametrize(
    "segments", [(4, 64, 70, 80), (3, 60, 70, 80), (3, 64, 60, 80), (3, 64, 70, 2**32 - 1)]
)
def test_run_lengths_that_lead_astray(tmp_path, segments):
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE, syntax=RLE)
    with DicomReader(tmp_path) as slide:
        at = int(slide.tile_layout(0).offsets[0]) + 8
    blob = bytearray(path.read_bytes())
    struct.pack_into("<4I", blob, at, *segments)
    path.write_bytes(blob)
    with DicomReader(tmp_path) as slide:
        with pytest.raises(SlideReadError, match=r"tile \(0, 0\)"):
            slide.read_tile(0, 0, 0)
        assert slide.read_tile(0, 1, 0).std() > 5


def test_a_picture_that_is_cut_names_its_file(tmp_path):
    write_series(tmp_path, IMAGE, syntax=NATIVE)
    write_image(tmp_path / "label.dcm", IMAGE, kind="A\\B\\LABEL", syntax=NATIVE)
    blob = (tmp_path / "label.dcm").read_bytes()
    (tmp_path / "label.dcm").write_bytes(blob[:-5000])
    with pytest.raises(DamagedSlide, match=r"label\.dcm: truncated"):
        open_slide(tmp_path)


@pytest.mark.parametrize("x", [0, 2, 128, 513, -127, 2**31 - 128])
def test_a_frame_that_lies_beside_the_grid(tmp_path, x):
    def moved(file):
        place = file.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0]
        place.ColumnPositionInTotalImagePixelMatrix = x

    write_image(tmp_path / "a.dcm", IMAGE, **SPARSE, change=moved)
    with pytest.raises(DamagedSlide, match=rf"a\.dcm: frame 3 is placed at column {x}, row 1"):
        open_slide(tmp_path)


def test_fewer_places_than_frames(tmp_path):
    def fewer(file):
        del file.PerFrameFunctionalGroupsSequence[-1]

    write_image(tmp_path / "a.dcm", IMAGE, **SPARSE, change=fewer)
    with pytest.raises(DamagedSlide, match="states 12 frames and places for 11"):
        open_slide(tmp_path)


def test_tiles_that_nobody_says_the_place_of(tmp_path):
    write_image(tmp_path / "a.dcm", IMAGE, organization="TILED_SPARSE")
    with pytest.raises(DamagedSlide, match="does not say where its tiles belong"):
        open_slide(tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_concatenation_without_one_of_its_parts(tmp_path, lost):
    paths = write_concatenation(tmp_path, IMAGE, cuts=[3, 7], syntax=JPEG)
    paths[lost].unlink()
    with pytest.raises(DamagedSlide, match=r"one of 3 parts of an image.*copy the missing files"):
        open_slide(tmp_path)


def test_two_images_of_one_size(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.dcm", IMAGE)
    with pytest.raises(DamagedSlide, match=r"b\.dcm: has the size of a\.dcm, 400x300 px"):
        open_slide(tmp_path)


def test_damage_comes_before_what_is_not_read(tmp_path):
    """Of a level of 16 bits and one that is cut the latter is told: OpenSlide must not be asked."""
    write_image(
        tmp_path / "a.dcm", IMAGE, change=set_all(BitsAllocated=16, BitsStored=16, HighBit=15), syntax=NATIVE
    )
    write_image(tmp_path / "b.dcm", tissue_like(200, 150), change=set_all(NumberOfFrames=400))
    with pytest.raises(DamagedSlide, match=r"b\.dcm: truncated"):
        open_slide(tmp_path)


def test_levels_of_two_slides_under_one_series(tmp_path):
    write_image(tmp_path / "a.dcm", IMAGE)
    write_image(tmp_path / "b.dcm", tissue_like(200, 400))
    with pytest.raises(DamagedSlide, match="400x300 and 200x400 px are not of one slide"):
        open_slide(tmp_path)


def nested(depth: int, *, delimited: bool) -> bytes:
    """A private sequence in itself."""
    value = b""
    for _ in range(depth):
        length = 0xFFFFFFFF if delimited else len(value)
        item = b"\xfe\xff\x00\xe0" + struct.pack("<I", length) + value
        item += b"\xfe\xff\x0d\xe0" + bytes(4) if delimited else b""
        end = b"\xfe\xff\xdd\xe0" + bytes(4) if delimited else b""
        length = 0xFFFFFFFF if delimited else len(item)
        value = b"\x00\x52\x29\x92SQ\x00\x00" + struct.pack("<I", length) + item + end
    return value


@pytest.mark.parametrize("depth", [20, 5000])
def test_sequences_without_end(tmp_path, depth):
    path = tmp_path / "a.dcm"
    write_image(path, IMAGE)
    blob = path.read_bytes()
    at = blob.index(PIXELS)
    path.write_bytes(blob[:at] + nested(depth, delimited=True) + blob[at:])
    with pytest.raises(DamagedSlide, match="sequences in sequences"):
        open_slide(tmp_path)


def test_a_header_longer_than_any(tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "LARGEST_HEADER", 1 << 20)
    path = tmp_path / "a.dcm"

    def long(file):
        file.add_new(0x52051001, "OB", bytes(2 << 20))

    write_image(path, IMAGE, change=long)
    with pytest.raises(BrokenHeader, match="longer than 1048576 bytes"):
        read_header(path)
    with pytest.raises(DamagedSlide, match="header is broken"):
        open_slide(tmp_path)


def test_a_pickled_reader_notices_another_slide(tmp_path):
    write_series(tmp_path, IMAGE, levels=2)
    slide = DicomReader(tmp_path)
    write_series(tmp_path, tissue_like(500, 300), levels=2)
    with pytest.raises(SlideReadError, match="another file now"):
        slide.reopen()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """Small files of three kinds, with nearly everything in their headers."""
    folder = tmp_path_factory.mktemp("whole")
    kinds = {"full": {}, "sparse": {**SPARSE, "change": undefined_lengths}, "extended": {"table": "extended"}}
    made = {}
    for name, kind in kinds.items():
        path: Path = folder / name
        change = kind.pop("change", set_all(OpticalPathSequence=optical_paths("1", "2")))
        write_image(path, tissue_like(150, 130), tile=(64, 64), syntax=JPEG, change=change, **kind)
        made[name] = path.read_bytes()
    return made


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_gives_pixels_or_our_own_error(tmp_path, whole, data):
    """Bytes are changed at random, the header more than the rest."""
    blob = bytearray(whole[data.draw(st.sampled_from(sorted(whole)))])
    start = data.draw(st.sampled_from([128, blob.index(b"DICM") + 200, blob.index(b"\xe0\x7f") - 400]))
    end = data.draw(st.sampled_from([blob.index(PIXELS) + 80, len(blob)]))
    for _ in range(data.draw(st.integers(1, 5))):
        blob[data.draw(st.integers(start, end - 1))] = data.draw(st.sampled_from([0, 1, 2, 0x20, 0x7F, 0xFF]))
    path = tmp_path / "fuzz.dcm"
    path.write_bytes(blob)
    # Anything else than our own error fails the test.
    with suppress(WsiIpsError), DicomReader(path) as slide:
        assert slide.read((0, 0), level=0, size_px=(150, 130)).shape == (130, 150, 3)
