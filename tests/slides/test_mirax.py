"""MIRAX: pictures of a camera, each at its own place."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.slides.mirax_slide import SLIDE_ID, MiraxSlide
from tests.slides.streamed import assert_streams_what_it_reads
from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides.base import Bounds
from wsi_ips.slides.image_reader import ImageReader
from wsi_ips.slides.mirax_reader import MiraxReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.testing.readers import HEIGHT, MPP, WIDTH, OneLevelContract, contract_image


def written(folder: Path, slide: MiraxSlide) -> Path:
    path = folder / "S1.mrxs"
    slide.write(path)
    return path


class TestMiraxReader(OneLevelContract):
    """JPEG is all that MIRAX holds, so the picture is what its images decode to."""

    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        drawn = MiraxSlide(
            grid=(4, 4), image_size=(WIDTH // 4, HEIGHT // 4), overlap=(0, 0), levels=1, mpp=MPP,
            positions=None, picture=contract_image(),
        )  # fmt: skip
        drawn.path = written(class_folder, drawn)  # type: ignore[attr-defined]
        return drawn

    @pytest.fixture
    def slide(self, drawn):
        with MiraxReader(drawn.path) as reader:
            yield reader

    @pytest.fixture
    def image(self, drawn):
        return np.concatenate(
            [np.concatenate([drawn.truth[x, y] for x in range(4)], axis=1) for y in range(4)]
        )


@pytest.mark.parametrize(
    "drawn",
    [
        MiraxSlide(),
        MiraxSlide(absent=[(1, 1), (2, 0)]),
        MiraxSlide(absent=[(0, 0)], jitter=20),
        MiraxSlide(positions="stitching", jitter=9),
        MiraxSlide(divisions=1, levels=2),
        MiraxSlide(divisions=4, grid=(8, 8), levels=4),
        MiraxSlide(positions=None),
        MiraxSlide(positions=None, overlap=(0, 0), absent=[(0, 0), (2, 1)]),
        MiraxSlide(positions=None, overlap=(0, 0), grid=(8, 8), absent=[(0, 0), (0, 1)], levels=5),
        MiraxSlide(overlap=(15.5, 7.25), jitter=0),
    ],
    ids=[
        "places",
        "absent",
        "first absent",
        "packed",
        "no divisions",
        "16 images",
        "nominal",
        "grid",
        "deep grid",
        "broken",
    ],
)
def test_equals_openslide(tmp_path, drawn):
    """Level 0, and all others where every place divides evenly."""
    path = written(tmp_path, drawn)
    even = drawn.positions is None
    with open_slide(path) as ours, OpenSlideReader(path) as theirs:
        assert (ours.info.reader, ours.info.vendor) == ("mirax", theirs.info.vendor)
        assert ours.info.levels == theirs.info.levels
        assert ours.info.mpp_xy == theirs.info.mpp_xy
        assert ours.info.bounds == theirs.info.bounds
        assert ours.info.associated == theirs.info.associated
        for number, level in enumerate(ours.info.levels if even else ours.info.levels[:1]):
            whole = [reader.read((0, 0), level=number, size_px=level.size) for reader in (ours, theirs)]
            np.testing.assert_array_equal(*whole, err_msg=f"level {number}")
        # Within the level: beyond its edges OpenSlide shows what pictures reach over them, and ours is white.
        rng = np.random.default_rng(0)
        most = np.array(ours.info.l0_size) - (77, 91)
        for l0_xy in rng.integers((-60, -60), most, (12, 2)).tolist():
            region = [reader.read(tuple(l0_xy), level=0, size_px=(77, 91)) for reader in (ours, theirs)]
            np.testing.assert_array_equal(*region, err_msg=f"at {l0_xy}")


@pytest.mark.parametrize("divisions", [1, 2])
def test_levels_of_places_that_divide_evenly_equal_openslide(tmp_path, divisions):
    """Images that join several pictures are cut apart again, and each part lies at its own picture's place."""
    path = written(
        tmp_path, MiraxSlide(divisions=divisions, overlap=(16, 16), whole=4, grid=(8, 4), levels=3)
    )
    with MiraxReader(path) as ours, OpenSlideReader(path) as theirs:
        for number, level in enumerate(ours.info.levels):
            whole = [reader.read((0, 0), level=number, size_px=level.size) for reader in (ours, theirs)]
            np.testing.assert_array_equal(*whole, err_msg=f"level {number}")


def test_places_between_pixels_are_rounded(tmp_path):
    """OpenSlide interpolates there: on a smooth picture that is nearly the same."""
    path = written(tmp_path, MiraxSlide(smooth=True, overlap=(0, 0), grid=(8, 8), levels=3))
    with MiraxReader(path) as ours, OpenSlideReader(path) as theirs:
        for number, level in enumerate(ours.info.levels):
            mine, other = (r.read((0, 0), level=number, size_px=level.size) for r in (ours, theirs))
            seams = (mine == 255).all(axis=2) | (other > 220).all(axis=2)
            assert seams.mean() < 0.2
            assert np.abs(mine.astype(int) - other)[~seams].mean() < 2


def test_an_image_lies_at_its_pictures_place(tmp_path):
    drawn = MiraxSlide(jitter=5)
    path = written(tmp_path, drawn)
    with MiraxReader(path) as slide:
        x, y = (at + side for at, side in zip(drawn.origins[2, 1], (64, 48), strict=True))
        width, height = min(64, slide.info.l0_size[0] - x), min(48, slide.info.l0_size[1] - y)
        region = slide.read((x, y), level=0, size_px=(width, height))
        np.testing.assert_array_equal(
            region, drawn.truth[5, 3][:height, :width]
        )  # the last one, covered by none


@pytest.mark.parametrize(
    ("patch_px", "by", "zoom"), [(64, (0, 0), 1), (50, (-7, 9), 1), (40, (0, 0), 2), (33, (4, 4), 4)]
)
@pytest.mark.parametrize(
    "drawn", [MiraxSlide(), MiraxSlide(positions=None, overlap=(0, 0))], ids=["places", "grid"]
)
def test_streams(tmp_path, drawn, patch_px, by, zoom):
    with MiraxReader(written(tmp_path, drawn)) as slide:
        assert_streams_what_it_reads(slide, patch_px=patch_px, by=by, zoom=zoom)


def test_pictures_bounds_and_what_is_left_out(tmp_path):
    path = written(tmp_path, MiraxSlide(absent=[(0, 0), (0, 1)], jitter=0, filters=3))
    with MiraxReader(path) as slide:
        assert slide.info.bounds == Bounds(112, 0, 240, 184)
        np.testing.assert_allclose(slide.read_associated("label"), 120, atol=2)
        assert [left.what for left in slide.info.left_out] == ["3 of 'Slide filter level'"]


def test_a_slide_without_its_folder(cases_folder, tmp_path):
    """It is a small JPEG, which must not be taken for the slide."""
    copy = tmp_path / "S1.mrxs"
    shutil.copy(cases_folder / "mirax" / "without_its_folder" / "S1.mrxs", copy)
    with pytest.raises(DamagedSlide, match=r"S1\.mrxs: its data folder S1/ is missing; copy the folder"):
        open_slide(copy)
    with pytest.raises(UnsupportedSlide, match="not the slide"):
        ImageReader(copy)
    (tmp_path / "S1").mkdir()
    with pytest.raises(DamagedSlide, match=r"its Slidedat\.ini is missing in S1/"):
        open_slide(copy)


def test_a_real_slide_of_which_files_are_missing_is_left_to_openslide(real_data):
    path = real_data / "slides" / "mirax-incomplete" / "Mirax2-Fluorescence-2.mrxs"
    with pytest.raises(UnsupportedSlide, match=r"its data files Data0005\.dat, Data0006\.dat are missing"):
        MiraxReader(path)
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"


def test_a_real_slides_whole_levels(real_data, tmp_path):
    """The index of the real slide, with what its missing files held left out."""
    path = real_data / "slides" / "mirax-incomplete" / "Mirax2-Fluorescence-2.mrxs"
    folder = tmp_path / path.stem
    shutil.copytree(path.with_suffix(""), folder)
    shutil.copy(path, tmp_path)
    folder.chmod(0o755)
    for name in ("Data0005.dat", "Data0006.dat"):
        with (folder / name).open("wb") as file:
            file.truncate(1 << 28)  # a hole: images of zeros
    with MiraxReader(tmp_path / path.name) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.levels == theirs.info.levels
        assert ours.info.bounds == theirs.info.bounds
        assert ours.info.mpp_xy == theirs.info.mpp_xy
        assert ours.info.associated == theirs.info.associated
        for number in range(2, 10):
            level, bounds = ours.info.levels[number], ours.info.bounds
            size = int(bounds.l0_width / level.downsample), int(bounds.l0_height / level.downsample)
            mine, other = (
                reader.read((bounds.l0_x, bounds.l0_y), level=number, size_px=size)
                for reader in (ours, theirs)
            )
            # OpenSlide interpolates between pixels; a picture moved by two pixels would be much farther away.
            distance = np.abs(mine.astype(int) - other).mean()
            moved = [
                np.abs(mine.astype(int) - np.roll(other, 2 * by, axis)).mean()
                for by in (1, -1)
                for axis in (0, 1)
            ]
            assert distance < 15
            assert distance < 0.8 * min(moved), (number, distance, moved)


@pytest.mark.parametrize(
    ("edit", "error", "reason"),
    [
        (("[GENERAL]", "[GENERAL"), UnsupportedSlide, "cannot be understood"),
        (("IMAGENUMBER_X = 6", "IMAGENUMBER_X = 0"), UnsupportedSlide, "IMAGENUMBER_X"),
        (("IMAGENUMBER_X = 6", "IMAGENUMBER_X = 1e300"), UnsupportedSlide, "IMAGENUMBER_X"),
        (("IMAGENUMBER_X = 6", "IMAGENUMBER_X = 1000000"), DamagedSlide, "camera positions"),
        (("IMAGENUMBER_X = 6", "IMAGENUMBER_X = 5"), UnsupportedSlide, "do not fill a row"),
        (("IMAGENUMBER_Y = 4", "IMAGENUMBER_Y = 2"), DamagedSlide, "camera positions where"),
        (("CameraImageDivisionsPerSide = 2", "CameraImageDivisionsPerSide = -1"), UnsupportedSlide, "Divisions"),
        (("HIER_0_COUNT = 3", "HIER_0_COUNT = 4"), UnsupportedSlide, "HIER_0_VAL_3_SECTION"),
        (("HIER_0_COUNT = 3", "HIER_0_COUNT = 100000000"), UnsupportedSlide, "HIER_0_COUNT"),
        (("HIER_0_NAME = Slide zoom level", "HIER_0_NAME = Other"), UnsupportedSlide, "zoom levels first"),
        (("IMAGE_FORMAT = JPEG", "IMAGE_FORMAT = PNG"), UnsupportedSlide, "are PNG, not JPEG"),
        (("DIGITIZER_WIDTH = 64", "DIGITIZER_WIDTH = 16000000"), UnsupportedSlide, "images of 16000000x48"),
        (("OVERLAP_X = 16", "OVERLAP_X = nan"), UnsupportedSlide, "overlap by nan"),
        (("OVERLAP_X = 16", "OVERLAP_X = 128"), UnsupportedSlide, "overlap by 128"),
        (("OVERLAP_X = 16", "OVERLAP = 16"), UnsupportedSlide, "overlap by"),
        (("FACTOR = 1", "FACTOR = 24"), UnsupportedSlide, "powers of two"),
        (("FACTOR = 1", "FACTOR = 2"), DamagedSlide, "off its grid"),
        (("FACTOR = 0", "FACTOR = 1"), UnsupportedSlide, "powers of two"),
        (("FILE_0 = Data0000.dat", "FILE_0 = ../../S1.mrxs"), UnsupportedSlide, "not in its folder"),
        (("FILE_0 = Data0000.dat", "FILE_0 = /etc/passwd"), UnsupportedSlide, "not in its folder"),
        (("INDEXFILE = Index.dat", "INDEXFILE = .."), UnsupportedSlide, "not in its folder"),
        (("FILE_COUNT = 1", "FILE_COUNT = 2000000000"), UnsupportedSlide, "FILE_COUNT"),
        ((f"SLIDE_ID = {SLIDE_ID}", "SLIDE_ID = 1"), DamagedSlide, "is not the index"),
        (("NONHIER_1_NAME = VIMSLIDE_POSITION_BUFFER", "NONHIER_1_NAME = StitchingIntensityLayer"), DamagedSlide,
         "do not unpack"),
        (("NONHIER_COUNT = 2", "NONHIER_COUNT = 3"), UnsupportedSlide, "NONHIER_2"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, edit, error, reason):
    with pytest.raises(error, match=reason):
        MiraxReader(written(tmp_path, MiraxSlide(ini_edit=edit)))


def test_too_large_settings_are_refused(tmp_path):
    path = written(
        tmp_path, MiraxSlide(ini_edit=("[DATAFILE]", "\n".join(["; much"] * 200_000) + "\n[DATAFILE]"))
    )
    with pytest.raises(UnsupportedSlide, match="larger than any scanner"):
        MiraxReader(path)


def test_an_index_cut_short_or_altered_is_refused_or_read(tmp_path):
    """Whatever its bytes say: a FileError, or a slide. Never another error, never endless pages."""
    path = written(tmp_path, MiraxSlide())
    index = tmp_path / "S1" / "Index.dat"
    whole = index.read_bytes()
    rng = np.random.default_rng(1)
    for end in rng.integers(0, len(whole), 40).tolist():
        index.write_bytes(whole[:end])
        with pytest.raises(DamagedSlide):
            MiraxReader(path)
    refused = 0
    for place in rng.integers(37, len(whole) - 4, 150).tolist():
        value = int(rng.choice([-1, 0, 37, 2**31 - 1, int(rng.integers(0, len(whole)))]))
        index.write_bytes(whole[:place] + struct.pack("<i", value) + whole[place + 4 :])
        try:
            with MiraxReader(path) as slide:
                assert slide.info.levels
        except UnsupportedSlide:
            refused += 1
    assert refused > 50


def test_pages_that_lead_back_are_no_endless_loop(tmp_path):
    path = written(tmp_path, MiraxSlide(levels=1))
    index = tmp_path / "S1" / "Index.dat"
    whole = bytearray(index.read_bytes())
    root = struct.unpack_from("<i", whole, 37)[0]
    page = struct.unpack_from("<i", whole, struct.unpack_from("<i", whole, root)[0] + 4)[0]
    struct.pack_into("<i", whole, page + 4, page)
    index.write_bytes(whole)
    with pytest.raises(DamagedSlide, match=r"Index\.dat: breaks off or contradicts itself"):
        MiraxReader(path)


def test_data_cut_short_is_named(tmp_path):
    path = written(tmp_path, MiraxSlide(positions=None))
    data = tmp_path / "S1" / "Data0000.dat"
    data.write_bytes(data.read_bytes()[:9000])
    with pytest.raises(DamagedSlide, match=r"truncated: .* images of level 0 lie beyond"):
        MiraxReader(path)
