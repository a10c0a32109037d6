"""Detections: where a slide's lesions are said to be, and how surely. What FROC judges.

The file is the CAMELYON16 challenge's: one CSV a slide, no header, ``probability,x,y`` in level-0 pixels.

Shape suffixes: N patches, or detections.

FROC by the rules of CAMELYON16: are lesions found, and at how many false positives a slide?

It repeats the challenge's own script (Evaluation_FROC.py by B. Ehteshami Bejnordi) digit for digit, with what
is odd about it, because published scores were made with it:

- Tumour is dilated by 37.5 µm and holes are filled; what touches then, corners included, is one lesion.
- A lesion whose major axis is below 275 µm is isolated tumour cells (ITC): neither a hit nor a miss.
- Detections are placed on the mask by a plain power of two, not by the file's own downsample.
- A lesion's score is its best hit, kept in float32: it may lie a digit below the false positive of the same
  probability, and then does not reach that one's threshold.
- The smallest of all scores is no threshold. Where no lesion is missed and none is ITC, that drops a real
  operating point.
- Between operating points sensitivity is interpolated; beyond the last false-positive rate it stays.

The challenge fixes 0.243 µm per level-0 pixel for all slides; :class:`FrocRules` takes others.

Shape suffixes: H, W rows and columns of the mask; N detections; F false positives; L lesions, ITC included;
T thresholds.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage import measure

from wsi_ips.errors import ResultsError
from wsi_ips.storage.files import check_size, whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp, Size

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
    check_size(path, ResultsError, most=LARGEST_BYTES, fix="is it a table of detections?")
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


TUMOR = 255
"""The tumour's value in a mask; every other value is none."""

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a slide at which the score averages sensitivity."""

L0_MPP = Mpp(0.243)
"""The challenge's resolution of level 0, for the slides of both its scanners."""

LEVEL = 5
"""The challenge's level: pixels of 7.8 µm."""

LARGEST_MASK_PX = 2**28
"""A CAMELYON slide's mask at level 5 is 2**24 or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrocRules:
    """The scale on which lesions are judged. The defaults are the challenge's."""

    l0_mpp: Mpp = L0_MPP
    level: int = LEVEL
    """Level of the mask: its pixels are ``2**level`` level-0 pixels wide."""

    @classmethod
    def for_slide(cls, l0_mpp: Mpp) -> "FrocRules":
        """The challenge's own for slides within a tenth of its resolution; else the slide's, at the level whose
        pixels are nearest in size, so that 200 µm are 200 µm there too."""
        if abs(l0_mpp / L0_MPP - 1) <= 0.1:
            return cls()
        return cls(l0_mpp=l0_mpp, level=max(0, round(math.log2(L0_MPP * 2**LEVEL / l0_mpp))))

    @property
    def l0_per_px(self) -> int:
        return 1 << self.level

    @property
    def dilation_px(self) -> float:
        """37.5 µm; two lesions 75 µm (five tumour cells) apart are one."""
        return 75 / (self.l0_mpp * self.l0_per_px * 2)

    @property
    def itc_px(self) -> float:
        """200 µm of isolated tumour cells and the dilation on both sides."""
        return 275 / (self.l0_mpp * self.l0_per_px)

    def mask_size(self, l0_size: Size) -> Size:
        """(width, height) of the mask that covers a slide. Raises ``ValueError`` beyond 2**28 pixels."""
        width, height = (max(1, math.ceil(length / self.l0_per_px)) for length in l0_size)
        if width * height > LARGEST_MASK_PX:
            raise ValueError(
                f"a mask of {width}x{height} pixels is too large: use a level above {self.level}"
            )
        return width, height


OFFICIAL = FrocRules()


@dataclass(frozen=True, slots=True, eq=False)
class LesionMask:
    """label_HW: int32, 0 where no lesion is, else its number from 1. itc: the numbers that are ITC."""

    label_HW: NDArray[np.int32]
    itc: frozenset[int]

    @property
    def numbers(self) -> int:
        return int(self.label_HW.max(initial=0))


def lesion_mask(tumor_HW: NDArray[np.uint8], rules: FrocRules = OFFICIAL) -> LesionMask:
    """Number the lesions of a mask at ``rules.level``, (H, W) uint8 with tumour = 255.

    Takes about five bytes a pixel, and ten more in the rectangle that holds all tumour. Raises ``ValueError``
    for a mask that is not two-dimensional or too large.
    """
    if tumor_HW.ndim != 2 or tumor_HW.size > LARGEST_MASK_PX:
        raise ValueError(f"a mask of shape {tumor_HW.shape} is no mask at level {rules.level}")
    is_tumor_HW = tumor_HW == TUMOR
    # With an empty margin around it nothing outside touches, fills or renumbers what is inside.
    window = _window(is_tumor_HW, margin=math.ceil(rules.dilation_px) + 1)
    near_HW = ndimage.binary_fill_holes(within(is_tumor_HW[window], rules.dilation_px))
    label_HW = np.zeros(tumor_HW.shape, np.int32)
    label_HW[window] = measure.label(near_HW, connectivity=2)
    regions = measure.regionprops(label_HW[window])
    itc = frozenset(region.label for region in regions if region.axis_major_length < rules.itc_px)
    return LesionMask(label_HW, itc)


def _window(mask_HW: NDArray[np.bool_], *, margin: int) -> tuple[slice, slice]:
    """The rectangle around all of the mask; the whole where there is nothing."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )


def within(mask_HW: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """Pixels nearer than ``radius_px`` to one of the mask, by centres; exact, (H, W) bool.

    A distance map would cost 45 bytes a pixel. Distances between pixels are roots of whole numbers, so a disc
    is its rows: the mask is widened by each row's half width and laid over itself row by row.
    """
    if not mask_HW.any():
        return _without_tumor(mask_HW.shape, radius_px)
    height = len(mask_HW)
    near_HW = np.zeros_like(mask_HW)
    wide: dict[int, NDArray[np.bool_]] = {}
    for dy in range(math.ceil(radius_px)):
        half = max(dx for dx in range(math.ceil(radius_px)) if math.hypot(dx, dy) < radius_px)
        if half not in wide:
            wide[half] = _widened(mask_HW, half)
        near_HW[dy:] |= wide[half][: max(height - dy, 0)]
        near_HW[: max(height - dy, 0)] |= wide[half][dy:]
    return near_HW


def _widened(mask_HW: NDArray[np.bool_], half: int) -> NDArray[np.bool_]:
    wide_HW = mask_HW.copy()
    for dx in range(1, min(half + 1, mask_HW.shape[1])):
        wide_HW[:, dx:] |= mask_HW[:, :-dx]
        wide_HW[:, :-dx] |= mask_HW[:, dx:]
    return wide_HW


def _without_tumor(shape: tuple[int, ...], radius_px: float) -> NDArray[np.bool_]:
    """What the script makes of a mask without tumour: scipy measures from a pixel above the top left corner.

    So that corner becomes an ITC, where detections count for nothing. A slide without tumour should have no
    mask at all.
    """
    near_HW = np.zeros(shape, np.bool_)
    corner_HW = near_HW[: math.ceil(radius_px) + 1, : math.ceil(radius_px) + 1]
    if corner_HW.size:
        corner_HW[:] = ndimage.distance_transform_edt(np.ones(corner_HW.shape, np.uint8)) < radius_px
    return near_HW


@dataclass(frozen=True, slots=True, eq=False)
class SlideHits:
    """What one slide adds to the curve.

    false_positives_F: float64 probabilities. lesion_scores_L: float32, 0 where missed and for ITC. lesions: how
    many of them are to be found.
    """

    false_positives_F: NDArray[np.float64]
    lesion_scores_L: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    lesions: int = 0


def hit_lesions(
    found: Detections, lesions: LesionMask | None = None, rules: FrocRules = OFFICIAL
) -> SlideHits:
    """Sort a slide's detections into hits and false positives; without a mask, all are false positives.

    So are detections beyond the mask, which ends the official script: a slide's padding may be wider than its
    mask's.
    """
    if lesions is None:
        return SlideHits(found.probability_N)
    count = lesions.numbers
    hit_N = _labels_at(found.l0_xy_N2, lesions.label_HW, rules)
    scores_L = np.zeros(count)
    counted_N = (hit_N > 0) & ~np.isin(hit_N, list(lesions.itc))
    np.maximum.at(scores_L, hit_N[counted_N] - 1, found.probability_N[counted_N])
    return SlideHits(found.probability_N[hit_N == 0], scores_L.astype(np.float32), count - len(lesions.itc))


def _labels_at(
    l0_xy_N2: NDArray[np.int64], label_HW: NDArray[np.int32], rules: FrocRules
) -> NDArray[np.int64]:
    column_N, row_N = np.trunc(l0_xy_N2 / rules.l0_per_px).astype(np.int64).T
    height, width = label_HW.shape
    inside_N = (column_N >= 0) & (row_N >= 0) & (column_N < width) & (row_N < height)
    label_N = np.zeros(len(l0_xy_N2), np.int64)
    label_N[inside_N] = label_HW[row_N[inside_N], column_N[inside_N]]
    return label_N


@dataclass(frozen=True, slots=True, eq=False)
class FrocCurve:
    """One operating point per threshold, then (0, 0).

    thresholds_T: float64, ascending. fps_per_slide, sensitivity: (T + 1,) float64, descending.
    """

    thresholds_T: NDArray[np.float64]
    fps_per_slide: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    slides: int
    lesions: int

    def sensitivity_at(self, rates: Sequence[float] = RATES) -> NDArray[np.float64]:
        """Sensitivity at these numbers of false positives a slide, interpolated."""
        return np.asarray(np.interp(rates, self.fps_per_slide[::-1], self.sensitivity[::-1]), np.float64)

    @property
    def score(self) -> float:
        """The challenge's score: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide."""
        return float(self.sensitivity_at().mean())


def froc_curve(slides: Iterable[SlideHits]) -> FrocCurve:
    """The curve over slides, each of them counted, also those without detections or lesions.

    Raises ``ValueError`` where there is no lesion to be found: sensitivity is then no number.
    """
    slides = list(slides)
    lesions = sum(slide.lesions for slide in slides)
    if not lesions:
        raise ValueError(f"no FROC curve: the {len(slides)} slides have no lesion larger than ITC")
    wrong = np.sort(np.concatenate([slide.false_positives_F for slide in slides]))
    right = np.sort(np.concatenate([slide.lesion_scores_L for slide in slides]).astype(np.float64))
    thresholds_T = np.unique(np.concatenate([wrong, right]))[1:]
    counts = [np.append(len(p) - np.searchsorted(p, thresholds_T, side="left"), 0) for p in (wrong, right)]
    return FrocCurve(thresholds_T, counts[0] / len(slides), counts[1] / lesions, len(slides), lesions)
