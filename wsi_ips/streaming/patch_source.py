"""What a pass needs of patches, wherever they come from: a slide, an image, stored features."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from wsi_ips.streaming.stream import Chunk
from wsi_ips.units import PlaceKind


class PatchSource(Protocol):
    """All patches of a bag in chunks, some of them again, and where they lie. :class:`PatchStream` is one."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids, in the order given, with the pixels that iterating gave."""
        ...

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Where these patches lie, (n,) int64 or (n, 2) float64 as ``kind`` says, on the CPU.

        Asked only by networks that encode positions.
        """
        ...
