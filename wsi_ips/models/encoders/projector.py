"""Projectors: they read stored features, or narrow an image encoder's output.

Shape suffixes: n patches, C input width, D output width.
"""

from torch import Tensor, nn


class Projector(nn.Module):
    """LayerNorm without affine, Linear, BatchNorm, ReLU (Bergner et al. 2023, CAMELYON16 model)."""

    def __init__(self, n_in: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(n_in, eps=1e-5, elementwise_affine=False)
        self.linear = nn.Linear(n_in, dim)
        self.batch_norm = nn.BatchNorm1d(dim)

    def forward(self, x_nC: Tensor) -> Tensor:
        """(n, C) float to (n, D)."""
        projected: Tensor = self.batch_norm(self.linear(self.norm(x_nC))).relu()
        return projected


class PlainProjector(nn.Module):
    """Linear, ReLU, dropout, as attention MIL on stored features has it (CLAM's first layer).

    It looks at each patch by itself: no statistics over the patches of a step, which differ from slide to slide.
    """

    def __init__(self, n_in: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(n_in, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nC: Tensor) -> Tensor:
        """(n, C) float to (n, D)."""
        projected: Tensor = self.dropout(self.linear(x_nC).relu())
        return projected
