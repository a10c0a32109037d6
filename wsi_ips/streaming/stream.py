"""A slide's patches as a bounded, ordered stream of chunks: :class:`PatchStream`.

The stream does not know what the patches are for. It holds ``chunks_in_flight`` chunks whatever the slide's size:
the decoders get a new chunk only when one has been taken, so that a slow consumer stops them. On CUDA, one chunk
more is on its way to the device while the consumer works on the one before it.

Where pixels come from: ``tile_source.py`` for readers that give stored tiles, ``region_source.py`` for all others,
``device_decoder.py`` where tiles that are patches are decoded on the GPU.

Shape suffixes: N patches of the slide, n patches of a chunk, P pixels along a patch's side, C or 3 channels.
"""

import copy
import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from time import perf_counter
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import CoarseConfig, StreamingConfig
from wsi_ips.slides.base import CacheableReader, SlideReader, TiledReader
from wsi_ips.storage.disk_cache import disk_cache
from wsi_ips.streaming.device import DeviceCopies, PixelPool
from wsi_ips.streaming.device_decoder import DecodingFailed, DeviceDecoder, means_the_same, pays
from wsi_ips.streaming.patch_source import Chunk, Windows
from wsi_ips.streaming.region_source import PatchRegion, RegionSource
from wsi_ips.streaming.telemetry import BadTiles, StreamTelemetry, shown_in_threads
from wsi_ips.streaming.tile_source import StoredJpegs, TileSource
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import window_coords
from wsi_ips.timeline import span, staged
from wsi_ips.units import PlaceKind

__all__ = ["Chunk", "PatchStream"]
logger = logging.getLogger(__name__)


class PatchStream:
    """The patches of ``coords`` read from ``slide``, in grid order, as chunks of pixels on a device.

    Iterating gives all patches in chunks of ``config.batch``; :meth:`read` fetches some of them again. The reader
    is borrowed: the caller closes it. A tile that cannot be decoded is tried again on a reopened file, and is then
    white and counted in ``telemetry``. No thread outlives the iteration, however it ends.

    Iterating and :meth:`read` raise :class:`SlideReadError` at the chunk where more than ``config.max_bad_tiles``
    (a share) of the slide's tiles are bad, or where the file is no longer what it was.
    """

    def __init__(
        self,
        slide: SlideReader,
        coords: PatchCoords,
        *,
        config: StreamingConfig,
        device: torch.device | None = None,
        part: range | None = None,
    ) -> None:
        """With ``part``, iterating gives only these patches, counted by their place in ``coords``.

        ``device`` is where pixels go, by default the CPU. With ``config.disk_cache``, the slide's stored bytes are
        read through that cache, if its reader can. How pixels are made is decided for all patches of the
        slide, so that a part has the same pixels as the whole.
        """
        self._slide = slide
        if config.disk_cache is not None and isinstance(slide, CacheableReader):
            slide.read_through(disk_cache(config.disk_cache.folder, config.disk_cache.most_bytes))
        self._rows_N = np.arange(len(coords))[slice(None) if part is None else slice(part.start, part.stop)]
        self._coords = coords
        self._config = config
        self._device = device or torch.device("cpu")
        self._region = PatchRegion.of(
            slide.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
        )
        self._scale = 1
        if isinstance(slide, TiledReader):
            self._region, self._scale = self._region.shrunk(slide, coords.l0_xy_N2)
        self._pool = PixelPool(
            (config.batch, coords.patch_px, coords.patch_px, 3),
            spare=config.chunks_in_flight + 1,
            pinned=self._device.type == "cuda",
        )
        # As long-lived as the pool, whose memory is not to be used again before a copy of it has ended.
        self._copies = DeviceCopies(self._device)
        self._decoder: DeviceDecoder | None = None
        self._decoder_chosen = config.decode == "cpu"
        self._begun: Iterator[Chunk] | None = None
        self.telemetry = StreamTelemetry()

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-len(self._rows_N) // self._config.batch)

    def __iter__(self) -> Iterator[Chunk]:
        begun, self._begun = self._begun, None
        return self._chunks(self._rows_N, self._config.batch) if begun is None else begun

    def begin(self) -> None:
        """Start to decode the first chunks of the next iteration, ``config.chunks_in_flight`` of them.

        Nothing is copied to the device before somebody iterates. Errors of tiles are raised then, too. Whoever
        does not iterate after all calls :meth:`rest`. Where the device may decode (``config.decode``), this does
        nothing, since it would take the device from others.
        """
        if self._config.decode == "cpu" and self._begun is None:
            chunks = self._pass(self._rows_N, self._config.batch)
            next(chunks)
            self._begun = cast(Iterator[Chunk], chunks)

    def rest(self) -> None:
        """End an iteration that was begun and is not wanted, and free memory for pixels that nobody uses."""
        begun, self._begun = self._begun, None
        if begun is not None:
            cast(Generator[Chunk], begun).close()
        self._copies.settle()
        self._pool.forget()

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these grid ids, in the order given, as one chunk.

        Raises ``KeyError`` for an id that is not in the slide's coordinates, and :class:`SlideReadError` as
        iterating does.
        """
        rows = self._coords.rows(ids_n.cpu().numpy())
        return next(self._chunks(rows, len(rows)))

    def read_in_turn(self, ids_n: Tensor, most: int) -> Iterator[Chunk]:
        """The patches with these grid ids, in the order given, ``most`` at a time, as one pass over the file.

        The file is read in its own order, tiles that patches share are decoded once, and so is a patch that is
        asked for several times. Memory: ``config.batch * config.chunks_in_flight`` patches. Of more patches, so
        many in the order given are one pass over the file each.

        Raises ``KeyError`` for an id that is not in the slide's coordinates, and :class:`SlideReadError` as
        iterating does.
        """
        batch = self._config.batch
        rows_n = self._coords.rows(ids_n.cpu().numpy())
        at_once = max(1, batch * self._config.chunks_in_flight // most) * most  # no piece lies in two passes
        for first in range(0, len(rows_n), at_once):
            rows_k, place_k = np.unique(rows_n[first : first + at_once], return_inverse=True)
            # Pixels are kept channels last, as the encoder gets them from iterating.
            pixels_kPPC = torch.cat(
                [chunk.pixels_n3PP.permute(0, 2, 3, 1) for chunk in self._chunks(rows_k, batch)]
            )
            for start in range(0, len(place_k), most):
                part = torch.from_numpy(place_k[start : start + most])
                pixels_nPPC = pixels_kPPC[part.to(pixels_kPPC.device)]
                yield self._chunk(rows_k[part.numpy()], pixels_nPPC.permute(0, 3, 1, 2))

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Positions of the patches with these grid ids, on the CPU.

        For the kind ``ids`` these are the ids themselves, (n,) int64; otherwise the patches' centres, (n, 2)
        float64 (x, y) in µm. Raises ``KeyError`` for an id that is not in the slide's coordinates.
        """
        ids_n = ids_n.cpu()
        return ids_n if kind == "ids" else torch.from_numpy(self._coords.um_centres(ids_n.numpy()))

    def ids(self) -> Tensor:
        """The grid ids of all patches that iterating gives, (N,) int64."""
        return torch.from_numpy(self._coords.ids_N[self._rows_N])

    def only(self, ids_n: Tensor) -> "PatchStream":
        """The same stream, but iterating over the patches with these ids only, in grid order. Telemetry is shared.

        Raises ``KeyError`` for an id that is not in the slide's coordinates.
        """
        narrowed = copy.copy(self)
        narrowed._begun = None
        narrowed._rows_N = np.sort(self._coords.rows(ids_n.cpu().numpy()))
        return narrowed

    def windows(self, coarse: CoarseConfig) -> Windows:
        """The windows in which a coarse scorer sees the patches.

        They are read from the level that serves ``coarse.mpp`` best; telemetry is shared with this stream. If the
        slide has no level between that resolution and the patches', the windows are averaged from the patches' own
        level, with a warning.
        """
        patches = self._coords.only(self._coords.ids_N[self._rows_N])
        coords, window_N = window_coords(patches, coarse)
        stream = PatchStream(self._slide, coords, config=self._config, device=self._device)
        stream.telemetry = self.telemetry
        if stream._region.level == self._region.level and coarse.mpp >= 2 * self._coords.patch_mpp:
            _warn_of_averaging(
                str(self._slide.info.path), self._coords.patch_mpp, coarse.mpp, self._region.level
            )
        return Windows(stream, torch.from_numpy(window_N))

    def _chunks(self, rows_N: NDArray[np.int64], batch: int) -> Iterator[Chunk]:
        """Chunks of these patches, from the first call of ``next`` on."""
        chunks = self._pass(rows_N, batch)
        next(chunks)
        yield from cast(Iterator[Chunk], chunks)

    def _pass(self, rows_N: NDArray[np.int64], batch: int) -> Generator[Chunk | None]:
        """None once the decoders are at work on the first chunks, and then the chunks."""
        starts = iter(range(0, len(rows_N), batch))
        in_flight: deque[_ChunkInFlight] = deque()
        bad = BadTiles(
            self._slide.info.path,
            most_share=self._config.max_bad_tiles,
            of_slide=min(1.0, max(1, len(rows_N)) / max(1, len(self._coords))),
        )
        source = self._source(rows_N, bad)
        decoder = self._choose_decoder()
        # A chunk is one thread's work, since there are more of them; only one alone (the kept patches) is split.
        shares = self._config.threads if len(rows_N) <= batch else 1
        pool = ThreadPoolExecutor(self._config.threads, thread_name_prefix="wsi_ips-decode")

        def refill() -> None:
            while (
                len(in_flight) < self._config.chunks_in_flight and (start := next(starts, None)) is not None
            ):
                rows = rows_N[start : start + batch]
                if decoder is None:
                    in_flight.append(self._submit(pool, source, start, rows, shares=shares))
                else:
                    stored = pool.submit(source.stored_jpegs, start, len(rows))
                    in_flight.append(_ChunkInFlight(start, rows, self._memory(len(rows)), stored=stored))

        try:
            refill()
            yield None
            ahead: Chunk | None = None
            while in_flight or ahead is not None:
                chunk = self._next(in_flight.popleft(), source, decoder) if ahead is None else ahead
                refill()  # before the consumer works: no decoder waits for it
                ahead = None
                if self._copies.run_beside and decoder is None and in_flight and in_flight[0].decoded:
                    ahead = self._finish(in_flight.popleft(), source)
                    refill()
                yield chunk
            self._copies.settle()
            self.telemetry.copy_s += self._copies.take_seconds()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            known = set(self.telemetry.bad_tiles)
            self.telemetry.bad_tiles += [name for name in bad.names if name not in known]

    def _next(
        self,
        coming: "_ChunkInFlight",
        source: TileSource | RegionSource,
        decoder: DeviceDecoder | None,
    ) -> Chunk:
        on_device = None if decoder is None else self._decoded_on_device(coming, decoder)
        return self._finish(coming, source) if on_device is None else on_device

    @staged("plan")
    def _source(self, rows_N: NDArray[np.int64], bad: BadTiles) -> TileSource | RegionSource:
        l0_xy_N2 = self._coords.l0_xy_N2[rows_N]
        if not isinstance(self._slide, TiledReader):
            return RegionSource(self._slide, self._region, l0_xy_N2, bad=bad)
        return TileSource(
            self._slide,
            self._region,
            l0_xy_N2,
            scale=self._scale,
            cache_bytes=self._config.tile_cache_mb << 20,
            bad=bad,
        )

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        source: TileSource | RegionSource,
        start: int,
        rows: NDArray[np.int64],
        *,
        shares: int,
    ) -> "_ChunkInFlight":
        n, pixels_nPPC = len(rows), self._memory(len(rows))
        fill = shown_in_threads(source.fill, slide_id=self._coords.slide_id)
        edges = [n * share // shares for share in range(shares + 1)]
        decoding = [
            pool.submit(fill, start + first, pixels_nPPC[first:end])
            for first, end in pairwise(edges)
            if first < end
        ]
        return _ChunkInFlight(start, rows, pixels_nPPC, decoding)

    def _memory(self, n: int) -> NDArray[np.uint8]:
        """Memory for (n, P, P, 3) uint8 pixels: from the pool, or of its own for more rows than a chunk has (kept
        patches).
        """
        patch_px = self._coords.patch_px
        own = n > self._config.batch
        return np.empty((n, patch_px, patch_px, 3), np.uint8) if own else self._pool.take()[:n]

    def _choose_decoder(self) -> DeviceDecoder | None:
        """Decide whether the device decodes this slide's tiles.

        That is decided once, for all patches, because a patch that is read again needs the same pixels.
        """
        if not self._decoder_chosen:
            self._decoder_chosen = True
            rows_N = np.arange(len(self._coords))
            source = self._source(rows_N, BadTiles(self._slide.info.path, most_share=1.0))
            decoder = DeviceDecoder(self._device, self._coords.patch_px)
            if source.patches_are_tiles:
                n = min(self._config.batch, len(rows_N))
                if n and self._config.decode == "device":
                    wanted = means_the_same(decoder, source, len(rows_N))
                else:
                    wanted = n > 0 and pays(decoder, source, n, threads=self._config.threads)
                self._decoder = decoder if wanted else None
        return self._decoder

    def _decoded_on_device(self, chunk: "_ChunkInFlight", decoder: DeviceDecoder) -> Chunk | None:
        """The chunk, or None if one of its tiles is not a JPEG that the device can decode."""
        assert chunk.stored is not None
        started = perf_counter()
        with span("wait for decoder"):
            stored = chunk.stored.result()
        self.telemetry.waited_s += perf_counter() - started
        if stored is None:
            return None
        started = perf_counter()
        try:
            with span("decode"):
                pixels_n3PP = decoder.decode(stored.jpegs, stored.insides)
        except DecodingFailed:
            return None
        stored.work.decode_s = perf_counter() - started
        self.telemetry.add(stored.work)
        return self._chunk(chunk.rows, pixels_n3PP)

    def _finish(self, chunk: "_ChunkInFlight", source: TileSource | RegionSource) -> Chunk:
        started = perf_counter()
        if chunk.stored is not None:  # the device could not: tiles are tried again here, and named
            self.telemetry.add(source.fill(chunk.start, chunk.pixels_nPPC))
        with span("wait for decoder"):
            for future in chunk.decoding:
                self.telemetry.add(future.result())
        self.telemetry.waited_s += perf_counter() - started
        pixels_nPPC = self._copies.to_device(torch.from_numpy(chunk.pixels_nPPC))
        self.telemetry.copy_s += self._copies.take_seconds()
        return self._chunk(chunk.rows, pixels_nPPC.permute(0, 3, 1, 2))

    def _chunk(self, rows: NDArray[np.int64], pixels_n3PP: Tensor) -> Chunk:
        return Chunk(
            ids_n=torch.from_numpy(self._coords.ids_N[rows]),
            l0_xy_n2=torch.from_numpy(self._coords.l0_xy_N2[rows]),
            pixels_n3PP=pixels_n3PP,
        )


@dataclass(frozen=True, slots=True)
class _ChunkInFlight:
    """Pixels that are being decoded, or the stored tiles of a chunk that a device is going to decode."""

    start: int
    rows: NDArray[np.int64]
    pixels_nPPC: NDArray[np.uint8]
    decoding: list[Future[StreamTelemetry]] = field(default_factory=list)
    stored: Future[StoredJpegs | None] | None = None

    @property
    def decoded(self) -> bool:
        """Whether all pixels are there, without an error that has to be raised at this chunk."""
        return self.stored is None and all(
            future.done() and future.exception() is None for future in self.decoding
        )


@lru_cache(maxsize=1024)  # once a slide: training looks at it in every epoch
def _warn_of_averaging(path: str, fine_mpp: float, coarse_mpp: float, level: int) -> None:
    logger.warning(
        "%s has no level between %g and %g µm per pixel: the coarse scorer's windows are averaged from level %d, "
        "which decodes all of its tissue",
        path,
        fine_mpp,
        coarse_mpp,
        level,
    )
