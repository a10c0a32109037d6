"""Megapixel MNIST: five digits and many line patterns on a large black image, and four questions about them.

Source: the generator of the IPS reference code (Bergner et al. 2023), a variant of that of attention sampling
(Katharopoulos and Fleuret 2019), whose noise covers the digits and which has a small view of every image too.
Random numbers are drawn as there: one ``numpy.random.RandomState`` per split; first all digits, then all
positions, then all noise.

Shape suffixes: n images, d digits of an image (5), w noise patterns, p pixels that are not black.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIGIT_PX = 28
SAME, OTHERS = 3, 2
DIGITS = SAME + OTHERS
CLASSES = tuple(str(digit) for digit in range(10))
TASKS = ("majority", "max", "top", "multi")
SMALLEST_SIDE_PX = 140
"""Four digits cannot block every place of a fifth: 4 * 55**2 < (140 - 28 + 1)**2."""


class SparseImage(NamedTuple):
    """A square image as the places of its pixels that are not black: raster indices (p,), their values (p,)."""

    side_px: int
    index_p: NDArray[np.int32]
    value_p: NDArray[np.uint8]

    def dense(self) -> NDArray[np.uint8]:
        """(side, side) uint8."""
        image = np.zeros(self.side_px**2, np.uint8)
        image[self.index_p] = self.value_p
        return image.reshape(self.side_px, self.side_px)


@dataclass(frozen=True, slots=True)
class DigitPool:
    """Digits to draw from: images_n28 (n, 28, 28) uint8 and class_n (n,)."""

    images_n28: NDArray[np.uint8]
    class_n: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """What is asked of each image, (n,) int64 each and multi_n10 of 0 and 1.

    majority: the class of three of its five digits. max: the largest digit. top: the digit whose first row is
    the smallest (of equals, the first drawn). multi: which classes are there.
    """

    majority_n: NDArray[np.int64]
    max_n: NDArray[np.int64]
    top_n: NDArray[np.int64]
    multi_n10: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything random about a split: which digits (rows of the pool), where (row, column), and the noise.

    pattern_w28: (w, 28, 28) float32 in 0..1; noise_place_nw2: (row, column); noise_kind_nw: which pattern.
    """

    side_px: int
    target_n: NDArray[np.int64]
    digit_nd: NDArray[np.int64]
    place_nd2: NDArray[np.int64]
    pattern_w28: NDArray[np.float32]
    noise_place_nw2: NDArray[np.int64]
    noise_kind_nw: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digit_nd)


def draw_plan(class_pool: NDArray[np.int64], *, images: int, side_px: int, noise: int, seed: int) -> Plan:
    """Draw a split. ``class_pool``: the classes of the digits to choose from; ``seed``: of the split itself.

    Raises ``ValueError`` for a side below 140 px, where five digits might not fit, or a pool that lacks a class.
    """
    if side_px < SMALLEST_SIDE_PX:
        raise ValueError(f"side_px {side_px} is below {SMALLEST_SIDE_PX}: five digits might not fit")
    absent = sorted(set(range(10)) - set(np.unique(class_pool).tolist()))
    if absent:
        raise ValueError(f"there is no digit {absent[0]} to draw")
    rng = np.random.RandomState(seed)
    target_n, digit_nd = _digits(rng, class_pool, images)
    place_nd2 = np.array([_places(rng, side_px) for _ in range(images)]).reshape(images, DIGITS, 2)
    pattern_w28 = _patterns(rng, noise)
    noise_place_nw2 = (rng.rand(images, noise, 2) * (side_px - 2 * DIGIT_PX) + DIGIT_PX).astype(np.int64)
    noise_kind_nw = (rng.rand(images, noise) * noise).astype(np.int64)
    return Plan(side_px, target_n, digit_nd, place_nd2, pattern_w28, noise_place_nw2, noise_kind_nw)


def labels_of(plan: Plan, class_pool: NDArray[np.int64]) -> Labels:
    """The four labels of every image of ``plan``."""
    class_nd = class_pool[plan.digit_nd]
    top_n = np.take_along_axis(class_nd, plan.place_nd2[..., :1].argmin(axis=1), axis=1)[:, 0]
    multi_n10 = (class_nd[..., None] == np.arange(10)).any(axis=1).astype(np.uint8)
    return Labels(plan.target_n, class_nd.max(axis=1), top_n, multi_n10)


def paint(plan: Plan, number: int, pool: DigitPool, *, noise_over: bool = False) -> SparseImage:
    """Image ``number`` of the plan: noise first, digits over it, or the other way round; each a whole square that
    covers what is below."""
    image = np.zeros((plan.side_px, plan.side_px), np.uint8)
    for square, (top, left) in _squares(plan, number, pool, noise_over=noise_over):
        image[top : top + DIGIT_PX, left : left + DIGIT_PX] = square
    index_p = np.flatnonzero(image)
    return SparseImage(plan.side_px, index_p.astype(np.int32), image.ravel()[index_p])


def paint_small(
    plan: Plan, number: int, pool: DigitPool, *, scale: float, noise_over: bool = True
) -> NDArray[np.uint8]:
    """The same image seen small, (round(side * scale),) * 2 uint8, as attention sampling's generator makes
    it: each square is shrunk by itself (anti-aliased, bilinear) and pasted at its corner times ``scale``, cut
    off."""
    side_px, digit_px = (max(1, round(side * scale)) for side in (plan.side_px, DIGIT_PX))
    image = np.zeros((side_px, side_px), np.uint8)
    for square, corner in _squares(plan, number, pool, noise_over=noise_over):
        top, left = (int(place * scale) for place in corner)
        shrunk = Image.fromarray(square).resize((digit_px, digit_px), Image.Resampling.BILINEAR)
        below = image[top : top + digit_px, left : left + digit_px]
        below[...] = np.asarray(shrunk)[: below.shape[0], : below.shape[1]]
    return image


def _squares(
    plan: Plan, number: int, pool: DigitPool, *, noise_over: bool
) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """What is painted, (28, 28) uint8 each, and at which (row, column), from the lowest layer on."""
    noise = [
        ((np.float32(255) * plan.pattern_w28[kind]).astype(np.uint8), place)
        for kind, place in zip(plan.noise_kind_nw[number], plan.noise_place_nw2[number], strict=True)
    ]
    digits = [
        (pool.images_n28[row], place)
        for row, place in zip(plan.digit_nd[number], plan.place_nd2[number], strict=True)
    ]
    return digits + noise if noise_over else noise + digits


def _digits(
    rng: np.random.RandomState, class_pool: NDArray[np.int64], images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The target class of every image, and the pool's rows: three of that class, then two of others."""
    rows_of = [np.flatnonzero(class_pool == digit) for digit in range(10)]
    others_of = [np.flatnonzero(class_pool != digit) for digit in range(10)]
    target_n = np.empty(images, np.int64)
    digit_nd = np.empty((images, DIGITS), np.int64)
    for number in range(images):
        target = int(10 * rng.rand())
        target_n[number] = target
        digit_nd[number, :SAME] = rng.choice(rows_of[target], SAME)
        digit_nd[number, SAME:] = rng.choice(others_of[target], OTHERS)
    return target_n, digit_nd


def _places(rng: np.random.RandomState, side_px: int) -> list[NDArray[np.int64]]:
    """Top-left corners (row, column) of one image's digits, drawn again while two would overlap."""
    placed: list[NDArray[np.int64]] = []
    while len(placed) < DIGITS:
        place = np.round(rng.rand(2) * (side_px - DIGIT_PX)).astype(np.int64)
        if not any((np.abs(place - other) < DIGIT_PX).all() for other in placed):
            placed.append(place)
    return placed


def _patterns(rng: np.random.RandomState, noise: int) -> NDArray[np.float32]:
    """(w, 28, 28): two lines each, from the corner at a random slope; the second one's may be mirrored."""
    slopes = np.tan(rng.rand(noise) * np.pi / 2.5)
    first = np.zeros((noise, DIGIT_PX, DIGIT_PX))
    for pattern, slope in zip(first, slopes, strict=True):
        x = np.linspace(0, min(27.49, 27.49 / slope), 56)
        pattern[np.round(x).astype(int), np.round(slope * x).astype(int)] = 1
    second = first.copy()
    rng.shuffle(second)
    # Twice along the same axis, as the reference does: both together undo each other.
    for flip in (rng.rand(noise) < 0.33, rng.rand(noise) < 0.33):
        second[flip] = second[flip][:, :, ::-1]
    lines = ((first + second) > 0).astype(np.float64)
    lines *= rng.rand(noise, DIGIT_PX, DIGIT_PX) * 0.2 + 0.8
    return lines.astype(np.float32)
