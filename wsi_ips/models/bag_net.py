"""What every network that reads bags of patches has, whatever picks the patches.

Shape suffixes: B bags, M patches of the largest bag, n patches or windows, C width of features, D of embeddings, H
heads, T queries, Q window side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wsi_ips.models.coarse import Coarse, EncoderScorer
from wsi_ips.models.heads import Heads
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class BagReading:
    """What the network says of bags: per task logits and probabilities (B, classes); tokens_BTD; attention_BHTM
    over each bag's own patches (0 at empty places).

    contributions: of one bag read by a head that allows it, per task what each patch adds to the logits (M, C);
    with the classifier's bias they sum to the logits exactly. None elsewhere.
    """

    logits: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    tokens_BTD: Tensor
    attention_BHTM: Tensor
    contributions: dict[str, Tensor] | None = None


class BagNet(nn.Module):
    """encoder: one patch at a time, pixels (n, ...) to features (n, C), so that it can work in any portions.

    projector: features to embeddings (n, D); it may look at all patches of a step (BatchNorm). None: they are the
    same. coarse: what looks from afar; None: nothing does.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Heads,
        *,
        projector: nn.Module | None = None,
        coarse: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector or nn.Identity()
        self.heads = heads
        self.coarse = coarse

    @property
    def place_kind(self) -> PlaceKind | None:
        """How the network wants to be told of places; None: it asks for none."""
        return None

    @property
    def feature_width(self) -> int:
        """C, width of the encoder's features."""
        width: Any = self.encoder.dim
        return int(width)

    @property
    def looks_from_afar(self) -> Coarse:
        """What scores windows. Only of networks that have it."""
        assert isinstance(self.coarse, Coarse)
        return self.coarse

    def encode(self, pixels: Tensor) -> Tensor:
        """Patches (n, ...) as the encoder takes them, to embeddings (n, D) without position."""
        embeddings: Tensor = self.projector(self.encoder(pixels))
        return embeddings

    def coarse_logits(self, windows_n3QQ: Tensor) -> Tensor:
        """Logits (n,) of windows seen from afar."""
        scorer = self.looks_from_afar.scorer
        seen = self.encoder(windows_n3QQ) if isinstance(scorer, EncoderScorer) else windows_n3QQ
        logits_n: Tensor = scorer(seen)
        return logits_n


@contextmanager
def scoring(net: nn.Module) -> Iterator[None]:
    """Eval mode for the selection pass; every module's own mode is put back, after an error too."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
