"""Patches out of a reader that only gives regions: one read a patch."""

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.region import WHITE
from wsi_ips.streaming.bad_tiles import BadTiles
from wsi_ips.streaming.patch_region import PatchRegion
from wsi_ips.streaming.telemetry import StreamTelemetry


class RegionSource:
    """Fills chunks, from several threads, in any order."""

    def __init__(
        self, slide: SlideReader, region: PatchRegion, l0_xy_N2: NDArray[np.int64], *, bad: BadTiles
    ) -> None:
        """l0_xy_N2: all patches that will be asked for."""
        self._slide = slide
        self._region = region
        self._l0_xy_N2 = l0_xy_N2
        self._bad = bad
        bad.expect(len(l0_xy_N2))

    @property
    def patches_are_tiles(self) -> bool:
        """As of :class:`wsi_ips.streaming.tile_source.TileSource`: nothing is known of tiles."""
        return False

    def stored_jpegs(self, start: int, n: int) -> None:
        """As of :class:`wsi_ips.streaming.tile_source.TileSource`."""

    def fill(self, start: int, into_nPPC: NDArray[np.uint8]) -> StreamTelemetry:
        """Write the n patches from place ``start`` on into (n, P, P, 3) uint8, white beyond the level.

        Raises :class:`SlideReadError` if too many patches are unreadable.
        """
        started, n = perf_counter(), len(into_nPPC)
        for place, (l0_x, l0_y) in enumerate(self._l0_xy_N2[start : start + n].tolist()):
            into_nPPC[place] = self._read((l0_x, l0_y))
        return StreamTelemetry(decode_s=perf_counter() - started, patches=n, tile_uses=n, tiles_decoded=n)

    def _read(self, l0_xy: tuple[int, int]) -> NDArray[np.uint8] | int:
        try:
            return self._region.read(self._slide, l0_xy)
        except SlideReadError:
            pass
        try:
            # The reader has reopened itself (see SlideReader).
            return self._region.read(self._slide, l0_xy)
        except SlideReadError as error:
            self._bad.add(f"patch at {l0_xy}", error)
            return WHITE
