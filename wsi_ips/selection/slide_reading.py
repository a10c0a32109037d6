"""One pass over a slide: every patch scored once, the M most salient kept, the label read from those.

Prediction and validation share it. Nothing here learns; see :mod:`wsi_ips.training.module` for that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from wsi_ips.config import SelectionConfig
from wsi_ips.models.ips_net import BagReading, IPSNet, scoring
from wsi_ips.selection.ips import Kept, select_patches
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.streaming.stream import Chunk


@dataclass(frozen=True, slots=True)
class SlideReading:
    """kept: the M patches; store: the logits of all N; bag: what the network says of the kept ones (B = 1)."""

    kept: Kept
    store: ScoreStore
    bag: BagReading


@torch.no_grad()
def read_slide(net: IPSNet, chunks: Iterable[Chunk], selection: SelectionConfig) -> SlideReading:
    """Stream ``chunks`` through ``net`` in eval mode; the net's own mode is restored afterwards.

    Memory: M embeddings, one chunk, and heads x queries floats per patch. Raises ``ValueError`` without
    patches.
    """
    store = ScoreStore()
    with scoring(net):
        kept = select_patches(
            ((chunk.ids_n, chunk.pixels_n3PP) for chunk in chunks),
            encode=net.encode,
            logits=net.logits,
            m=selection.m,
            i=selection.i,
            store=store,
        )
        # The memory holds the embeddings already: nothing is encoded twice.
        bag = net.read_bag(kept.emb_MD, kept.ids_M)
    return SlideReading(kept, store, bag)
