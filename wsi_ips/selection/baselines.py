"""Selectors that look for nothing: all patches, or M drawn at random.

Reading a bag from all of its patches, without selecting any: :func:`read_all`.

This is the way for aggregators that have no score for a single patch, and the baseline for every selector.

Reading a bag from M of its patches that are drawn at random: :func:`read_random`.

This is the baseline for every selector: what the patches that a selector looks for are worth, beside as many that
nobody looked for. :func:`some_of` draws patches in training, anew in every epoch.

Shape suffixes: N patches of a bag, H heads, T attention rows, D embedding width, M patches that are drawn, n
some of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from time import perf_counter

import torch
from torch import Tensor

from wsi_ips.config import SelectionConfig
from wsi_ips.errors import NotFinite
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.coarse_report import CoarseReport
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import Clock, SlideReading, device_of, places_for
from wsi_ips.streaming.patch_source import Chunk, PatchSource
from wsi_ips.timeline import span
from wsi_ips.units import PlaceKind

SMALLEST = 1e-30
"""Attention below this value is stored as the logarithm of this value. Attention that only resembles a softmax,
as that of TransMIL, can be negative.
"""


@torch.no_grad()
def read_all(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read the label of a bag from all of its patches, in eval mode and without gradients.

    The mode of ``net`` is restored afterwards. The stored logits are the logarithms of the attention of the
    aggregator, so that their softmax over all patches is that attention; attention below 1e-30 counts as 1e-30.
    All patches are kept, in stream order. Memory: the embeddings of all patches.

    Args:
        net: The network.
        source: The patches of the bag.
        selection: Not used; it is there because every selector takes it.
        through: A function that the chunks pass on their way, for example to count them.

    Raises:
        ValueError: The bag has no patches.
        NotFinite: The attention holds NaN or infinity.
    """
    clock = Clock(device_of(net))
    started = perf_counter()
    ids, embeddings = [], []
    with scoring(net):
        for chunk in clock.timed(through(source)):
            ids.append(chunk.ids_n.cpu())
            with span("encode"):
                embeddings.append(clock.run(net.encode, chunk.pixels_n3PP))
        if not ids:
            raise ValueError("no patches")
        ids_N, emb_ND = torch.cat(ids), torch.cat(embeddings)
        with span("head"):
            bag = net.read_bag(emb_ND, places_for(net, source, ids_N))
    attention_NHT = bag.attention_BHTM[0].permute(2, 0, 1).float().cpu()
    if not torch.isfinite(attention_NHT).all():
        raise NotFinite("attention")
    logits_NHT = attention_NHT.clamp(min=SMALLEST).log()
    store = ScoreStore()
    store.add(ids_N, logits_NHT)
    kept = Kept(ids_N, emb_ND, attention_NHT.mean(dim=(1, 2)), logits_NHT)
    return SlideReading(kept, store, emb_ND, bag, *clock.seconds(since=started))


AT_ONCE = 64
"""How many patches are read at a time from a source that cannot be narrowed down, such as stored features."""


@torch.no_grad()
def read_random(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read the label of a bag from M patches drawn uniformly, in eval mode and without gradients.

    Only the drawn patches are read. The draw depends on ``selection.seed`` and on which patches the bag has, so
    that a slide is read from the same patches whenever it is read, whatever it is called and in whatever order
    its patches come. The stored logits are those of the drawn patches, as :func:`read_all` makes them; the other
    patches of the slide have none.

    Args:
        net: The network.
        source: The patches of the bag.
        selection: M is ``memory_size``. A bag with fewer patches is read whole.
        through: A function that the chunks pass on their way, for example to count them.

    Raises:
        ValueError: The bag has no patches.
        NotFinite: The attention holds NaN or infinity.
    """
    ids_N = source.ids().cpu().sort().values
    patches = sha256(ids_N.numpy().tobytes()).hexdigest()
    drawn_M = some_of(ids_N, selection.memory_size, f"{selection.seed}/{patches}")
    reading = read_all(net, narrowed(source, drawn_M), selection, through=through)
    report = CoarseReport(len(ids_N), len(drawn_M), windows=0, encoder_windows=0, recall=None)
    return replace(reading, coarse=report)


def seeded(key: str, device: torch.device) -> torch.Generator:
    """A random generator that depends only on ``key``."""
    seed = int.from_bytes(sha256(f"{key}/draw".encode()).digest()[:7], "little")
    return torch.Generator(device).manual_seed(seed)


def some_of(ids_N: Tensor, most: int, key: str) -> Tensor:
    """These ids, or ``most`` of them drawn uniformly by ``key``, in the same order."""
    if len(ids_N) <= most:
        return ids_N
    drawn = torch.randperm(len(ids_N), generator=seeded(key, torch.device("cpu")))[:most]
    return ids_N[drawn.sort().values]


def narrowed(source: PatchSource, ids_M: Tensor) -> PatchSource:
    """The same source, but iterating over the patches with these ids only."""
    only: Callable[[Tensor], PatchSource] | None = getattr(source, "only", None)
    return _Some(source, ids_M) if only is None else only(ids_M)


@dataclass(frozen=True, slots=True)
class _Some:
    """Some patches of a source that cannot be narrowed down itself."""

    source: PatchSource
    ids_M: Tensor

    def __iter__(self) -> Iterator[Chunk]:
        return map(self.source.read, self.ids_M.split(AT_ONCE) if len(self.ids_M) else ())

    def ids(self) -> Tensor:
        return self.ids_M

    def read(self, ids_n: Tensor) -> Chunk:
        return self.source.read(ids_n)

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        return self.source.places(ids_n, kind)
