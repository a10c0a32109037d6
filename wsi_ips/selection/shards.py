"""One slide scored in several parts, by several processes or machines, and selected from as if it had been whole.

A part cannot tell by itself which of its patches are kept: a patch's score is a mean over heads and queries of
attentions whose normalisers are the whole slide's, and they weigh the heads and queries anew. A patch is out for
certain only if M others of its part have logits as high for every head and query: of 250,000 patches with 8 heads
and 4 queries next to none (if heads were independent). But the normalisers are a few numbers and add up exactly,
so nothing that grows with the slide has to travel:

1. every part scores its patches: ``store``, and sends ``store.normalisers()``;
2. ``Normalisers.merged`` of all of them goes back to every part;
3. a part sends ``global_top(store, m, normalisers)``: M ids, scores and logits;
4. ``Top.merged(tops, m)`` is the slide's selection, to the bit.

``store.attention(normalisers)`` is then the part's own share of the slide's attention map. Where the logits of
all patches are gathered anyway, because a result file holds them, :func:`select_over_parts` does all of it.
Only the global rule can be cut into parts: the paper's memory is one patch after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wsi_ips.selection.global_top import Top, global_top
from wsi_ips.selection.score_store import ScoreStore


@dataclass(frozen=True, slots=True)
class SlideSelection:
    """top: the M kept patches. store: the logits of all N patches, in the order of their ids. attention_NHT:
    (N, H, T) float32 in the same order, the softmax over all N."""

    top: Top
    store: ScoreStore
    attention_NHT: Tensor


def select_over_parts(stores: Sequence[ScoreStore], m: int) -> SlideSelection:
    """Merge the scored parts of one slide, in any order, and keep its ``m`` best patches.

    Equal to the bit to the whole slide scored in one pass with the same logits, whatever the cut (on one kind of
    CPU: another's exponentials may differ in their last bit). The kept patches are to be read again:
    :func:`wsi_ips.selection.slide_reading.encode_again`. Raises ``ValueError`` without patches, for a patch in
    two parts and for parts of different networks, and :class:`NotFinite`.
    """
    store = ScoreStore.merged(stores)
    normalisers = store.normalisers()
    return SlideSelection(global_top(store, m, normalisers), store, store.attention(normalisers))
