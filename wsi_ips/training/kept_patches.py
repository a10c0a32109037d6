"""The patches that a step learns from: selected without gradients, then read again exactly as they were scored.

:class:`PatchKeeper` selects them and reads them again. :class:`SelectionFigures` says how a selection develops
while it learns: whether it keeps the same patches, and how much attention they hold.

Shape suffixes: n patches of a chunk, N all patches of a bag, M kept patches of a bag, C width of features, P
patch side, H heads, T queries.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError, WsiIpsError
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.selection.baselines import some_of
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import Seen, places_for, select
from wsi_ips.streaming.patch_source import Chunk, CoarseSource, PatchSource
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.timeline import each_staged
from wsi_ips.training.augment import augment
from wsi_ips.training.bags import Bag
from wsi_ips.training.step_bags import StepBags


@dataclass(frozen=True, slots=True)
class KeptPatches:
    """What a step learns from in one bag.

    Attributes:
        bag: The bag.
        ids_M: int64 on the CPU, the ids of the patches.
        places_M: Where they lie, in the form that the network wants.
        features_MC: What the encoder made of them when they were scored, if that was in this step and under the
            running memory. Otherwise None.
    """

    bag: Bag
    ids_M: Tensor
    places_M: Tensor
    features_MC: Tensor | None


class BagLost(Exception):
    """A bag could be read when its patches were kept, and now it cannot: ``BagLost(bag, error)``."""

    def __init__(self, bag: Bag, error: WsiIpsError) -> None:
        super().__init__(bag, error)
        self.bag, self.error = bag, error


class PatchKeeper:
    """Selects the M patches of a bag, and remembers them.

    A later epoch may learn from them again, and every selection is compared with the one before.
    """

    def __init__(self, net: BagNet, config: FinetuneConfig) -> None:
        self._net = net
        self._config = config
        self.remembered: dict[str, Tensor] = {}
        """``{bag_id: ids_M}`` of the last selections. It is part of the state that a run resumes from."""
        self.watched: list[SelectionFigures] = []
        """Figures of every selection, until they are taken away."""
        self.bags = StepBags(config.streaming)
        """Opens bags, each once in a step."""

    def prepare(self, bag: Bag, *, epoch: int, device: torch.device) -> None:
        """Open a bag that is kept from next, in a thread, and decode its first chunks if all are going to be
        scored.
        """
        scores_all = self._config.selection.way == "ips" and self._selects(bag, epoch)
        self.bags.prepare(bag, bag_key(bag, self._config, epoch), device, begin=scores_all)

    def _selects(self, bag: Bag, epoch: int) -> bool:
        """Whether the patches of the bag are selected anew in this epoch, if the selector is one that selects."""
        if epoch < self._config.all_patches_epochs:
            return False
        return not (epoch % self._config.training.select_every and bag.bag_id in self.remembered)

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> KeptPatches:
        """The patches of a bag to learn from, selected in eval mode without gradients.

        These are all patches, up to ``training.most_patches``, in the first epochs if the configuration says so,
        and always under ``selector: all``. Under ``selector: random`` they are M patches, drawn anew in every
        epoch. Raises the error of the bag if it cannot be read.
        """
        selection = self._config.selection
        key = bag_key(bag, self._config, epoch)
        with self.bags.open(bag, key, device) as source:
            if epoch < self._config.all_patches_epochs or selection.selector == "all":
                ids_M, features_MC = some_of(source.ids(), self._config.training.most_patches, key), None
            elif selection.selector == "random":
                ids_M, features_MC = some_of(source.ids(), selection.memory_size, key), None
            elif not self._selects(bag, epoch):
                ids_M, features_MC = self.remembered[bag.bag_id], None
            else:
                kept = self._select(bag, source, epoch)
                ids_M, features_MC = kept.ids_M, kept.emb_MD
            return KeptPatches(bag, ids_M, places_for(self._net, source, ids_M), features_MC)

    def _select(self, bag: Bag, source: PatchSource, epoch: int) -> Kept:
        selection, seen = self._config.selection, self.seen(bag, epoch)
        if selection.is_outside:
            reading = read_bag(self._net, source, selection, through=partial(shown, seen=seen))
            # Its embeddings are the projector's, which learns too: they are made again.
            kept, store = replace(reading.kept, emb_MD=None), reading.store
        else:
            store = ScoreStore()
            kept = select(cast(IPSNet, self._net), source, selection, seen=seen, store=store)
        before_M = self.remembered.get(bag.bag_id)
        self.watched.append(SelectionFigures.of(store.logits(), store.ids(), kept.ids_M, before_M))
        self.remembered[bag.bag_id] = kept.ids_M
        return kept

    def pixels(
        self, kept: Sequence[KeptPatches], *, epoch: int, device: torch.device, most: int
    ) -> Iterator[Tensor]:
        """The pixels of all kept patches in a row, ``most`` at a time, augmented as they were when scored.

        They are read from the slides each time, so memory is one micro-batch whatever M is.

        Raises:
            BagLost: A bag can no longer be read.
        """
        return regrouped(self._pieces(kept, epoch=epoch, device=device, most=most), most)

    def _pieces(
        self, kept: Iterable[KeptPatches], *, epoch: int, device: torch.device, most: int
    ) -> Iterator[Tensor]:
        for each in kept:
            seen = self.seen(each.bag, epoch)
            try:
                with self.bags.open(each.bag, bag_key(each.bag, self._config, epoch), device) as source:
                    for chunk in each_staged("kept patches", read_in_turn(source, each.ids_M, most)):
                        yield seen(chunk.pixels_n3PP, chunk.ids_n)
            except WsiIpsError as error:
                raise BagLost(each.bag, error) from error

    def seen(self, bag: Bag, epoch: int) -> Seen:
        """The augmentation of the patches of a bag in this epoch."""
        training, key = self._config.training, bag_key(bag, self._config, epoch)
        return lambda pixels_n3PP, ids_n: augment(
            pixels_n3PP, ids_n, key=key, config=training.augment, flips=training.flips
        )


def shown(chunks: Iterable[Chunk], *, seen: Seen) -> Iterator[Chunk]:
    """The chunks with the pixels that the network is shown."""
    for chunk in chunks:
        yield replace(chunk, pixels_n3PP=seen(chunk.pixels_n3PP, chunk.ids_n))


def bag_key(bag: Bag, config: FinetuneConfig, epoch: int) -> str:
    """The text that everything random about a bag in an epoch is drawn from."""
    return f"{config.training.seed}/{epoch}/{bag.bag_id}"


def read_in_turn(source: PatchSource, ids_n: Tensor, most: int) -> Iterator[Chunk]:
    """The patches with these ids, in the order given, ``most`` at a time; as one pass over the file if the source
    can do that.
    """
    if isinstance(source, PatchStream):
        return source.read_in_turn(ids_n, most)
    return (source.read(part_n) for part_n in ids_n.split(most))


def coarse_source(source: PatchSource) -> CoarseSource:
    """The same source, after a check that it has coarse windows.

    Raises:
        ConfigError: It has none.
    """
    if not hasattr(source, "windows"):
        raise ConfigError(
            "these patches have no coarse windows: set selection.selector: ips, which needs none"
        )
    return cast(CoarseSource, source)


def regrouped(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in the same order, ``size`` at a time; fewer in the last piece."""
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        rest = piece
        while len(rest):
            rows, rest = rest[: size - count], rest[size - count :]
            held.append(rows)
            count += len(rows)
            if count == size:
                yield torch.cat(held)
                held, count = [], 0
    if held:
        yield torch.cat(held)


@dataclass(frozen=True, slots=True)
class SelectionFigures:
    """Figures of the selection of one bag in one epoch.

    Attributes:
        kept_overlap: Share of the kept patches that the last selection kept too. NaN the first time.
        kept_attention: Share of the attention over all N patches that lies on the kept ones.
        attention_spread: The number of patches that share the attention (the exponential of its entropy),
            divided by N: 1 if it is flat, 1/N if it lies on one patch.
    """

    kept_overlap: float
    kept_attention: float
    attention_spread: float

    @classmethod
    def of(
        cls, logits_NHT: Tensor, ids_N: Tensor, kept_M: Tensor, before_M: Tensor | None
    ) -> "SelectionFigures":
        """The figures of a selection.

        Args:
            logits_NHT: Attention logits of all patches.
            ids_N: The ids of all patches.
            kept_M: The ids of the kept patches.
            before_M: The ids of those that the last selection of this bag kept. None if there was none.
        """
        attention_N = logits_NHT.double().softmax(dim=0).mean(dim=(1, 2))
        entropy = -float(torch.special.xlogy(attention_N, attention_N).sum())
        overlap = math.nan
        if before_M is not None:
            overlap = float(torch.isin(kept_M, before_M).double().mean())
        kept = float(attention_N[torch.isin(ids_N, kept_M)].sum())
        return cls(overlap, min(1.0, kept), min(1.0, math.exp(entropy) / len(attention_N)))


def mean_figures(watched: Iterable[SelectionFigures]) -> dict[str, float]:
    """The mean of each figure over the bags in which it is known. A figure that no bag has is left out."""
    columns = zip(*(astuple(each) for each in watched), strict=True)
    known = {
        field.name: [value for value in column if not math.isnan(value)]
        for field, column in zip(fields(SelectionFigures), columns, strict=False)
    }
    return {name: math.fsum(values) / len(values) for name, values in known.items() if values}
