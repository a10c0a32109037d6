"""Patches from a slide's stored tiles: each tile is decoded once, however many patches touch it.

Start with :class:`TileSource`, which fills chunks of patches. :class:`TileStore` holds the decoded tiles that
patches still to come will need, in a bounded number of bytes.

Shape suffixes: N patches of the slide, n and k some of them, P pixels along a patch's side, C channels.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import SlideReadError
from wsi_ips.slides.base import WHITE, JpegTiledReader, RgbImage, TiledReader
from wsi_ips.slides.tile_places import Painting, TilesUnder
from wsi_ips.streaming.device import PixelPool
from wsi_ips.streaming.region_source import PatchRegion, resample
from wsi_ips.streaming.telemetry import BadTiles, StreamTelemetry
from wsi_ips.units import Size

SPARE_BUFFERS = 16
"""Unused buffers that are kept for the next tile or region."""

BLOCK = 4096
"""Patches whose geometry is planned at once."""

PLANS = 2
"""Plans that are held: threads on both sides of a block's end use two."""


class TileSource:
    """Fills chunks of patches from stored tiles. Several threads may fill chunks at the same time.

    Patches may come in any order, but the cache is meant for row by row. If a patch is exactly one tile that no
    other patch needs, the tile is decoded straight into the patch's memory.
    """

    def __init__(
        self,
        slide: TiledReader,
        region: PatchRegion,
        l0_xy_N2: NDArray[np.int64],
        *,
        scale: int = 1,
        cache_bytes: int,
        bad: BadTiles,
    ) -> None:
        """Plan the reading of patches from the stored tiles of ``region.level``.

        ``l0_xy_N2`` holds the top-left corners of all patches that are going to be asked for, each once. ``scale``
        is the factor by which the decoder makes tiles smaller (:meth:`PatchRegion.shrunk`). ``cache_bytes`` bounds
        the decoded tiles that are held. ``bad`` counts the tiles that cannot be decoded.
        """
        self.slide = slide
        self.region = region
        self._unscaled = scale == 1 and region.fits
        grid = slide.tile_layout(region.level)
        self._cols = grid.cols
        self.places = grid.places.smaller(scale)
        self.bad = bad
        self._l0_xy_N2 = l0_xy_N2
        self._plans: dict[int, _Plan] = {}
        self._planning = Lock()
        uses = self.places.uses(
            region.lv_boxes(l0_xy_N2[start : start + BLOCK]) for start in range(0, len(l0_xy_N2), BLOCK)
        )
        self._used_once = uses == 1  # remembered, because the store counts ``uses`` down
        bad.expect(int(np.count_nonzero(uses)))
        width, height = self.places.tile_size
        shape = (height, width, 3)
        self.store = TileStore(uses, tile_shape=shape, tiles=cache_bytes // (width * height * 3))
        # A box of whole pixels around a patch that starts inside a pixel is up to two pixels wider.
        self.regions = PixelPool(((int(region.lv_side) + 3) ** 2 * 3,), spare=SPARE_BUFFERS)

    def fill(self, start: int, into_nPPC: NDArray[np.uint8]) -> StreamTelemetry:
        """Fill ``into_nPPC``, (n, P, P, 3) uint8, with the n patches from place ``start`` on.

        What lies beyond the level is white.

        Returns what the work took. Raises :class:`SlideReadError` if the file is no longer what it was, or too
        much of it is unreadable.
        """
        share = _Share(self)
        done = 0
        while done < len(into_nPPC):
            plan = self._plan_at(start + done)
            first = start + done - plan.start
            n = min(len(into_nPPC) - done, len(plan.own_n) - first)
            share.read(plan, slice(first, first + n), into_nPPC[done : done + n])
            done += n
        share.work.patches = done
        return share.work

    @property
    def patches_are_tiles(self) -> bool:
        """Whether every patch is exactly one tile that no other patch needs."""
        plans = (self._plan(start) for start in range(0, len(self._l0_xy_N2), BLOCK))
        return self._unscaled and all((plan.own_n >= 0).all() for plan in plans)

    def stored_jpegs(self, start: int, n: int) -> "StoredJpegs | None":
        """The stored JPEGs of the n patches from place ``start`` on, for a decoder elsewhere.

        None unless each of these patches is exactly one tile, of no other patch, whose JPEG can be decoded by
        itself.
        """
        slide = self.slide
        if not isinstance(slide, JpegTiledReader) or not self._unscaled:
            return None
        try:
            return self._stored_jpegs(slide, start, n)
        except SlideReadError:  # whoever fills the chunk instead tries again, and says which tile it is
            return None

    def _stored_jpegs(self, slide: JpegTiledReader, start: int, n: int) -> "StoredJpegs | None":
        numbers: list[int] = []
        while len(numbers) < n:
            plan = self._plan_at(start + len(numbers))
            first = start + len(numbers) - plan.start
            numbers += plan.own_n[first : first + n - len(numbers)].tolist()
        if min(numbers) < 0:
            return None
        work, level = StreamTelemetry(patches=n, tile_uses=n, tiles_decoded=n), self.region.level
        started = perf_counter()
        # Ascending, as files want it; patches in grid order are anyway.
        order = sorted(range(n), key=numbers.__getitem__)
        stored = slide.fetch_tiles(level, [numbers[place] for place in order])
        jpegs: list[bytes] = [b""] * n
        for place, data in zip(order, stored, strict=True):
            jpeg = slide.tile_jpeg(level, numbers[place], data)
            if jpeg is None:
                return None
            jpegs[place] = jpeg
        work.read_s = perf_counter() - started
        return StoredJpegs(jpegs, [self.places.inside(number) for number in numbers], work)

    def name(self, number: int) -> str:
        """The name of a tile in messages."""
        row, col = divmod(number, self._cols)
        return f"level {self.region.level} tile ({col}, {row})"

    def _plan_at(self, place: int) -> "_Plan":
        """The plan that covers this place. Planning a chunk by itself would cost as much as decoding it."""
        number = place // BLOCK
        with self._planning:
            plan = self._plans.get(number)
            if plan is None:
                plan = self._plans[number] = self._plan(number * BLOCK)
                while len(self._plans) > PLANS:
                    self._plans.pop(next(iter(self._plans)))
            return plan

    def _plan(self, start: int) -> "_Plan":
        l0_xy_n2 = self._l0_xy_N2[start : start + BLOCK]
        boxes_n4 = self.region.lv_boxes(l0_xy_n2)
        under = self.places.under(boxes_n4)
        own_n = np.full(len(l0_xy_n2), -1)
        if self.region.fits:
            exact_n = under.exact()
            own_n = np.where((exact_n >= 0) & self._used_once[exact_n], exact_n, -1)
        return _Plan(start, boxes_n4, under, own_n, self.region.insets(l0_xy_n2))


@dataclass(frozen=True, slots=True)
class StoredJpegs:
    """Patches that are tiles, as they are stored.

    ``insides`` are the (width, height) of each tile that lie within the level; what is beyond has to be white.
    ``work`` is what it took to read them.
    """

    jpegs: list[bytes]
    insides: list[Size]
    work: StreamTelemetry


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the pixels of some patches lie.

    ``own_n`` is the tile that is the patch and no other patch's, or -1.
    """

    start: int
    boxes_n4: NDArray[np.int64]
    under: TilesUnder
    own_n: NDArray[np.int64]
    insets_n2: NDArray[np.float64]


class _Share:
    """One thread's part of a chunk: the stored bytes of its tiles, which are read together, and what the work
    took.
    """

    def __init__(self, source: TileSource) -> None:
        self._source = source
        self._level = source.region.level
        self._stored: dict[int, memoryview] = {}
        self.work = StreamTelemetry()

    def read(self, plan: _Plan, rows: slice, into_nPPC: NDArray[np.uint8]) -> None:
        """Fill the patches of these rows of ``plan``."""
        own_n = plan.own_n[rows]
        own, shared = np.flatnonzero(own_n >= 0), np.flatnonzero(own_n < 0)
        if len(own):
            self._decode_in_place(own_n[own].tolist(), own.tolist(), into_nPPC)
        if len(shared):
            self._assemble_all(plan, rows.start + shared, shared.tolist(), into_nPPC)

    def _assemble_all(
        self, plan: _Plan, rows_k: NDArray[np.int64], places: list[int], into_nPPC: NDArray[np.uint8]
    ) -> None:
        """Fill patches that share tiles with others, or lie across several tiles."""
        under = plan.under.rows(rows_k)
        self._fetch([n for n in under.numbers().tolist() if self._source.store.lacks(n)])
        sizes, insets = plan.boxes_n4[rows_k, 2:].tolist(), plan.insets_n2[rows_k].tolist()
        for place, size, painting, inset in zip(places, sizes, under.paintings(), insets, strict=True):
            self._read_patch(size, painting, into_nPPC[place], inset=inset)

    def _decode_in_place(self, numbers: list[int], places: list[int], into_nPPC: NDArray[np.uint8]) -> None:
        """Decode tiles that are patches.

        The loop is short, because other threads wait for the interpreter's lock.
        """
        self._fetch(numbers)
        decode, level, stored = self._source.slide.decode_tile, self._level, self._stored
        started = perf_counter()
        for number, place in zip(numbers, places, strict=True):
            try:
                decode(level, number, stored.pop(number), into_nPPC[place])
            except SlideReadError:
                self._decode_again(number, into_nPPC[place])
        self.work.decode_s += perf_counter() - started
        self.work.tiles_decoded += len(numbers)
        self.work.tile_uses += len(numbers)

    def _fetch(self, numbers: list[int]) -> None:
        started = perf_counter()
        # Grid order is the file's order within a row of tiles.
        self._stored.update(zip(numbers, self._source.slide.fetch_tiles(self._level, numbers), strict=True))
        self.work.read_s += perf_counter() - started

    def _read_patch(self, size: list[int], painting: Painting, into: RgbImage, *, inset: list[float]) -> None:
        """Fill one patch; ``size`` is the width and height of its box on the level."""
        source = self._source
        if source.region.fits:
            self._assemble(painting, into)
            return
        width, height = size
        flat = source.regions.take()
        region = flat[: width * height * 3].reshape(height, width, 3)
        self._assemble(painting, region)
        started = perf_counter()
        resample(region, into, inset=(inset[0], inset[1]), side=source.region.lv_side)
        self.work.resample_s += perf_counter() - started

    def _assemble(self, painting: Painting, into: RgbImage) -> None:
        if not painting.filled:
            into[:] = WHITE
        tiles = self._source.store.borrow(painting.numbers, self._decode_shared)
        started = perf_counter()
        for place, window, tile_window in painting.moves:
            into[window] = tiles[place].pixels[tile_window]
        self.work.assemble_s += perf_counter() - started
        self.work.tile_uses += len(tiles)

    def _decode_shared(self, number: int, out: RgbImage) -> None:
        data = self._bytes(number)
        started = perf_counter()
        try:
            self._source.slide.decode_tile(self._level, number, data, out)
        except SlideReadError:
            self._decode_again(number, out)
        self.work.decode_s += perf_counter() - started
        self.work.tiles_decoded += 1

    def _decode_again(self, number: int, out: RgbImage) -> None:
        """Try once more on a reopened file; if that fails, the tile is white."""
        source = self._source
        source.slide.reopen()
        self._fetch([number])
        try:
            source.slide.decode_tile(self._level, number, self._bytes(number), out)
        except SlideReadError as error:
            out[:] = WHITE
            source.bad.add(source.name(number), error)

    def _bytes(self, number: int) -> memoryview:
        if number not in self._stored:  # it was in the store when the others were fetched, and is gone since
            self._fetch([number])
        return self._stored.pop(number)


class Tile:
    """A decoded tile on loan. Its memory is used for another tile as soon as nobody holds this one any more.

    Hold the tile itself, not only its ``pixels`` ((height, width, 3) uint8), for as long as they are used.
    """

    __slots__ = ("_begun", "_busy", "_error", "_free", "pixels", "ready")

    def __init__(self, pixels: RgbImage, free: deque[RgbImage]) -> None:
        self.pixels = pixels
        self.ready = False
        self._error: BaseException | None = None
        self._begun = Lock()
        self._busy = Lock()
        self._busy.acquire()
        self._free = free

    def decode_unless_begun(self, decode: Callable[[RgbImage], None]) -> None:
        """Fill the pixels with ``decode``, unless a thread is doing so or has done so.

        Raises what ``decode`` raises.
        """
        if self.ready or not self._begun.acquire(blocking=False):
            return
        try:
            decode(self.pixels)
            self.ready = True
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._busy.release()

    def wait(self) -> None:
        """Wait until the thread that decodes the tile is done.

        Raises what ``decode`` raised there, if it failed.
        """
        with self._busy:
            pass
        if self._error is not None:
            raise self._error

    def __del__(self) -> None:
        self._free.append(self.pixels)


class TileStore:
    """Decodes a tile when it is first borrowed and forgets it when it has been borrowed for the last time.

    Patches come row by row, so that a tile is needed by its neighbours at once and again one row of patches later.
    A quarter of the store holds the tiles that came last. What leaves that quarter is kept for the next row while
    there is room, and dropped otherwise: of a row that is too long to keep, a part is then decoded once, whereas
    keeping the newest would drop each tile just before it is needed again.

    Safe to use from several threads: a tile that one of them is decoding is waited for by the others, and what one
    has asked for but not begun is decoded by whoever needs it first.
    """

    def __init__(self, uses: NDArray[np.int32], *, tile_shape: tuple[int, int, int], tiles: int) -> None:
        """``uses`` says how often each tile is going to be borrowed; ``tiles`` bounds those that are held.

        ``uses`` is counted down.

        ``tile_shape`` is (height, width, 3).
        """
        self._uses = uses.data  # single numbers are read several times faster through it
        self._shape = tile_shape
        self._recent: OrderedDict[int, Tile] = OrderedDict()
        self._recent_limit = max(1, tiles // 4)
        self._kept: dict[int, Tile] = {}
        self._kept_limit = max(0, tiles - self._recent_limit)
        self._free: deque[RgbImage] = deque(maxlen=SPARE_BUFFERS)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._recent) + len(self._kept)

    def lacks(self, number: int) -> bool:
        """Whether borrowing the tile now would decode it."""
        return number not in self._recent and number not in self._kept

    def borrow(self, numbers: Sequence[int], decode: Callable[[int, RgbImage], None]) -> list[Tile]:
        """Lend the tiles with these numbers, in this order. Their pixels are read-only for the borrower.

        ``decode(number, out)`` is called to fill those that nobody has decoded yet. Raises what ``decode`` raises,
        for everyone who waits for one of these tiles.
        """
        tiles: list[Tile] = []
        uses, kept, recent = self._uses, self._kept, self._recent
        with self._lock:
            for number in numbers:
                left = uses[number] = uses[number] - 1
                tile = kept.get(number) or recent.get(number)
                if tile is None:
                    tile = Tile(self._buffer(), self._free)
                    if left > 0:
                        self._admit(number, tile)
                elif left <= 0 and kept.pop(number, None) is None:
                    del recent[number]
                tiles.append(tile)
        # First whatever nobody has begun, though another thread may have asked for it earlier: two threads under
        # one row of large tiles then decode half of them each. Then waiting, and only for tiles under way, so
        # that nobody waits for someone who waits.
        for number, tile in zip(numbers, tiles, strict=True):
            if not tile.ready:
                tile.decode_unless_begun(partial(decode, number))
        for tile in tiles:
            if not tile.ready:
                tile.wait()
        return tiles

    def _buffer(self) -> RgbImage:
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(self._shape, np.uint8)

    def _admit(self, number: int, tile: Tile) -> None:
        self._recent[number] = tile
        if len(self._recent) > self._recent_limit:
            oldest, spilled = self._recent.popitem(last=False)
            if len(self._kept) < self._kept_limit:
                self._kept[oldest] = spilled
