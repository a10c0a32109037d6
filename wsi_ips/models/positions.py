"""Where a patch lies, as numbers that are added to its embedding."""

import math

import torch
from torch import Tensor, nn

from wsi_ips.units import PlaceKind


class Positions(nn.Module):
    """Places of n patches to encodings (n, dim) float64. ``kind`` says how it wants to be told of places.

    float64, because a large slide's place times a rate loses its phase in float32. Has no weights.
    """

    kind: PlaceKind


class RasterSinusoid(Positions):
    """The paper's 1-D encoding (IPS reference code), over a patch's raster index.

    PE[p, 2j] = sin(p * 10000**(-2j / dim)), PE[p, 2j + 1] = cos of the same; ``dim`` is even. Computed for the
    indices at hand: no table whose length a slide could exceed.
    """

    kind: PlaceKind = "ids"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, ids_n: Tensor) -> Tensor:
        """Raster indices (n,) int64 to encodings (n, dim) float64, on the device of the indices."""
        even = torch.arange(0, self.dim, 2, dtype=torch.float64, device=ids_n.device)
        return _waves(ids_n.double()[:, None] * 10000.0 ** (-even / self.dim))


class SlideSinusoid(Positions):
    """2-D: the first half of the width encodes x, the second y, both in µm on the slide.

    Each half holds sine and cosine of dim / 4 wavelengths, which rise geometrically from ``shortest_um`` to
    ``longest_um`` (both included). µm, not grid cells: the same place gets the same encoding at any resolution,
    with any overlap and on a slide of any size. ``dim`` is a multiple of 4.
    """

    kind: PlaceKind = "um"

    def __init__(self, dim: int, *, shortest_um: float, longest_um: float) -> None:
        """Raises ``ValueError`` for a width that is no multiple of 4."""
        super().__init__()
        if dim % 4:
            raise ValueError(f"a 2-D encoding needs a width that is a multiple of 4, not {dim}")
        self.dim = dim
        self._octaves = (math.log2(shortest_um), math.log2(longest_um))

    def forward(self, um_n2: Tensor) -> Tensor:
        """Centres (n, 2) float64 (x, y) in µm to encodings (n, dim) float64, on the device of the centres."""
        wavelengths_um = torch.logspace(
            *self._octaves, self.dim // 4, base=2, dtype=torch.float64, device=um_n2.device
        )
        angles_n2w = um_n2.double()[..., None] * (2 * math.pi / wavelengths_um)
        return torch.cat([_waves(angles_n2w[:, axis]) for axis in (0, 1)], dim=1)


def _waves(angles_nw: Tensor) -> Tensor:
    """sin and cos of each angle, side by side: (n, 2w)."""
    return torch.stack([angles_nw.sin(), angles_nw.cos()], dim=2).flatten(1)
