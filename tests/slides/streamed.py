"""Streams of patches against regions, for tests of containers."""

from dataclasses import replace

import numpy as np

from tests.streaming.test_stream import every_patch
from wsi_ips.config import StreamingConfig
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.streaming.stream import PatchStream


def assert_streams_what_it_reads(
    slide: StoredTileReader, *, patch_px: int, by: tuple[int, int] = (0, 0), zoom: int = 1
) -> int:
    """Every patch of a grid is the region that the reader gives, and no tile is decoded twice.

    The grid is moved ``by`` level-0 pixels, and ``zoom`` times coarser than level 0. Returns how many tiles were
    decoded.
    """
    mpp = slide.info.known_mpp()
    coords = every_patch(size=slide.info.l0_size, mpp=mpp, patch_px=patch_px, patch_mpp=mpp * zoom)
    coords = replace(coords, l0_xy_N2=coords.l0_xy_N2 + np.array(by))
    stream = PatchStream(slide, coords, config=StreamingConfig(batch=5, threads=2))
    pixels = np.concatenate([chunk.pixels_n3PP.permute(0, 2, 3, 1).numpy() for chunk in stream])
    level = slide.info.level_for(zoom)
    for l0_xy, patch in zip(coords.l0_xy_N2.tolist(), pixels, strict=True):
        region = slide.read(tuple(l0_xy), level=level, size_px=(patch_px, patch_px))
        np.testing.assert_array_equal(patch, region, err_msg=f"at {l0_xy}")
    decoded = stream.telemetry.tiles_decoded
    assert 0 < decoded <= slide.tile_layout(level).places.n_tiles
    return decoded
