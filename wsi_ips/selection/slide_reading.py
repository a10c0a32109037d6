"""IPS over one slide: score every patch once, keep the M most salient, and read the label from those.

Start with :func:`read_slide`. Prediction, validation and the selection in training share this pass.
:func:`score_part` and :func:`read_scored` do the same for a slide that is scored in several parts. Nothing here
learns; :mod:`wsi_ips.training.module` does.

Gradient times input of the patches that were kept: :func:`kept_gradients`.

Shape suffixes: n patches of a chunk, N all patches, M kept patches, D embedding width, C feature width, P patch
side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from wsi_ips.config import PipelineConfig, SelectionConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.ips_net import BagNet, BagReading, IPSNet, scoring
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.memory import Kept, select_global, select_over_parts, select_patches
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.streaming.device import DeviceTimer
from wsi_ips.streaming.patch_source import Chunk, PatchSource
from wsi_ips.timeline import span, staged

Seen = Callable[[Tensor, Tensor], Tensor]
"""Augmentation: maps ``pixels_n3PP`` and ``ids_n`` to the pixels that the network is shown."""


@dataclass(frozen=True, slots=True)
class SlideReading:
    """What one pass over a bag found.

    Attributes:
        kept: The M kept patches.
        store: The attention logits of all N patches.
        emb_MD: The embeddings of the kept patches.
        bag: What the network says of them, for a batch of one bag.
        encode_s: Seconds in the encoder, including patches that are read and encoded again. On CUDA these are
            seconds of the device.
        select_s: Seconds of the pass in everything else but the stream. On CUDA these are seconds of the device,
            spent on the chunks.
        coarse: What the coarse scorer let through; None without a coarse scorer.
    """

    kept: Kept
    store: ScoreStore
    emb_MD: Tensor
    bag: BagReading
    encode_s: float = 0.0
    select_s: float = 0.0
    coarse: CoarseReport | None = None


def unchanged(pixels_n3PP: Tensor, ids_n: Tensor) -> Tensor:
    """No augmentation: return the pixels as they are."""
    return pixels_n3PP


@dataclass(frozen=True, slots=True)
class SlideScores:
    """The scores of a part of a slide.

    Attributes:
        store: The attention logits of the patches of the part.
        encode_s: Seconds in the encoder. On CUDA these are seconds of the device.
        select_s: Seconds of the pass in everything else but the stream.
    """

    store: ScoreStore
    encode_s: float
    select_s: float


@torch.no_grad()
def read_slide(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read the label of a slide from the M patches that are kept, in eval mode and without gradients.

    The mode of ``net`` is restored. Memory: M embeddings, one chunk, and heads x queries floats per patch. With
    ``selection.turns`` the kept patches are read and encoded again, in several orientations.

    Args:
        net: The network.
        source: The patches of the slide.
        selection: The rule of the selection, M, I and the turns.
        through: A function that the chunks pass on their way, to be counted or timed.

    Raises:
        ValueError: The slide has no patches.
        NotFinite: The network computed scores that are not finite.
    """
    store = ScoreStore()
    clock = Clock(device_of(net))
    started = perf_counter()

    with scoring(net):
        kept = _kept(
            ((chunk.ids_n, chunk.pixels_n3PP) for chunk in clock.timed(through(source))),
            selection,
            encode=lambda pixels: clock.run(_seen_by(net), pixels),
            logits=partial(_scores, net, source),
            store=store,
        )
        if kept.emb_MD is not None and net.scorer is not None:
            kept = replace(kept, emb_MD=net.projector(kept.emb_MD))
        # A running memory holds the embeddings already: nothing is encoded twice, but to be turned.
        emb_MD, turns = kept.emb_MD, selection.turns
        if emb_MD is None or turns > 1:
            emb_MD = clock.run(
                lambda ids_M: encode_again(net, source, ids_M, batch=clock.largest_chunk, turns=turns),
                kept.ids_M,
            )
        with span("head"):
            bag = net.read_bag(emb_MD, places_for(net, source, kept.ids_M))
    encode_s, select_s = clock.seconds(since=started)
    return SlideReading(kept, store, emb_MD, bag, encode_s, select_s)


def select(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    seen: Seen = unchanged,
    store: ScoreStore | None = None,
) -> Kept:
    """The M patches that ``selection.rule`` keeps, without gradients. The mode of ``net`` is restored.

    ``emb_MD`` of the result is the output of the encoder, before the projector: training needs the gradients of
    the projector, and would otherwise have to encode the patches again. Memory: one chunk; under the rule
    ``buffer`` also M + I embeddings, under ``global`` heads x queries floats per patch.

    Args:
        net: The network.
        source: The patches of the slide.
        selection: The rule, M and I.
        seen: Augmentation. It must give a patch the same pixels whatever chunk the patch comes in.
        store: Gathers the logits of all patches, if given.

    Raises:
        ValueError: There are no patches.
        NotFinite: The network computed scores that are not finite.
    """
    chunks = ((chunk.ids_n, seen(chunk.pixels_n3PP, chunk.ids_n)) for chunk in source)
    scores = partial(_scores_of_features, net, source)
    with scoring(net):
        return _kept(chunks, selection, encode=net.encoder, logits=scores, store=store)


def _seen_by(net: IPSNet) -> Callable[[Tensor], Tensor]:
    """What is made of patches before they are scored: embeddings, or features where another network scores."""
    return net.encode if net.scorer is None else net.encoder


def _scores(net: IPSNet, source: PatchSource, seen_n: Tensor, ids_n: Tensor) -> Tensor:
    """The attention logits (n, H, T) of patches that :func:`_seen_by` saw."""
    if net.scorer is None:
        return net.logits(seen_n, places_for(net, source, ids_n))
    return _scores_of_features(net, source, seen_n, ids_n)


def _scores_of_features(net: IPSNet, source: PatchSource, features_nC: Tensor, ids_n: Tensor) -> Tensor:
    """The attention logits (n, H, T) of patches by the encoder's features of them, whichever network scores."""
    scorer = net if net.scorer is None else net.scorer
    return scorer.logits(scorer.projector(features_nC), places_for(scorer, source, ids_n))


def _kept(
    chunks: Iterable[tuple[Tensor, Tensor]],
    selection: SelectionConfig,
    *,
    encode: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    store: ScoreStore | None,
) -> Kept:
    if selection.rule == "buffer":
        return select_patches(
            chunks,
            encode=encode,
            logits=logits,
            m=selection.memory_size,
            i=selection.iteration_size,
            store=store,
        )
    store = ScoreStore() if store is None else store
    return select_global(chunks, encode=encode, logits=logits, m=selection.memory_size, store=store)


@staged("kept patches")
@torch.no_grad()
def encode_again(
    net: BagNet,
    source: PatchSource,
    ids_n: Tensor,
    *,
    batch: int,
    seen: Seen = unchanged,
    turns: int = 1,
) -> Tensor:
    """Read the patches with these ids again and return their embeddings (n, D), in the order of the ids.

    They are read in grid order, in which neighbours share tiles of the file. The mode of ``net`` is restored.
    Memory: one batch, and the embeddings.

    Args:
        net: The network.
        source: The patches of the slide.
        ids_n: (n,) int64, 1 or more ids.
        batch: How many patches are read and encoded at a time.
        seen: Augmentation.
        turns: In how many orientations each is encoded (:meth:`wsi_ips.models.ips_net.BagNet.encode`).

    Raises:
        ValueError: There are no ids.
    """

    def encode(part_n: Tensor) -> Tensor:
        chunk = source.read(part_n)
        with span("encode"):
            return net.encode(seen(chunk.pixels_n3PP, chunk.ids_n), turns=turns)

    if not len(ids_n):
        raise ValueError("no patches")
    grid_order_n = ids_n.argsort()
    with scoring(net):
        emb_nD = torch.cat([encode(part_n) for part_n in ids_n[grid_order_n].split(batch)])
    return emb_nD[grid_order_n.argsort().to(emb_nD.device)]


@torch.no_grad()
def score_part(
    net: IPSNet, source: PatchSource, *, through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter
) -> SlideScores:
    """Score the patches of a part of a slide, for :func:`read_scored`.

    ``through`` is a function that the chunks pass on their way. Memory: one chunk, and the logits.
    """
    store = ScoreStore()
    clock = Clock(device_of(net))
    started = perf_counter()
    with scoring(net):
        for chunk in clock.timed(through(source)):
            with span("encode"):
                seen_n = clock.run(_seen_by(net), chunk.pixels_n3PP)
            with span("select"):
                store.add(chunk.ids_n, _scores(net, source, seen_n, chunk.ids_n))
    return SlideScores(store, *clock.seconds(since=started))


@torch.no_grad()
def read_scored(
    net: IPSNet, source: PatchSource, stores: Sequence[ScoreStore], *, m: int, batch: int, turns: int = 1
) -> SlideReading:
    """Read the label of a slide whose parts have all been scored with :func:`score_part`.

    The result is that of :func:`read_slide` under the rule ``global``, to the bit if the chunks of the parts are
    those of the whole slide.

    Args:
        net: The network.
        source: The patches of the whole slide. Those that are kept are read again.
        stores: The logits of the parts, in any order.
        m: How many patches are kept.
        batch: How many patches are read again at a time.
        turns: In how many orientations the kept patches are read.

    Raises:
        ValueError: There are no patches, a patch is in two parts, or the parts come from different networks.
        NotFinite: Logits are not finite.
    """
    started = perf_counter()
    with span("select"):
        selection = select_over_parts(stores, m)
    top = selection.top
    selected = perf_counter()
    with scoring(net):
        timer = DeviceTimer(device_of(net))
        with timer.running():
            emb_MD = encode_again(net, source, top.ids_M, batch=batch, turns=turns)
        encode_s = timer.seconds()
        encoded = perf_counter()
        with span("head"):
            bag = net.read_bag(emb_MD, places_for(net, source, top.ids_M))
    kept = Kept(top.ids_M, None, top.scores_M.float(), top.logits_MHT)
    select_s = selected - started + perf_counter() - encoded
    return SlideReading(kept, selection.store, emb_MD, bag, encode_s, select_s)


def places_for(net: BagNet, source: PatchSource, ids_n: Tensor) -> Tensor:
    """Where these patches lie, in the form that ``net`` wants. If it uses no places, the ids themselves."""
    return ids_n if net.place_kind is None else source.places(ids_n, net.place_kind)


def device_of(net: torch.nn.Module) -> torch.device:
    """The device that the weights of the network are on."""
    return next(net.parameters()).device


class Clock:
    """Measures a pass over chunks: seconds in the encoder, in the stream, and in the rest.

    On CUDA the time of the device is measured. ``largest_chunk`` is the number of patches in the largest chunk
    so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.largest_chunk = 1
        self._stream_s = 0.0
        self._encoding = DeviceTimer(device)
        self._working = DeviceTimer(device)
        self._runs_ahead = device.type == "cuda"

    def run(self, work: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        """Return ``work(argument)``, and count its time as that of the encoder."""
        with self._encoding.running():
            return work(argument)

    def timed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks, measuring how long each takes to come, and how long it is then worked on."""
        iterator = iter(chunks)
        while True:
            started = perf_counter()
            chunk = next(iterator, None)
            self._stream_s += perf_counter() - started
            if chunk is None:
                return
            self.largest_chunk = max(self.largest_chunk, len(chunk))
            with self._working.running():
                yield chunk

    def seconds(self, *, since: float) -> tuple[float, float]:
        """Seconds in the encoder, and in everything else but the stream, since the time ``since`` of
        ``perf_counter``.

        On CUDA this waits for the device.
        """
        encode_s = self._encoding.seconds()
        if self._runs_ahead:  # the program waits for chunks while the card works
            return encode_s, max(0.0, self._working.seconds() - encode_s)
        return encode_s, perf_counter() - since - encode_s - self._stream_s


@staged("backward")
def kept_gradients(net: IPSNet, source: PatchSource, reading: SlideReading) -> dict[str, Tensor]:
    """Gradient times input of each kept patch for each task, (M, classes), in eval mode.

    The mode of ``net`` is restored. The definition is that of :meth:`wsi_ips.models.ips_net.IPSNet.gradients`.
    Memory: what reading the kept patches with gradients takes; no pixel is read again.

    Args:
        net: The network.
        source: The patches of the bag, which say where they lie.
        reading: What the network read of them.
    """
    with scoring(net):
        return net.gradients(reading.emb_MD, places_for(net, source, reading.kept.ids_M))


def check_explained(pipeline: PipelineConfig) -> None:
    """Raise :class:`ConfigError` for a model without an aggregator to take gradients through, and for one that
    reads all slides of a case as one bag.
    """
    if pipeline.bag == "case":
        raise ConfigError(
            "--explain gradient reads one slide at a time, and this model reads all slides of a case as one bag "
            "(bag: case): leave it out"
        )
    if pipeline.selection.selector == "attention_sampling":
        raise ConfigError(
            "--explain gradient needs an aggregator that reads the kept patches, and attention sampling has none: "
            "leave it out"
        )
