"""The paper's projector: reads stored features, or narrows an image encoder's output.

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
