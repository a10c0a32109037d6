"""A slide looked at from afar first: which patches are read closely, and the label read from those.

Shape suffixes: n patches of a chunk, N all patches of a slide, W windows, M kept or sampled patches, T queries.
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

logger = logging.getLogger(__name__)

EVALUATION_SEED = 0
"""Of the draw outside training: the same slide and weights give the same label."""


@dataclass(frozen=True, slots=True)
class FromAfar:
    """logits_W: float32 on the CPU, what the scorer says of every window. ids_N: the patches. largest_chunk:
    windows of the largest chunk. scored_s: seconds in the scorer."""

    windows: Windows
    logits_W: Tensor
    ids_N: Tensor
    largest_chunk: int
    scored_s: float

    def patch_logits(self) -> Tensor:
        """(N,) of every patch: its window's."""
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
    """Score all windows of a slide, without gradients; the net's own mode is restored. Memory: one chunk of
    windows, and a number a window. Raises ``ValueError`` without patches, :class:`ConfigError` for patches that
    cannot be looked at from afar."""
    if not hasattr(source, "windows"):
        raise ConfigError("this selector cannot look at these patches from afar: set selection.selector=ips")
    windows = source.windows(coarse)
    parts, largest, timer = [], 1, DeviceTimer(device_of(net))
    with scoring(net):
        for chunk in through(windows.source):
            with timer.running():
                parts.append(net.coarse_logits(seen(chunk.pixels_n3PP, chunk.ids_n)).float())
            largest = max(largest, len(chunk))
    if not parts:
        raise ValueError("no patches")
    return FromAfar(windows, torch.cat(parts).cpu(), source.ids(), largest, timer.seconds())


def let_through(
    logits_N: Tensor, share: float, *, explore: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Which of N patches are read closely: rows (n,) int64, ascending, n = ceil(share * N).

    Those with the highest logits, of equals the first ones; but for ``explore`` of them, which are drawn from the
    rest.
    """
    n = max(1, math.ceil(round(share * len(logits_N), 6)))
    drawn = int(explore * n)
    order_N = logits_N.argsort(descending=True, stable=True)
    best, rest = order_N[: n - drawn], order_N[n - drawn :]
    lucky = rest[torch.randperm(len(rest), generator=generator)[:drawn]]
    return torch.cat([best, lucky]).sort().values


@torch.no_grad()
@torch.no_grad()
def read_sampled(
    net: SamplingNet,
    source: CoarseSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Draw patches where the slide's attention from afar lies, read those alone, and the label from them.

    The logits of the reading are those of the attention itself, the same for every query. ``through``: what the
    windows' chunks go through.
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
    with scoring(net):
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
    """Embeddings (M, D) of these patches; one that is there twice is read and encoded once."""
    unique_n, place_M = ids_M.unique(return_inverse=True)
    emb_nD = encode_again(net, source, unique_n, batch=batch, seen=seen)
    return emb_nD[place_M.to(emb_nD.device)]


@torch.no_grad()
@torch.no_grad()
def read_cascade(
    net: IPSNet,
    source: CoarseSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Look at the slide from afar, let the best share of its patches through, and read those as IPS does.

    Logits and attention are of what was let through alone. Raises as :func:`read_slide`.
    """
    coarse = net.looks_from_afar
    seen = look(net, source, selection.coarse)
    rows_n = let_through(seen.patch_logits(), float(coarse.share))
    reading = read_slide(net, source.only(seen.ids_N[rows_n]), selection, through=through)
    encoder_windows = len(seen.logits_W) if isinstance(coarse.scorer, EncoderScorer) else 0
    recall = coarse.recall_at(len(rows_n) / len(seen.ids_N))
    report = CoarseReport(len(seen.ids_N), len(rows_n), len(seen.logits_W), encoder_windows, recall)
    return replace(reading, select_s=reading.select_s + seen.scored_s, coarse=report)
