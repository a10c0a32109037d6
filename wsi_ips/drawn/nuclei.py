"""Drawn nuclei: small, round and dark in normal lymphoid tissue; large, pale and irregular in lesions.

:func:`draw_nuclei` draws them as small pictures, :func:`scatter` places these on a slide.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_ips.units import Mpp

Density = NDArray[np.uint8]
"""Stain per pixel, 0 none to 255 most."""


@dataclass(frozen=True, slots=True)
class NucleusKind:
    """How a kind of nucleus looks. Lengths are in µm, densities 0 to 255."""

    diameter_um: tuple[float, float]
    elongation: tuple[float, float]
    roughness: float
    """How far the outline departs from an ellipse, as a share of the radius."""
    chromatin: float
    """Stain of the inside; the rim and nucleoli are darker."""
    clumps: float
    """Contrast of the chromatin's texture."""
    nucleoli: int


NORMAL = NucleusKind((5.6, 7.2), (1.0, 1.25), 0.03, 165, 0.12, 0)
"""Nuclei of normal lymphoid tissue."""
TUMOR = NucleusKind((10.0, 14.0), (1.0, 1.7), 0.13, 90, 0.35, 2)
"""Nuclei of lesions."""


def draw_nuclei(kind: NucleusKind, variants: int, *, mpp: Mpp, rng: np.random.Generator) -> list[Density]:
    """Draw ``variants`` nuclei, each a small (h, w) uint8 map of stain with a soft edge."""
    return [_draw(kind, mpp=mpp, rng=rng) for _ in range(variants)]


def _draw(kind: NucleusKind, *, mpp: Mpp, rng: np.random.Generator) -> Density:
    radius = rng.uniform(*kind.diameter_um) / 2 / mpp
    stretch = np.sqrt(rng.uniform(*kind.elongation))
    reach = int(np.ceil(radius * stretch * (1 + 2 * kind.roughness))) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along = (x * np.cos(turn) + y * np.sin(turn)) / stretch
    across = (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = 1 + kind.roughness * sum(
        rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) / k**0.5 for k in range(2, 6)
    )
    # 1 at the centre, 0 at the outline.
    depth = 1 - np.hypot(along, across) / (radius * outline)
    inside = np.clip(depth * radius / 1.2 + 0.5, 0, 1)
    rim = np.exp(-((depth * radius / 1.4) ** 2))
    grain = _blobs(y.shape, scale=3, rng=rng)
    stain = kind.chromatin * (1 + kind.clumps * grain) + (215 - kind.chromatin) * 0.55 * rim
    for _ in range(rng.integers(1, kind.nucleoli + 1) if kind.nucleoli else 0):
        at, where = rng.uniform(0, 0.5) * radius, rng.uniform(0, 2 * np.pi)
        spot = np.hypot(x - at * np.cos(where), y - at * np.sin(where)) / (0.9 / mpp)
        stain += 140 * np.exp(-(spot**2) * 1.5)
    return np.asarray(np.clip(stain * inside, 0, 255).astype(np.uint8))


def _blobs(shape: tuple[int, ...], *, scale: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of about unit deviation: coarse values, interpolated."""
    coarse = rng.normal(size=(shape[0] // scale + 3, shape[1] // scale + 3)).astype(np.float32)
    rows, columns = np.arange(shape[0]) / scale, np.arange(shape[1]) / scale
    r0, c0 = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r0)[:, None], (columns - c0)[None, :]
    top = coarse[r0][:, c0] * (1 - fc) + coarse[r0][:, c0 + 1] * fc
    bottom = coarse[r0 + 1][:, c0] * (1 - fc) + coarse[r0 + 1][:, c0 + 1] * fc
    return np.asarray(top * (1 - fr) + bottom * fr, np.float32)


def scatter(
    canvas: Density,
    sprites: list[Density],
    where: NDArray[np.bool_],
    where_px: int,
    *,
    spacing_px: float,
    jitter: float,
    rng: np.random.Generator,
) -> None:
    """Place nuclei about ``spacing_px`` apart on ``canvas`` wherever ``where`` is True.

    ``where`` has one value per ``where_px`` pixels. Places are those of a grid, each moved by up to ``jitter`` of
    the spacing, so that cells keep their distance.
    """
    height, width = canvas.shape
    rows, columns = np.mgrid[0 : height / spacing_px, 0 : width / spacing_px].reshape(2, -1)
    offsets = rng.uniform(-jitter, jitter, (2, rows.size))
    # Every other row is shifted by half a step, as packed cells are.
    y = ((rows + 0.5 + offsets[0]) * spacing_px).astype(np.int64)
    x = ((columns + 0.5 + 0.5 * (rows.astype(np.int64) % 2) + offsets[1]) * spacing_px).astype(np.int64)
    chosen = rng.integers(0, len(sprites), y.size)
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    y, x, chosen = y[inside], x[inside], chosen[inside]
    keep = where[y // where_px, x // where_px]
    for place_y, place_x, number in zip(y[keep], x[keep], chosen[keep], strict=True):
        _stamp(canvas, sprites[number], int(place_x), int(place_y))


def _stamp(canvas: Density, sprite: Density, x: int, y: int) -> None:
    top, left = y - sprite.shape[0] // 2, x - sprite.shape[1] // 2
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.shape[0], canvas.shape[0]), min(left + sprite.shape[1], canvas.shape[1])
    part = canvas[y0:y1, x0:x1]
    np.maximum(part, sprite[y0 - top : y1 - top, x0 - left : x1 - left], out=part)
