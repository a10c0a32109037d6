"""Detections against the objects that are there: which belong together, and F1.

Shape suffixes: P predicted, T true.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Rule = Literal["iou", "distance"]
Boxes = NDArray[np.float32]
"""(n, 4): left, top, right, bottom."""
Found = tuple[Boxes, NDArray[np.float32]]
"""Boxes and their scores."""


@dataclass(frozen=True, slots=True)
class Matches:
    """How many were found rightly, wrongly, and not at all."""

    hits: int
    false: int
    missed: int

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + self.false)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed); 1 where nothing was there and nothing was found."""
        whole = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / whole if whole else 1.0


def match_boxes(predicted_P4: Boxes, true_T4: Boxes, *, rule: Rule, limit: float) -> Matches:
    """Pair off as many as can be, one to one: IoU of at least, or centres no farther apart than ``limit``."""
    return _matched(_close(predicted_P4, true_T4, rule=rule, limit=limit))


def _close(predicted_P4: Boxes, true_T4: Boxes, *, rule: Rule, limit: float) -> NDArray[np.bool_]:
    if rule == "iou":
        return np.asarray(box_ious(predicted_P4, true_T4) >= limit)
    return np.asarray(_distances(predicted_P4, true_T4) <= limit)


def _matched(close_PT: NDArray[np.bool_]) -> Matches:
    predicted, true = close_PT.shape
    hits = 0
    if close_PT.any():
        hits = int((maximum_bipartite_matching(csr_array(close_PT), perm_type="column") >= 0).sum())
    return Matches(hits, predicted - hits, true - hits)


def summed(matches: Iterable[Matches]) -> Matches:
    """Of several images together."""
    every = list(matches)
    return Matches(sum(m.hits for m in every), sum(m.false for m in every), sum(m.missed for m in every))


def best_threshold(
    predicted: Sequence[Found],
    true: Sequence[Boxes],
    *,
    rule: Rule,
    limit: float,
    thresholds: Sequence[float] = tuple(np.arange(0.05, 0.95, 0.025).round(3).tolist()),
) -> float:
    """The score from which on boxes count that gives the best F1 over these images; of equals the lowest."""

    closes = [
        _close(boxes, truth, rule=rule, limit=limit)
        for (boxes, _), truth in zip(predicted, true, strict=True)
    ]

    def f1(threshold: float) -> float:
        return summed(
            _matched(close_PT[scores >= threshold])
            for close_PT, (_, scores) in zip(closes, predicted, strict=True)
        ).f1

    return max(thresholds, key=f1)


def box_ious(a_P4: Boxes, b_T4: Boxes) -> NDArray[np.float64]:
    """Area of the intersection over that of the union, (P, T)."""
    a, b = a_P4.astype(np.float64)[:, None], b_T4.astype(np.float64)[None]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    inter = sides.prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def _distances(a_P4: Boxes, b_T4: Boxes) -> NDArray[np.float64]:
    centres = [(boxes[:, :2] + boxes[:, 2:]).astype(np.float64) / 2 for boxes in (a_P4, b_T4)]
    return np.asarray(np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1))
