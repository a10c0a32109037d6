"""The network in parts: an encoder of patches, cross-attention over the kept ones, heads.

Receives its parts ready-built (:mod:`wsi_ips.models.build`) and knows nothing of how patches were picked.

Shape suffixes: B bags, M places of the largest bag, K all patches of all bags in a row, n patches, C width
of features, D of embeddings, H heads, T queries.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from wsi_ips.models.bag_net import BagNet, BagReading, scoring
from wsi_ips.models.cross_attention import CrossAttention
from wsi_ips.models.direct_attention import DirectAttention
from wsi_ips.models.heads import Heads
from wsi_ips.models.positions import Positions
from wsi_ips.units import PlaceKind

__all__ = ["BagReading", "IPSNet", "scoring"]


class IPSNet(BagNet):
    """encoder, projector, coarse: see :class:`BagNet`. positions: places to encodings (n, D), which are added to
    embeddings; None adds nothing. A place is what ``place_kind`` names.
    """

    def __init__(
        self,
        encoder: nn.Module,
        attention: CrossAttention | DirectAttention,
        heads: Heads,
        *,
        projector: nn.Module | None = None,
        positions: Positions | None = None,
        coarse: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, heads, projector=projector, coarse=coarse)
        self.attention = attention
        self.positions = positions

    @property
    def place_kind(self) -> PlaceKind | None:
        """How the network wants to be told of places; None: it asks for none."""
        return None if self.positions is None else self.positions.kind

    def logits(self, emb_nD: Tensor, places_n: Tensor) -> Tensor:
        """Pre-softmax attention (n, H, T) of embedded patches at these places."""
        return self.attention.logits(self._placed(emb_nD, places_n))

    def forward(self, pixels: Tensor, places_K: Tensor, counts: Sequence[int]) -> BagReading:
        """Read bags from their patches, with gradients.

        pixels: (K, ...) the patches of all bags one after the other, ``counts`` of them per bag. places_K: one
        for each, as ``place_kind`` says. Only real patches are encoded, so that BatchNorm and attention never
        see padding. Raises ``ValueError`` for a bag without patches: there is nothing to attend to.
        """
        return self.read_features(self.encoder(pixels), places_K, counts)

    def read_features(self, features_KC: Tensor, places_K: Tensor, counts: Sequence[int]) -> BagReading:
        """The same from what the encoder made of the patches. Raises as :meth:`forward`."""
        return self._read(self._placed(self.projector(features_KC), places_K), counts)

    def read_bag(self, emb_nD: Tensor, places_n: Tensor) -> BagReading:
        """Read one bag (B = 1) from embeddings that are there already, and with the direct block say what each
        patch contributes."""
        x_nD = self._placed(emb_nD, places_n)
        reading = self._read(x_nD, [len(emb_nD)])
        if not isinstance(self.attention, DirectAttention):
            return reading
        contributions = {
            task: self.attention.contributions(
                x_nD, reading.attention_BHTM[0], weight_CE, query=self.heads.tokens[task]
            )
            for task, weight_CE in self.heads.weights().items()
        }
        return replace(reading, contributions=contributions)

    def _placed(self, emb_nD: Tensor, places_n: Tensor) -> Tensor:
        if self.positions is None:
            return emb_nD
        # Without waiting for the device: it is still at work on the embeddings.
        encoding_nD: Tensor = self.positions(places_n)
        return emb_nD + encoding_nD.to(emb_nD, non_blocking=emb_nD.is_cuda)

    def _read(self, x_KD: Tensor, counts: Sequence[int]) -> BagReading:
        if not counts or min(counts) < 1:
            raise ValueError(f"every bag needs a patch, got counts {list(counts)}")
        x_BMD = nn.utils.rnn.pad_sequence(list(x_KD.split(list(counts))), batch_first=True)
        empty_BM = None
        if min(counts) < max(counts):
            places_M = torch.arange(max(counts), device=x_KD.device)
            empty_BM = places_M >= torch.tensor(counts, device=x_KD.device)[:, None]
        tokens_BTD, attention_BHTM = self.attention(x_BMD, empty_BM)
        logits = self.heads(tokens_BTD)
        return BagReading(logits, self.heads.probabilities(logits), tokens_BTD, attention_BHTM)
