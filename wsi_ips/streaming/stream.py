"""A slide's patches as a bounded, ordered stream of chunks.

Knows nothing of what the patches are for. Memory is ``chunks_in_flight`` chunks whatever the slide's size:
a slow consumer stops the decoders, because a chunk is only handed to them when one has been taken.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import StreamingConfig
from wsi_ips.slides.base import SlideReader
from wsi_ips.streaming.device import empty_pixels, to_device
from wsi_ips.streaming.patch_region import PatchRegion
from wsi_ips.tiling.grid import PatchCoords


@dataclass(frozen=True, slots=True)
class Chunk:
    """Patches that travel together.

    ids_n: (n,) int64, raster index in the slide's grid. l0_xy_n2: (n, 2) int64, top-left corners in level-0
    pixels. pixels_n3PP: (n, 3, P, P) uint8 RGB on the wanted device, channels last in memory.
    """

    ids_n: Tensor
    l0_xy_n2: Tensor
    pixels_n3PP: Tensor

    def __len__(self) -> int:
        return len(self.ids_n)


class PatchStream:
    """The patches of ``coords`` out of ``slide``, in grid order.

    Iterate for all of them in chunks of ``config.batch``; :meth:`read` fetches some again. The reader is
    borrowed: the caller closes it. Raises what the reader raises (:class:`SlideReadError`), at the chunk
    where it happened; no thread outlives the iteration, however it ends.
    """

    def __init__(
        self,
        slide: SlideReader,
        coords: PatchCoords,
        *,
        config: StreamingConfig,
        device: torch.device | None = None,
    ) -> None:
        self._slide = slide
        self._coords = coords
        self._config = config
        self._device = device or torch.device("cpu")
        self._region = PatchRegion.of(
            slide.info, patch_px=coords.patch_px, patch_mpp=coords.patch_mpp, slide_mpp=coords.slide_mpp
        )

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-len(self._coords) // self._config.batch)

    def __iter__(self) -> Iterator[Chunk]:
        batch = self._config.batch
        starts = range(0, len(self._coords), batch)
        return self._chunks([np.arange(start, min(start + batch, len(self._coords))) for start in starts])

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these grid ids, in the order given, as one chunk.

        Raises ``KeyError`` for an id that is not in the slide's coordinates.
        """
        wanted = ids_n.cpu().numpy()
        rows = np.searchsorted(self._coords.ids_N, wanted).clip(max=len(self._coords) - 1)
        strangers = wanted[self._coords.ids_N[rows] != wanted]
        if len(strangers):
            raise KeyError(f"patches {strangers[:5].tolist()} are not among the slide's coordinates")
        return next(self._chunks([rows]))

    def _chunks(self, rows_of_chunks: Sequence[NDArray[np.int64]]) -> Iterator[Chunk]:
        waiting = iter(rows_of_chunks)
        in_flight: deque[_ChunkInFlight] = deque()
        pool = ThreadPoolExecutor(self._config.threads, thread_name_prefix="wsi_ips-decode")
        try:
            while True:
                while (
                    len(in_flight) < self._config.chunks_in_flight
                    and (rows := next(waiting, None)) is not None
                ):
                    in_flight.append(self._submit(pool, rows))
                if not in_flight:
                    return
                yield self._finish(in_flight.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, rows: NDArray[np.int64]) -> "_ChunkInFlight":
        pixels_nPPC = empty_pixels(len(rows), self._coords.patch_px, device=self._device)
        # Split by threads, so that one chunk on its own (the kept patches) is decoded in parallel too.
        shares = np.array_split(np.arange(len(rows)), min(self._config.threads, len(rows)))
        futures = [pool.submit(self._decode, rows, share, pixels_nPPC) for share in shares]
        return _ChunkInFlight(rows, pixels_nPPC, futures)

    def _decode(self, rows: NDArray[np.int64], share: NDArray[np.int64], pixels_nPPC: Tensor) -> None:
        into = pixels_nPPC.numpy()
        for place in share:
            l0_x, l0_y = self._coords.l0_xy_N2[rows[place]].tolist()
            into[place] = self._region.read(self._slide, (l0_x, l0_y))

    def _finish(self, chunk: "_ChunkInFlight") -> Chunk:
        for future in chunk.decoding:
            future.result()
        return Chunk(
            ids_n=torch.from_numpy(self._coords.ids_N[chunk.rows]),
            l0_xy_n2=torch.from_numpy(self._coords.l0_xy_N2[chunk.rows]),
            pixels_n3PP=to_device(chunk.pixels_nPPC, self._device).permute(0, 3, 1, 2),
        )


@dataclass(frozen=True, slots=True)
class _ChunkInFlight:
    rows: NDArray[np.int64]
    pixels_nPPC: Tensor
    decoding: list[Future[None]]
