"""Every patch of a bag is read: for aggregators without a score for single patches, and as selection's baseline.

Shape suffixes: N patches of a bag, H heads, T attention rows, D embedding width.
"""

from collections.abc import Callable, Iterable
from time import perf_counter

import torch

from wsi_ips.config import SelectionConfig
from wsi_ips.errors import NotFinite
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import Clock, SlideReading, device_of, places_for
from wsi_ips.streaming.patch_source import Chunk, PatchSource

SMALLEST = 1e-30
"""Attention whose logarithm is stored where a patch has less; attention that only resembles a softmax can be
negative (TransMIL's)."""


@torch.no_grad()
def read_all(
    net: IPSNet,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a bag's label from all of its patches, in eval mode; the net's own mode is restored.

    The stored logits are logarithms of the aggregator's own attention, so that their softmax over the patches is
    that attention; where it is not positive it counts as 1e-30. All patches are kept, in stream
    order.
    Memory: the embeddings of all patches. Raises ``ValueError`` without patches, and :class:`NotFinite`.
    """
    clock = Clock(device_of(net))
    started = perf_counter()
    ids, embeddings = [], []
    with scoring(net):
        for chunk in clock.timed(through(source)):
            ids.append(chunk.ids_n.cpu())
            embeddings.append(clock.run(net.encode, chunk.pixels_n3PP))
        if not ids:
            raise ValueError("no patches")
        ids_N, emb_ND = torch.cat(ids), torch.cat(embeddings)
        bag = net.read_bag(emb_ND, places_for(net, source, ids_N))
    attention_NHT = bag.attention_BHTM[0].permute(2, 0, 1).float().cpu()
    if not torch.isfinite(attention_NHT).all():
        raise NotFinite("attention")
    logits_NHT = attention_NHT.clamp(min=SMALLEST).log()
    store = ScoreStore()
    store.add(ids_N, logits_NHT)
    kept = Kept(ids_N, emb_ND, attention_NHT.mean(dim=(1, 2)), logits_NHT)
    return SlideReading(kept, store, emb_ND, bag, *clock.seconds(since=started))
