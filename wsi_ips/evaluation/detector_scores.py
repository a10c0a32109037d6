"""A detector's figures on outlined images, at a score threshold that was chosen on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from wsi_ips.datasets.nucleus_outlines import OutlinedImage
from wsi_ips.evaluation.matching import Found, Matches, Rule, best_threshold, match_boxes, summed
from wsi_ips.models.detection.build import LOWEST_SCORE, set_score_threshold
from wsi_ips.training.detector import detect_in_image


@dataclass(frozen=True, slots=True)
class MatchRule:
    """When a box that was found is an object that is there. suffix: of the figures' names."""

    rule: Rule
    limit: float
    suffix: str
    words: str


BY_IOU = MatchRule("iou", 0.5, "", "at an IoU of 0.5")
RULES = (BY_IOU, MatchRule("distance", 12.0, "_12px", "within 12 px"))


@dataclass(frozen=True, slots=True)
class Score:
    rule: MatchRule
    threshold: float
    matches: Matches

    @property
    def figures(self) -> Mapping[str, float]:
        values = {"f1": self.matches.f1, "precision": self.matches.precision, "recall": self.matches.recall}
        return MappingProxyType({f"{name}{self.rule.suffix}": value for name, value in values.items()})


def found_in_images(detector: nn.Module, images: Sequence[OutlinedImage]) -> list[Found]:
    """Boxes and scores of each image down to the lowest score that may be a threshold; leaves the detector in
    eval mode, at that score."""
    detector.eval()
    set_score_threshold(detector, LOWEST_SCORE)
    return [detect_in_image(detector, image.rgb_HWC) for image in images]


def chosen_threshold(found: Sequence[Found], images: Sequence[OutlinedImage], rule: MatchRule) -> float:
    """The score from which on objects count that gives the best F1 over these images."""
    return best_threshold(found, [image.boxes_N4 for image in images], rule=rule.rule, limit=rule.limit)


def score_found(
    found: Sequence[Found], images: Sequence[OutlinedImage], rule: MatchRule, *, threshold: float
) -> Score:
    """What of the images' objects was found, counted over all of them."""
    matches = summed(
        match_boxes(boxes[scores >= threshold], image.boxes_N4, rule=rule.rule, limit=rule.limit)
        for image, (boxes, scores) in zip(images, found, strict=True)
    )
    return Score(rule, threshold, matches)
