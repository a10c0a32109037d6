"""What training iterates over: a :class:`Bag` is a set of patches that share labels. It holds no pixels until
opened.

:class:`SlideBag` is a slide cut into patches; :func:`tile_bag` makes one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

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
    """Patches that share labels: a slide, an image, or the stored features of a slide.

    ``bag_id`` is its unique name, ``targets`` is ``{task: target}`` (see :mod:`wsi_ips.datasets.manifest`), and
    its length is the number of patches, 1 or more.
    """

    @property
    def bag_id(self) -> str: ...

    @property
    def targets(self) -> Mapping[str, Target]: ...

    def __len__(self) -> int: ...

    def open(self, streaming: StreamingConfig, device: torch.device) -> AbstractContextManager[PatchSource]:
        """The patches of the bag on ``device``. Files are open only within the ``with`` block."""
        ...


@runtime_checkable
class AugmentedBag(Bag, Protocol):
    """A bag that is augmented before it is cut into patches, such as a photograph that is moved."""

    def as_seen(self, key: str) -> Bag:
        """The bag as it is shown to the network. It is the same for the same ``key`` (seed, epoch and bag)."""
        ...


@dataclass(frozen=True, slots=True)
class SlideBag:
    """A slide of the training data, cut into patches.

    Attributes:
        record: The line of the manifest.
        coords: Where its patches lie.
        targets: ``{task: target}``.
        scanner: The vendor that the file names, or the kind of the container.
    """

    record: SlideRecord
    coords: PatchCoords
    targets: Mapping[str, Target]
    scanner: str = ""

    @property
    def bag_id(self) -> str:
        return self.record.slide_id

    def __len__(self) -> int:
        return len(self.coords)

    def labelled(self, targets: Mapping[str, Target]) -> Self:
        """The same slide with other targets, such as those of its case."""
        return replace(self, targets=targets)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator[PatchStream]:
        """The patches of the slide on ``device``. Raises the error of the slide if it cannot be read."""
        with open_slide(self.record.path) as slide:
            yield PatchStream(slide, self.coords, config=streaming, device=device)


def tile_bag(
    record: SlideRecord,
    *,
    tasks: Sequence[TaskConfig],
    tiling: TilingConfig,
    slide_mpp: Callable[[str], Mpp | None],
) -> SlideBag:
    """Open a slide, find its tissue and cut it into patches.

    Doing this before training shows what is wrong with a slide before hours are spent.

    Args:
        record: The line of the manifest.
        tasks: What is learned.
        tiling: How the slide is cut.
        slide_mpp: Gives the resolution of a slide if the user knows it better than the file, or None.

    Raises:
        NoTissue: The slide has no patches.
        FileError: The slide cannot be opened or read; the error is that of the slide.
    """
    with open_slide(record.path) as slide:
        coords, mask = tile_slide(slide, tiling, slide_id=record.slide_id, mpp=slide_mpp(record.slide_id))
        scanner = slide.info.vendor
    if not len(coords):
        raise no_patches(record.path, coords, mask, tiling)
    return SlideBag(record, coords, record.targets(tasks), scanner)
