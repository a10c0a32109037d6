"""The slide with its attention over it, and what the colours mean, as one PNG.

The picture's top left pixel is the slide's; pixel (i, j) shows the level-0 area [i, i + 1) * l0_per_px by
[j, j + 1) * l0_per_px. Patches are drawn as they are, without smoothing, so that an edge is a patch's edge.

Shape suffixes: N patches, H heads, T queries; on canvases H, W rows and columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from shapely import Polygon

from wsi_ips.config import LARGEST_OVERLAY_PX
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.files import whole_file
from wsi_ips.heatmaps.colours import Colormap, colour_table, colourise
from wsi_ips.heatmaps.legend import Legend, Tick, add_legend, short
from wsi_ips.heatmaps.raster import Scale, canvas_size, display_values, patch_values_to_canvas, scale_ends
from wsi_ips.inference.results import SlideResult
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.picture import slide_picture

TICKS_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
OUTLINE, HALO = (20, 20, 20), (255, 255, 255)


class OverlayOptions(TypedDict, total=False):
    """The options of :func:`draw_overlay`."""

    outlines: Sequence[Polygon]
    side_px: int
    alpha: float
    colormap: Colormap
    scale: Scale
    low: float | None
    high: float | None
    query: int | None
    head: int | None


@dataclass(frozen=True, slots=True)
class Overlay:
    """image: the slide's picture with the legend below. picture_px: (width, height) of the slide's part.

    l0_per_px: its scale. facts: what the image shows, in words and numbers, for the PNG's text.
    """

    image: Image.Image
    picture_px: tuple[int, int]
    l0_per_px: float
    facts: Mapping[str, str]


def attention_map(
    result: SlideResult, *, query: int | None = None, head: int | None = None
) -> NDArray[np.float32]:
    """(N,) float32: the attention of one query and head, or the mean over those not named.

    Each map sums to 1 over the slide, and so does a mean of maps. Raises :class:`ConfigError` for an index
    that is not there.
    """
    heads, queries = result.attention_NHT.shape[1:]
    for name, index, count in (("head", head, heads), ("query", query, queries)):
        if index is not None and not 0 <= index < count:
            raise ConfigError(f"{name} {index} is not there: {result.coords.slide_id} has 0 to {count - 1}")
    of_heads = slice(None) if head is None else slice(head, head + 1)
    of_queries = slice(None) if query is None else slice(query, query + 1)
    mean_N = result.attention_NHT[:, of_heads, of_queries].mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(mean_N, np.float32)


def query_of_task(result: SlideResult, task: str) -> int:
    """The query that ``task`` reads. Raises :class:`ConfigError` for a task that is not there."""
    queries = _task_queries(result)
    if task not in result.probabilities:
        raise ConfigError(
            f"task {task!r} is not there: {result.coords.slide_id} has {', '.join(result.probabilities)}"
        )
    if task not in queries:
        raise ConfigError(f"{result.coords.slide_id} does not say which query task {task!r} reads; name it")
    return queries[task]


def draw_overlay(
    slide: SlideReader,
    result: SlideResult,
    *,
    outlines: Sequence[Polygon] = (),
    side_px: int = 2048,
    alpha: float = 0.5,
    colormap: Colormap = "blue_yellow",
    scale: Scale = "percentile",
    low: float | None = None,
    high: float | None = None,
    query: int | None = None,
    head: int | None = None,
) -> Overlay:
    """Draw in memory that grows with the picture, not with the slide.

    outlines: in level-0 pixels, drawn as thin lines. side_px: longest side of the slide's part; a smaller slide
    is not enlarged. alpha: opacity of the heat, 0 to 1. scale, low, high: see :func:`display_values`. query,
    head: see :func:`attention_map`.

    Raises :class:`ConfigError` for an option out of range, :class:`ResultsError` where ``slide`` has another
    size than the slide that was predicted, and the reader's :class:`SlideReadError`.
    """
    _check_options(alpha=alpha, side_px=side_px)
    coords, l0_size = result.coords, slide.info.l0_size
    _check_same_slide(slide, coords)
    l0_per_px = max(1.0, max(l0_size) / side_px)
    values_N = attention_map(result, query=query, head=head)
    low, high = scale_ends(values_N, scale=scale, low=low, high=high)
    display_N = display_values(values_N, scale=scale, low=low, high=high)
    picture = slide_picture(slide, canvas_size(l0_size, l0_per_px), l0_per_px=l0_per_px)
    table = colour_table(colormap)
    image = _blend(picture, _canvas(coords, display_N, l0_per_px), table, alpha)
    _draw_outlines(image, outlines, l0_per_px)
    shown = _shown(result, query=query, head=head)
    legend = Legend(
        title=coords.slide_id,
        lines=[f"{shown}; {_evenly(len(coords))}", *_predictions(result)],
        value_name="attention",
        ticks=_ticks(values_N, scale=scale, low=low, high=high),
        table=table,
        mpp=coords.slide_mpp * l0_per_px,
    )
    facts = {
        **_facts(coords, values_N, picture_px=image.size, l0_per_px=l0_per_px),
        "shown": shown,
        "scale": f"{scale} {low!r} {high!r}",
        "colormap": colormap,
    }
    return Overlay(add_legend(image, legend), image.size, l0_per_px, facts)


def write_overlay(
    path: Path, slide: SlideReader, result: SlideResult, **options: Unpack[OverlayOptions]
) -> None:
    """Draw (see :func:`draw_overlay`) and write a PNG, whole or not at all, with its facts as PNG text."""
    overlay = draw_overlay(slide, result, **options)
    text = PngInfo()
    for name, fact in overlay.facts.items():
        text.add_itxt(name, fact)
    with whole_file(path) as partial:
        overlay.image.save(partial, format="PNG", pnginfo=text)


def _check_options(*, alpha: float, side_px: int) -> None:
    if not 0 <= alpha <= 1 or not 1 <= side_px <= LARGEST_OVERLAY_PX:
        raise ConfigError(
            f"alpha {alpha:g} must be 0 to 1, side_px {side_px} must be 1 to {LARGEST_OVERLAY_PX}"
        )


def _check_same_slide(slide: SlideReader, coords: PatchCoords) -> None:
    """A slide of another size under the same name would get heat in wrong places."""
    (width, height), (l0_width, l0_height) = slide.info.l0_size, coords.l0_size
    if (width, height) != (l0_width, l0_height):
        raise ResultsError(
            slide.info.path,
            f"is {width}x{height} pixels, but {coords.slide_id} was {l0_width}x{l0_height} when predicted",
            "name the folder of the slides that were predicted",
        )


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


def _canvas(coords: PatchCoords, display_N: NDArray[np.float32], l0_per_px: float) -> NDArray[np.float32]:
    corners_N2 = coords.l0_exact_corners()
    return patch_values_to_canvas(
        corners_N2, coords.l0_patch, display_N, l0_size=coords.l0_size, l0_per_px=l0_per_px
    )


def _blend(
    picture: RgbImage, display_HW: NDArray[np.float32], table: NDArray[np.uint8], alpha: float
) -> Image.Image:
    """Mix the colours into ``picture``, in place, where there are patches; elsewhere not a pixel changes."""
    patches = np.isfinite(display_HW)
    heat = colourise(display_HW[patches], table)
    picture[patches] = np.rint(picture[patches] * (1 - alpha) + heat * alpha).astype(np.uint8)
    return Image.fromarray(picture)


def _draw_outlines(image: Image.Image, outlines: Sequence[Polygon], l0_per_px: float) -> None:
    draw = ImageDraw.Draw(image)
    paths = [path for polygon in outlines for path in _rings_inside(polygon, image.size, l0_per_px)]
    thin = max(1, round(max(image.size) / 1000))
    for colour, width in ((HALO, 3 * thin), (OUTLINE, thin)):
        for path in paths:
            draw.line(path, fill=colour, width=width, joint="curve")


def _rings_inside(
    polygon: Polygon, size_px: tuple[int, int], l0_per_px: float
) -> Iterator[list[tuple[float, float]]]:
    """A polygon's rings in canvas pixels, cut at the canvas: Pillow walks along what lies outside, too."""
    l0_canvas = shapely.box(-1, -1, size_px[0] * l0_per_px + 1, size_px[1] * l0_per_px + 1)
    for ring in (polygon.exterior, *polygon.interiors):
        for part in shapely.get_parts(shapely.intersection(shapely.LineString(ring.coords), l0_canvas)):
            points = np.floor(shapely.get_coordinates(part) / l0_per_px)  # the pixel that a point lies in
            if len(points) > 1:
                yield [(x, y) for x, y in points.tolist()]


def _ticks(values_N: NDArray[np.float32], *, scale: Scale, low: float, high: float) -> list[Tick]:
    if not len(values_N):
        return []
    along = [low + at * (high - low) for at in TICKS_AT]
    if scale == "percentile":
        raw = np.percentile(values_N.astype(np.float64), along)
        return [Tick(at, float(value), share) for at, value, share in zip(TICKS_AT, raw, along, strict=True)]
    return [
        Tick(at, value, float(np.mean(values_N <= np.float32(value)) * 100))
        for at, value in zip(TICKS_AT, along, strict=True)
    ]


def _shown(result: SlideResult, *, query: int | None, head: int | None) -> str:
    """In words: whose attention."""
    heads, queries = result.attention_NHT.shape[1:]
    of_query = "mean over queries"
    if query is not None or queries == 1:
        index = query or 0
        readers = [task for task, its_query in _task_queries(result).items() if its_query == index]
        of_query = f"task {' and '.join(readers)}" if readers else f"query {index}"
    if heads == 1:
        return f"Attention, {of_query}"
    return f"Attention, {of_query}, " + (f"mean over {heads} heads" if head is None else f"head {head}")


def _task_queries(result: SlideResult) -> Mapping[str, int]:
    """{task: query}, as far as it is known: files of earlier versions have the tasks' order only."""
    tasks, queries = result.probabilities, result.attention_NHT.shape[2]
    if result.task_queries:
        return result.task_queries
    if queries == 1:
        return dict.fromkeys(tasks, 0)
    return {task: place for place, task in enumerate(tasks)} if len(tasks) == queries else {}


def _evenly(n_patches: int) -> str:
    return f"{n_patches} patches, spread evenly {short(1 / n_patches)} each" if n_patches else "no patch"


def _predictions(result: SlideResult) -> Iterator[str]:
    """One line for each task, its likeliest three classes first."""
    for task, probabilities in result.probabilities.items():
        likeliest = sorted(probabilities.items(), key=lambda item: -item[1])
        more = ", ..." if len(likeliest) > 3 else ""
        yield f"Predicted {task}: " + ", ".join(f"{name} {p:.3f}" for name, p in likeliest[:3]) + more
