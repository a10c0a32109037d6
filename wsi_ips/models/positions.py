"""The paper's positional encoding: a 1-D sinusoid over a patch's raster index (IPS reference code)."""

import torch
from torch import Tensor, nn


class RasterSinusoid(nn.Module):
    """PE[p, 2j] = sin(p * 10000**(-2j / dim)), PE[p, 2j + 1] = cos of the same; ``dim`` is even.

    Computed for the indices at hand: no table whose length a slide could exceed. Has no weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, ids_n: Tensor) -> Tensor:
        """Raster indices (n,) int64 to encodings (n, dim) float64, on the device of the indices.

        float64, because a large slide's index times a rate loses its phase in float32.
        """
        even = torch.arange(0, self.dim, 2, dtype=torch.float64, device=ids_n.device)
        angles = ids_n.double()[:, None] * 10000.0 ** (-even / self.dim)
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
