"""What a stream is made of."""

from dataclasses import dataclass

from torch import Tensor


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
