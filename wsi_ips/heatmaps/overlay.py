"""The slide with its contributions or its attention over it, and what the colours mean, as one PNG.

Start with :func:`write_overlay`; :func:`draw_overlay` gives the same as a picture in memory. The picture's
top-left pixel is the slide's, and pixel (i, j) shows the level-0 area [i, i + 1) * l0_per_px by [j, j + 1) *
l0_per_px. Patches are drawn without smoothing, so that an edge in the picture is a patch's edge.

Shape suffixes: N patches, P points of a path, R, C rows and columns of cells, H, W rows and columns of pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shapely import Polygon

from wsi_ips.config import LARGEST_OVERLAY_PX, HeatOptions
from wsi_ips.config.heat import DEFAULT_HEAT
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import (
    FAINT_INK,
    PAPER,
    ROWS,
    DisplayScale,
    Legend,
    Tick,
    add_legend,
    colormap_of,
    colourise,
    colours_of,
    draw_legend,
)
from wsi_ips.heatmaps.maps import Heat, check_same_slide, choose_heat, predictions_in_words
from wsi_ips.heatmaps.raster import Cells, PatchRaster, PngRows
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.storage.files import whole_file
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import band_height, slide_window
from wsi_ips.units import Size

MOST_BAND_ROWS = 128
"""Rows of the picture that are drawn at once, at most: 50 MB of floats for the widest picture."""

DEFAULT_SIDE_PX = 2048
TICKS_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places of the marks along the colour bar."""

OUTLINE, HALO = (20, 20, 20), (255, 255, 255)
"""Colours of outlines and of the halo around them."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A drawn overlay.

    ``image`` is the slide's picture with the legend below it, ``picture_px`` the (width, height) of the slide's
    part and ``l0_per_px`` its scale. ``facts`` says what the image shows, in words and numbers, for the PNG's
    text.
    """

    image: Image.Image
    picture_px: tuple[int, int]
    l0_per_px: float
    facts: Mapping[str, str]


def draw_overlay(
    slide: SlideReader,
    result: SlideResult,
    options: HeatOptions = DEFAULT_HEAT,
    *,
    outlines: Sequence[Polygon] = (),
) -> Overlay:
    """Draw an overlay, in memory that grows with the picture and not with the slide.

    ``options`` says which map is drawn, in which colours and how large. ``outlines`` are polygons in level-0
    pixels, drawn as thin lines.

    Raises :class:`ConfigError` for an option out of range, :class:`ResultsError` if ``slide`` has another size
    than the slide that was predicted, and the reader's :class:`SlideReadError`.
    """
    drawing = _Drawing(slide, result, options, outlines=outlines)
    picture = Image.fromarray(np.concatenate(list(drawing.bands())))
    return Overlay(add_legend(picture, drawing.legend), picture.size, drawing.l0_per_px, drawing.facts)


def write_overlay(
    path: Path,
    slide: SlideReader,
    result: SlideResult,
    options: HeatOptions = DEFAULT_HEAT,
    *,
    outlines: Sequence[Polygon] = (),
    fingerprint: str = "",
) -> None:
    """Draw an overlay and write it as a PNG, whole or not at all, with its facts as PNG text.

    The options and errors are those of :func:`draw_overlay`. ``fingerprint`` is that of the slide, where it was
    taken just now; otherwise it is taken here. The picture is drawn and written band by band, so that memory grows
    with its width and not with its area.
    """
    drawing = _Drawing(slide, result, options, outlines=outlines, fingerprint=fingerprint)
    below = np.asarray(draw_legend(drawing.picture_px, drawing.legend))
    height, paper = drawing.picture_px[1], below.shape[1] - drawing.picture_px[0]
    size_px = (below.shape[1], height + len(below))
    with (
        whole_file(path) as partial,
        partial.open("wb") as file,
        PngRows(file, size_px, drawing.facts) as png,
    ):
        for band in drawing.bands():
            beside = np.full((len(band), paper, 3), PAPER, np.uint8)
            beside[:, :1] = FAINT_INK
            png.write(np.concatenate([band, beside], axis=1))
        png.write(below)
        png.close()


class _Drawing:
    """An overlay before a pixel is drawn: what it shows, and the bands that it is drawn in."""

    def __init__(
        self,
        slide: SlideReader,
        result: SlideResult,
        options: HeatOptions,
        *,
        outlines: Sequence[Polygon] = (),
        fingerprint: str = "",
    ) -> None:
        side_px = DEFAULT_SIDE_PX if options.side_px is None else options.side_px
        _check_options(alpha=options.alpha, side_px=side_px)
        check_same_slide(slide, result, fingerprint=fingerprint)
        coords = result.coords
        self.slide, self.alpha = slide, options.alpha
        self.l0_per_px = max(1.0, max(coords.l0_size) / side_px)
        heat = choose_heat(result, options, alone=True)
        self.display = heat.scale(options)
        self.table = colours_of(options, heat.kind)
        self.raster = PatchRaster.of(
            coords.l0_exact_corners(),
            coords.l0_patch,
            heat.values_N,
            l0_size=coords.l0_size,
            l0_per_px=self.l0_per_px,
        )
        self.picture_px = self.raster.size_px
        self.paths = _outline_paths(outlines, self.picture_px, self.l0_per_px)
        self.legend = _legend(
            heat, self.display, self.table, mpp=coords.slide_mpp * self.l0_per_px, outlined=bool(self.paths)
        )
        self.facts = {
            **_facts(coords, heat.values_N, picture_px=self.picture_px, l0_per_px=self.l0_per_px),
            "map": heat.kind,
            "shown": heat.shown,
            "flat": "yes" if heat.flat else "no",
            "scale": f"{self.display.scale} {self.display.low!r} {self.display.high!r}",
            "colormap": colormap_of(options, heat.kind),
        }

    def bands(self) -> Iterator[RgbImage]:
        """The picture from top to bottom, in bands of (rows, width, 3) uint8."""
        width, height = self.picture_px
        step = min(MOST_BAND_ROWS, band_height(self.slide, l0_per_px=self.l0_per_px))
        for top in range(0, height, step):
            at, size = (0, top), (width, min(step, height - top))
            # A damaged tile costs its place, not the picture.
            unread_HW = np.zeros(size[::-1], bool)
            band = slide_window(self.slide, at, size, l0_per_px=self.l0_per_px, unread_HW=unread_HW)
            cells = self.raster.window(at, size)
            blend(band, cells, self.display, self.table, self.alpha)
            yield self._outlined(band, top)

    def _outlined(self, band: RgbImage, top: int) -> RgbImage:
        if not self.paths:
            return band
        image = Image.fromarray(band)
        thin = max(1, round(max(self.picture_px) / 1000))
        _draw_outlines(image, self.paths, top=top, thin=thin)
        return np.asarray(image)


def blend(
    picture: RgbImage, cells: Cells, display: DisplayScale, table: NDArray[np.uint8], alpha: float
) -> None:
    """Mix the colours of ``cells`` into ``picture``, (H, W, 3) uint8, in place; other pixels do not change.

    ``table``, (256, 3) uint8, holds the colours; ``alpha`` is the opacity of the heat, 0 to 1.
    """
    held_RC = display.coloured(cells.values_RC)
    heat_RC3 = colourise(np.nan_to_num(display(cells.values_RC)), table) * np.float32(alpha)
    heat_RC3 = (heat_RC3 * held_RC[..., None]).astype(np.float32)
    kept_RC3 = np.repeat(np.where(held_RC, 1 - alpha, 1).astype(np.float32)[..., None], 3, axis=2)
    tops, widths = cells.y_edges.astype(np.intp), np.diff(cells.x_edges).astype(np.intp)
    # The rows of pixels within a row of cells have the same factors, and rows without a patch do not change.
    for row in np.flatnonzero(held_RC.any(axis=1)):
        pixels_hW3 = picture[tops[row] : tops[row + 1]]
        mixed = pixels_hW3 * kept_RC3[row].repeat(widths, axis=0)
        mixed += heat_RC3[row].repeat(widths, axis=0)
        pixels_hW3[:] = np.rint(mixed, out=mixed)


def _check_options(*, alpha: float, side_px: int) -> None:
    if not 0 <= alpha <= 1 or not 1 <= side_px <= LARGEST_OVERLAY_PX:
        raise ConfigError(
            f"alpha {alpha:g} must be 0 to 1, side_px {side_px} must be 1 to {LARGEST_OVERLAY_PX}"
        )


def _legend(
    heat: Heat, display: DisplayScale, table: NDArray[np.uint8], *, mpp: float, outlined: bool
) -> Legend:
    lines = [heat.shown, heat.spread, *predictions_in_words(heat.result)]
    if outlined:
        lines.append("Black line: annotated lesion")
    return Legend(
        title=heat.coords.slide_id,
        lines=lines,
        ticks=legend_ticks(heat.values_N, display),
        table=table,
        mpp=mpp,
        rows=ROWS[heat.kind],
    )


def legend_ticks(values_N: NDArray[np.float32], display: DisplayScale) -> list[Tick]:
    """The marks of a colour bar for these values, from its low to its high end; none without patches."""
    if not len(values_N):
        return []
    along = np.linspace(display.low, display.high, len(TICKS_AT))
    raw = display.values_at(np.array(TICKS_AT))
    held = (
        along if display.scale == "rank" else [np.mean(values_N <= np.float32(value)) * 100 for value in raw]
    )
    # A scale that stops before the values do says so at its ends.
    smallest, largest = float(values_N.min()), float(values_N.max())
    ticks = []
    for at, value, percentile in zip(TICKS_AT, raw.tolist(), held, strict=True):
        beyond = ""
        if at == 0 and smallest < value - 1e-6 * abs(value):
            beyond = "<="
        elif at == 1 and largest > value + 1e-6 * abs(value):
            beyond = ">="
        ticks.append(Tick(at, value, float(percentile), value / display.even_share, beyond))
    return ticks


def _facts(
    coords: PatchCoords, values_N: NDArray[np.float32], *, picture_px: tuple[int, int], l0_per_px: float
) -> dict[str, str]:
    return {
        "Software": "wsi_ips",
        "slide_id": coords.slide_id,
        "picture_px": f"{picture_px[0]}x{picture_px[1]}",
        "l0_per_px": repr(l0_per_px),
        "slide_mpp": repr(float(coords.slide_mpp)),
        "n_patches": str(len(coords)),
        "value_min": repr(float(values_N.min(initial=np.inf))),
        "value_max": repr(float(values_N.max(initial=-np.inf))),
    }


def _outline_paths(outlines: Sequence[Polygon], size_px: Size, l0_per_px: float) -> list[NDArray[np.float64]]:
    """Rings of the outlines in pixels of the picture, (P, 2) each, cut at its edges: Pillow is slow outside the
    picture.
    """
    l0_canvas = shapely.box(-1, -1, size_px[0] * l0_per_px + 1, size_px[1] * l0_per_px + 1)
    paths = []
    for polygon in outlines:
        for ring in (polygon.exterior, *polygon.interiors):
            for part in shapely.get_parts(shapely.intersection(shapely.LineString(ring.coords), l0_canvas)):
                points = np.floor(shapely.get_coordinates(part) / l0_per_px)  # the pixel that a point lies in
                if len(points) > 1:
                    paths.append(points)
    return paths


def _draw_outlines(image: Image.Image, paths: Sequence[NDArray[np.float64]], *, top: int, thin: int) -> None:
    """Draw paths on a band that begins ``top`` pixels down the picture."""
    draw = ImageDraw.Draw(image)
    near = [run for path in paths for run in _runs_near(path - (0, top), image.height, margin=4 * thin)]
    for colour, width in ((HALO, 3 * thin), (OUTLINE, thin)):
        for run in near:
            draw.line(run, fill=colour, width=width, joint="curve")


def _runs_near(
    path_P2: NDArray[np.float64], height: int, *, margin: int
) -> Iterator[list[tuple[float, float]]]:
    """The parts of a path that a band of this height shows.

    Segments stay whole, for half of one has other pixels.
    """
    y = path_P2[:, 1]
    near = (np.minimum(y[:-1], y[1:]) < height + margin) & (np.maximum(y[:-1], y[1:]) > -margin)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], near, [False]]).astype(np.int8)))
    for first, past in changes.reshape(-1, 2).tolist():
        yield [(x, y) for x, y in path_P2[first : past + 1].tolist()]
