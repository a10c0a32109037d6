"""What a stream is made of.

What a pass needs of patches, wherever they come from: a slide, an image, stored features.
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

    ids_n: (n,) int64, raster index in the slide's grid. l0_xy_n2: (n, 2) int64, top-left corners in level-0
    pixels. pixels_n3PP: (n, 3, P, P) uint8 RGB on the wanted device, channels last in memory.
    """

    ids_n: Tensor
    l0_xy_n2: Tensor
    pixels_n3PP: Tensor

    def __len__(self) -> int:
        return len(self.ids_n)


class PatchSource(Protocol):
    """All patches of a bag in chunks, some of them again, and where they lie. :class:`PatchStream` is one."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def ids(self) -> Tensor:
        """(N,) int64 on the CPU: all patches, in the order of iterating."""
        ...

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids, in the order given, with the pixels that iterating gave."""
        ...

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Where these patches lie, (n,) int64 or (n, 2) float64 as ``kind`` says, on the CPU.

        Asked only by networks that encode positions.
        """
        ...


class SomePatches(PatchSource, Protocol):
    """A source that can be narrowed down."""

    def only(self, ids_n: Tensor) -> "SomePatches":
        """The same patches, iterating over these alone, in grid order. Raises ``KeyError`` as :meth:`read`."""
        ...


class CoarseSource(SomePatches, Protocol):
    """Patches that can be looked at from afar. :class:`PatchStream` is one."""

    def windows(self, coarse: CoarseConfig) -> "Windows":
        """What is seen of them at a coarser resolution."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """source: the windows, ids from 0 to W - 1 in the order of iterating. window_N: (N,) int64 on the CPU, in
    which window each patch lies, patches in the order of :meth:`CoarseSource.ids`."""

    source: SomePatches
    window_N: Tensor
