"""What streams patches: the protocols, and all slides of a case as one source.

The protocols of what streams patches, wherever they come from: a slide, an image, stored features.

Start with :class:`PatchSource` and the :class:`Chunk` that it gives.

All slides of a case (a patient) as one bag: :class:`CaseSource` puts their patches one slide after the other.

It is a :class:`wsi_ips.streaming.patch_source.PatchSource`, so that selection, training and prediction need not
know that a bag has several slides. Ids of a case run from 0 to N - 1, in the order of iterating;
:meth:`CaseSource.parts` says which of them belong to which slide.

Places in µm are laid out so that no two slides overlap: the slides lie side by side along x, in the order in which
they are given, each beginning at a multiple of :data:`SLOT_UM`. A standard glass slide is 75 mm long and takes one
slot; a larger one takes as many as it needs. Distances within a slide stay what they are, and the first slide lies
where it would lie by itself.

Shape suffixes: N patches of a bag, n patches of a chunk, P pixels along a patch's side, W windows, n some
patches, N all patches of the case, K all patches of one slide.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from wsi_ips.config import CoarseConfig
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class Chunk:
    """Patches that travel together.

    ``ids_n``, (n,) int64, are their raster indices in the slide's grid. ``l0_xy_n2``, (n, 2) int64, are their
    top-left corners (x, y) in level-0 pixels. ``pixels_n3PP``, (n, 3, P, P) uint8, is RGB on the wanted device,
    channels last in memory.
    """

    ids_n: Tensor
    l0_xy_n2: Tensor
    pixels_n3PP: Tensor

    def __len__(self) -> int:
        return len(self.ids_n)


class PatchSource(Protocol):
    """All patches of a bag in chunks. Some of them can be read again, and their positions can be asked for.

    :class:`wsi_ips.streaming.stream.PatchStream` is one.
    """

    def __iter__(self) -> Iterator[Chunk]: ...

    def ids(self) -> Tensor:
        """The ids of all patches in the order of iterating, (N,) int64 on the CPU."""
        ...

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids, in the order given, with the same pixels that iterating gave."""
        ...

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Positions of the patches with these ids, on the CPU.

        They are (n,) int64 ids or (n, 2) float64 centres, as ``kind`` says.

        Only networks that encode positions ask for them.
        """
        ...


class SomePatches(PatchSource, Protocol):
    """A source that can be narrowed down to some of its patches."""

    def only(self, ids_n: Tensor) -> "SomePatches":
        """The same source, but iterating over the patches with these ids only, in grid order.

        Raises ``KeyError`` for an id that the source does not have.
        """
        ...


class CoarseSource(SomePatches, Protocol):
    """A source whose patches a coarse scorer can see. :class:`wsi_ips.streaming.stream.PatchStream` is one."""

    def windows(self, coarse: CoarseConfig) -> "Windows":
        """The windows in which a coarse scorer sees the patches."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows in which a coarse scorer sees a bag's patches.

    ``source`` gives the windows, with ids from 0 to W - 1 in the order of iterating. ``window_N``, (N,) int64 on
    the CPU, is the window in which each patch lies, patches in the order of :meth:`CoarseSource.ids`.
    """

    source: SomePatches
    window_N: Tensor


SLOT_UM = 80_000.0
"""Width of the place that a slide gets in the layout of its case, in µm."""


class CaseSource:
    """The patches of several slides as one source. Memory: the ids of all patches, and one chunk.

    Args:
        sources: The slides' sources, in an order that does not depend on chance: that of their names.

    Attributes:
        lost: The place of the slide that raised the last error, so that whoever catches it knows which slide
            cannot be read. None: none did.
    """

    def __init__(self, sources: Sequence[PatchSource]) -> None:
        self._sources = tuple(sources)
        self._own_ids = [source.ids() for source in self._sources]
        ends = torch.tensor([0, *(len(ids_K) for ids_K in self._own_ids)]).cumsum(0)
        self._edges = ends
        self._shifts_um: list[float] | None = None
        self.lost: int | None = None

    def parts(self) -> list[range]:
        """The ids of each slide's patches, slide by slide."""
        edges: list[int] = self._edges.tolist()
        return [range(first, end) for first, end in pairwise(edges)]

    def own_ids(self, slide: int, ids_n: Tensor) -> Tensor:
        """The ids that patches of one slide have by themselves, from their ids in the case."""
        return self._own_ids[slide][ids_n.cpu() - self._edges[slide]]

    def __iter__(self) -> Iterator[Chunk]:
        for number, source in enumerate(self._sources):
            row = int(self._edges[number])
            chunks = iter(source)
            while (chunk := self._next(number, chunks)) is not None:
                yield replace(chunk, ids_n=torch.arange(row, row + len(chunk)))
                row += len(chunk)

    def _next(self, number: int, chunks: Iterator[Chunk]) -> Chunk | None:
        with self._reading(number):
            return next(chunks, None)

    def begin(self) -> None:
        """Start to decode the first chunks of the first slide, if it can begin by itself."""
        if self._sources and hasattr(self._sources[0], "begin"):
            self._sources[0].begin()

    def rest(self) -> None:
        """End an iteration that was begun and is not wanted, and free the memory for pixels of all slides."""
        for source in self._sources:
            if hasattr(source, "rest"):
                source.rest()

    def ids(self) -> Tensor:
        """The ids 0 to N - 1, int64."""
        return torch.arange(int(self._edges[-1]))

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids, in the order given. Each slide reads its own in one call.

        Raises ``KeyError`` for an id that the case does not have.
        """
        ids_n = ids_n.cpu()
        pieces, rows = [], []
        for number, rows_k in self._by_slide(ids_n):
            own_k = self.own_ids(number, ids_n[rows_k])
            with self._reading(number):
                pieces.append(self._sources[number].read(own_k))
            rows.append(rows_k)
        if len(pieces) == 1:
            return replace(pieces[0], ids_n=ids_n)
        back_n = torch.cat(rows).argsort()
        pixels = torch.cat([piece.pixels_n3PP for piece in pieces])
        return Chunk(
            ids_n=ids_n,
            l0_xy_n2=torch.cat([piece.l0_xy_n2 for piece in pieces])[back_n],
            pixels_n3PP=pixels[back_n.to(pixels.device)],
        )

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Positions of these patches: for ``um`` their centres (n, 2) float64 in the layout of the case, see the
        module; for ``ids`` the ids themselves.

        Raises ``KeyError`` for an id that the case does not have.
        """
        ids_n = ids_n.cpu()
        if kind == "ids":
            return ids_n
        if self._shifts_um is None:
            self._shifts_um = self._laid_out()
        um_n2 = torch.empty(len(ids_n), 2, dtype=torch.float64)
        for number, rows_k in self._by_slide(ids_n):
            um_k2 = self._own_places(number, self.own_ids(number, ids_n[rows_k]))
            um_n2[rows_k] = um_k2 + torch.tensor([self._shifts_um[number], 0.0], dtype=torch.float64)
        return um_n2

    def _laid_out(self) -> list[float]:
        """Where each slide begins, in µm along x."""
        shifts, slots = [], 0
        for number, ids_K in enumerate(self._own_ids):
            shifts.append(slots * SLOT_UM)
            widest = float(self._own_places(number, ids_K)[:, 0].max()) if len(ids_K) else 0.0
            slots += 1 + int(widest // SLOT_UM)
        return shifts

    def _own_places(self, number: int, own_k: Tensor) -> Tensor:
        with self._reading(number):
            return self._sources[number].places(own_k, "um")

    def _by_slide(self, ids_n: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The number of each slide that has some of these ids, and their rows."""
        outside_n = (ids_n < 0) | (ids_n >= self._edges[-1])
        if outside_n.any():
            raise KeyError(
                f"no patch {int(ids_n[outside_n][0])} in this case of {int(self._edges[-1])} patches"
            )
        slide_n = torch.searchsorted(self._edges, ids_n, right=True) - 1
        for number in slide_n.unique().tolist():
            yield number, (slide_n == number).nonzero()[:, 0]

    @contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        """If an error is raised inside, it is known which slide it belongs to."""
        try:
            yield
        except Exception:
            self.lost = number
            raise
