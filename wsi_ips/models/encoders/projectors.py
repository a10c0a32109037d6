"""From the features of an encoder to embeddings: what stands in front of an aggregator.

:class:`PlainProjector` and :class:`Projector` map features to embeddings of another width.
:class:`StandardisedProjector` centres the features first, or brings them to equal scales.

Shape suffixes: n patches, C feature width, D embedding width.
"""

import torch
from torch import Tensor, nn

LEAST_DEVIATION = 0.01
"""Features that vary less than this part of what all vary on average (root mean square) are scaled as if they
varied so much: the noise of a feature that is dead on the patches that were seen is not blown up."""


class Projector(nn.Module):
    """LayerNorm without affine, Linear, BatchNorm, ReLU: (n, C) to (n, D) (Bergner et al. 2023, CAMELYON16
    model).
    """

    def __init__(self, n_in: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(n_in, eps=1e-5, elementwise_affine=False)
        self.linear = nn.Linear(n_in, dim)
        self.batch_norm = nn.BatchNorm1d(dim)

    def forward(self, x_nC: Tensor) -> Tensor:
        """Map features (n, C) float to embeddings (n, D)."""
        projected: Tensor = self.batch_norm(self.linear(self.norm(x_nC))).relu()
        return projected


class PlainProjector(nn.Module):
    """Linear, ReLU, dropout: (n, C) to (n, D). This is the first layer of CLAM, attention MIL on stored
    features.

    It looks at each patch by itself. Statistics over the patches of a step would differ from slide to slide.
    """

    def __init__(self, n_in: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(n_in, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_nC: Tensor) -> Tensor:
        """Map features (n, C) float to embeddings (n, D)."""
        projected: Tensor = self.dropout(self.linear(x_nC).relu())
        return projected


class StandardisedProjector(nn.Module):
    """Subtracts the mean of every feature and divides by a scale, then maps them: (n, C) to (n, D).

    What all patches have in common fills most of what a layer sees of features that are far from zero, and what
    tells patches apart is learned last or never. Means and scales are those of training patches, as the encoder
    sees them before anything is learned (:mod:`wsi_ips.training.standardise`). They stay as they are, so that a
    patch is embedded alike on every slide.

    Args:
        n_in: C.
        projector: Maps the features. None: they are the embeddings.
        each: Whether every feature has a scale of its own, its standard deviation, so that all of them vary alike.
            Otherwise all have the same one, the root mean square of the deviations: features that hardly vary
            stay small.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_in: int, projector: nn.Module | None, *, each: bool = True) -> None:
        super().__init__()
        self.each = each
        self.projector = projector or nn.Identity()
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("deviation", torch.ones(n_in))

    def take(self, mean_C: Tensor, deviation_C: Tensor) -> None:
        """Keep the means and standard deviations of features, in place of those before."""
        deviation_C = deviation_C.double()  # the square of a large float32 is infinite
        of_all = deviation_C.square().mean().sqrt()
        scale_C = deviation_C.clamp(min=float(LEAST_DEVIATION * of_all)) if self.each else of_all
        self.mean.copy_(mean_C)
        self.deviation.copy_(torch.where(of_all > 0, scale_C, 1.0))

    def forward(self, x_nC: Tensor) -> Tensor:
        """Map features (n, C) float to embeddings (n, D)."""
        projected: Tensor = self.projector((x_nC - self.mean) / self.deviation)
        return projected
