"""The network that IPS trains: an encoder of patches, an aggregator that reads the kept ones, and heads.

:class:`IPSNet` is the whole network. :class:`BagNet` is what it has in common with the network of attention
sampling, and :class:`BagReading` is what both say of a bag. :class:`Positions` encode where a patch lies, to be
added to its embedding. The network is given its parts ready-built by :mod:`wsi_ips.models.build`, and knows
nothing of how patches were picked.

Shape suffixes: B bags, M patches of the largest bag, K all patches of all bags in a row, n patches or windows, C
width of features, D width of embeddings, E width of tokens, H heads, T queries, Q window side.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wsi_ips.models.aggregators.base import Aggregated, Aggregator
from wsi_ips.models.aggregators.checked import CheckedAggregator
from wsi_ips.models.coarse import Coarse, EncoderScorer
from wsi_ips.models.heads import Heads
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class BagReading:
    """What the network says of bags.

    Attributes:
        logits: For each task, (B, classes).
        probabilities: For each task, (B, classes).
        tokens_BTD: The tokens that the heads read.
        attention_BHTM: Attention over the patches of each bag; 0 at empty places.
        contributions: For each task what each patch adds to the logits, (M, classes); together with the bias of
            the classifier they sum to the logits exactly. Only for a single bag and an aggregator that allows
            it, otherwise None.
        task_rows: For each task the row of T that its map is drawn from, for a single bag. None: the row that
            the configuration of the task says.
        row_names: Names of the rows, if they have any.
        read: What training learns from beside the logits. None for networks without an aggregator.
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
    """What an aggregator read, for losses beside that of the labels.

    Attributes:
        aggregated: The output of the aggregator.
        x_BMD: The embeddings that it read.
        empty_BM: bool, True at places where a bag has no patch; None if there are none.
        bag_weight: Factor on the loss of the labels.
    """

    aggregated: Aggregated
    x_BMD: Tensor
    empty_BM: Tensor | None
    bag_weight: float = 1.0


class BagNet(nn.Module):
    """Base class of networks that read bags of patches, whatever picks the patches.

    Args:
        encoder: Maps patches (n, ...) to features (n, C). It sees each patch by itself, so that it can work on
            any portions.
        heads: The classifiers.
        projector: Maps features to embeddings (n, D). It may look at all patches of a step (BatchNorm). None:
            features and embeddings are the same.
        coarse: The coarse scorer. None: there is none.
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
        """In which form the network wants to be told where patches lie. None: it uses no places."""
        return None

    @property
    def feature_width(self) -> int:
        """C, the width of the features of the encoder."""
        width: Any = self.encoder.dim
        return int(width)

    @property
    def looks_from_afar(self) -> Coarse:
        """The coarse scorer. Only for networks that have one."""
        assert isinstance(self.coarse, Coarse)
        return self.coarse

    def encode(self, pixels: Tensor, *, turns: int = 1) -> Tensor:
        """Map patches (n, ...), as the encoder takes them, to embeddings (n, D) without position.

        Args:
            pixels: The patches.
            turns: In how many orientations they are encoded, 1 to 8: as they are, then each time a quarter turn
                further, from the fifth one on mirrored. The features are averaged. More than one needs pixels
                (n, channels, P, P).
        """
        features = self.encoder(pixels)
        for turn in range(1, turns):
            features = features + self.encoder(turned(pixels, turn).contiguous())
        embeddings: Tensor = self.projector(features / turns if turns > 1 else features)
        return embeddings

    def coarse_logits(self, windows_n3QQ: Tensor) -> Tensor:
        """The logits (n,) that the coarse scorer gives to windows (n, 3, Q, Q)."""
        scorer = self.looks_from_afar.scorer
        seen = self.encoder(windows_n3QQ) if isinstance(scorer, EncoderScorer) else windows_n3QQ
        logits_n: Tensor = scorer(seen)
        return logits_n


def turned(patches: Tensor, symmetry: int) -> Tensor:
    """Turn square patches (..., P, P) by ``symmetry % 4`` quarters, and mirror them if it is 4 or more."""
    quarters = torch.rot90(patches, symmetry % 4, dims=(-2, -1))
    return quarters.flip(-1) if symmetry >= 4 else quarters


class Positions(nn.Module):
    """Base class of encodings of places: the places of n patches to encodings (n, dim) float64.

    ``kind`` says in which form it wants to be told of places. The result is float64, because the place on a
    large slide times a rate loses its phase in float32. Encodings have no weights.
    """

    kind: PlaceKind


class RasterSinusoid(Positions):
    """The 1-D encoding of the paper, over the raster index of a patch (IPS reference code).

    PE[p, 2j] = sin(p * 10000**(-2j / dim)), and PE[p, 2j + 1] is the cosine of the same. ``dim`` is even.
    Encodings are computed for the indices at hand, so there is no table whose length a slide could exceed.
    """

    kind: PlaceKind = "ids"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, ids_n: Tensor) -> Tensor:
        """Encode raster indices (n,) int64 as (n, dim) float64, on their device."""
        even = torch.arange(0, self.dim, 2, dtype=torch.float64, device=ids_n.device)
        return _waves(ids_n.double()[:, None] * 10000.0 ** (-even / self.dim))


class SlideSinusoid(Positions):
    """A 2-D encoding: the first half of the width encodes x, the second y, both in µm on the slide.

    Each half holds sine and cosine of dim / 4 wavelengths, which rise geometrically from ``shortest_um`` to
    ``longest_um``, both included. Because it counts in µm and not in grid cells, a place gets the same encoding
    at any resolution, with any overlap, and on a slide of any size.
    """

    kind: PlaceKind = "um"

    def __init__(self, dim: int, *, shortest_um: float, longest_um: float) -> None:
        """Choose the width and the wavelengths.

        Args:
            dim: Width of the encoding, a multiple of 4.
            shortest_um: Shortest wavelength in µm.
            longest_um: Longest wavelength in µm.

        Raises:
            ValueError: ``dim`` is not a multiple of 4.
        """
        super().__init__()
        if dim % 4:
            raise ValueError(f"the width of a 2-D encoding must be a multiple of 4, not {dim}")
        self.dim = dim
        self._octaves = (math.log2(shortest_um), math.log2(longest_um))

    def forward(self, um_n2: Tensor) -> Tensor:
        """Encode centres (n, 2) float64 (x, y) in µm as (n, dim) float64, on their device."""
        wavelengths_um = torch.logspace(
            *self._octaves, self.dim // 4, base=2, dtype=torch.float64, device=um_n2.device
        )
        angles_n2w = um_n2.double()[..., None] * (2 * math.pi / wavelengths_um)
        return torch.cat([_waves(angles_n2w[:, axis]) for axis in (0, 1)], dim=1)


def _waves(angles_nw: Tensor) -> Tensor:
    """Sine and cosine of each angle, side by side: (n, 2w)."""
    return torch.stack([angles_nw.sin(), angles_nw.cos()], dim=2).flatten(1)


class IPSNet(BagNet):
    """The network of iterative patch selection.

    Args:
        encoder: See :class:`BagNet`.
        attention: Reads a bag: cross-attention or any other aggregator.
        heads: The classifiers. They have no layers if the aggregator returns logits itself.
        projector: See :class:`BagNet`.
        positions: Encodes places as (n, D), which is added to the embeddings. None adds nothing. What a place
            is, ``place_kind`` says.
        coarse: See :class:`BagNet`.
        checked: Checks what another package's ``attention`` returns. None: nothing is checked.
        scorer: A network on the features of ``encoder`` that scores patches in place of this one. It does not
            learn. None: this one does.
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
        checked: CheckedAggregator | None = None,
        scorer: "IPSNet | None" = None,
    ) -> None:
        super().__init__(encoder, heads, projector=projector, coarse=coarse)
        self.scorer = None if scorer is None else scorer.requires_grad_(False)
        self.attention = attention
        self.positions = positions
        self._checked = checked

    @property
    def place_kind(self) -> PlaceKind | None:
        """In which form the network wants to be told where patches lie. None: it uses no places."""
        return None if self.positions is None else self.positions.kind

    @property
    def _drawn(self) -> Aggregator:
        """The aggregator whose scores of all patches are the map of a slide."""
        return self.attention if self.scorer is None else self.scorer.attention

    def logits(self, emb_nD: Tensor, places_n: Tensor) -> Tensor:
        """The attention logits (n, H, T) of embedded patches at these places."""
        x_nD = self.placed(emb_nD, places_n)
        scores_nHT = self.attention.logits(x_nD)
        return scores_nHT if self._checked is None else self._checked.scores(scores_nHT, x_nD)

    def forward(self, pixels: Tensor, places_K: Tensor, counts: Sequence[int]) -> BagReading:
        """Read bags from their patches, with gradients.

        Only real patches are encoded, so that BatchNorm and attention never see padding.

        Args:
            pixels: (K, ...), the patches of all bags, one bag after the other.
            places_K: A place for each patch, in the form that ``place_kind`` says.
            counts: How many patches each bag has.

        Raises:
            ValueError: There is no bag, or a bag has no patches.
        """
        return self.read_features(self.encoder(pixels), places_K, counts)

    def read_features(self, features_KC: Tensor, places_K: Tensor, counts: Sequence[int]) -> BagReading:
        """Read bags from the output of the encoder, with gradients.

        Args:
            features_KC: Features of the patches of all bags, one bag after the other.
            places_K: A place for each patch, in the form that ``place_kind`` says.
            counts: How many patches each bag has.

        Raises:
            ValueError: There is no bag, or a bag has no patches.
        """
        return self._read(self.placed(self.projector(features_KC), places_K), places_K, counts)

    def read_bag(self, emb_nD: Tensor, places_n: Tensor) -> BagReading:
        """Read one bag (B = 1) from embeddings, and say what each patch contributes if the aggregator can tell.

        Args:
            emb_nD: Embeddings of the patches, without position.
            places_n: A place for each patch, in the form that ``place_kind`` says.

        Raises:
            ValueError: There are no patches.
        """
        x_nD = self.placed(emb_nD, places_n)
        reading = self._read(x_nD, places_n, [len(emb_nD)])
        contributions = self.attention.contributions(x_nD, reading.attention_BHTM[0], self.heads)
        if self._checked is not None:
            contributions = self._checked.contributions(contributions, len(x_nD))
        return replace(
            reading,
            contributions=contributions,
            task_rows=self._drawn.task_rows(reading.probabilities),
        )

    def read_placed(self, x_nD: Tensor) -> BagReading:
        """Read one bag from what :meth:`placed` gave.

        An aggregator that reads patches in order takes the given one.

        Args:
            x_nD: Embeddings of the patches, with the encoding of their places.

        Raises:
            ValueError: There are no patches.
        """
        return self._read(x_nD, None, [len(x_nD)])

    def gradients(self, emb_nD: Tensor, places_n: Tensor) -> dict[str, Tensor]:
        """Gradient times input of each patch of one bag: for each task (n, classes).

        For a class with the logit s it is the sum over d of x[d] * ds/dx[d], where x is what the aggregator reads
        of the patch: its embedding, with the encoding of its place where the network has one. The gradient is the
        full one, through the attention as well. A survival task has log hazards in place of logits
        (:meth:`wsi_ips.models.heads.Heads.explained`). Works in any mode, also under ``torch.no_grad``; nothing is
        accumulated in the gradients of the weights.

        Args:
            emb_nD: Embeddings of the patches, without position.
            places_n: A place for each patch, in the form that ``place_kind`` says.

        Raises:
            ValueError: There are no patches.
        """
        with torch.enable_grad():
            x_nD = self.placed(emb_nD, places_n).detach().requires_grad_()
            told = self.heads.explained(self._read(x_nD, places_n, [len(x_nD)]).logits)
            return {
                task: torch.stack(
                    [
                        (x_nD * torch.autograd.grad(output, x_nD, retain_graph=True)[0]).sum(dim=1).detach()
                        for output in outputs_1C[0]
                    ],
                    dim=1,
                )
                for task, outputs_1C in told.items()
            }

    def placed(self, emb_nD: Tensor, places_n: Tensor) -> Tensor:
        """Embeddings (n, D) with the encoding of their places added, where the network has one."""
        if self.positions is None:
            return emb_nD
        # The device is still at work on the embeddings; non_blocking does not wait for it.
        encoding_nD: Tensor = self.positions(places_n)
        return emb_nD + encoding_nD.to(emb_nD, non_blocking=emb_nD.is_cuda)

    def _read(self, x_KD: Tensor, places_K: Tensor | None, counts: Sequence[int]) -> BagReading:
        if not counts or min(counts) < 1:
            raise ValueError(f"every bag needs a patch, but the counts are {list(counts)}")
        x_BMD = nn.utils.rnn.pad_sequence(list(x_KD.split(list(counts))), batch_first=True)
        empty_BM = None
        if min(counts) < max(counts):
            places_M = torch.arange(max(counts), device=x_KD.device)
            empty_BM = places_M >= torch.tensor(counts, device=x_KD.device)[:, None]
        places_BM = None
        if self.attention.ordered and places_K is not None:
            places_BM = nn.utils.rnn.pad_sequence(list(places_K.split(list(counts))), batch_first=True)
        aggregated = self.attention.read(x_BMD, empty_BM, places_BM)
        if self._checked is not None:
            self._checked.read(self.attention, aggregated, x_BMD, rows=self.heads.queries)
        logits = self.heads(aggregated.tokens_BTE) if aggregated.logits is None else aggregated.logits
        return BagReading(
            logits,
            self.heads.probabilities(logits),
            aggregated.tokens_BTE,
            aggregated.attention_BHTM,
            row_names=self._drawn.row_names(),
            read=BagsRead(aggregated, x_BMD, empty_BM, self.attention.bag_weight),
        )


@contextmanager
def scoring(net: nn.Module) -> Iterator[None]:
    """Context manager that puts a network into eval mode, without changing it for good.

    The mode of every module is restored afterwards, also after an error.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
