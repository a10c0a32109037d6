"""DICOM slides: pixel for pixel what OpenSlide gives, and more where it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tests.slides.dicom_files import (
    IMPLICIT,
    J2K,
    J2K_LOSSLESS,
    JPEG,
    NATIVE,
    RLE,
    in_turn,
    optical_paths,
    pydicom_frames,
    set_all,
    undefined_lengths,
    write_concatenation,
    write_image,
    write_series,
)
from tests.slides.tiff_files import tissue_like
from tests.streaming.test_stream import every_patch
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import DamagedSlide, UnsupportedSlide
from wsi_ips.slides import open_slide
from wsi_ips.slides.base import LeftOut
from wsi_ips.slides.dicom.layout import DicomReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image

IMAGE = tissue_like(600, 424, seed=3)
SPARSE = {"positions": True, "organization": "TILED_SPARSE"}


class TestNative(ReaderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        write_series(class_folder / "käse", contract_image(), levels=2, mpp=MPP, syntax=NATIVE)
        return class_folder / "käse"

    @pytest.fixture
    def slide(self, drawn):
        with DicomReader(drawn) as reader:
            yield reader


class TestSparseRunLengths(ReaderContract):
    """Tiles of 96x160 px, addressed by one of the files, which has no suffix."""

    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, class_folder):
        write_series(
            class_folder, contract_image(), levels=2, mpp=MPP, syntax=RLE, suffix="", tile=(96, 160),
            positions=True, organization="TILED_SPARSE",
        )  # fmt: skip
        return class_folder / "level1"

    @pytest.fixture
    def slide(self, drawn):
        with DicomReader(drawn) as reader:
            yield reader


def assert_equals_openslide(path: Path, *, reads: int = 12, seed: int = 0) -> None:
    """Random regions of every level, beyond the edges too, at whole pixels of the level."""
    rng = np.random.default_rng(seed)
    with open_slide(path) as ours, OpenSlideReader(path) as theirs:
        assert ours.info.reader == "dicom"
        assert ours.info.levels == theirs.info.levels
        assert ours.info.vendor == theirs.info.vendor
        assert ours.info.bounds == theirs.info.bounds
        assert ours.info.mpp_xy == (theirs.info.mpp_xy and pytest.approx(theirs.info.mpp_xy))
        for number, level in enumerate(ours.info.levels):
            whole = int(level.downsample)
            assert whole == level.downsample, "choose sizes that halve evenly, or OpenSlide interpolates"
            for _ in range(reads):
                size = tuple(rng.integers(1, 300, 2).tolist())
                l0_xy = tuple(int(rng.integers(-150, side + 50)) * whole for side in level.size)
                np.testing.assert_array_equal(
                    ours.read(l0_xy, level=number, size_px=size),
                    theirs.read(l0_xy, level=number, size_px=size),
                    err_msg=f"level {number} at {l0_xy}",
                )


@pytest.mark.parametrize(
    "kind",
    [
        {"syntax": JPEG},
        {"syntax": JPEG, "subsampling": "4:2:0"},
        {"syntax": JPEG, "subsampling": "4:4:4"},
        {"syntax": JPEG, "photometric": "RGB"},
        {"syntax": J2K_LOSSLESS, "levels": 2},
        {"syntax": J2K_LOSSLESS, "photometric": "RGB", "levels": 2},
        {"syntax": J2K, "levels": 2},
        {"syntax": J2K, "photometric": "RGB", "levels": 2},
        {"syntax": J2K, "photometric": "YBR_RCT", "levels": 1},
        {"syntax": NATIVE},
        {"syntax": NATIVE, "tile": (97, 53)},
        {"syntax": JPEG, "table": "none"},
        {"syntax": JPEG, "table": "extended"},
        {"syntax": J2K, "table": "none", "levels": 1},
        {"syntax": JPEG, **SPARSE},
        {"syntax": JPEG, "positions": True},
        {"syntax": JPEG, "positions": True, "organization": None},
        {"syntax": J2K_LOSSLESS, "tiles": [0, 2, 1], "levels": 2, **SPARSE},
        {"syntax": NATIVE, "tiles": [5, 3], "levels": 2, **SPARSE},
        {"syntax": JPEG, "tile": (256, 64), "change": undefined_lengths, **SPARSE},
        {"syntax": JPEG, "kind": "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"},
        {"syntax": JPEG, "kind": "DERIVED\\SECONDARY\\VOLUME"},
        {"syntax": JPEG, "mpp": None},
        {"syntax": JPEG, "change": set_all(TotalPixelMatrixFocalPlanes=1)},
        {"syntax": JPEG, "change": set_all(OpticalPathSequence=optical_paths("a"))},
        {"syntax": JPEG, "suffix": ""},
    ],
    ids=lambda kind: "-".join(str(value) for value in kind.values() if not callable(value)) or "changed",
)  # fmt: skip
def test_equals_openslide(tmp_path, kind):
    write_series(tmp_path, IMAGE, **{"levels": 3, **kind})
    assert_equals_openslide(tmp_path)
    assert_equals_openslide(next(tmp_path.iterdir()), reads=1)


@pytest.mark.parametrize("kind", [{}, SPARSE], ids=["full", "sparse"])
def test_a_concatenation(tmp_path, kind):
    write_concatenation(tmp_path, IMAGE, cuts=[3, 4, 11], syntax=JPEG, **kind)
    assert_equals_openslide(tmp_path, reads=40)


def test_two_files_that_are_one_image(tmp_path):
    """A copy of a file (same SOP instance) is no second level."""
    write_series(tmp_path, IMAGE, levels=2, syntax=JPEG)
    shutil.copy(tmp_path / "level1.dcm", tmp_path / "level1 (1).dcm")
    assert_equals_openslide(tmp_path)
    with open_slide(tmp_path) as slide:
        assert slide.info.left_out == (LeftOut("level1.dcm", "a copy of level1 (1).dcm"),)


def test_the_real_slide_equals_openslide(real_data):
    """All frames of all levels: whole levels, from the corner on (downsamples are 2.0003 and the like)."""
    folder = real_data / "slides" / "cmu-1-small-region-dicom"
    with DicomReader(folder) as ours, OpenSlideReader(folder) as theirs:
        assert ours.info.levels == theirs.info.levels
        assert ours.info.mpp_xy == pytest.approx(theirs.info.mpp_xy)
        for number, level in enumerate(ours.info.levels):
            np.testing.assert_array_equal(
                ours.read((0, 0), level=number, size_px=level.size),
                theirs.read((0, 0), level=number, size_px=level.size),
            )


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ({"syntax": RLE}, 0),
        ({"syntax": RLE, "table": "none", "pieces": 1}, 0),
        ({"syntax": IMPLICIT}, 0),
        ({"syntax": IMPLICIT, **SPARSE}, 0),
        ({"syntax": JPEG, "photometric": "YBR_FULL"}, 1),
        ({"syntax": JPEG, "pieces": 3, "table": "basic"}, 1),
        ({"syntax": JPEG, "pieces": 3, "table": "none"}, 1),
        ({"syntax": J2K_LOSSLESS, "pieces": 2, "table": "none"}, 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_equals_pydicom_where_openslide_refuses(tmp_path, kind, tolerance):
    write_series(tmp_path, IMAGE, **kind)
    with open_slide(tmp_path) as slide:
        assert slide.info.reader == "dicom"
        for number, frame in enumerate(pydicom_frames(tmp_path / "level0.dcm")):
            row, col = divmod(number, 5)
            tile = slide.read_tile(0, col, row)
            inside = tile[: 424 - row * 128, : 600 - col * 128].astype(int)
            away = np.abs(inside - frame[: inside.shape[0], : inside.shape[1]])
            assert away.max() <= tolerance
            assert away.mean() < 0.5


def test_rows_come_first_in_pixel_spacing(tmp_path):
    write_image(tmp_path / "a.dcm", IMAGE, spacing=(0.0005, 0.00025), syntax=JPEG)
    assert_equals_openslide(tmp_path, reads=1)
    with open_slide(tmp_path) as slide:
        assert slide.info.mpp_xy == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("spacing", [(50.0, 50.0), (0.0, 0.0), (1e-7, 1e-7)])
def test_a_resolution_that_cannot_be_is_unknown(tmp_path, spacing):
    write_image(tmp_path / "a.dcm", IMAGE, spacing=spacing)
    with open_slide(tmp_path) as slide:
        assert slide.info.mpp is None


def test_a_colour_profile_is_told(tmp_path):
    write_series(tmp_path / "a", IMAGE, change=set_all(OpticalPathSequence=optical_paths("1")))
    write_series(tmp_path / "b", IMAGE)
    for name, profile in (("a", True), ("b", False)):
        with open_slide(tmp_path / name) as slide:
            assert slide.info.icc_profile is profile


OTHER = tissue_like(600, 424, seed=4)


@pytest.mark.parametrize("planes", [1, 2])
def test_full_tiles_of_several_planes_show_the_first(tmp_path, planes):
    change = set_all(TotalPixelMatrixFocalPlanes=planes, OpticalPathSequence=optical_paths("1", "2"))
    write_series(tmp_path, IMAGE, syntax=NATIVE, copies=[OTHER], change=change)
    with open_slide(tmp_path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(600, 424)), IMAGE)
        assert slide.info.left_out == (
            LeftOut("20 of 40 frames of level0.dcm", "of other focal planes or optical paths"),
        )


def test_sparse_tiles_of_several_paths_show_the_first(tmp_path):
    """OpenSlide shows the last one here. The first is that of OpticalPathSequence, not of the frames."""

    def path_of(copy):
        return optical_paths("zwei")[0] if copy == 0 else optical_paths("eins")[0]

    write_series(
        tmp_path, OTHER, syntax=NATIVE, copies=[IMAGE], copy_items=path_of, **SPARSE,
        change=set_all(OpticalPathSequence=optical_paths("eins", "zwei")),
    )  # fmt: skip
    with open_slide(tmp_path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(600, 424)), IMAGE)
        assert slide.info.left_out[0].what == "20 of 40 frames of level0.dcm"


def test_sparse_tiles_of_several_planes_show_the_lowest(tmp_path):
    def height_of(copy):
        item = optical_paths("1")[0]
        item.ZOffsetInSlideCoordinateSystem = [3.5, -1.5, 0.0][copy]
        return item

    third = tissue_like(600, 424, seed=5)
    write_series(tmp_path, OTHER, syntax=NATIVE, copies=[IMAGE, third], copy_items=height_of, **SPARSE)
    with open_slide(tmp_path) as slide:
        np.testing.assert_array_equal(slide.read((0, 0), level=0, size_px=(600, 424)), IMAGE)
        assert slide.info.left_out[0].what == "40 of 60 frames of level0.dcm"


def test_pictures(tmp_path):
    write_series(tmp_path, IMAGE, syntax=NATIVE)
    shown = {
        "LABEL": tissue_like(70, 60),
        "OVERVIEW": tissue_like(301, 99),
        "THUMBNAIL": tissue_like(150, 106),
    }
    for kind, picture in shown.items():
        write_image(tmp_path / f"{kind}.dcm", picture, kind=f"ORIGINAL\\PRIMARY\\{kind}\\NONE", syntax=NATIVE)
    write_image(tmp_path / "Z.dcm", shown["LABEL"], kind="ORIGINAL\\PRIMARY\\LABEL\\NONE")
    write_image(tmp_path / "loc.dcm", shown["LABEL"], kind="DERIVED\\PRIMARY\\LOCALIZER\\NONE")
    write_image(
        tmp_path / "two.dcm", shown["LABEL"], kind="DERIVED\\PRIMARY", syntax=NATIVE,
    )  # fmt: skip
    with open_slide(tmp_path) as slide:
        assert dict(slide.info.associated) == {"label": (70, 60), "macro": (301, 99), "thumbnail": (150, 106)}
        assert len(slide.info.levels) == 1
        for name, kind in (("label", "LABEL"), ("macro", "OVERVIEW"), ("thumbnail", "THUMBNAIL")):
            np.testing.assert_array_equal(slide.read_associated(name), shown[kind])
        assert [each.what for each in slide.info.left_out] == ["Z.dcm", "loc.dcm", "two.dcm"]


def test_a_picture_of_a_kind_that_is_not_read_is_left_out(tmp_path):
    write_series(tmp_path, IMAGE)
    write_image(
        tmp_path / "label.dcm", IMAGE, kind="ORIGINAL\\PRIMARY\\LABEL\\NONE", syntax=NATIVE,
        photometric="YBR_FULL",
    )  # fmt: skip
    with open_slide(tmp_path) as slide:
        assert slide.info.associated == ()
        assert "colours as YBR_FULL" in slide.info.left_out[0].why


def test_padded_levels_of_philips(tmp_path):
    """Stored levels are whole tiles: their sizes are no measure of how much coarser they are."""
    philips = set_all(Manufacturer="Philips")
    sizes = [(1024, 768), (512, 384), (256, 256), (128, 128)]
    images = [np.full((768, 1024, 3), 200, np.uint8)]
    images += [tissue_like(*size, seed=size[0]) for size in sizes[1:]]
    for number, image in enumerate(images):
        side = 0.00025 * 2**number * (1.004 if number else 1)
        write_image(tmp_path / f"{number}.dcm", image, syntax=NATIVE, spacing=(side, side), change=philips)
    with open_slide(tmp_path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1.0, 2.0, 4.0, 8.0]
        assert [level.size for level in slide.info.levels] == [(1024, 768), (512, 384), (256, 192), (128, 96)]
        np.testing.assert_array_equal(slide.read((80, 40), level=3, size_px=(60, 60)), images[3][5:65, 10:70])
        beyond = slide.read((0, 0), level=3, size_px=(128, 128))
        np.testing.assert_array_equal(beyond[:96], images[3][:96])
        assert (beyond[96:] == 255).all()
        assert [each.what for each in slide.info.left_out] == [
            "0 columns and 64 rows of level 2", "0 columns and 32 rows of level 3",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_all(BitsAllocated=16, BitsStored=16, HighBit=15), "bits allocated 16"),
        (set_all(SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"), "samples per pixel 1"),
        (set_all(PhotometricInterpretation="PALETTE COLOR"), "colours as PALETTE COLOR"),
        (set_all(PlanarConfiguration=1), "planar configuration 1"),
        (set_all(PlanarConfiguration=None), "planar configuration None"),
        (set_all(PixelRepresentation=1), "pixel representation 1"),
    ],
)
def test_other_samples_are_refused_with_the_reason(tmp_path, change, problem):
    write_series(tmp_path, IMAGE, syntax=NATIVE, change=change)
    with pytest.raises(UnsupportedSlide, match=rf"dicom: level0\.dcm .*{problem}") as caught:
        open_slide(tmp_path)
    assert not isinstance(caught.value, DamagedSlide)


def test_other_syntaxes_are_refused_by_name(tmp_path):
    def jpeg_ls(file):
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"

    write_series(tmp_path, IMAGE, syntax=JPEG, change=jpeg_ls)
    with pytest.raises(UnsupportedSlide, match="JPEG-LS"):
        open_slide(tmp_path)


def test_tiff_within_dicom_goes_by_its_name(tmp_path):
    """A file may be both (PS3.10, 7.1). Named .tif it is TIFF, as OpenSlide has it."""
    write_series(tmp_path, IMAGE, syntax=NATIVE)
    data = bytearray((tmp_path / "level0.dcm").read_bytes())
    data[:2] = b"II"
    (tmp_path / "level0.dcm").write_bytes(data)
    (tmp_path / "x.tif").write_bytes(data)
    assert DicomReader(tmp_path / "level0.dcm").info.l0_size == (600, 424)
    with pytest.raises(UnsupportedSlide, match="not a DICOM file"):
        DicomReader(tmp_path / "x.tif")


def test_several_changes_at_once(tmp_path):
    """A header as real ones are: long elements, sequences of undefined length, private ones before the pixels."""

    def private(file):
        file.add_new(0x00091001, "UN", b"\x01" * 40_000)
        file.add_new(0x00090010, "LO", "a maker")
        file.add_new(0x52051001, "OB", b"\x02" * 100_000)

    paths = optical_paths("1")
    paths[0].ICCProfile = b"\x03" * 50_000
    write_series(
        tmp_path, IMAGE, levels=2, syntax=JPEG,
        change=in_turn(private, set_all(OpticalPathSequence=paths), undefined_lengths),
    )  # fmt: skip
    assert_equals_openslide(tmp_path, reads=3)


@pytest.mark.parametrize("by", [(0, 0), (37, -50)])
@pytest.mark.parametrize("kind", [{"syntax": JPEG}, {"syntax": NATIVE, **SPARSE}], ids=["jpeg", "sparse"])
def test_streams_what_regions_give(tmp_path, by, kind):
    """Patches that are tiles, and patches across tiles."""
    write_series(tmp_path, IMAGE, levels=2, **kind)
    coords = every_patch(size=(600, 424), patch_px=128)
    coords = replace(coords, l0_xy_N2=coords.l0_xy_N2 + np.array(by))
    with DicomReader(tmp_path) as slide:
        chunks = list(PatchStream(slide, coords, config=StreamingConfig(batch=7)))
        pixels = np.concatenate([chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy() for chunk in chunks])
        assert len(pixels) == 20
        for l0_xy, patch in zip(coords.l0_xy_N2.tolist(), pixels, strict=True):
            np.testing.assert_array_equal(patch, slide.read(tuple(l0_xy), level=0, size_px=(128, 128)))


def test_a_jpeg_tile_stands_alone(tmp_path):
    """As the GPU's decoder takes it: without its item's header, with its colours stated."""
    write_series(tmp_path, IMAGE, syntax=JPEG, photometric="RGB")
    with DicomReader(tmp_path) as slide:
        jpeg = slide.tile_jpeg(0, 6, slide.fetch_tiles(0, [6])[0])
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(jpeg, "RGB"), slide.read_tile(0, 1, 1))


def test_extended_lengths_may_leave_out_the_padding(tmp_path):
    def unpadded(file):
        lengths = np.frombuffer(file.ExtendedOffsetTableLengths, np.uint64)
        file.ExtendedOffsetTableLengths = (lengths - 1).tobytes()

    write_series(tmp_path / "a", IMAGE, syntax=JPEG, table="extended")
    write_series(tmp_path / "b", IMAGE, syntax=JPEG, table="extended", change=unpadded)
    with open_slide(tmp_path / "a") as slide, open_slide(tmp_path / "b") as same:
        np.testing.assert_array_equal(
            same.read((0, 0), level=0, size_px=(600, 424)), slide.read((0, 0), level=0, size_px=(600, 424))
        )


def test_a_localizer_of_no_known_size_is_left_out(tmp_path):
    write_series(tmp_path, IMAGE)
    write_image(
        tmp_path / "x.dcm",
        IMAGE,
        kind="DERIVED\\PRIMARY\\LOCALIZER",
        change=set_all(TotalPixelMatrixRows=None),
    )
    with open_slide(tmp_path) as slide:
        assert [each.what for each in slide.info.left_out] == ["x.dcm"]
