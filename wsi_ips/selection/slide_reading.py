"""One pass over a slide: every patch scored once, the M most salient kept, the label read from those.

Prediction, validation and training's selection share it. Nothing here learns; see
:mod:`wsi_ips.training.module` for that.

Shape suffixes: n patches of a chunk, M kept patches, D embedding width, P patch side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from wsi_ips.config import SelectionConfig
from wsi_ips.models.ips_net import BagNet, BagReading, IPSNet, scoring
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.memory import Kept, select_global, select_over_parts, select_patches
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.streaming.device import DeviceTimer
from wsi_ips.streaming.patch_source import Chunk, PatchSource

Seen = Callable[[Tensor, Tensor], Tensor]
"""(pixels_n3PP, ids_n) to the pixels that the network is shown: augmentation."""


@dataclass(frozen=True, slots=True)
class SlideReading:
    """kept: the M patches; store: the logits of all N; emb_MD: the kept ones' embeddings; bag: what the network
    says of them (B = 1).

    encode_s, select_s: seconds in the encoder (and in reading again what it encodes again), and in everything
    else of the pass but the stream; on CUDA those of the card, select_s of the chunks alone. coarse: what a look
    from afar let through, where there was one.
    """

    kept: Kept
    store: ScoreStore
    emb_MD: Tensor
    bag: BagReading
    encode_s: float = 0.0
    select_s: float = 0.0
    coarse: CoarseReport | None = None


def unchanged(pixels_n3PP: Tensor, ids_n: Tensor) -> Tensor:
    """The pixels as they are."""
    return pixels_n3PP


def select(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    seen: Seen = unchanged,
    store: ScoreStore | None = None,
) -> Kept:
    """The M patches that ``selection.rule`` keeps, without gradients; the net's own mode is restored.

    What is kept of them (``emb_MD``) is what the encoder made, before the projector: who learns from them takes
    the projector's gradients, and would encode them again otherwise. ``seen`` must give a patch the same pixels
    whatever chunk it comes in. ``store`` gathers the logits of all patches. Memory: one chunk, and under
    ``buffer`` M + I embeddings, under ``global`` heads x queries floats per patch. Raises ``ValueError`` without
    patches, and :class:`NotFinite` for a network that went wrong.
    """
    chunks = ((chunk.ids_n, seen(chunk.pixels_n3PP, chunk.ids_n)) for chunk in source)

    def logits(features_nC: Tensor, ids_n: Tensor) -> Tensor:
        return net.logits(net.projector(features_nC), places_for(net, source, ids_n))

    with scoring(net):
        return _kept(chunks, selection, encode=net.encoder, logits=logits, store=store)


def places_for(net: BagNet, source: PatchSource, ids_n: Tensor) -> Tensor:
    """Where these patches lie, told as ``net`` wants it: the ids themselves if it looks at no places."""
    return ids_n if net.place_kind is None else source.places(ids_n, net.place_kind)


@torch.no_grad()
def encode_again(
    net: BagNet, source: PatchSource, ids_n: Tensor, *, batch: int, seen: Seen = unchanged
) -> Tensor:
    """Embeddings (n, D) of the patches with these ids, in the order given, ``batch`` of them at a time.

    Read in grid order, in which neighbours share the file's tiles. Memory: one batch, and the embeddings. The
    net's own mode is restored. Raises ``ValueError`` without ids.
    """

    def encode(part_n: Tensor) -> Tensor:
        chunk = source.read(part_n)
        return net.encode(seen(chunk.pixels_n3PP, chunk.ids_n))

    if not len(ids_n):
        raise ValueError("no patches")
    grid_order_n = ids_n.argsort()
    with scoring(net):
        emb_nD = torch.cat([encode(part_n) for part_n in ids_n[grid_order_n].split(batch)])
    return emb_nD[grid_order_n.argsort().to(emb_nD.device)]


@torch.no_grad()
def read_slide(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a slide's label from the patches that are kept, in eval mode; the net's own mode is restored.

    ``through`` is what the pass's chunks go through on their way, to be counted or timed. Memory: M embeddings,
    one chunk, and heads x queries floats per patch. Raises as :func:`select`.
    """
    store = ScoreStore()
    clock = Clock(device_of(net))
    started = perf_counter()
    with scoring(net):
        kept = _select(
            net,
            source,
            ((chunk.ids_n, chunk.pixels_n3PP) for chunk in clock.timed(through(source))),
            selection,
            encode=lambda pixels: clock.run(net.encode, pixels),
            store=store,
        )
        # A running memory holds the embeddings already: nothing is encoded twice.
        emb_MD = kept.emb_MD
        if emb_MD is None:
            emb_MD = clock.run(
                lambda ids_M: encode_again(net, source, ids_M, batch=clock.largest_chunk), kept.ids_M
            )
        bag = net.read_bag(emb_MD, places_for(net, source, kept.ids_M))
    encode_s, select_s = clock.seconds(since=started)
    return SlideReading(kept, store, emb_MD, bag, encode_s, select_s)


@dataclass(frozen=True, slots=True)
class SlideScores:
    """store: the logits of a part of a slide. encode_s, select_s: as of :class:`SlideReading`."""

    store: ScoreStore
    encode_s: float
    select_s: float


@torch.no_grad()
def score_part(
    net: IPSNet, source: PatchSource, *, through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter
) -> SlideScores:
    """Score the patches of a part of a slide, for :func:`read_scored`. Memory: one chunk, and the logits."""
    store = ScoreStore()
    clock = Clock(device_of(net))
    started = perf_counter()
    with scoring(net):
        for chunk in clock.timed(through(source)):
            emb_nD = clock.run(net.encode, chunk.pixels_n3PP)
            store.add(chunk.ids_n, net.logits(emb_nD, places_for(net, source, chunk.ids_n)))
    return SlideScores(store, *clock.seconds(since=started))


@torch.no_grad()
def read_scored(
    net: IPSNet, source: PatchSource, stores: Sequence[ScoreStore], *, m: int, batch: int
) -> SlideReading:
    """Read a slide's label where all of its parts are scored: what :func:`read_slide` gives under the rule
    ``global``, to the bit where the parts' chunks are those of the whole slide.

    ``source`` is the whole slide; its kept patches are read again, ``batch`` of them at a time. Raises as
    :func:`wsi_ips.selection.memory.select_over_parts`.
    """
    started = perf_counter()
    selection = select_over_parts(stores, m)
    top = selection.top
    selected = perf_counter()
    with scoring(net):
        timer = DeviceTimer(device_of(net))
        with timer.running():
            emb_MD = encode_again(net, source, top.ids_M, batch=batch)
        encode_s = timer.seconds()
        encoded = perf_counter()
        bag = net.read_bag(emb_MD, places_for(net, source, top.ids_M))
    kept = Kept(top.ids_M, None, top.scores_M.float(), top.logits_MHT)
    select_s = selected - started + perf_counter() - encoded
    return SlideReading(kept, selection.store, emb_MD, bag, encode_s, select_s)


def _select(
    net: IPSNet,
    source: PatchSource,
    chunks: Iterable[tuple[Tensor, Tensor]],
    selection: SelectionConfig,
    *,
    encode: Callable[[Tensor], Tensor],
    store: ScoreStore | None,
) -> Kept:
    def logits(emb_nD: Tensor, ids_n: Tensor) -> Tensor:
        return net.logits(emb_nD, places_for(net, source, ids_n))

    return _kept(chunks, selection, encode=encode, logits=logits, store=store)


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


def device_of(net: torch.nn.Module) -> torch.device:
    """Where the network's weights lie."""
    return next(net.parameters()).device


class Clock:
    """Seconds in the encoder (with what it reads again) and in the stream, for a network on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.largest_chunk = 1
        self._stream_s = 0.0
        self._encoding = DeviceTimer(device)
        self._working = DeviceTimer(device)
        self._runs_ahead = device.type == "cuda"

    def run(self, work: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        with self._encoding.running():
            return work(argument)

    def timed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks, timing how long each took to come, and what is then done with it."""
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
        """In the encoder, and in what else was done ``since`` then, but for the stream. Waits for the card."""
        encode_s = self._encoding.seconds()
        if self._runs_ahead:  # the program waits for chunks while the card works
            return encode_s, max(0.0, self._working.seconds() - encode_s)
        return encode_s, perf_counter() - since - encode_s - self._stream_s
