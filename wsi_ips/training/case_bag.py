"""All slides of a case (a patient) as one bag to learn from: :class:`CaseBag`, and :func:`case_bags` for
``bag: case``.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import nn

from wsi_ips.config import FinetuneConfig, StreamingConfig
from wsi_ips.datasets.case_labels import case_targets
from wsi_ips.datasets.manifest import Manifest, SlideRecord, Target
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.streaming.case_source import CaseSource
from wsi_ips.training.bags import Bag

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
        targets: ``{case_id: {task: target}}``, see :func:`wsi_ips.datasets.case_labels.case_targets`.
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
