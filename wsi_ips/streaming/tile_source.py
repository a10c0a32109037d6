"""Patches out of a slide's stored tiles: each tile is decoded once, however many patches touch it."""

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import RgbImage, TiledReader
from wsi_ips.slides.region import WHITE
from wsi_ips.streaming.bad_tiles import BadTiles
from wsi_ips.streaming.patch_region import PatchRegion
from wsi_ips.streaming.pixel_pool import PixelPool
from wsi_ips.streaming.resample import resampled
from wsi_ips.streaming.telemetry import StreamTelemetry
from wsi_ips.streaming.tile_store import TileStore
from wsi_ips.streaming.tile_uses import TileSpans, tile_uses

SPARE_BUFFERS = 16


class TileSource:
    """Fills chunks, from several threads. Patches may come in any order; row by row is what the cache is for.

    Where a patch is exactly one tile that no other patch needs, it is decoded into the patch's own memory.
    """

    def __init__(
        self,
        slide: TiledReader,
        region: PatchRegion,
        l0_xy_N2: NDArray[np.int64],
        *,
        cache_bytes: int,
        bad: BadTiles,
    ) -> None:
        """l0_xy_N2: all patches that will be asked for, each once. cache_bytes bounds the tiles that wait."""
        self.slide = slide
        self.region = region
        self.grid = slide.tile_layout(region.level)
        self.bad = bad
        uses = tile_uses(region, l0_xy_N2, self.grid)
        bad.expect(int(np.count_nonzero(uses)))
        width, height = self.grid.tile_size
        # Pillow works on four channels; a level that fits needs no Pillow.
        channels = 3 if region.fits else 4
        self.store = TileStore(uses, tiles=cache_bytes // (width * height * channels))
        self.tiles = PixelPool((height, width, channels), spare=SPARE_BUFFERS)
        # A box of whole pixels around a patch that starts inside a pixel is up to two pixels wider.
        self.regions = PixelPool(((int(region.lv_side) + 3) ** 2 * 4,), spare=SPARE_BUFFERS)

    def fill(self, l0_xy_n2: NDArray[np.int64], into_nPPC: NDArray[np.uint8]) -> StreamTelemetry:
        """Write the patches at these corners into (n, P, P, 3) uint8, white beyond the level.

        Raises :class:`SlideReadError` if the file is no longer what it was, or too much of it is unreadable.
        """
        boxes_n4 = self.region.lv_boxes(l0_xy_n2)
        spans = TileSpans.under(boxes_n4, self.grid)
        share = _Share(self, spans)
        others = np.arange(len(l0_xy_n2))
        if self.region.fits:
            exact_n = spans.exact(boxes_n4, self.grid)
            own_n = exact_n >= 0
            own_n[own_n] = self.store.claim_own(exact_n[own_n])
            share.decode_in_place(exact_n[own_n].tolist(), np.flatnonzero(own_n).tolist(), into_nPPC)
            others = np.flatnonzero(~own_n)
        if len(others):
            boxes, ranges = boxes_n4.tolist(), spans.ranges()
            insets = self.region.insets(l0_xy_n2).tolist()
            for place in others.tolist():
                share.read_patch(boxes[place], ranges[place], into_nPPC[place], inset=insets[place])
        share.work.patches = len(l0_xy_n2)
        return share.work


class _Share:
    """One thread's part of a chunk: the stored bytes of its tiles, fetched together, and what the work took."""

    def __init__(self, source: TileSource, spans: TileSpans) -> None:
        self._source = source
        self._level = source.region.level
        self.work = StreamTelemetry()
        started = perf_counter()
        lacking = [n for n in spans.numbers(source.grid).tolist() if source.store.lacks(n)]
        self._stored = dict(zip(lacking, source.slide.fetch_tiles(self._level, lacking), strict=True))
        self.work.read_s += perf_counter() - started

    def decode_in_place(self, numbers: list[int], places: list[int], into_nPPC: NDArray[np.uint8]) -> None:
        """Tiles that are patches."""
        for number, place in zip(numbers, places, strict=True):
            self._decode(number, into_nPPC[place])
        self.work.tile_uses += len(numbers)

    def read_patch(
        self, box: list[int], span: tuple[int, int, int, int], into: RgbImage, *, inset: list[float]
    ) -> None:
        """box: left, top, width, height on the level; span: the tile columns and rows under it."""
        source = self._source
        if source.region.fits:
            self._assemble(box, span, into)
            return
        _, _, width, height = box
        flat = source.regions.take()
        region = flat[: width * height * 4].reshape(height, width, 4)
        self._assemble(box, span, region)
        started = perf_counter()
        into[:] = resampled(
            region, inset=(inset[0], inset[1]), side=source.region.lv_side, patch_px=source.region.patch_px
        )
        self.work.resample_s += perf_counter() - started

    def _assemble(self, box: list[int], span: tuple[int, int, int, int], into: RgbImage) -> None:
        source = self._source
        left, top, width, height = box
        col, end_col, row, end_row = span
        tile_width, tile_height = source.grid.tile_size
        if (
            left < col * tile_width
            or top < row * tile_height
            or left + width > end_col * tile_width
            or top + height > end_row * tile_height
        ):
            into[:] = WHITE
        cells = [(r, c) for r in range(row, end_row) for c in range(col, end_col)]
        tiles = source.store.borrow([r * source.grid.cols + c for r, c in cells], self._new_tile)
        started = perf_counter()
        for (r, c), tile in zip(cells, tiles, strict=True):
            x, y = c * tile_width - left, r * tile_height - top
            into[max(0, y) : y + tile_height, max(0, x) : x + tile_width] = tile[
                max(0, -y) : height - y, max(0, -x) : width - x
            ]
        self.work.assemble_s += perf_counter() - started
        self.work.tile_uses += len(cells)

    def _new_tile(self, number: int) -> RgbImage:
        tile = self._source.tiles.take()
        self._decode(number, tile)
        return tile

    def _decode(self, number: int, out: RgbImage) -> None:
        """Once; a second time on a reopened file; then white."""
        source, started = self._source, perf_counter()
        self.work.tiles_decoded += 1
        try:
            source.slide.decode_tile(self._level, number, self._bytes(number), out)
        except SlideReadError:
            source.slide.reopen()
            self._stored.pop(number, None)
            try:
                source.slide.decode_tile(self._level, number, self._bytes(number), out)
            except SlideReadError as error:
                out[:] = WHITE
                row, col = divmod(number, source.grid.cols)
                source.bad.add(f"level {self._level} tile ({col}, {row})", error)
        self.work.decode_s += perf_counter() - started

    def _bytes(self, number: int) -> memoryview:
        stored: memoryview | None = self._stored.pop(number, None)
        if stored is None:  # it was in the store when the others were fetched, and has been dropped since
            started = perf_counter()
            stored = self._source.slide.fetch_tiles(self._level, [number])[0]
            self.work.read_s += perf_counter() - started
        return stored
