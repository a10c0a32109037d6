"""What training iterates over: slides that are cut into patches, with their label. No pixels yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.errors import NoTissue
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.tile import tile_slide
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True)
class Bag:
    """A slide of the training set. ``target`` is the index of its class."""

    record: SlideRecord
    coords: PatchCoords
    target: int


def tile_bag(
    record: SlideRecord,
    *,
    classes: Sequence[str],
    tiling: TilingConfig,
    slide_mpp: Callable[[str], Mpp | None],
) -> Bag:
    """Open a slide, find its tissue and cut it, so that what is wrong with it shows before hours are spent.

    ``slide_mpp`` gives a slide's resolution where the user knows better than the file. Raises the slide's
    own error, or :class:`NoTissue`.
    """
    with open_slide(record.path) as slide:
        coords, _ = tile_slide(slide, tiling, slide_id=record.slide_id, mpp=slide_mpp(record.slide_id))
    if not len(coords):
        raise NoTissue(record.path)
    return Bag(record, coords, list(classes).index(record.label))


@contextmanager
def stream_bag(bag: Bag, streaming: StreamingConfig, device: torch.device) -> Iterator[PatchStream]:
    """The bag's patches; the slide is open for the time of the ``with`` block only."""
    with open_slide(bag.record.path) as slide:
        yield PatchStream(slide, bag.coords, config=streaming, device=device)
