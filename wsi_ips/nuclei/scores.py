"""How well detections match the objects that are there: :func:`match_boxes`, :func:`score_found`.

The outlines of detectors with masks are matched by :func:`match_outlines`.

A score threshold is chosen on other images than those that are scored.

Shape suffixes: P predicted, T true.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import nn

from wsi_ips.nuclei.data import OutlinedImage
from wsi_ips.nuclei.detect import mask_polygons
from wsi_ips.nuclei.models import LOWEST_SCORE, set_score_threshold
from wsi_ips.nuclei.training import detect_in_image

Rule = Literal["iou", "distance"]
"""How a predicted box is compared with a true one."""

Boxes = NDArray[np.float32]
"""(n, 4): left, top, right, bottom."""

Outlines = NDArray[np.object_]
"""(n,) polygons of shapely, in pixels."""

Found = tuple[Boxes, NDArray[np.float32]]
"""Boxes and their scores, (n,) float32."""


@dataclass(frozen=True, slots=True)
class Matches:
    """How many objects were found, how many detections are false, and how many objects were missed."""

    hits: int
    false: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; 0 if there are none."""
        return self.hits / max(1, self.hits + self.false)

    @property
    def recall(self) -> float:
        """Share of the objects that were found; 0 if there are none."""
        return self.hits / max(1, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed); 1 if nothing was there and nothing was found."""
        whole = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / whole if whole else 1.0


@dataclass(frozen=True, slots=True)
class MatchRule:
    """When a detection counts as an object that is there. ``suffix`` is appended to the names of figures."""

    rule: Rule
    limit: float
    suffix: str
    words: str


BY_IOU = MatchRule("iou", 0.5, "", "at an IoU of 0.5")
"""The usual rule: an IoU of at least 0.5."""

RULES = (BY_IOU, MatchRule("distance", 12.0, "_12px", "within 12 px"))
"""The rules by which detectors are scored."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a detector finds by one rule at one score threshold."""

    rule: MatchRule
    threshold: float
    matches: Matches

    @property
    def figures(self) -> Mapping[str, float]:
        """F1, precision and recall by their names."""
        values = {"f1": self.matches.f1, "precision": self.matches.precision, "recall": self.matches.recall}
        return MappingProxyType({f"{name}{self.rule.suffix}": value for name, value in values.items()})


def found_in_images(detector: nn.Module, images: Sequence[OutlinedImage]) -> list[Found]:
    """Boxes and scores of each image, down to the lowest score that may become a threshold.

    The detector is left in eval mode with that threshold.
    """
    detector.eval()
    set_score_threshold(detector, LOWEST_SCORE)
    return [detect_in_image(detector, image.rgb_HWC) for image in images]


def chosen_threshold(found: Sequence[Found], images: Sequence[OutlinedImage], rule: MatchRule) -> float:
    """The score from which on detections count that gives the best F1 over these images by ``rule``."""
    return best_threshold(found, [image.boxes_N4 for image in images], rule=rule.rule, limit=rule.limit)


def score_found(
    found: Sequence[Found], images: Sequence[OutlinedImage], rule: MatchRule, *, threshold: float
) -> Score:
    """How many objects of the images were found, counted over all of them."""
    matches = summed(
        match_boxes(boxes[scores >= threshold], image.boxes_N4, rule=rule.rule, limit=rule.limit)
        for image, (boxes, scores) in zip(images, found, strict=True)
    )
    return Score(rule, threshold, matches)


def match_boxes(predicted_P4: Boxes, true_T4: Boxes, *, rule: Rule, limit: float) -> Matches:
    """Pair predicted with true boxes one to one, as many as possible.

    A pair has an IoU of at least ``limit``, or its centres are at most ``limit`` pixels apart, as ``rule`` says.
    """
    return _matched(_close(predicted_P4, true_T4, rule=rule, limit=limit))


@torch.no_grad()
def outlines_in_images(
    detector: nn.Module, images: Sequence[OutlinedImage], *, threshold: float
) -> list[Outlines]:
    """The outlines that a detector with masks finds in each image, of objects with this score or more.

    The detector is left in eval mode with that threshold. Raises ``KeyError`` for a detector without masks.
    """
    detector.eval()
    set_score_threshold(detector, threshold)
    device, outlines = next(detector.parameters()).device, []
    for image in images:
        pixels = torch.from_numpy(image.rgb_HWC.copy()).to(device).permute(2, 0, 1).float() / 255
        (found,) = detector([pixels])
        outlines.append(mask_polygons(found["box_masks"], found["boxes"]))
    return outlines


def outlines_of(image: OutlinedImage) -> Outlines:
    """The outlines that are there, cut at the image's edge. One that crosses itself is made valid."""
    height, width = image.rgb_HWC.shape[:2]
    rings = np.array([shapely.Polygon(outline) for outline in image.outlines], object)
    inside = shapely.intersection(shapely.make_valid(rings), shapely.box(0, 0, width, height))
    return np.asarray(inside[shapely.area(inside) > 0], object)


def match_outlines(predicted_P: Outlines, true_T: Outlines, *, limit: float) -> tuple[Matches, float]:
    """Pair predicted with true outlines one to one, as many as possible, each pair with an IoU of at least
    ``limit``; and the mean IoU of the pairs, NaN without any.

    From an IoU of more than 0.5 on, an outline has one partner at most where the true ones do not overlap, so that
    the pairs are the only ones possible. Panoptic quality (Kirillov et al. 2019) is then the F1 times the mean
    IoU.
    """
    iou_PT = np.zeros((len(predicted_P), len(true_T)))
    # Outlines by networks are simple; those by people may touch themselves.
    predicted, true = shapely.STRtree(true_T).query(predicted_P, predicate="intersects")
    shared = shapely.area(shapely.intersection(predicted_P[predicted], true_T[true]))
    iou_PT[predicted, true] = shared / (
        shapely.area(predicted_P[predicted]) + shapely.area(true_T[true]) - shared
    )
    close_PT = iou_PT >= limit
    matches = _matched(close_PT)
    if not matches.hits:
        return matches, float("nan")
    partner_P = maximum_bipartite_matching(csr_array(close_PT), perm_type="column")
    paired = partner_P >= 0
    return matches, float(iou_PT[np.flatnonzero(paired), partner_P[paired]].mean())


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
    """The matches of several images together."""
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
    """The score from which on detections count that gives the best F1 over these images.

    Of equal ones, the lowest is returned.
    """

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
    """Intersection over union of every pair of boxes, (P, T) float64."""
    a, b = a_P4.astype(np.float64)[:, None], b_T4.astype(np.float64)[None]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    inter = sides.prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def _distances(a_P4: Boxes, b_T4: Boxes) -> NDArray[np.float64]:
    centres = [(boxes[:, :2] + boxes[:, 2:]).astype(np.float64) / 2 for boxes in (a_P4, b_T4)]
    return np.asarray(np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1))
