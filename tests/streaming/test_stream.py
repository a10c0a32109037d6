import threading
import time
from collections.abc import Container

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streaming.exact_means import exact_means
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.errors import ConfigError, SlideReadError
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

SIZE = (331, 277)  # multiples of nothing


def picture(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


def every_patch(
    *, size: tuple[int, int] = SIZE, mpp: float = 0.5, patch_px: int = 32, patch_mpp: float = 0.5
) -> PatchCoords:
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=patch_mpp)
    grid = PatchGrid.cover(size, slide_mpp=Mpp(mpp), tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)
    return PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id="drawn",
        l0_size=size,
        slide_mpp=Mpp(mpp),
        tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )


def reader(*, mpp: float = 0.5, levels: tuple[int, ...] = (1, 2, 4)) -> MemoryReader:
    return MemoryReader(picture(), mpp=Mpp(mpp), levels=levels)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wsi_ips-decode")]


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 40), threads=st.integers(1, 4), in_flight=st.integers(1, 4))
def test_every_patch_comes_once_in_grid_order_with_its_own_pixels(
    batch: int, threads: int, in_flight: int
) -> None:
    coords = every_patch()
    config = StreamingConfig(batch=batch, threads=threads, chunks_in_flight=in_flight)
    padded = np.pad(picture(), ((0, 64), (0, 64), (0, 0)), constant_values=255)
    chunks = list(PatchStream(reader(), coords, config=config))
    assert torch.cat([chunk.ids_n for chunk in chunks]).tolist() == coords.ids_N.tolist()
    for chunk in chunks:
        assert chunk.pixels_n3PP.dtype == torch.uint8
        for (x, y), pixels_3PP in zip(chunk.l0_xy_n2.tolist(), chunk.pixels_n3PP, strict=True):
            assert np.array_equal(pixels_3PP.permute(1, 2, 0).numpy(), padded[y : y + 32, x : x + 32])


def test_the_number_of_chunks_is_known_beforehand() -> None:
    stream = PatchStream(reader(), every_patch(), config=StreamingConfig(batch=7))
    assert len(stream) == len(list(stream))


def test_winners_are_read_again_in_the_order_asked() -> None:
    coords = every_patch()
    stream = PatchStream(reader(), coords, config=StreamingConfig(batch=16))
    everything = torch.cat([chunk.pixels_n3PP for chunk in stream])
    wanted = torch.tensor([40, 3, 17])
    again = stream.read(wanted)
    assert again.ids_n.tolist() == [40, 3, 17]
    assert torch.equal(again.pixels_n3PP, everything[wanted])


def test_a_patch_that_is_not_in_the_coordinates_is_refused() -> None:
    stream = PatchStream(reader(), every_patch(), config=StreamingConfig())
    with pytest.raises(KeyError, match="99999"):
        stream.read(torch.tensor([99999]))


def test_a_stream_says_where_its_patches_lie() -> None:
    coords = every_patch(mpp=0.25)
    stream = PatchStream(reader(mpp=0.25), coords, config=StreamingConfig())
    wanted = torch.tensor([12, 3])
    assert stream.places(wanted, "ids").tolist() == [12, 3]
    places = stream.places(wanted, "um")
    assert places.dtype == torch.float64
    assert places.tolist() == coords.um_centres(wanted.numpy()).tolist()
    with pytest.raises(KeyError, match="99999"):
        stream.places(torch.tensor([99999]), "um")


def test_a_level_that_fits_is_read_as_it_is() -> None:
    """At 1.0 µm a 0.5 µm slide with a level at 1/2 gives that level's own pixels."""
    coords = every_patch(patch_mpp=1.0)
    slide = reader()
    pixels_3PP = next(iter(PatchStream(slide, coords, config=StreamingConfig()))).pixels_n3PP[6]
    x, y = coords.l0_xy_N2[6].tolist()
    assert np.array_equal(pixels_3PP.permute(1, 2, 0).numpy(), slide.read((x, y), level=1, size_px=(32, 32)))


@pytest.mark.parametrize(("mpp", "patch_mpp"), [(0.5, 0.7), (0.25, 0.9), (0.243, 0.5)])
def test_where_no_level_fits_a_pixel_is_the_mean_of_its_area(mpp: float, patch_mpp: float) -> None:
    """A picture that rises linearly shows any shift: the patch's mean is the mean of its own footprint."""
    ramp = np.repeat(np.linspace(0, 255, 600)[None, :, None], 300, axis=0).repeat(3, axis=2)
    slide = MemoryReader(ramp.round().astype(np.uint8), mpp=Mpp(mpp), levels=(1,))
    coords = every_patch(size=(600, 300), mpp=mpp, patch_mpp=patch_mpp)
    for chunk in PatchStream(slide, coords, config=StreamingConfig()):
        for (x, y), pixels_3PP in zip(chunk.l0_xy_n2.tolist(), chunk.pixels_n3PP, strict=True):
            if x + coords.l0_patch < 600 and y + coords.l0_patch < 300:
                expected = (x + coords.l0_patch / 2 - 0.5) * 255 / 599
                assert pixels_3PP.float().mean().item() == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("patch_mpp", [0.75, 0.515, 1.03])
def test_patches_are_means_of_the_areas_that_their_pixels_cover(patch_mpp: float) -> None:
    slide = MemoryReader(picture(), mpp=Mpp(0.5), levels=(1,))
    coords = every_patch(patch_mpp=patch_mpp)
    chunk = next(iter(PatchStream(slide, coords, config=StreamingConfig())))
    x, y = coords.l0_xy_N2[1].tolist()
    wanted = exact_means(picture()[y:, x:], inset=(0.0, 0.0), side=coords.l0_patch, patch_px=32)
    assert np.abs(chunk.pixels_n3PP[1].permute(1, 2, 0).numpy() - wanted).max() < 0.51


def test_patches_that_are_much_finer_than_the_slide_are_interpolated() -> None:
    """No rule against it here; whoever lays patches out has asked for it."""
    slide = MemoryReader(picture(), mpp=Mpp(29.0), levels=(1,))
    coords = every_patch(mpp=29.0, patch_mpp=0.5)
    few = coords.only(coords.ids_N[:3])
    pixels = next(iter(PatchStream(slide, few, config=StreamingConfig()))).pixels_n3PP
    assert pixels.shape == (3, 3, 32, 32)
    assert (pixels[0].float().mean(dim=(1, 2)) - torch.from_numpy(picture()[0, 0]).float()).abs().max() < 2


class _Counting(MemoryReader):
    """Counts reads, and fails at some of them."""

    def __init__(self, *, fail_at: Container[int] = ()) -> None:
        super().__init__(picture(), mpp=Mpp(0.5), levels=(1,))
        self.reads = 0
        self.fail_at = fail_at
        self._count = threading.Lock()

    def read(self, l0_xy, *, level, size_px):  # type: ignore[no-untyped-def]
        with self._count:
            self.reads += 1
            if self.reads in self.fail_at:
                raise SlideReadError("drawn.tif", "a tile is broken")
        return super().read(l0_xy, level=level, size_px=size_px)


def test_a_slow_consumer_stops_the_decoders() -> None:
    slide = _Counting()
    stream = iter(PatchStream(slide, every_patch(), config=StreamingConfig(batch=4, chunks_in_flight=2)))
    next(stream)
    time.sleep(0.2)
    assert slide.reads <= 4 * 3  # the one taken, and two in flight
    stream.close()  # type: ignore[attr-defined]


def test_closing_early_leaves_no_thread() -> None:
    stream = iter(PatchStream(_Counting(), every_patch(), config=StreamingConfig(batch=4)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert decoding_threads() == []


def test_a_failed_read_is_tried_again() -> None:
    stream = PatchStream(_Counting(fail_at={20}), every_patch(), config=StreamingConfig(batch=4))
    assert sum(len(chunk) for chunk in stream) == len(every_patch())
    assert stream.telemetry.bad_tiles == []


def test_a_patch_that_stays_unreadable_is_white_and_named() -> None:
    coords = every_patch()
    config = StreamingConfig(batch=4, threads=1, max_bad_tiles=0.02)
    stream = PatchStream(_Counting(fail_at={20, 21}), coords, config=config)
    pixels = torch.cat([chunk.pixels_n3PP for chunk in stream])
    x, y = coords.l0_xy_N2[19].tolist()
    assert stream.telemetry.bad_tiles == [f"patch at ({x}, {y})"]
    assert (pixels[19] == 255).all()


def test_too_many_unreadable_patches_are_an_error_and_leave_no_thread() -> None:
    received: list[Chunk] = []
    stream = PatchStream(_Counting(fail_at={20, 21}), every_patch(), config=StreamingConfig(batch=4))
    with pytest.raises(SlideReadError, match=r"1 of 99 tiles cannot be decoded.*a tile is broken"):
        received.extend(stream)
    assert decoding_threads() == []


class _WithHoles(_Counting):
    """Some corners can never be read."""

    holes: Container[tuple[int, int]] = ()

    def read(self, l0_xy, *, level, size_px):  # type: ignore[no-untyped-def]
        if tuple(l0_xy) in self.holes:
            raise SlideReadError("drawn.tif", "a tile is broken")
        return super().read(l0_xy, level=level, size_px=size_px)


def test_a_bad_patch_that_the_pass_put_up_with_may_be_kept_and_read_again() -> None:
    """1 of 99 was not too much; it is 1 of 2 that are read again, and the slide is still the same."""
    coords, slide = every_patch(), _WithHoles()
    slide.holes = {tuple(coords.l0_xy_N2[19].tolist())}
    stream = PatchStream(slide, coords, config=StreamingConfig(batch=4, max_bad_tiles=0.02))
    assert sum(len(chunk) for chunk in stream) == 99
    again = stream.read(torch.tensor([19, 5]))
    assert (again.pixels_n3PP[0] == 255).all()
    assert not (again.pixels_n3PP[1] == 255).all()
    assert len(stream.telemetry.bad_tiles) == 1


def test_more_bad_patches_than_the_slide_may_have_end_a_second_reading_too() -> None:
    coords, slide = every_patch(), _WithHoles()
    slide.holes = {tuple(corner) for corner in coords.l0_xy_N2[19:22].tolist()}
    stream = PatchStream(slide, coords, config=StreamingConfig(threads=1, max_bad_tiles=0.02))
    with pytest.raises(SlideReadError, match="2 of 4 tiles cannot be decoded"):
        stream.read(torch.tensor([19, 20, 21, 5]))


def test_telemetry_says_what_was_done() -> None:
    stream = PatchStream(reader(), every_patch(), config=StreamingConfig(batch=4))
    list(stream)
    assert stream.telemetry.patches == stream.telemetry.tiles_decoded == 99
    assert stream.telemetry.decode_s > 0
    assert stream.telemetry.waited_s >= 0


def test_a_region_too_large_to_hold_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(ConfigError, match="µm per pixel"):
        PatchStream(reader(mpp=0.0101), every_patch(mpp=0.0101, patch_mpp=90), config=StreamingConfig())


def test_a_part_of_a_slide_has_the_pixels_of_the_whole() -> None:
    """Whether a level is shrunk by the decoder is decided by all corners: some of a part's may lie on its grid
    where the slide's do not."""
    coords = every_patch(patch_mpp=1.1)
    config = StreamingConfig(batch=4)
    whole = torch.cat([chunk.pixels_n3PP for chunk in PatchStream(reader(), coords, config=config)])
    part = PatchStream(reader(), coords, config=config, part=range(4, 10))
    chunks = list(part)
    assert len(part) == len(chunks) == 2
    assert torch.cat([chunk.ids_n for chunk in chunks]).tolist() == coords.ids_N[4:10].tolist()
    assert torch.equal(torch.cat([chunk.pixels_n3PP for chunk in chunks]), whole[4:10])
