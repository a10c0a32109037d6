"""The paper's positional encoding: a 1-D sinusoid over a patch's raster index (Bergner et al. 2023, IPS code)."""

import torch
from torch import Tensor


def sinusoid(ids_n: Tensor, dim: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Encodings (n, dim) of raster indices; ``dim`` is even.

    PE[p, 2j] = sin(p * 10000**(-2j / dim)), PE[p, 2j + 1] = cos of the same. Computed for the indices at
    hand: no table whose length a slide could exceed.
    """
    rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angles = ids_n.to(device=device, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(dtype)
