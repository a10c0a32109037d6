"""Detections: where a slide's lesions are said to be, and how surely. What FROC judges.

The file is the CAMELYON16 challenge's: one CSV a slide, no header, ``probability,x,y`` in level-0 pixels.

Shape suffixes: N patches, or detections.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from wsi_ips.errors import ResultsError
from wsi_ips.files import whole_file
from wsi_ips.tiling.grid import PatchCoords

LARGEST_BYTES = 2**28
MOST_DETECTIONS = 1000
"""A slide's; FROC looks at eight false positives a slide at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """probability_N: float64. l0_xy_N2: int64, (x, y) of a point in the lesion, level-0 pixels.

    Raises ``ValueError`` for shapes that do not fit or a probability that is no number.
    """

    probability_N: NDArray[np.float64]
    l0_xy_N2: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.probability_N.ndim != 1 or self.l0_xy_N2.shape != (len(self.probability_N), 2):
            raise ValueError(f"{self.probability_N.shape} probabilities at {self.l0_xy_N2.shape} points")
        if not np.isfinite(self.probability_N).all():
            raise ValueError("a detection's probability is not a number")

    def __len__(self) -> int:
        return len(self.probability_N)


def detections_from_attention(
    coords: PatchCoords,
    attention_N: NDArray[np.float32 | np.float64],
    *,
    probability: float,
    radius_um: float | None = None,
    most: int = MOST_DETECTIONS,
) -> Detections:
    """The local maxima of a slide's attention, each at the centre of its patch, strongest first.

    Patches are taken from the strongest on; those whose centre lies within ``radius_um`` of one that was taken
    are dropped (none: 1.5 patch sides, the eight neighbours). Of equals, the first in grid order is taken.

    A detection's probability is the slide's ``probability`` of tumour times the patch's attention over the
    slide's largest. Attention sums to 1 in each slide, so it ranks patches within one slide only; the slide's
    probability is what makes detections of different slides comparable. Patches with no attention are none.

    Raises ``ValueError`` for attention that is negative, no number, or not one value a patch.
    """
    strength_N: NDArray[np.float64] = np.asarray(attention_N, np.float64)
    if strength_N.shape != (len(coords),) or not (np.isfinite(strength_N) & (strength_N >= 0)).all():
        raise ValueError(
            f"attention of shape {strength_N.shape} for {len(coords)} patches, or values that are no attention"
        )
    radius = 1.5 * coords.l0_patch if radius_um is None else radius_um / coords.slide_mpp
    centres_N2 = coords.l0_exact_corners() + coords.l0_patch / 2
    kept = _strongest_apart(centres_N2, strength_N, radius=radius, most=most)
    share_N = strength_N[kept] / strength_N.max(initial=math.ulp(0.0))
    return Detections(probability * share_N, np.floor(centres_N2[kept]).astype(np.int64))


def detections_from_contributions(
    coords: PatchCoords,
    contribution_N: NDArray[np.float32 | np.float64],
    *,
    probability: float,
    radius_um: float | None = None,
    most: int = MOST_DETECTIONS,
) -> Detections:
    """The same from what each patch adds to the logit of a lesion (N,): of what takes from it, one patch is left.

    That is the patch with the smallest contribution, last and with probability 0. The challenge's script leaves
    out the lowest threshold that any slide has (:func:`wsi_ips.evaluation.froc.froc_curve`). Attention has weak
    detections down there, but so few patches add to a lesion that it could be a lesion that was found.

    Raises ``ValueError`` for contributions that are no numbers, or not one a patch.
    """
    strength_N = np.asarray(contribution_N, np.float64)
    positive_N = np.maximum(strength_N, 0)  # NaN stays NaN
    found = detections_from_attention(
        coords, positive_N, probability=probability, radius_um=radius_um, most=most
    )
    if not len(coords):
        return found
    weakest = int(strength_N.argmin())
    centre_12 = np.floor(coords.l0_exact_corners()[[weakest]] + coords.l0_patch / 2).astype(np.int64)
    return Detections(
        np.append(found.probability_N, 0.0), np.concatenate([found.l0_xy_N2, centre_12], axis=0)
    )


def _strongest_apart(
    points_N2: NDArray[np.float64], strength_N: NDArray[np.float64], *, radius: float, most: int
) -> list[int]:
    """Places of the strongest points, no two of them within ``radius``; greedy (non-maximum suppression)."""
    if not len(points_N2):
        return []
    near = KDTree(points_N2)
    free_N = strength_N > 0
    kept: list[int] = []
    for place in np.argsort(-strength_N, kind="stable").tolist():
        if free_N[place]:
            kept.append(place)
            free_N[near.query_ball_point(points_N2[place], radius)] = False
            if len(kept) == most:
                break
    return kept


def write_detections(path: Path, found: Detections) -> None:
    """Write the challenge's CSV; a slide without detections is an empty file, which counts as a slide."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for probability, (x, y) in zip(found.probability_N.tolist(), found.l0_xy_N2.tolist(), strict=True):
            writer.writerow([repr(probability), x, y])


def read_detections(path: Path) -> Detections:
    """Read ``probability,x,y`` without header. Raises :class:`ResultsError` with the line."""
    if not path.is_file():
        raise ResultsError(path, "no such table of detections", "write probability,x,y a line")
    if path.stat().st_size > LARGEST_BYTES:
        raise ResultsError(path, f"is larger than {LARGEST_BYTES} bytes", "is it a table of detections?")
    rows: list[tuple[float, int, int]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line in csv.reader(file, strict=True):
                probability, x, y = line
                rows.append((float(probability), int(x), int(y)))
        points = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
        return Detections(np.array([row[0] for row in rows], np.float64), points)
    except (csv.Error, ValueError, OverflowError) as error:
        raise ResultsError(
            path, f"line {len(rows) + 1}: {error}", "each line is probability,x,y in level-0 pixels"
        ) from None
