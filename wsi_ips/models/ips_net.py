"""What every network that reads bags of patches has, whatever picks the patches.

Shape suffixes: B bags, M patches of the largest bag, n patches or windows, C width of features, D of embeddings, H
heads, T queries, Q window side.

Where a patch lies, as numbers that are added to its embedding.

The network in parts: an encoder of patches, an aggregator that reads the kept ones, heads.

Receives its parts ready-built (:mod:`wsi_ips.models.build`) and knows nothing of how patches were picked.

Shape suffixes: B bags, M places of the largest bag, K all patches of all bags in a row, n patches, C width
of features, D of embeddings, H heads, T queries.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wsi_ips.models.aggregators.base import Aggregated, Aggregator
from wsi_ips.models.coarse import Coarse, EncoderScorer
from wsi_ips.models.heads import Heads
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class BagReading:
    """What the network says of bags: per task logits and probabilities (B, classes); tokens_BTD; attention_BHTM
    over each bag's own patches (0 at empty places).

    contributions: of one bag read by a head that allows it, per task what each patch adds to the logits (M, C);
    with the classifier's bias they sum to the logits exactly. None elsewhere.

    task_rows: of one bag, {task: the row of T that its map is drawn from}; None where it is as the tasks'
    configuration says. row_names: names of the rows, where they have any. read: what training learns from beside
    the logits; None of networks without an aggregator.
    """

    logits: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    tokens_BTD: Tensor
    attention_BHTM: Tensor
    contributions: dict[str, Tensor] | None = None
    task_rows: Mapping[str, int] | None = None
    row_names: tuple[str, ...] = ()
    read: "BagsRead | None" = None


@dataclass(frozen=True, slots=True)
class BagsRead:
    """aggregated: what the aggregator made of x_BMD, the embeddings of bags whose empty places are empty_BM.
    bag_weight: factor on the loss of the bags' logits."""

    aggregated: Aggregated
    x_BMD: Tensor
    empty_BM: Tensor | None
    bag_weight: float = 1.0


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


__all__ = ["BagReading", "IPSNet", "scoring"]


class IPSNet(BagNet):
    """encoder, projector, coarse: see :class:`BagNet`. attention: what reads a bag, cross-attention or any other
    aggregator; heads have no layers where it returns logits itself. positions: places to encodings (n, D),
    which are added to embeddings; None adds nothing. A place is what ``place_kind`` names.
    """

    def __init__(
        self,
        encoder: nn.Module,
        attention: Aggregator,
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
        return self._read(self._placed(self.projector(features_KC), places_K), places_K, counts)

    def read_bag(self, emb_nD: Tensor, places_n: Tensor) -> BagReading:
        """Read one bag (B = 1) from embeddings that are there already, and say what each patch contributes where
        the aggregator can tell."""
        x_nD = self._placed(emb_nD, places_n)
        reading = self._read(x_nD, places_n, [len(emb_nD)])
        return replace(
            reading,
            contributions=self.attention.contributions(x_nD, reading.attention_BHTM[0], self.heads),
            task_rows=self.attention.task_rows(reading.probabilities),
        )

    def _placed(self, emb_nD: Tensor, places_n: Tensor) -> Tensor:
        if self.positions is None:
            return emb_nD
        # Without waiting for the device: it is still at work on the embeddings.
        encoding_nD: Tensor = self.positions(places_n)
        return emb_nD + encoding_nD.to(emb_nD, non_blocking=emb_nD.is_cuda)

    def _read(self, x_KD: Tensor, places_K: Tensor, counts: Sequence[int]) -> BagReading:
        if not counts or min(counts) < 1:
            raise ValueError(f"every bag needs a patch, got counts {list(counts)}")
        x_BMD = nn.utils.rnn.pad_sequence(list(x_KD.split(list(counts))), batch_first=True)
        empty_BM = None
        if min(counts) < max(counts):
            places_M = torch.arange(max(counts), device=x_KD.device)
            empty_BM = places_M >= torch.tensor(counts, device=x_KD.device)[:, None]
        places_BM = None
        if self.attention.ordered:
            places_BM = nn.utils.rnn.pad_sequence(list(places_K.split(list(counts))), batch_first=True)
        aggregated = self.attention.read(x_BMD, empty_BM, places_BM)
        logits = self.heads(aggregated.tokens_BTE) if aggregated.logits is None else aggregated.logits
        return BagReading(
            logits,
            self.heads.probabilities(logits),
            aggregated.tokens_BTE,
            aggregated.attention_BHTM,
            row_names=self.attention.row_names(),
            read=BagsRead(aggregated, x_BMD, empty_BM, self.attention.bag_weight),
        )
