"""What training iterates over: slides, and cases with several slides, cut into patches.

A :class:`Bag` is a set of patches that share labels. It holds no pixels until it is opened. :class:`SlideBag`
is a slide; :func:`tile_bag` makes one. :class:`CaseBag` is all slides of a case (a patient); :func:`case_bags`
makes those of a manifest for ``bag: case``.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import nn

from wsi_ips import timeline
from wsi_ips.config import FinetuneConfig, StreamingConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target, case_targets
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.patch_source import CaseSource, PatchSource
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import FindPatches
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

    @property
    def is_streamed(self) -> bool:
        """Always: a slide is read from its file by threads."""
        return True

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
    find_patches: FindPatches,
    slide_mpp: Callable[[str], Mpp | None],
) -> SlideBag:
    """Open a slide and find its patches.

    Doing this before training shows what is wrong with a slide before hours are spent.

    Args:
        record: The line of the manifest.
        tasks: What is learned.
        find_patches: Finds its patches.
        slide_mpp: Gives the resolution of a slide if the user knows it better than the file, or None.

    Raises:
        NoTissue: The slide has no patches.
        FileError: The slide cannot be opened or read; the error is that of the slide.
    """
    with timeline.slide(record.slide_id), open_slide(record.path) as slide:
        coords = find_patches(slide, slide_id=record.slide_id, mpp=slide_mpp(record.slide_id))
        scanner = slide.info.vendor
    return SlideBag(record, coords, record.targets(tasks), scanner)


logger = logging.getLogger(__name__)


class RecordedBag(Bag, Protocol):
    """A bag that is a slide of a manifest."""

    @property
    def record(self) -> SlideRecord: ...

    def labelled(self, targets: Mapping[str, Target]) -> Self:
        """The same bag with these targets."""
        ...


@dataclass(frozen=True, slots=True)
class CaseBag:
    """Two slides or more of one case. It is a :class:`wsi_ips.training.bags.Bag`.

    Attributes:
        case_id: The case.
        slides: Its slides, in the order of their names.
        targets: ``{task: target}`` of the case.
    """

    case_id: str
    slides: tuple[Bag, ...]
    targets: Mapping[str, Target]

    @property
    def bag_id(self) -> str:
        """The name of the bag. It says that it is a case, because a slide may have the same name."""
        return f"case {self.case_id}"

    @property
    def is_streamed(self) -> bool:
        """Whether all its slides are read from their files by threads."""
        return all(getattr(slide, "is_streamed", False) for slide in self.slides)

    def __len__(self) -> int:
        return sum(len(slide) for slide in self.slides)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator[CaseSource]:
        """The patches of all slides, one after the other. Raises the error of a slide that cannot be read."""
        with ExitStack() as opened:
            yield CaseSource([opened.enter_context(slide.open(streaming, device)) for slide in self.slides])


def case_bags(
    slides: Sequence[RecordedBag], targets: Mapping[str, Mapping[str, Target]]
) -> list[RecordedBag | CaseBag]:
    """One bag for each case, in the order of the first slides.

    A case with one slide is the bag of that slide, so that training on such cases is training on slides.

    Args:
        slides: The bags of all slides that can be read.
        targets: ``{case_id: {task: target}}``, see :func:`wsi_ips.datasets.manifest.case_targets`.
    """
    by_case: dict[str, list[RecordedBag]] = {}
    for slide in slides:
        by_case.setdefault(slide.record.case_id, []).append(slide)
    bags: list[RecordedBag | CaseBag] = []
    for case_id, its in by_case.items():
        if len(its) == 1:
            bags.append(its[0].labelled(targets[case_id]))
            continue
        ordered = sorted(its, key=lambda slide: slide.record.slide_id)
        bags.append(CaseBag(case_id, tuple(ordered), targets[case_id]))
    return bags


def bags_of(slides: Sequence[RecordedBag], manifest: Manifest, config: FinetuneConfig) -> Sequence[Bag]:
    """What is learned from: the slides themselves, or with ``bag: case`` the cases that they make.

    Raises:
        ManifestError: Slides of a case have different labels.
    """
    if config.bag == "slide":
        return slides
    return case_bags(slides, case_targets(manifest, config.model.tasks))


def warn_of_order(net: nn.Module, config: FinetuneConfig) -> None:
    """Log a warning if the aggregator takes neighbours in the order of patches for neighbours in the tissue: where
    the slides of a case meet, they are not.
    """
    if config.bag == "case" and isinstance(net, IPSNet) and net.attention.ordered:
        logger.warning(
            "%s reads patches in order, and with bag: case the last patches of a slide stand beside the first "
            "ones of the next",
            config.model.aggregator.name if config.model.aggregator else "the aggregator",
        )


def without_slides(
    bad: Mapping[str, str], records: Sequence[SlideRecord], config: FinetuneConfig
) -> dict[str, str]:
    """``{slide_id: why it is left out}`` with what that means for its case. Empty with ``bag: slide``.

    Args:
        bad: The slides that cannot be used, and why.
        records: All slides of the splits that are learned from.
        config: The settings of the run.
    """
    if config.bag == "slide":
        return {}
    case_of = {record.slide_id: record.case_id for record in records}
    left = Counter(record.case_id for record in records if record.slide_id not in bad)
    said = {}
    for slide_id, why in bad.items():
        case = case_of[slide_id]
        goes_on = f"goes on with {left[case]} other slide(s)" if left[case] else "is left out"
        said[slide_id] = f"{why} (case {case!r} {goes_on})"
    return said
