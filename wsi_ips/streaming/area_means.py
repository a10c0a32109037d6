"""Pixels made smaller by any factor, each one the mean of the area that it covers: :func:`area_means`.

A patch at 0.5 µm per pixel of a level at 0.486 µm takes 1.029 of the level's pixels for each of its own, so most
of its pixels cover parts of two rows and two columns. Each part counts by its share. (Pillow's BOX filter gives a
pixel the weight 0 or 1: reducing the row 0, 0, 100, 100, 200, 200, 50, 50 from 0.5 to 4.5 to two pixels gives 50
and 150 instead of 25 and 125.)

The weights along x and y are independent, and all patches that start at the same fraction of a pixel share them.
Means are computed in integers, so that the bits are the same whoever computes them: numba (``area_kernel.py``)
where it is installed (``pip install wsi_ips[fast]``), else SciPy's sparse products, which take five to seven times
as long.

Shape suffixes: H rows of the region, L values in one of them; N rows or columns of the patch, E values in one of
its rows; T taps (pixels that one pixel of the patch covers, whole or in part); B blocks of 16 pixels; W weights.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.slides.base import RgbImage

ONE = 1 << 16
"""Sum of the weights of one pixel of the patch, exactly: an area of one colour keeps that colour."""

EDGE = 1e-6
"""Distance from a whole pixel within which an edge lies on it: what is left is the error of float64."""

KEPT_WEIGHTS = 2048
"""Cached starts, about 10 kB each: the columns of a slide's grid, and the row that is being read."""

BLOCK_PX = 16
"""Pixels of a block that the kernel for factors near 1 computes together."""
NEAR_TAPS = 8
"""The most taps from one common start that the pixels of a block may need to be computed together."""


def area_means(region: RgbImage, patch: RgbImage, *, inset: tuple[float, float], side: float) -> None:
    """Fill ``patch`` with the means of the square of ``side`` pixels at ``inset`` (x, y) inside ``region``.

    ``region``, (height, width, 3) uint8, is contiguous and writable; ``patch``, (P, P, 3) uint8, is contiguous.
    ``side`` is at least P. Every value is within 0.51 of the float64 mean up to a factor of 32, and within 1 up to
    256; the errors have no preferred sign.

    Raises ``ValueError`` if the square does not lie inside the region, or ``side`` is less than P.
    """
    height, width = region.shape[:2]
    patch_px = patch.shape[0]
    down, across = axis_weights(inset[1], side, patch_px), axis_weights(inset[0], side, patch_px)
    if down.end > height or across.end > width or side < patch_px or min(inset) < 0:
        raise ValueError(f"{side} px at {inset} are not inside {width}x{height}, or fewer than {patch_px}")
    region_HL, patch_NE = region.reshape(height, width * 3), patch.reshape(patch_px, patch_px * 3)
    kernel = compiled_kernel()
    if kernel is None:
        plain_means(region_HL, patch_NE, inset=inset, side=side)
        return
    near = near_columns(inset[0], side, patch_px)
    if near is None:
        far = far_columns(inset[0], side, patch_px)
        kernel.far_means(
            region_HL, down.first_N, down.taps_N, down.weights_NT, far.starts_N, far.weights_NT, patch_NE
        )
    else:
        kernel.near_means(
            region_HL,
            down.first_N,
            down.taps_N,
            down.weights_NT,
            near.starts_B,
            near.taps_B,
            near.offsets_B,
            near.weights_W,
            patch_NE,
        )


@cache
def compiled_kernel() -> Any:
    """The module :mod:`wsi_ips.streaming.area_kernel`, or None where numba is not installed."""
    try:
        from wsi_ips.streaming import area_kernel
    except ImportError:
        return None
    return area_kernel


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """Which pixels along one axis make each pixel of a patch, and how much each counts.

    ``first_N``, (N,) int64, is the first pixel of each, ``taps_N``, (N,) int64, how many there are.
    ``weights_NT``, (N, T) uint32, adds up to ``ONE`` along T and is 0 behind the last tap; T is at least 2.
    ``end`` is how many pixels the axis needs.
    """

    first_N: NDArray[np.int64]
    taps_N: NDArray[np.int64]
    weights_NT: NDArray[np.uint32]
    end: int


@lru_cache(KEPT_WEIGHTS)
def axis_weights(inset: float, side: float, patch_px: int) -> AxisWeights:
    """Weights of ``patch_px`` equal parts of ``side`` pixels, the first of which starts at ``inset``.

    Each weight is a difference of rounded cumulative sums, so that they add up to ``ONE`` and rounding does not
    accumulate.
    """
    factor = side / patch_px
    edges_N = inset + np.arange(patch_px + 1) * factor
    first_N = np.floor(edges_N[:-1] + EDGE).astype(np.int64)
    taps = max(2, int((np.ceil(edges_N[1:] - EDGE).astype(np.int64) - first_N).max()))
    pixels_NT = first_N[:, None] + np.arange(taps + 1)
    shares_NT = ((pixels_NT - edges_N[:-1, None]) / factor).clip(0, 1)
    shares_NT[:, 0], shares_NT[:, -1] = 0, 1
    weights_NT = np.diff(np.rint(shares_NT * ONE).astype(np.int64), axis=1).astype(np.uint32)
    taps_N = taps - (weights_NT[:, ::-1] != 0).argmax(axis=1)
    return AxisWeights(first_N, taps_N, weights_NT, int((first_N + taps_N).max()))


@dataclass(frozen=True, slots=True, eq=False)
class NearColumns:
    """Weights along x for factors near 1, in blocks of 16 pixels (48 values).

    ``starts_B``, (B,) uint64, is where each block starts in a row of the region. ``taps_B``, (B,) uint64, is its
    number of taps, 2 or more. ``offsets_B``, (B,) uint64, is where its weights start in ``weights_W``, which holds
    48 uint32 per tap, each weight three times.
    """

    starts_B: NDArray[np.uint64]
    taps_B: NDArray[np.uint64]
    offsets_B: NDArray[np.uint64]
    weights_W: NDArray[np.uint32]


@lru_cache(KEPT_WEIGHTS)
def near_columns(inset: float, side: float, patch_px: int) -> NearColumns | None:
    """The weights along x as blocks, or None if a block would need more than ``NEAR_TAPS`` taps."""
    if (side / patch_px - 1) * (BLOCK_PX - 1) > NEAR_TAPS:
        return None
    across = axis_weights(inset, side, patch_px)
    places_N = np.arange(patch_px)
    blocks_N = places_N // BLOCK_PX
    starts_B = across.first_N[::BLOCK_PX]
    shifts_N = across.first_N - starts_B[blocks_N] - places_N % BLOCK_PX
    ends_N = shifts_N + across.taps_N
    taps_B = np.maximum(2, np.maximum.reduceat(ends_N, places_N[::BLOCK_PX]))
    most = int(taps_B.max())
    if most > NEAR_TAPS:
        return None
    weights_BTP = np.zeros((len(starts_B), most + across.weights_NT.shape[1], BLOCK_PX), np.uint32)
    for tap in range(across.weights_NT.shape[1]):
        weights_BTP[blocks_N, shifts_N + tap, places_N % BLOCK_PX] = across.weights_NT[:, tap]
    weights_BTE = weights_BTP[:, :most].repeat(3, axis=2)
    offsets_B = np.arange(len(starts_B)) * weights_BTE[0].size
    return NearColumns(
        (starts_B * 3).astype(np.uint64),
        taps_B.astype(np.uint64),
        offsets_B.astype(np.uint64),
        weights_BTE.ravel(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class FarColumns:
    """Weights along x for any factor.

    ``starts_N``, (N,) uint64, is where each pixel's first tap lies in a row of the region; ``weights_NT`` is (N,
    T) uint64.
    """

    starts_N: NDArray[np.uint64]
    weights_NT: NDArray[np.uint64]


@lru_cache(KEPT_WEIGHTS)
def far_columns(inset: float, side: float, patch_px: int) -> FarColumns:
    """The weights along x, pixel by pixel."""
    across = axis_weights(inset, side, patch_px)
    return FarColumns((across.first_N * 3).astype(np.uint64), across.weights_NT.astype(np.uint64))


def plain_means(
    region_HL: NDArray[np.uint8], patch_NE: NDArray[np.uint8], *, inset: tuple[float, float], side: float
) -> None:
    """Compute the same means as the compiled kernels, with SciPy.

    ``region_HL``, (height, 3 * width) uint8, is the region, ``patch_NE``, (N, 3 * N) uint8, the patch that is
    filled.
    """
    patch_px, (height, length) = len(patch_NE), region_HL.shape
    factor = side / patch_px
    if inset == (0.0, 0.0) and factor in (2.0, 4.0, 8.0, 16.0):
        # Nothing is rounded but the result, so that Pillow's sums give the same, and faster.
        image = Image.fromarray(region_HL.reshape(height, length // 3, 3))
        smaller = image.reduce(int(factor), box=(0, 0, int(side), int(side)))
        patch_NE.reshape(patch_px, patch_px, 3)[:] = np.asarray(smaller)
        return
    rows_NL = sparse_weights(inset[1], side, patch_px, height) @ region_HL.astype(np.uint32)
    rows_NL += np.uint32(128)
    rows_NL >>= np.uint32(8)
    # NumPy transposes opaque items of a pixel's bytes much faster than three numbers at a time.
    columns_first = np.ascontiguousarray(rows_NL.view("V12").T).view(np.uint32)
    sums = sparse_weights(inset[0], side, patch_px, length // 3) @ columns_first
    sums += np.uint32(1 << 23)
    sums >>= np.uint32(24)
    patch_NE.view("V3")[:] = sums.astype(np.uint8).view("V3").T


@lru_cache(KEPT_WEIGHTS)
def sparse_weights(inset: float, side: float, patch_px: int, length: int) -> Any:
    """The weights of :func:`axis_weights` as a sparse matrix, (N, length) uint32."""
    from scipy.sparse import csr_array

    axis = axis_weights(inset, side, patch_px)
    taps_T = np.arange(axis.weights_NT.shape[1])
    used_NT = taps_T < axis.taps_N[:, None]
    columns_NT = axis.first_N[:, None] + taps_T
    row_ends = np.concatenate([[0], np.cumsum(axis.taps_N)])
    return csr_array((axis.weights_NT[used_NT], columns_NT[used_NT], row_ends), shape=(patch_px, length))
