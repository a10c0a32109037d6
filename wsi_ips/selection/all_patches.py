"""Reading a bag from all of its patches, without selecting any: :func:`read_all`.

This is the way for aggregators that have no score for a single patch, and the baseline for every selector.

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
