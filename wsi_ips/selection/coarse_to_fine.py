"""Coarse-to-fine selectors: a coarse scorer sees the whole slide, and only some of its patches are read closely.

Two selectors work this way. :func:`read_cascade` lets the share of patches with the highest coarse scores
through and selects among them as IPS does. :func:`read_sampled` draws patches from the coarse attention
(attention sampling, Katharopoulos and Fleuret 2019).

Shape suffixes: n patches of a chunk, N all patches of a slide, W windows, M kept or sampled patches, T queries,
H heads, D embedding width.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from wsi_ips.config import CoarseConfig, SelectionConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.coarse import EncoderScorer
from wsi_ips.models.ips_net import BagNet, IPSNet, scoring
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import Seen, SlideReading, device_of, encode_again, read_slide, unchanged
from wsi_ips.streaming.device import DeviceTimer
from wsi_ips.streaming.patch_source import Chunk, CoarseSource, Windows
from wsi_ips.timeline import span

logger = logging.getLogger(__name__)

EVALUATION_SEED = 0
"""Seed of the draw outside training, so that the same slide and the same weights give the same label."""


@torch.no_grad()
def read_cascade(
    net: IPSNet,
    source: CoarseSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a slide with the cascade: score its windows, let the best share of its patches through, and read
    those as IPS.

    The logits and the attention of the reading cover only the patches that were let through. The mode of ``net``
    is restored. Memory: as for :func:`read_slide`.

    Args:
        net: A network that was built for the selector ``cascade``. It holds the share.
        source: The patches of the slide.
        selection: The settings; ``selection.coarse`` says what the scorer sees.
        through: A function that the chunks of patches pass on their way.

    Raises:
        ConfigError: These patches have no coarse windows.
        ValueError: The slide has no patches.
        NotFinite: The network computed scores that are not finite.
    """
    coarse = net.looks_from_afar
    seen = look(net, source, selection.coarse)
    rows_n = let_through(seen.patch_logits(), float(coarse.share))
    reading = read_slide(net, source.only(seen.ids_N[rows_n]), selection, through=through)
    encoder_windows = len(seen.logits_W) if isinstance(coarse.scorer, EncoderScorer) else 0
    recall = coarse.recall_at(len(rows_n) / len(seen.ids_N))
    report = CoarseReport(len(seen.ids_N), len(rows_n), len(seen.logits_W), encoder_windows, recall)
    return replace(reading, select_s=reading.select_s + seen.scored_s, coarse=report)


@torch.no_grad()
def read_sampled(
    net: SamplingNet,
    source: CoarseSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a slide by attention sampling: draw patches where its coarse attention lies, and read only those.

    The draw has a fixed seed. The stored logits are the logarithms of the coarse attention, the same for every
    query.

    Args:
        net: A network that was built for the selector ``attention_sampling``.
        source: The patches of the slide.
        selection: The settings; ``selection.coarse`` says what the scorer sees.
        through: A function that the chunks of windows pass on their way.

    Raises:
        ConfigError: These patches have no coarse windows.
        ValueError: The slide has no patches.
    """
    seen = look(net, source, selection.coarse, through=through)
    started = perf_counter()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    attention_N, samples = net.draw(seen.patch_logits(), generator=generator)
    if len(seen.ids_N) < net.sampling.samples and not net.sampling.replacement:
        logger.warning(
            "%d patches are fewer than selection.sampling.samples %d: all of them are read",
            len(seen.ids_N),
            net.sampling.samples,
        )
    ids_M, attention_M = seen.ids_N[samples.index_BN[0]], samples.attention_BN[0]
    timer = DeviceTimer(device_of(net))
    with timer.running():
        emb_MD = encode_once(net, source, ids_M, batch=seen.largest_chunk)
    encode_s = timer.seconds()
    with scoring(net), span("head"):
        bag = net.read_samples(emb_MD, [attention_M.to(emb_MD.device)], encoded=True)
    store = ScoreStore()
    logits_NHT = attention_N.log()[:, None, None].expand(-1, 1, net.heads.queries)
    store.add(seen.ids_N, logits_NHT)
    report = CoarseReport(len(seen.ids_N), len(ids_M.unique()), len(seen.logits_W), 0, None)
    kept = Kept(ids_M, emb_MD, attention_M, logits_NHT[samples.index_BN[0]])
    select_s = seen.scored_s + max(0.0, perf_counter() - started - encode_s)
    return SlideReading(kept, store, emb_MD, bag, encode_s, select_s, coarse=report)


def encode_once(
    net: BagNet, source: CoarseSource, ids_M: Tensor, *, batch: int, seen: Seen = unchanged
) -> Tensor:
    """Embeddings (M, D) of the patches with the ids ``ids_M``. A patch that occurs twice is read and encoded
    once.

    Patches are read ``batch`` at a time; ``seen`` changes their pixels before they are encoded.
    """
    unique_n, place_M = ids_M.unique(return_inverse=True)
    emb_nD = encode_again(net, source, unique_n, batch=batch, seen=seen)
    return emb_nD[place_M.to(emb_nD.device)]


@dataclass(frozen=True, slots=True)
class FromAfar:
    """What the coarse scorer says of a slide.

    Attributes:
        windows: The windows, and which of them each patch belongs to.
        logits_W: float32 on the CPU, the score of every window.
        ids_N: int64, the ids of all patches.
        largest_chunk: The number of windows in the largest chunk.
        scored_s: Seconds that the scorer took.
    """

    windows: Windows
    logits_W: Tensor
    ids_N: Tensor
    largest_chunk: int
    scored_s: float

    def patch_logits(self) -> Tensor:
        """The logits (N,) of all patches: each has that of its window."""
        return self.logits_W[self.windows.window_N]


@torch.no_grad()
def look(
    net: BagNet,
    source: CoarseSource,
    coarse: CoarseConfig,
    *,
    seen: Seen = unchanged,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> FromAfar:
    """Score all windows of a slide with the coarse scorer, in eval mode and without gradients.

    The mode of ``net`` is restored. Memory: one chunk of windows, and one number per window.

    Args:
        net: A network with a coarse scorer.
        source: The patches of the slide, which must have coarse windows.
        coarse: Size and resolution of the windows.
        seen: Changes the pixels that the scorer is shown, as augmentation does.
        through: A function that the chunks of windows pass on their way.

    Raises:
        ConfigError: These patches have no coarse windows.
        ValueError: The slide has no patches.
    """
    if not hasattr(source, "windows"):
        raise ConfigError(
            "this selector needs coarse windows, which these patches do not have: set selection.selector=ips"
        )
    windows = source.windows(coarse)
    parts, largest, timer = [], 1, DeviceTimer(device_of(net))
    with scoring(net):
        for chunk in through(windows.source):
            with span("coarse scorer"), timer.running():
                parts.append(net.coarse_logits(seen(chunk.pixels_n3PP, chunk.ids_n)).float())
            largest = max(largest, len(chunk))
    if not parts:
        raise ValueError("no patches")
    return FromAfar(windows, torch.cat(parts).cpu(), source.ids(), largest, timer.seconds())


def let_through(
    logits_N: Tensor, share: float, *, explore: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Choose which of N patches are read closely: n = ceil(share * N) of them, 1 or more.

    These are the patches with the highest logits, the first ones among equals. A share ``explore`` of the n is
    drawn at random from all others instead.

    Args:
        logits_N: Coarse logits of the patches.
        share: Share of the patches to let through, in 0..1.
        explore: Share of n that is drawn at random, in 0..1.
        generator: Random generator for that draw, on the CPU.

    Returns:
        Rows (n,) int64, ascending.
    """
    n = max(1, math.ceil(round(share * len(logits_N), 6)))
    drawn = int(explore * n)
    order_N = logits_N.argsort(descending=True, stable=True)
    best, rest = order_N[: n - drawn], order_N[n - drawn :]
    lucky = rest[torch.randperm(len(rest), generator=generator)[:drawn]]
    return torch.cat([best, lucky]).sort().values
