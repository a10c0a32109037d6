"""Every file tile is decoded once, and what patches show does not depend on how they are cut out of tiles."""

import multiprocessing
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.streaming.exact_means import exact_means
from tests.streaming.test_stream import every_patch
from wsi_ips.config import StreamingConfig
from wsi_ips.drawn.synthetic import write_pyramid
from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage, TiledReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp

SIZE = (1500, 1111)
MPP = Mpp(0.5)


class Counting(TiffReader):
    """Counts how often each tile is decoded; fails at the ones it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.decoded: Counter[int] = Counter()
        self.failing: dict[int, int] = {}
        self.lock = threading.Lock()

    def decode_tile(self, level: int, number: int, data: memoryview, out: RgbImage) -> None:
        with self.lock:
            self.decoded[number] += 1
            fails = self.failing.get(number, 0)
            self.failing[number] = fails - 1
        if fails > 0:
            raise SlideReadError(self.info.path, f"tile {number} is torn")
        super().decode_tile(level, number, data, out)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth blobs with grain, so that a shift by one pixel shows and JPEG keeps most of it."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(60, 250, (SIZE[1] // 16 + 2, SIZE[0] // 16 + 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
    path = tmp_path_factory.mktemp("slides") / "drawn.tif"
    write_pyramid(path, image, mpp=MPP)
    return path


def moved(coords: PatchCoords, by: tuple[int, int]) -> PatchCoords:
    return replace(coords, l0_xy_N2=coords.l0_xy_N2 + np.array(by))


def streamed(reader: TiffReader, coords: PatchCoords, **config: object) -> tuple[np.ndarray, PatchStream]:
    stream = PatchStream(reader, coords, config=StreamingConfig(**{"batch": 7, **config}))
    pixels = [chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy() for chunk in stream]
    return np.concatenate(pixels), stream


def test_the_native_reader_offers_its_tiles(slide_path: Path) -> None:
    with TiffReader(slide_path) as slide, OpenSlideReader(slide_path) as other:
        assert isinstance(slide, TiledReader)
        assert not isinstance(other, TiledReader)


@settings(max_examples=25, deadline=None)
@given(
    patch_px=st.sampled_from([64, 100, 224, 256, 300]),
    by=st.tuples(st.integers(-300, 300), st.integers(-300, 300)),
    threads=st.integers(1, 3),
    batch=st.integers(1, 40),
)
def test_patches_are_the_readers_regions_and_each_tile_is_decoded_once(
    slide_path: Path, patch_px: int, by: tuple[int, int], threads: int, batch: int
) -> None:
    coords = moved(every_patch(size=SIZE, patch_px=patch_px), by)
    with Counting(slide_path) as slide:
        pixels, stream = streamed(slide, coords, threads=threads, batch=batch)
        assert set(slide.decoded.values()) <= {1}
        assert stream.telemetry.tiles_decoded == len(slide.decoded)
        for (x, y), patch in zip(coords.l0_xy_N2.tolist(), pixels, strict=True):
            assert np.array_equal(patch, slide.read((x, y), level=0, size_px=(patch_px, patch_px)))


def test_tiles_that_nobody_touches_are_not_decoded(slide_path: Path) -> None:
    coords = every_patch(size=SIZE, patch_px=256)
    few = np.array([0, 7, 13])
    some = replace(coords, ids_N=few, l0_xy_N2=coords.l0_xy_N2[few], tissue_N=coords.tissue_N[few])
    with Counting(slide_path) as slide:
        streamed(slide, some)
        assert sorted(slide.decoded) == [0, 7, 13]


def test_a_chunk_of_whole_and_shared_tiles_fetches_each_once(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coords = every_patch(size=SIZE, patch_px=256)
    coords.l0_xy_N2[7] += 10  # lies across four tiles, three of which are others' patches
    fetched: Counter[int] = Counter()
    with TiffReader(slide_path) as slide:
        fetch = slide.fetch_tiles
        monkeypatch.setattr(slide, "fetch_tiles", lambda level, ns: (fetched.update(ns), fetch(level, ns))[1])
        streamed(slide, coords, threads=1, batch=len(coords))
    assert set(fetched) == set(range(len(coords)))
    assert set(fetched.values()) == {1}


@pytest.mark.parametrize("patch_mpp", [0.5, 0.8])
def test_a_small_cache_decodes_more_and_shows_the_same(slide_path: Path, patch_mpp: float) -> None:
    coords = moved(every_patch(size=SIZE, patch_px=150, patch_mpp=patch_mpp), (31, 77))
    with Counting(slide_path) as slide:
        whole, _ = streamed(slide, coords)
        once = sum(slide.decoded.values())
        slide.decoded.clear()
        small, _ = streamed(slide, coords, tile_cache_mb=0)
        assert np.array_equal(whole, small)
        assert once == len(slide.decoded) < sum(slide.decoded.values())


class Untiled:
    """The same reader for callers that only know regions."""

    def __init__(self, reader: TiffReader) -> None:
        self.info = reader.info
        self.read = reader.read


@pytest.mark.parametrize(
    ("patch_mpp", "patch_px"), [(1.7, 96), (0.6, 200), (1.0, 224), (2.0, 64), (0.3, 128)]
)
def test_resampled_patches_do_not_depend_on_tiles(slide_path: Path, patch_mpp: float, patch_px: int) -> None:
    coords = every_patch(size=SIZE, patch_px=patch_px, patch_mpp=patch_mpp)
    with TiffReader(slide_path) as slide:
        ours, _ = streamed(slide, coords)
        theirs, _ = streamed(Untiled(slide), coords)  # type: ignore[arg-type]
    assert np.array_equal(ours, theirs)


class FinestLevel(TiffReader):
    """Without the smaller levels, so that everything coarser is resampled from level 0."""

    @property
    def info(self):  # type: ignore[no-untyped-def]
        return replace(super().info, levels=super().info.levels[:1])


@pytest.mark.parametrize(
    ("patch_mpp", "error", "lanczos_error"),
    [(1.0, 1.0, 1.1), (2.0, 0.8, 0.9), (1.5, 0.26, 0.7), (1.03, 0.26, 0.7)],
)
def test_quality_against_the_exact_region(
    slide_path: Path, patch_mpp: float, error: float, lanczos_error: float
) -> None:
    """Mean absolute error in grey levels against the float64 mean of each pixel's area, read with OpenSlide.

    A quarter is what rounding takes. Factors 2 and 4 are the JPEG decoder's own (colour at half resolution is then
    never made larger first, which is most of the difference on this colourful picture). LANCZOS is another filter.
    """
    coords = every_patch(size=SIZE, patch_px=128, patch_mpp=patch_mpp)
    inside = (coords.l0_xy_N2 + coords.l0_patch <= np.array(SIZE)).all(axis=1)
    with FinestLevel(slide_path) as slide:
        ours, _ = streamed(slide, coords)
    errors: list[float] = []
    lanczos: list[float] = []
    with openslide.OpenSlide(slide_path) as exact:
        side = int(np.ceil(coords.l0_patch))
        for place in np.flatnonzero(inside):
            x, y = coords.l0_xy_N2[place].tolist()
            region = exact.read_region((x, y), 0, (side, side)).convert("RGB")
            wanted = exact_means(np.asarray(region), inset=(0.0, 0.0), side=coords.l0_patch, patch_px=128)
            errors.append(np.abs(wanted - ours[place]).mean())
            box = (0, 0, coords.l0_patch, coords.l0_patch)
            other = np.asarray(region.resize((128, 128), Image.Resampling.LANCZOS, box=box))
            lanczos.append(np.abs(other.astype(float) - ours[place]).mean())
    assert np.mean(errors) < error
    assert np.mean(lanczos) < lanczos_error


def test_the_decoders_scaling_on_a_real_slide(real_data: Path) -> None:
    """A quarter of a grey level from the area's mean, four patches in a row of 448 px each."""
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    with FinestLevel(path) as slide:
        coords = every_patch(
            size=slide.info.l0_size,
            mpp=slide.info.known_mpp(),
            patch_px=224,
            patch_mpp=2 * slide.info.known_mpp(),
        )
        ours, stream = streamed(slide, coords)
        exact, _ = streamed(Untiled(slide), coords)  # type: ignore[arg-type]
    assert stream._scale == 2
    assert np.abs(ours.astype(float) - exact).mean() < 0.3


def test_patches_off_the_decoders_grid_are_resampled_exactly(slide_path: Path) -> None:
    """One odd corner decides for all, so that a patch that is read again is the same."""
    coords = moved(every_patch(size=SIZE, patch_px=128, patch_mpp=1.0), (1, 0))
    with FinestLevel(slide_path) as slide:
        ours, _ = streamed(slide, coords)
        exact, _ = streamed(Untiled(slide), coords)  # type: ignore[arg-type]
    assert np.array_equal(ours, exact)


def test_beyond_the_edge_is_white_at_any_scale(slide_path: Path) -> None:
    coords = every_patch(size=SIZE, patch_px=100, patch_mpp=2.0)
    with FinestLevel(slide_path) as slide:
        pixels, _ = streamed(slide, coords)
    for (x, y), patch in zip(coords.l0_xy_N2.tolist(), pixels, strict=True):
        right, bottom = -(-(SIZE[0] - x) // 4), -(-(SIZE[1] - y) // 4)
        assert (patch[:, right:] == 255).all()
        assert (patch[bottom:] == 255).all()
        assert not (patch[: bottom - 1, : right - 1] == 255).all()


def test_a_tile_that_fails_once_is_tried_again_on_a_reopened_file(slide_path: Path) -> None:
    coords = every_patch(size=SIZE, patch_px=256)
    with Counting(slide_path) as slide:
        healthy, _ = streamed(slide, coords)
        before = slide._state
        slide.failing = {8: 1}
        pixels, stream = streamed(slide, coords)
        assert slide._state is not before
    assert np.array_equal(pixels, healthy)
    assert stream.telemetry.bad_tiles == []


@pytest.mark.parametrize("by", [(0, 0), (100, 37)])
def test_a_tile_that_stays_bad_is_white_and_named(slide_path: Path, by: tuple[int, int]) -> None:
    coords = moved(every_patch(size=SIZE, patch_px=256), by)
    with Counting(slide_path) as slide:
        healthy, _ = streamed(slide, coords)
        slide.failing = {8: 99}
        pixels, stream = streamed(slide, coords, max_bad_tiles=0.1)
    assert stream.telemetry.bad_tiles == ["level 0 tile (2, 1)"]
    changed = pixels != healthy
    assert changed.any()
    assert (pixels[changed] == 255).all()
    l0_changed = np.argwhere(changed.any(axis=3))
    l0_xy = coords.l0_xy_N2[l0_changed[:, 0]] + l0_changed[:, :0:-1]
    assert (l0_xy // 256 == [2, 1]).all()


def test_too_many_bad_tiles_end_the_stream(slide_path: Path) -> None:
    with Counting(slide_path) as slide:
        slide.failing = {8: 99}
        with pytest.raises(
            SlideReadError, match=r"drawn\.tif: 1 of 30 tiles cannot be decoded.*max_bad_tiles"
        ):
            streamed(slide, every_patch(size=SIZE, patch_px=256))


@pytest.mark.parametrize("change", ["shrinks", "vanishes"])
def test_a_file_that_changes_under_the_stream_is_an_error_at_once(
    slide_path: Path, tmp_path: Path, change: str
) -> None:
    """Not white tiles: what comes after is lost too."""
    copy = tmp_path / "copy.tif"
    copy.write_bytes(slide_path.read_bytes())
    coords = every_patch(size=SIZE, patch_px=256)
    with TiffReader(copy) as slide:
        chunks = iter(PatchStream(slide, coords, config=StreamingConfig(batch=1, max_bad_tiles=1.0)))
        next(chunks)
        if change == "shrinks":
            with copy.open("r+b") as file:
                file.truncate(copy.stat().st_size // 10)
            with pytest.raises(SlideReadError, match=r"copy\.tif"):
                list(chunks)
        else:
            copy.unlink()  # an open file outlives its name
            assert len(list(chunks)) == len(coords) - 1


def read_in_worker(slide: TiffReader, queue) -> None:  # type: ignore[no-untyped-def]
    queue.put(int(streamed(slide, every_patch(size=SIZE, patch_px=200))[0].sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.slow
def test_a_reader_that_was_opened_here_streams_in_a_worker(slide_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    with TiffReader(slide_path) as slide:
        expected = int(streamed(slide, every_patch(size=SIZE, patch_px=200))[0].sum())
        worker = context.Process(target=read_in_worker, args=(slide, queue))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        assert queue.get() == expected
