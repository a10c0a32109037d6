"""What every exporter must do: see :class:`wsi_ips.heatmaps.export.Exporter`.

The values that it writes are its own tests' matter: there is no common way to read them back.

Slides with maps of attention that are drawn for contracts, and the value of a place worked out by hand.

Pictures that are drawn for contracts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError, ResultsError, SlideReadError
from wsi_ips.heatmaps.export import EXPORTS, Exporter, make_exporter
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.inference.results import SlideResult
from wsi_ips.registry import Registry
from wsi_ips.slides.base import Bounds, RgbImage, SlideReader
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.own_names import OwnNameContract
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import L0Point, Mpp, Size

L0_SIZE, SLIDE_MPP = (1511, 997), 0.243
GREY = 200
BOUNDS = Bounds(203, 101, 1100, 800)


@dataclass(frozen=True)
class Drawn:
    """A slide that is a multiple of nothing, its patches' float corners and side, and one value a patch."""

    slide: MemoryReader
    heat: Heat
    l0_corners_N2: NDArray[np.float64]
    l0_patch: float

    def value_at(self, l0_x: float, l0_y: float) -> float:
        """The mean of the patches that hold this point; NaN where none does."""
        inside = (self.l0_corners_N2 <= (l0_x, l0_y)) & ((l0_x, l0_y) < self.l0_corners_N2 + self.l0_patch)
        held = self.heat.values_N[inside.all(axis=1)].astype(np.float64)
        return float(held.mean()) if len(held) else float("nan")


def drawn(
    *,
    patch_px: int = 30,
    overlap_px: int = 0,
    share: float = 0.7,
    queries: int = 1,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> Drawn:
    """A slide of 1511 x 997 pixels, its patches, and attention drawn at random.

    Patches have ``patch_px`` pixels at 0.5 µm: 61.73 level-0 pixels for 30. ``share`` of the grid's cells are
    there.
    """
    rng = np.random.default_rng(seed)
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=0.5, overlap_px=overlap_px)
    grid = PatchGrid.cover(L0_SIZE, slide_mpp=Mpp(SLIDE_MPP), tiling=tiling)
    cells = grid.g_cols * grid.g_rows
    ids = np.flatnonzero(rng.random(cells) < share)
    coords = PatchCoords.on_grid(
        grid,
        ids,
        slide_id="slide_01",
        l0_size=L0_SIZE,
        slide_mpp=Mpp(SLIDE_MPP),
        tiling=tiling,
        tissue_N=np.ones(len(ids), np.float32),
    )
    attention = rng.random((len(ids), 2, queries)).astype(np.float32) ** 4
    attention /= attention.sum(axis=0)
    l0_step = (patch_px - overlap_px) * 0.5 / SLIDE_MPP
    corners = np.stack([ids % grid.g_cols, ids // grid.g_cols], axis=1).astype(np.float64) * l0_step
    image = np.full((L0_SIZE[1], L0_SIZE[0], 3), GREY, np.uint8)
    return Drawn(
        MemoryReader(image, mpp=Mpp(SLIDE_MPP), bounds=bounds),
        choose_heat(result_of(coords, attention)),
        corners,
        patch_px * 0.5 / SLIDE_MPP,
    )


def result_of(coords: PatchCoords, attention_NHT: NDArray[np.float32]) -> SlideResult:
    """The result of a slide with these patches and this attention."""
    return SlideResult(
        slide_path="slide_01.svs",
        coords=coords,
        logits_NHT=np.zeros_like(attention_NHT),
        attention_NHT=attention_NHT,
        kept_ids_M=coords.ids_N[:1],
        kept_scores_M=np.zeros(len(coords.ids_N[:1]), np.float32),
        probabilities={"label": {"normal": 0.0713, "tumor": 0.9287}},
    )


def without_patches() -> Drawn:
    """The same slide, nothing on it."""
    full = drawn()
    coords = full.heat.coords
    none = replace(coords, ids_N=coords.ids_N[:0], l0_xy_N2=coords.l0_xy_N2[:0], tissue_N=coords.tissue_N[:0])
    heat = choose_heat(result_of(none, np.empty((0, 2, 1), np.float32)))
    return Drawn(full.slide, heat, full.l0_corners_N2[:0], full.l0_patch)


class Damaged(MemoryReader):
    """Its pixels cannot be read."""

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        raise SlideReadError(self.info.path, "is damaged")


def white(width: int, height: int, kind: type[MemoryReader] = MemoryReader) -> MemoryReader:
    """A slide of this size that is white all over."""
    return kind(np.full((height, width, 3), 255, np.uint8))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class ExporterContract(OwnNameContract):
    """Subclass with ``name``, an export's; or override the fixture ``exporter``."""

    name: str
    reads_pixels = False
    """Whether it draws the slide's own pixels, so that it fails over a slide that cannot be read."""

    def registry(self) -> Registry[Any]:
        return EXPORTS

    @pytest.fixture
    def exporter(self) -> Exporter:
        """The export with its default options."""
        return make_exporter(self.name, {})

    @pytest.fixture
    def slide(self) -> SlideReader:
        """The slide that was predicted."""
        return drawn().slide

    def test_writes_under_its_name_only(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        path = tmp_path / "new" / f"a.b é{exporter.suffix}"
        exporter.write(path, drawn().heat, slide)
        assert path.exists()
        assert tree(tmp_path)
        assert all(name.startswith("new/a.b é") for name in tree(tmp_path))

    def test_the_same_again_is_the_same_bytes(
        self, exporter: Exporter, slide: SlideReader, tmp_path: Path
    ) -> None:
        """And what was there before is gone."""
        for folder, heats in (("once", [drawn()]), ("again", [drawn(share=0.1, seed=1), drawn()])):
            for each in heats:
                exporter.write(tmp_path / folder / f"a{exporter.suffix}", each.heat, slide)
        assert tree(tmp_path / "once") == tree(tmp_path / "again")

    def test_leaves_the_result_alone(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        heat = drawn(queries=2).heat
        values, attention = heat.values_N.copy(), heat.result.attention_NHT.copy()
        exporter.write(tmp_path / f"a{exporter.suffix}", heat, slide)
        np.testing.assert_array_equal(heat.values_N, values)
        np.testing.assert_array_equal(heat.result.attention_NHT, attention)

    def test_a_slide_without_patches(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        exporter.write(tmp_path / f"a{exporter.suffix}", without_patches().heat, slide)
        assert (tmp_path / f"a{exporter.suffix}").exists()

    def test_another_slide_of_that_name_is_refused(self, exporter: Exporter, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match=r"is 64x65 pixels, but slide_01 was 1511x997"):
            exporter.write(tmp_path / f"a{exporter.suffix}", drawn().heat, white(64, 65))
        assert not tree(tmp_path)

    def test_needs_its_slide_or_does_without(self, exporter: Exporter, tmp_path: Path) -> None:
        path = tmp_path / f"a{exporter.suffix}"
        if not exporter.needs_slide:
            exporter.write(path, drawn().heat, None)
            assert path.exists()
            return
        with pytest.raises(ConfigError, match="needs the slide"):
            exporter.write(path, drawn().heat, None)
        assert not tree(tmp_path)

    def test_what_fails_halfway_leaves_nothing(
        self, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slide that cannot be read; a disk that is full while a file is put in its place."""
        path = tmp_path / f"a{exporter.suffix}"
        if self.reads_pixels:
            with pytest.raises(SlideReadError):
                exporter.write(path, drawn().heat, white(*L0_SIZE, kind=Damaged))
            assert not tree(tmp_path)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            exporter.write(path, drawn().heat, drawn().slide)
        assert not list(tmp_path.iterdir())


Rgb = NDArray[np.uint8]


def tissue_like(width: int, height: int, *, seed: int = 0) -> Rgb:
    """(height, width, 3) uint8: structure on several scales, so that a shifted, swapped or blurred pixel shows.

    The array is the caller's own, and may be written to.
    """
    return _drawn(width, height, seed).copy()


@lru_cache(maxsize=16)
def _drawn(width: int, height: int, seed: int) -> Rgb:
    """Many tests ask for one picture, which takes far longer to draw than to copy."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for scale, weight in ((64, 0.5), (9, 0.35), (1, 0.15)):
        coarse = weight * rng.integers(0, 256, (-(-height // scale), -(-width // scale), 3))
        image += coarse.repeat(scale, axis=0)[:height].repeat(scale, axis=1)[:, :width]
    return image.astype(np.uint8)


def halved(image: Rgb) -> Rgb:
    """The means of two by two pixels, (height // 2, width // 2, 3) uint8, at least one pixel a side."""
    height, width = image.shape[:2]
    size = (max(1, width // 2), max(1, height // 2))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
