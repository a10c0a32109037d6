"""What training iterates over: bags of patches with what is known of them. No pixels until one is opened."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from wsi_ips.config import StreamingConfig, TaskConfig, TilingConfig
from wsi_ips.datasets.manifest import SlideRecord, Target
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.patch_source import PatchSource
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import no_patches, tile_slide
from wsi_ips.units import Mpp


class Bag(Protocol):
    """Patches that share labels: a slide, an image, or a slide's stored features.

    ``targets``: {task: target}, see :mod:`wsi_ips.datasets.manifest`. Length: number of patches, 1 or more.
    """

    @property
    def bag_id(self) -> str: ...

    @property
    def targets(self) -> Mapping[str, Target]: ...

    def __len__(self) -> int: ...

    def open(self, streaming: StreamingConfig, device: torch.device) -> AbstractContextManager[PatchSource]:
        """The bag's patches, on ``device``; files are open for the time of the ``with`` block only."""
        ...


@runtime_checkable
class AugmentedBag(Bag, Protocol):
    """A bag that is augmented before it is cut into patches, such as a photograph that is moved."""

    def as_seen(self, key: str) -> Bag:
        """The bag as it is shown to the network; the same for the same ``key`` (seed, epoch and bag)."""
        ...


@dataclass(frozen=True, slots=True)
class SlideBag:
    """A slide of the training set, cut into patches."""

    record: SlideRecord
    coords: PatchCoords
    targets: Mapping[str, Target]

    @property
    def bag_id(self) -> str:
        return self.record.slide_id

    def __len__(self) -> int:
        return len(self.coords)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator[PatchStream]:
        """See :class:`Bag`. Raises the slide's own error."""
        with open_slide(self.record.path) as slide:
            yield PatchStream(slide, self.coords, config=streaming, device=device)


def tile_bag(
    record: SlideRecord,
    *,
    tasks: Sequence[TaskConfig],
    tiling: TilingConfig,
    slide_mpp: Callable[[str], Mpp | None],
) -> SlideBag:
    """Open a slide, find its tissue and cut it, so that what is wrong with it shows before hours are spent.

    ``slide_mpp`` gives a slide's resolution where the user knows better than the file. Raises the slide's
    own error, or :class:`wsi_ips.errors.NoTissue`.
    """
    with open_slide(record.path) as slide:
        coords, mask = tile_slide(slide, tiling, slide_id=record.slide_id, mpp=slide_mpp(record.slide_id))
    if not len(coords):
        raise no_patches(record.path, coords, mask, tiling)
    return SlideBag(record, coords, record.targets(tasks))
