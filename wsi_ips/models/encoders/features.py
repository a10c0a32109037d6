"""Stored features in the place of an encoder.

Shape suffixes: n patches, C feature width.
"""

import torch
from torch import Tensor, nn

from wsi_ips.errors import ConfigError


class FeatureEncoder(nn.Module):
    """(n, C) of any float type to the same in float32; ``dim`` is C. Has no weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features_nC: Tensor) -> Tensor:
        """Raises :class:`ConfigError` for pixels, or features of another width."""
        if features_nC.ndim != 2 or features_nC.shape[1] != self.dim:
            raise ConfigError(
                f"this network reads stored features of width {self.dim}, not {tuple(features_nC.shape[1:])}"
            )
        return features_nC.to(torch.float32)
