"""From the reading of a case back to its slides: :func:`slides_of_case`.

The attention of a case is one softmax over the patches of all its slides. Each slide gets its rows of it as they
are, so that the attention of a slide sums to the slide's share, and that of all slides together to 1.

Shape suffixes: N patches of the case, M kept patches of the case.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wsi_ips.inference.part_of_case import PartOfCase
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.score_store import Normalisers, ScoreStore
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.streaming.case_source import CaseSource


class SlideLost(Exception):
    """A slide of a case that could be opened cannot be read: ``SlideLost(place, error)``."""

    def __init__(self, place: int, error: Exception) -> None:
        super().__init__(place, error)
        self.place, self.error = place, error


@dataclass(frozen=True, slots=True)
class SlideOfCase:
    """One slide of a case that was read as a bag.

    Attributes:
        reading: What was found on the slide, with the ids that its patches have by themselves. The label and the
            tokens are those of the case.
        normalisers: What the softmax over all patches of the case divides by.
        part: What the slide is in its case.
    """

    reading: SlideReading
    normalisers: Normalisers
    part: PartOfCase


def slides_of_case(
    reading: SlideReading, source: CaseSource, *, case_id: str, slide_ids: Sequence[str]
) -> list[SlideOfCase]:
    """The reading of a case, slide by slide.

    Args:
        reading: What one pass over the case found.
        source: Its patches.
        case_id: The case.
        slide_ids: The names of the slides, in the order of the source.
    """
    ids_N, logits_NHT = reading.store.ids(), reading.store.logits()
    normalisers = reading.store.normalisers()
    scores_N = normalisers.scores(logits_NHT)
    kept_M = reading.kept.ids_M.cpu()
    slides = []
    for number, ids in enumerate(source.parts()):
        rows = ((ids_N >= ids.start) & (ids_N < ids.stop)).nonzero()[:, 0]
        kept = ((kept_M >= ids.start) & (kept_M < ids.stop)).nonzero()[:, 0]
        store = ScoreStore()
        store.add(source.own_ids(number, ids_N[rows]), logits_NHT[rows])
        its = replace(
            reading,
            kept=_rows_of(reading.kept, kept, source, number),
            store=store,
            emb_MD=reading.emb_MD[kept.to(reading.emb_MD.device)],
            bag=replace(reading.bag, contributions=_contributions(reading, kept)),
        )
        part = PartOfCase(case_id, tuple(slide_ids), float(scores_N[rows].sum()))
        slides.append(SlideOfCase(its, normalisers, part))
    return slides


def _rows_of(kept: Kept, rows: torch.Tensor, source: CaseSource, number: int) -> Kept:
    return Kept(
        source.own_ids(number, kept.ids_M.cpu()[rows]),
        None if kept.emb_MD is None else kept.emb_MD[rows.to(kept.emb_MD.device)],
        kept.scores_M[rows.to(kept.scores_M.device)],
        kept.logits_MHT[rows.to(kept.logits_MHT.device)],
    )


def _contributions(reading: SlideReading, rows: torch.Tensor) -> dict[str, torch.Tensor] | None:
    told = reading.bag.contributions
    return None if told is None else {task: share[rows.to(share.device)] for task, share in told.items()}
