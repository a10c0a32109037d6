"""The protocols of what streams patches, wherever they come from: a slide, an image, stored features.

Start with :class:`PatchSource` and the :class:`Chunk` that it gives. Shape suffixes: N patches of a bag, n patches
of a chunk, P pixels along a patch's side, W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

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
