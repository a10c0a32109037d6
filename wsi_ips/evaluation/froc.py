"""FROC by the rules of CAMELYON16: are lesions found, and at how many false positives per slide?

A slide has :class:`Detections`, points with probabilities, read from or written to the CSV of the challenge (one
per slide, without header, ``probability,x,y`` in level-0 pixels). :func:`lesion_mask` numbers the lesions of a
mask, :func:`hit_lesions` sorts detections into hits and false positives, and :func:`froc_curve` makes the curve
of many slides.

This repeats the challenge's own script (Evaluation_FROC.py by B. Ehteshami Bejnordi) digit for digit, including
what is odd about it, because published scores were made with it:

- Tumour is dilated by 37.5 µm and holes are filled; what touches then, corners included, is one lesion.
- A lesion whose major axis is below 275 µm is isolated tumour cells (ITC): neither a hit nor a miss.
- Detections are placed on the mask by a plain power of two, not by the downsample of the file.
- The score of a lesion is its best hit, kept in float32. It may be a digit below the false positive of the same
  probability, and then does not reach the threshold of that one.
- The smallest of all scores is not a threshold. If no lesion is missed and none is ITC, that drops a real
  operating point.
- Between operating points sensitivity is interpolated; beyond the last false-positive rate it stays.

The challenge assumes 0.243 µm per level-0 pixel for all slides; :class:`FrocRules` takes other values.

Shape suffixes: N patches or detections; H, W rows and columns of the mask; F false positives; L lesions, ITC
included; T thresholds.
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
"""Largest table of detections that is read."""
MOST_DETECTIONS = 1000
"""Most detections of a slide. FROC looks at eight false positives per slide at most."""
TUMOR = 255
"""The value of tumour in a mask. Every other value is no tumour."""

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per slide at which the score averages sensitivity."""

L0_MPP = Mpp(0.243)
"""The resolution of level 0 in µm per pixel that the challenge assumes for both its scanners."""

LEVEL = 5
"""The level of the challenge's masks, with pixels of 7.8 µm."""

LARGEST_MASK_PX = 2**28
"""Most pixels of a mask. That of a CAMELYON slide at level 5 has about 2**24."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Where the lesions of a slide are said to be, and how surely.

    Attributes:
        probability_N: float64.
        l0_xy_N2: int64, (x, y) of a point in the lesion, in level-0 pixels.

    Raises:
        ValueError: The shapes do not fit, or a probability is not a number.
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
    largest: float | None = None,
) -> Detections:
    """The local maxima of the attention of a slide, each at the centre of its patch, strongest first.

    Patches are taken from the strongest on; those whose centre is within ``radius_um`` of one that was taken are
    dropped. Among equals, the first in grid order is taken. Patches without attention are not detections.

    The probability of a detection is the ``probability`` of tumour of the slide times the attention of the patch
    over the largest attention of the slide. Attention sums to 1 in each slide, so it ranks patches only within
    one slide; the probability of the slide makes detections of different slides comparable.

    Args:
        coords: Where the patches lie.
        attention_N: One value for each patch.
        probability: The probability of tumour of the slide.
        radius_um: Radius in µm. None: 1.5 patch sides, which are the eight neighbours.
        most: Most detections.
        largest: The largest attention. None: that of this slide. Where slides were read together as one bag,
            their attention can be compared, and it is the largest of all of them.

    Raises:
        ValueError: Attention is negative, not a number, or not one value per patch.
    """
    strength_N: NDArray[np.float64] = np.asarray(attention_N, np.float64)
    if strength_N.shape != (len(coords),) or not (np.isfinite(strength_N) & (strength_N >= 0)).all():
        raise ValueError(
            f"attention of shape {strength_N.shape} is not one finite value of 0 or more for each of "
            f"{len(coords)} patches"
        )
    radius = 1.5 * coords.l0_patch if radius_um is None else radius_um / coords.slide_mpp
    centres_N2 = coords.l0_exact_corners() + coords.l0_patch / 2
    kept = _strongest_apart(centres_N2, strength_N, radius=radius, most=most)
    largest = float(strength_N.max(initial=0)) if largest is None else largest
    share_N = strength_N[kept] / max(largest, math.ulp(0.0))
    return Detections(probability * share_N, np.floor(centres_N2[kept]).astype(np.int64))


def detections_from_contributions(
    coords: PatchCoords,
    contribution_N: NDArray[np.float32 | np.float64],
    *,
    probability: float,
    radius_um: float | None = None,
    most: int = MOST_DETECTIONS,
    largest: float | None = None,
) -> Detections:
    """The local maxima of what each patch adds to the logit of a lesion, with one patch of those that take from
    it.

    That one is the patch with the smallest contribution; it comes last, with probability 0. It is there because
    the challenge's script leaves out the lowest threshold that any slide has (:func:`froc_curve`). Attention has
    weak detections down there, but so few patches add to a lesion that it could be a lesion that was found.

    Args:
        coords: Where the patches lie.
        contribution_N: One value for each patch.
        probability: The probability of tumour of the slide.
        radius_um: Radius in µm, see :func:`detections_from_attention`.
        most: Most detections.
        largest: The largest contribution, see :func:`detections_from_attention`.

    Raises:
        ValueError: Contributions are not numbers, or not one per patch.
    """
    strength_N = np.asarray(contribution_N, np.float64)
    positive_N = np.maximum(strength_N, 0)  # NaN stays NaN
    found = detections_from_attention(
        coords, positive_N, probability=probability, radius_um=radius_um, most=most, largest=largest
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
    """The places of the strongest points, no two of them within ``radius``; greedy (non-maximum suppression)."""
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
    """Write the CSV of the challenge. A slide without detections is an empty file, which counts as a slide."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for probability, (x, y) in zip(found.probability_N.tolist(), found.l0_xy_N2.tolist(), strict=True):
            writer.writerow([repr(probability), x, y])


def read_detections(path: Path) -> Detections:
    """Read ``probability,x,y`` without header.

    Raises:
        ResultsError: The file is missing or too large, or a line is wrong. The message names the line.
    """
    if not path.is_file():
        raise ResultsError(
            path, "no such table of detections", "write one line probability,x,y per detection"
        )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FrocRules:
    """The scale on which lesions are judged. The defaults are those of the challenge."""

    l0_mpp: Mpp = L0_MPP
    level: int = LEVEL
    """Level of the mask: its pixels are ``2**level`` level-0 pixels wide."""

    @classmethod
    def for_slide(cls, l0_mpp: Mpp) -> "FrocRules":
        """The challenge's own rules for slides within a tenth of its resolution.

        Otherwise those of the slide's resolution, at the level whose pixels are nearest in size, so that 200 µm
        are 200 µm there too.
        """
        if abs(l0_mpp / L0_MPP - 1) <= 0.1:
            return cls()
        return cls(l0_mpp=l0_mpp, level=max(0, round(math.log2(L0_MPP * 2**LEVEL / l0_mpp))))

    @property
    def l0_per_px(self) -> int:
        """Level-0 pixels along the side of a pixel of the mask."""
        return 1 << self.level

    @property
    def dilation_px(self) -> float:
        """37.5 µm in pixels of the mask. Two lesions within 75 µm (five tumour cells) of each other are one."""
        return 75 / (self.l0_mpp * self.l0_per_px * 2)

    @property
    def itc_px(self) -> float:
        """The size of 200 µm of isolated tumour cells and the dilation on both sides, in pixels of the mask."""
        return 275 / (self.l0_mpp * self.l0_per_px)

    def mask_size(self, l0_size: Size) -> Size:
        """The (width, height) of the mask that covers a slide. Raises ``ValueError`` beyond 2**28 pixels."""
        width, height = (max(1, math.ceil(length / self.l0_per_px)) for length in l0_size)
        if width * height > LARGEST_MASK_PX:
            raise ValueError(
                f"a mask of {width}x{height} pixels is too large: use a level above {self.level}"
            )
        return width, height


OFFICIAL = FrocRules()
"""The rules of the challenge."""


@dataclass(frozen=True, slots=True, eq=False)
class LesionMask:
    """The numbered lesions of a slide.

    Attributes:
        label_HW: int32, 0 where there is no lesion, otherwise its number from 1.
        itc: The numbers of those that are isolated tumour cells.
    """

    label_HW: NDArray[np.int32]
    itc: frozenset[int]

    @property
    def numbers(self) -> int:
        """How many lesions there are, ITC included."""
        return int(self.label_HW.max(initial=0))


@dataclass(frozen=True, slots=True, eq=False)
class SlideHits:
    """What one slide adds to the curve.

    Attributes:
        false_positives_F: float64, their probabilities.
        lesion_scores_L: float32, the best hit of each lesion; 0 if it was missed, and for ITC.
        lesions: How many lesions are to be found.
    """

    false_positives_F: NDArray[np.float64]
    lesion_scores_L: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    lesions: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FrocCurve:
    """One operating point per threshold, then (0, 0).

    Attributes:
        thresholds_T: float64, ascending.
        fps_per_slide: (T + 1,) float64, false positives per slide, descending.
        sensitivity: (T + 1,) float64, descending.
        slides: How many slides there are.
        lesions: How many lesions are to be found.
    """

    thresholds_T: NDArray[np.float64]
    fps_per_slide: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    slides: int
    lesions: int

    def sensitivity_at(self, rates: Sequence[float] = RATES) -> NDArray[np.float64]:
        """The sensitivity at these numbers of false positives per slide, interpolated."""
        return np.asarray(np.interp(rates, self.fps_per_slide[::-1], self.sensitivity[::-1]), np.float64)

    @property
    def score(self) -> float:
        """The score of the challenge: the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives
        per slide.
        """
        return float(self.sensitivity_at().mean())


def froc_curve(slides: Iterable[SlideHits]) -> FrocCurve:
    """The curve over slides. Each slide counts, also those without detections or lesions.

    Raises:
        ValueError: There is no lesion to be found, so sensitivity is not defined.
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


def hit_lesions(
    found: Detections, lesions: LesionMask | None = None, rules: FrocRules = OFFICIAL
) -> SlideHits:
    """Sort the detections of a slide into hits and false positives. Without a mask, all are false positives.

    Detections beyond the mask are false positives too, because the padding of a slide may be wider than that of
    its mask. (The official script ends with an error there.)
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


def lesion_mask(tumor_HW: NDArray[np.uint8], rules: FrocRules = OFFICIAL) -> LesionMask:
    """Number the lesions of a mask.

    Takes about five bytes per pixel, and ten more in the rectangle that holds all tumour.

    Args:
        tumor_HW: uint8 at ``rules.level``, 255 where there is tumour.
        rules: The scale.

    Raises:
        ValueError: The mask is not two-dimensional, or too large.
    """
    if tumor_HW.ndim != 2 or tumor_HW.size > LARGEST_MASK_PX:
        raise ValueError(
            f"a mask at level {rules.level} has two axes and at most {LARGEST_MASK_PX} pixels, not the shape "
            f"{tumor_HW.shape}"
        )
    is_tumor_HW = tumor_HW == TUMOR
    # With an empty margin around it, nothing outside can touch, fill or renumber what is inside.
    window = _window(is_tumor_HW, margin=math.ceil(rules.dilation_px) + 1)
    near_HW = ndimage.binary_fill_holes(within(is_tumor_HW[window], rules.dilation_px))
    label_HW = np.zeros(tumor_HW.shape, np.int32)
    label_HW[window] = measure.label(near_HW, connectivity=2)
    regions = measure.regionprops(label_HW[window])
    itc = frozenset(region.label for region in regions if region.axis_major_length < rules.itc_px)
    return LesionMask(label_HW, itc)


def _window(mask_HW: NDArray[np.bool_], *, margin: int) -> tuple[slice, slice]:
    """The rectangle around all of the mask; everything if the mask is empty."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )


def within(mask_HW: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """The pixels (H, W) bool that are nearer than ``radius_px`` to a pixel of the mask, by centres and exactly.

    A distance map would cost 45 bytes per pixel. Distances between pixels are roots of integers, so a disc is a
    stack of rows: the mask is widened by the half width of each row and laid over itself row by row.
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
    """What the challenge's script makes of a mask without tumour: scipy measures from a pixel above the top left
    corner.

    That corner becomes an ITC, where detections count for nothing. A slide without tumour should have no mask at
    all.
    """
    near_HW = np.zeros(shape, np.bool_)
    corner_HW = near_HW[: math.ceil(radius_px) + 1, : math.ceil(radius_px) + 1]
    if corner_HW.size:
        corner_HW[:] = ndimage.distance_transform_edt(np.ones(corner_HW.shape, np.uint8)) < radius_px
    return near_HW
