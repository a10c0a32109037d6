"""Coordinates that others laid out, as patches of a slide: what is covered, where, in which order."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.drawn import Drawing
from tests.tiling.foreign_files import write_atlaspatch, write_clam, write_trident
from wsi_ips.config import TilingConfig
from wsi_ips.errors import CoordsError, MissingResolution
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.tiling.coords import read_coords, write_coords
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.tiling.patches import StoredPatches, find_coords, tile_slide
from wsi_ips.units import Mpp

SIZE = (1600, 1200)
# 2 µm per pixel at level 0: 40 px at 4 µm are 80 level-0 pixels, and 40 of level 1.
TILING = TilingConfig(patch_px=40, patch_mpp=4.0)
SCATTERED = np.array([[803, 11], [7, 501], [1577, 1199], [7, 540], [0, 0]])


@pytest.fixture(scope="module")
def slide() -> MemoryReader:
    return Drawing(SIZE).tissue(200, 300, 900, 700).reader(levels=(1, 2, 4))


def found(slide: MemoryReader, folder: Path, tiling: TilingConfig = TILING, *, raster: bool = False,
          mpp: float | None = None) -> PatchCoords:  # fmt: skip
    stored = StoredPatches(folder, tiling, raster=raster)
    return stored(slide, slide_id="s", mpp=None if mpp is None else Mpp(mpp))


def write(program: str, folder: Path, corners: Any = SCATTERED, **more: Any) -> Path:
    """40 px at 4 µm, as each program says it."""
    if program == "clam":
        return write_clam(folder / "patches" / "s.h5", corners, patch_size=40, level=1, downsample=2.0,
                          level_size=(800, 600), **more)  # fmt: skip
    if program == "trident":
        return write_trident(folder / "patches" / "s_patches.h5", corners, patch_size=40, target=2.5,
                             level0=5.0, size=SIZE, **more)  # fmt: skip
    return write_atlaspatch(folder / "patches" / "s.h5", corners, patch_size=40, target=5, level0=10, size=SIZE,
                            **more)  # fmt: skip


PROGRAMS = ["clam", "trident", "atlaspatch"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_corners_are_taken_as_they_are(slide: MemoryReader, tmp_path: Path, program: str) -> None:
    write(program, tmp_path)
    coords = found(slide, tmp_path)
    assert coords.l0_xy_N2.tolist() == SCATTERED.tolist()
    assert coords.ids_N.tolist() == [0, 1, 2, 3, 4]
    assert (coords.slide_id, coords.l0_size, coords.slide_mpp) == ("s", SIZE, 2.0)
    assert (coords.patch_px, coords.patch_mpp, coords.l0_patch) == (40, 4.0, 80.0)
    assert not coords.lies_on_grid
    np.testing.assert_array_equal(coords.um_centres(coords.ids_N), (SCATTERED + 40) * 2.0)
    np.testing.assert_array_equal(coords.l0_exact_corners(), SCATTERED)


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_that_name_a_patch_again_are_noted(slide: MemoryReader, tmp_path: Path, program: str) -> None:
    """They weigh more than the others in every mean, which a user has to know."""
    write(program, tmp_path, SCATTERED)
    assert "earlier row" not in found(slide, tmp_path).note
    write(program, tmp_path, SCATTERED[[0, 1, 2, 0, 3, 0]])
    coords = found(slide, tmp_path)
    assert len(coords) == 6
    assert coords.note == (
        "2 rows of the coordinates file repeat the patch of an earlier row: it is read and counted again"
    )
    write_coords(tmp_path / "again" / "patches" / "s.h5", coords, layout="trident", info=slide.info)
    assert found(slide, tmp_path / "again").note == coords.note, "said once"


@pytest.mark.parametrize("program", PROGRAMS)
def test_cells_of_our_grid_come_back_in_its_order(slide: MemoryReader, tmp_path: Path, program: str) -> None:
    """CLAM walks down columns, contour by contour; the paper's memory depends on the order."""
    ours, _ = tile_slide(slide, TILING, slide_id="s")
    assert len(ours) > 20
    order = np.lexsort((ours.l0_xy_N2[:, 1], ours.l0_xy_N2[:, 0]))
    write(program, tmp_path, ours.l0_xy_N2[order])
    coords = found(slide, tmp_path, raster=True)
    for name in ("ids_N", "l0_xy_N2", "g_size", "l0_patch", "patch_mpp", "overlap_px", "l0_size"):
        np.testing.assert_array_equal(getattr(coords, name), getattr(ours, name))
    assert coords.lies_on_grid


@pytest.mark.parametrize("layout", ["clam", "trident"])
@pytest.mark.parametrize("stripped", [False, True])
def test_our_own_files_give_what_tiling_gave(tmp_path: Path, layout: Any, stripped: bool) -> None:
    """Also where only what CLAM or TRIDENT know is left of them: 51.42 level-0 pixels became 51."""
    slide = Drawing(SIZE).tissue(200, 300, 900, 700).reader(levels=(1, 3))
    slide = MemoryReader(slide.read((0, 0), level=0, size_px=SIZE), mpp=Mpp(0.243), levels=(1, 3))
    tiling = TilingConfig(patch_px=25, patch_mpp=0.5, overlap_px=3)
    ours, _ = tile_slide(slide, tiling, slide_id="s", mpp=None)
    path = tmp_path / ("s.h5" if layout == "clam" else "s_patches.h5")
    write_coords(path, ours, layout=layout, info=slide.info)
    if stripped:
        with h5py.File(path, "r+") as file:
            for name in [name for name in file["coords"].attrs if name.startswith("wsi_ips")]:
                del file["coords"].attrs[name]
            del file["wsi_ips_patch_ids"], file["wsi_ips_tissue"]
    coords = found(slide, tmp_path, tiling, raster=True)
    for name in PatchCoords.__slots__:
        if name != "tissue_N" or not stripped:
            np.testing.assert_array_equal(getattr(coords, name), getattr(ours, name), err_msg=name)


@pytest.mark.parametrize("order", ["kept", "turned round"])
def test_attributes_that_another_program_copied_suffice(tmp_path: Path, order: str) -> None:
    """TRIDENT's features have the attributes of the coordinates that it read, and none of our datasets."""
    slide = Drawing(SIZE).tissue(200, 300, 900, 700).reader(levels=(1, 3))
    tiling = TilingConfig(patch_px=25, patch_mpp=3.3, overlap_px=3)
    ours, _ = tile_slide(slide, tiling, slide_id="s")
    write_coords(tmp_path / "s_patches.h5", ours, layout="trident", info=slide.info)
    with h5py.File(tmp_path / "s_patches.h5", "r+") as file:
        del file["wsi_ips_patch_ids"], file["wsi_ips_tissue"]
        if order != "kept":
            file["coords"][:] = file["coords"][:][::-1]
    coords = read_coords(tmp_path / "s_patches.h5")
    assert (coords.l0_patch, coords.slide_mpp, coords.patch_mpp) == (ours.l0_patch, ours.slide_mpp, 3.3)
    if order == "kept":
        np.testing.assert_array_equal(coords.ids_N, ours.ids_N)
        np.testing.assert_array_equal(coords.l0_exact_corners(), ours.l0_exact_corners())
    else:
        np.testing.assert_array_equal(coords.ids_N, np.arange(len(ours)))
        np.testing.assert_array_equal(coords.l0_xy_N2, ours.l0_xy_N2[::-1])
    assert len(found(slide, tmp_path, tiling)) == len(ours)


def test_a_clam_patch_is_what_clam_reads(real_data: Path, tmp_path: Path) -> None:
    """On a real slide, by OpenSlide's own ``read_region``, at corners that lie on no grid."""
    with OpenSlideReader(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        import openslide

        tiling = TilingConfig(patch_px=128, patch_mpp=slide.info.known_mpp())
        corners = np.array([[333, 17], [1201, 777], [64, 2045]])
        write_clam(tmp_path / "s.h5", corners, patch_size=128, level=0, downsample=1.0,
                   level_size=slide.info.l0_size)  # fmt: skip
        coords = StoredPatches(tmp_path, tiling)(slide, slide_id="s", mpp=None)
        region = PatchRegion.of(slide.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp,
                                slide_mpp=coords.slide_mpp)  # fmt: skip
        with openslide.OpenSlide(real_data / "slides" / "CMU-1-Small-Region.svs") as clam:
            for l0_x, l0_y in coords.l0_xy_N2.tolist():
                theirs = np.asarray(clam.read_region((l0_x, l0_y), 0, (128, 128)).convert("RGB"))
                np.testing.assert_array_equal(region.read(slide, (l0_x, l0_y)), theirs)


def test_a_footprint_is_read_with_the_model_s_pixels(slide: MemoryReader, tmp_path: Path) -> None:
    """CLAM's users cut 80 px of level 0 and shrink them for the encoder: the same tissue as 40 px at 4 µm."""
    write_clam(tmp_path / "s.h5", SCATTERED, patch_size=80, level=0, downsample=1.0, level_size=SIZE)
    coords = found(slide, tmp_path)
    assert (coords.patch_px, coords.patch_mpp, coords.l0_patch) == (40, 4.0, 80.0)
    write_clam(tmp_path / "s.h5", SCATTERED, patch_size=81, level=0, downsample=1.0, level_size=SIZE)
    coords = found(slide, tmp_path)  # off our grid even a pixel is the file's to say
    assert (coords.patch_px, coords.l0_patch) == (40, 81.0)
    assert coords.patch_mpp == pytest.approx(4.05)
    write_clam(tmp_path / "s.h5", SCATTERED, patch_size=84, level=0, downsample=1.0, level_size=SIZE)
    coords = found(slide, tmp_path)
    assert (coords.patch_px, coords.l0_patch) == (40, 84.0)
    assert coords.patch_mpp == pytest.approx(4.2)


def test_a_custom_downsample_counts(slide: MemoryReader, tmp_path: Path) -> None:
    write_clam(tmp_path / "s.h5", SCATTERED, patch_size=40, level=0, downsample=1.0, level_size=SIZE,
               custom_downsample=2)  # fmt: skip
    assert found(slide, tmp_path).l0_patch == 80.0


def test_the_slide_s_resolution_counts_not_the_file_s_magnification(
    slide: MemoryReader, tmp_path: Path
) -> None:
    """TRIDENT calls a 2.1-µm slide 5x: its 80 level-0 pixels are 168 µm wide, not 160."""
    write("trident", tmp_path)
    coords = found(slide, tmp_path, mpp=2.1)
    assert coords.slide_mpp == 2.1
    assert coords.patch_px * coords.patch_mpp == pytest.approx(168)
    silent = MemoryReader(np.full((1200, 1600, 3), 240, np.uint8), mpp=None)
    assert found(silent, tmp_path).slide_mpp == 2.0
    (tmp_path / "patches" / "s_patches.h5").unlink()
    write_clam(tmp_path / "s.h5", SCATTERED, patch_size=80, level=0, downsample=1.0, level_size=SIZE)
    with pytest.raises(MissingResolution):
        found(silent, tmp_path)
    assert found(silent, tmp_path, mpp=2.0).l0_patch == 80.0


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("patch_px", "patch_mpp"), [(40, 3.5), (40, 8.0), (46, 4.0), (20, 4.0)])
def test_patches_of_another_size_are_refused(
    slide: MemoryReader, tmp_path: Path, program: str, patch_px: int, patch_mpp: float
) -> None:
    path = write(program, tmp_path)
    with pytest.raises(CoordsError) as caught:
        found(slide, tmp_path, TilingConfig(patch_px=patch_px, patch_mpp=patch_mpp))
    assert str(path) in str(caught.value)
    assert "40 px at 4 µm (160 µm wide)" in str(caught.value)
    assert f"{patch_px} px at {patch_mpp:g} µm" in str(caught.value)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("corner", [(-1, 5), (5, -70), (1600, 5), (5, 1200), (2**31 - 1, 0)])
def test_corners_outside_the_slide_are_reported(
    slide: MemoryReader, tmp_path: Path, program: str, corner: tuple[int, int]
) -> None:
    write(program, tmp_path, np.array([(3, 4), corner, (9, 9)]))
    with pytest.raises(CoordsError, match=r"1 of 3 patches .*1600x1200 px, the first in row 1"):
        found(slide, tmp_path)


@pytest.mark.parametrize(
    ("program", "other"),
    [
        ("clam", {"level_dim": (801, 600)}),
        ("clam", {"downsampled_level_dim": (800, 599)}),
        ("clam", {"downsample": (4.0, 4.0)}),
        ("trident", {"level0_width": 1601}),
        ("trident", {"level0_height": 1}),
        ("atlaspatch", {"level0_width": 1599}),
    ],
)
def test_another_slide_s_file_is_refused(
    slide: MemoryReader, tmp_path: Path, program: str, other: dict[str, Any]
) -> None:
    path = write(program, tmp_path, **{} if program == "clam" else other)
    if program == "clam":
        with h5py.File(path, "r+") as file:
            file["coords"].attrs.update(other)
    with pytest.raises(CoordsError, match="this very file"):
        found(slide, tmp_path)


def test_our_own_file_of_another_slide_is_refused(slide: MemoryReader, tmp_path: Path) -> None:
    ours, _ = tile_slide(slide, TILING, slide_id="s")
    write_coords(tmp_path / "s.h5", replace(ours, l0_size=(1600, 1201)), layout="trident", info=slide.info)
    with pytest.raises(CoordsError, match=r"1600x1201 px.*is 1600x1200"):
        found(slide, tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("lacks", ["patch_size", "patch_level", "target_magnification", "level0_width"])
def test_attributes_that_are_missing_are_named(
    slide: MemoryReader, tmp_path: Path, program: str, lacks: str
) -> None:
    path = write(program, tmp_path)
    with h5py.File(path, "r+") as file:
        attributes = file.attrs if program == "atlaspatch" else file["coords"].attrs
        if lacks not in attributes:
            return
        del attributes[lacks]
    # Without a magnification it looks like CLAM's, which has a level.
    named = "patch_level" if lacks == "target_magnification" else lacks
    with pytest.raises(CoordsError, match=f"no {named}"):
        found(slide, tmp_path)


@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf"), "None", b"x", (1, 2, 3)])
@pytest.mark.parametrize("name", ["patch_size", "patch_size_level0", "level0_magnification", "level0_width"])
def test_attributes_that_are_broken_are_refused(
    slide: MemoryReader, tmp_path: Path, name: str, value: Any
) -> None:
    path = write("trident", tmp_path)
    with h5py.File(path, "r+") as file:
        file["coords"].attrs[name] = value
    with pytest.raises(CoordsError, match="broken attributes"):
        found(slide, tmp_path)


def test_hostile_datasets_are_refused_before_they_are_read(slide: MemoryReader, tmp_path: Path) -> None:
    path = tmp_path / "s.h5"

    def refused(match: str) -> None:
        with pytest.raises(CoordsError, match=match):
            found(slide, tmp_path)

    for shape, chunks, match in (
        ((10**12, 2), (1000, 2), "of length 1000000000000"),
        ((2 * 10**7, 2), (2 * 10**7, 2), "claims blocks"),
        ((10, 3), None, "shape"),
        ((10,), None, "shape"),
    ):
        with h5py.File(path, "w") as file:
            file.create_dataset("coords", shape=shape, dtype=np.int64, chunks=chunks).attrs["patch_size"] = 1
        refused(match)
    with h5py.File(tmp_path / "other", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)
    with h5py.File(path, "w") as file:
        file["coords"] = h5py.ExternalLink("other", "coords")
    refused("another file")
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((3, 2))
    refused("expected integers")
    with h5py.File(path, "w") as file:
        file.create_group("coords")
    refused("not a plain dataset")
    path.write_bytes(b"no HDF5")
    refused("not an HDF5 file")


@pytest.mark.parametrize("program", PROGRAMS)
def test_damaged_files_are_refused_or_read(slide: MemoryReader, tmp_path: Path, program: str) -> None:
    """Whatever byte is wrong: a :class:`CoordsError`, or patches in the slide. Never another error.

    The same bytes in every run: HDF5's library is C, and what crashes it should be seen at once or not at all.
    """
    path = write(program, tmp_path)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(0, 9)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(whole)) if rng.random() < 0.3 else None])
        try:
            coords = found(slide, tmp_path)
            assert ((coords.l0_xy_N2 >= 0) & (coords.l0_xy_N2 < SIZE)).all()
        except CoordsError:
            refused += 1
    assert 20 < refused < 100


@pytest.mark.parametrize(
    "value", [np.zeros(1000), np.zeros((2, 3)), "40", np.array(["x"] * 2, "S3"), h5py.Empty("f")]
)
@pytest.mark.parametrize("name", ["patch_size", "wsi_ips_l0_patch", "wsi_ips_g_size"])
def test_attributes_that_are_no_small_numbers_are_not_read(
    slide: MemoryReader, tmp_path: Path, name: str, value: Any
) -> None:
    ours, _ = tile_slide(slide, TILING, slide_id="s")
    path = tmp_path / "s.h5"
    write_coords(path, ours, layout="clam", info=slide.info)
    with h5py.File(path, "r+") as file:
        if name == "patch_size":
            del file["coords"].attrs["wsi_ips_l0_patch"]
        file["coords"].attrs[name] = value
    with pytest.raises(CoordsError, match="broken attributes"):
        found(slide, tmp_path)


@pytest.mark.parametrize("name", ["wsi_ips_patch_ids", "wsi_ips_tissue"])
def test_our_own_datasets_are_checked_too(slide: MemoryReader, tmp_path: Path, name: str) -> None:
    ours, _ = tile_slide(slide, TILING, slide_id="s")
    write_coords(tmp_path / "s.h5", ours, layout="clam", info=slide.info)
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        del file[name]
        file.create_dataset(name, shape=(10**12,), dtype=np.int64, chunks=(1000,))
    with pytest.raises(CoordsError, match=name):
        found(slide, tmp_path)


def test_no_file_two_files_and_no_patches(slide: MemoryReader, tmp_path: Path) -> None:
    with pytest.raises(CoordsError, match=r"no coordinates of s; .*s_patches.h5"):
        found(slide, tmp_path)
    write("trident", tmp_path, np.zeros((0, 2), int))
    with pytest.raises(CoordsError, match="holds no patches"):
        found(slide, tmp_path)
    write("clam", tmp_path)
    with pytest.raises(CoordsError, match="one of two files"):
        find_coords(tmp_path, "s")


def test_a_model_that_counts_cells_needs_its_own_grid(slide: MemoryReader, tmp_path: Path) -> None:
    write("clam", tmp_path)
    with pytest.raises(CoordsError, match="another grid"):
        found(slide, tmp_path, raster=True)
    ours, _ = tile_slide(slide, TILING, slide_id="s")
    write("clam", tmp_path, np.concatenate([ours.l0_xy_N2, ours.l0_xy_N2[:1]]))
    with pytest.raises(
        CoordsError, match="another grid"
    ):  # a cell that is there twice has no number of its own
        found(slide, tmp_path, raster=True)


def test_it_goes_to_a_worker(tmp_path: Path) -> None:
    stored = StoredPatches(tmp_path, TILING, raster=True)
    assert pickle.loads(pickle.dumps(stored)) == stored


@given(
    cells=st.sets(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=40),
    mpp=st.floats(0.2, 0.55),
    overlap=st.integers(0, 12),
    seed=st.integers(0, 9),
)
def test_any_cells_in_any_order_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, cells: set[tuple[int, int]], mpp: float, overlap: int, seed: int
) -> None:
    tiling = TilingConfig(patch_px=24, patch_mpp=0.5, overlap_px=overlap)
    grid = PatchGrid.cover(SIZE, slide_mpp=Mpp(mpp), tiling=tiling)
    ids = sorted({(row % grid.g_rows) * grid.g_cols + col % grid.g_cols for col, row in cells})
    corners = grid.l0_corners(np.array(ids))
    shuffled = np.random.default_rng(seed).permutation(corners)
    folder = tmp_path_factory.mktemp("coords")
    slide = MemoryReader(np.zeros((1200, 1600, 3), np.uint8), mpp=Mpp(mpp))
    write_clam(folder / "s.h5", shuffled, patch_size=round(grid.l0_patch), level=0, downsample=1.0,
               level_size=SIZE)  # fmt: skip
    coords = found(slide, folder, tiling)
    assert coords.ids_N.tolist() == ids
    assert coords.l0_xy_N2.tolist() == corners.tolist()
