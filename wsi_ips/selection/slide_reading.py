"""One pass over a slide: every patch scored once, the M most salient kept, the label read from those.

Prediction and validation share it. Nothing here learns; see :mod:`wsi_ips.training.module` for that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from wsi_ips.config import SelectionConfig
from wsi_ips.models.ips_net import BagReading, IPSNet, scoring
from wsi_ips.selection.ips import Kept, select_patches
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.streaming.stream import Chunk


@dataclass(frozen=True, slots=True)
class SlideReading:
    """kept: the M patches; store: the logits of all N; bag: what the network says of the kept ones (B = 1).

    encode_s, select_s: seconds in the encoder, and in everything else of the pass but the stream.
    """

    kept: Kept
    store: ScoreStore
    bag: BagReading
    encode_s: float = 0.0
    select_s: float = 0.0


@torch.no_grad()
def read_slide(net: IPSNet, chunks: Iterable[Chunk], selection: SelectionConfig) -> SlideReading:
    """Stream ``chunks`` through ``net`` in eval mode; the net's own mode is restored afterwards.

    Memory: M embeddings, one chunk, and heads x queries floats per patch. Raises ``ValueError`` without
    patches.
    """
    store = ScoreStore()
    clock = _Clock()
    with scoring(net):
        started = perf_counter()
        kept = select_patches(
            ((chunk.ids_n, chunk.pixels_n3PP) for chunk in clock.timed("stream", chunks)),
            encode=lambda pixels: clock.run("encode", net.encode, pixels),
            logits=net.logits,
            m=selection.m,
            i=selection.i,
            store=store,
        )
        # The memory holds the embeddings already: nothing is encoded twice.
        bag = net.read_bag(kept.emb_MD, kept.ids_M)
        passed = perf_counter() - started
    encode_s, stream_s = clock.seconds["encode"], clock.seconds["stream"]
    return SlideReading(kept, store, bag, encode_s, passed - encode_s - stream_s)


class _Clock:
    def __init__(self) -> None:
        self.seconds = {"encode": 0.0, "stream": 0.0}

    def run(self, name: str, work: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        started = perf_counter()
        result = work(argument)
        self.seconds[name] += perf_counter() - started
        return result

    def timed(self, name: str, items: Iterable[Chunk]) -> Iterator[Chunk]:
        """The items, timing how long each took to come."""
        iterator = iter(items)
        while True:
            started = perf_counter()
            item = next(iterator, None)
            self.seconds[name] += perf_counter() - started
            if item is None:
                return
            yield item
