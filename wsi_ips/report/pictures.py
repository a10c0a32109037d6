"""The pictures of a report within its limit of bytes: slides, maps, top patches, and plots.

A report is to be mailed: it stays below :data:`LARGEST_REPORT_BYTES` as long as there is room for a row of text
per slide. Every slide has the same share of the bytes (:func:`share_of_a_slide`), so that the last one's pictures
are not the poorest.

A slide is read once (:func:`read_pixels`), at the largest size that may fit its share; smaller versions are made
from what was read (:func:`draw_pictures`). Pixel (i, j) shows the level-0 area [i, i + 1) * l0_per_px by [j, j +
1) * l0_per_px at every size, so that the map lies where it belongs to the far corner. The map is of contributions
if the head gives them, else of attention.

Plots are those that ``evaluate`` drew, and the losses of a training run. A PNG from a folder is decoded and
written again with few colours: that takes a third of the bytes, and nothing of the file but its pixels reaches the
page.

Shape suffixes: N patches; H, W rows and columns.
"""

import base64
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.config.heat import DEFAULT_HEAT
from wsi_ips.errors import ConfigError
from wsi_ips.evaluation.plots import SELECTION, check_can_plot, draw_history, draw_selection
from wsi_ips.heatmaps.display_scale import colours_of
from wsi_ips.heatmaps.maps import Heat
from wsi_ips.heatmaps.overlay import blend
from wsi_ips.heatmaps.patch_sheet import patch_picture
from wsi_ips.heatmaps.raster import PatchRaster, canvas_size
from wsi_ips.slides.base import WHITE, RgbImage, SlideReader
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling.picture import slide_picture
from wsi_ips.units import Size

LARGEST_REPORT_BYTES = 10_000_000
"""The largest report that is aimed at."""

FRAME_BYTES = 200_000
"""Bytes of the styles, the script, the settings and the figures of an evaluation."""

LARGEST_PLOTS_BYTES = 600_000
"""Bytes of all plots together, as they stand in the file."""

TEXT_BYTES = 5_000
"""Bytes of a slide's words and numbers, in the table and on its card; measured: 3 to 4 kB with twelve patches."""

MOST_FOR_A_SLIDE = 700_000
"""The most bytes for one slide's pictures, if there are few slides: larger pictures are for the viewer."""

LEAST_FOR_A_SLIDE = 6_000
"""The fewest bytes for a slide's pictures, an overlay of 160 pixels: with less, no slide is opened."""

LEAST_BYTES_PER_PIXEL = 0.06
"""Bytes per pixel of a JPEG of little tissue on white glass: a size that does not fit even so is not tried."""

SURELY_TOO_LARGE = 1.3
"""A size is not tried if its estimated bytes are more than this many times the share."""

ALPHA = 0.5
"""Opacity of the map over the slide; without the slide, it is opaque."""

COLOURS = DEFAULT_HEAT
"""The colours of the map: an overlay's default."""

LARGEST_PLOT_PX = 4000 * 4000
"""Pixels of the largest plot that is shown."""

PLOT_COLOURS = 96
"""Colours of a plot."""

NAMES = {"roc": "ROC", "froc": "FROC", "reliability": "Calibration", "kaplan_meier": "Kaplan-Meier",
         "faithfulness": "Faithfulness"}  # fmt: skip
"""Titles of plots, by the beginning of their files' names."""


@dataclass(frozen=True, slots=True)
class Look:
    """A size in which a slide's pictures can be drawn.

    ``side_px`` is the longest side of the slide's picture, ``patch_px`` the side of a patch, ``quality`` that of
    the JPEGs.
    """

    side_px: int
    patch_px: int
    quality: int

    def weight(self, patches: int) -> float:
        """What the bytes are about proportional to.

        It counts pixels and JPEG's quality (measured on slides from 50 to 85).
        """
        pixels = 2 * self.side_px**2 + patches * self.patch_px**2
        return float(pixels / (100 - self.quality) ** 0.7)


LOOKS = (
    Look(1024, 224, 85), Look(896, 192, 83), Look(768, 176, 82), Look(640, 160, 80), Look(560, 144, 78),
    Look(480, 128, 76), Look(416, 112, 74), Look(352, 104, 72), Look(304, 96, 68), Look(256, 80, 64),
    Look(208, 72, 58), Look(160, 64, 50),
)  # fmt: skip
"""The sizes from the largest to the smallest; a slide gets the first that fits its share."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a data URI (``data:image/…``), with its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Place:
    """One of the patches with the largest values.

    ``rank`` counts from 1. ``value`` is raw attention, or the contribution in logits. ``l0_x`` and ``l0_y`` are
    its corner in level-0 pixels.
    """

    rank: int
    value: float
    l0_x: int
    l0_y: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a slide's card shows.

    ``patches`` are as many as there is room for, with their places; ``left_out`` is the number of the others that
    were asked for.
    """

    slide: Picture | None = None
    overlay: Picture | None = None
    patches: Sequence[tuple[Place, Picture]] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What was read of a slide.

    ``picture_HW3``, uint8, is None if the slide cannot be opened; ``l0_per_px`` is its scale. ``patches`` are
    uint8 squares, one for each of the first places.
    """

    l0_size: Size
    l0_per_px: float
    picture_HW3: RgbImage | None = None
    patches: Sequence[RgbImage] = field(default_factory=tuple)


def share_of_a_slide(slides: int) -> int:
    """Bytes that the pictures of one of ``slides`` slides may take; 0 means no pictures.

    Bytes are those of the file, base64 included.
    """
    room = LARGEST_REPORT_BYTES - FRAME_BYTES - LARGEST_PLOTS_BYTES
    share = min(MOST_FOR_A_SLIDE, room // max(1, slides) - TEXT_BYTES)
    return share if share >= LEAST_FOR_A_SLIDE else 0


def worth_trying(share: int) -> tuple[Look, ...]:
    """The sizes that may fit ``share`` bytes, largest first; the smallest is always among them."""
    fitting = [look for look in LOOKS if 2 * look.side_px**2 * LEAST_BYTES_PER_PIXEL <= share]
    return tuple(fitting) or LOOKS[-1:]


def top_places(heat: Heat, top: int) -> list[Place]:
    """The ``top`` patches with the largest values.

    For contributions and gradients, only patches that add to the output are listed. Of equal values, the first
    in the grid comes first.
    """
    order = np.argsort(-heat.values_N, kind="stable")[:top].tolist()
    if heat.output is not None:
        order = [row for row in order if heat.values_N[row] > 0]
    corners = heat.coords.l0_xy_N2[order].tolist()
    return [
        Place(rank, float(heat.values_N[row]), *corner)
        for rank, (row, corner) in enumerate(zip(order, corners, strict=True), start=1)
    ]


def read_pixels(slide: SlideReader, places: Sequence[Place], *, l0_patch: float | None, share: int) -> Pixels:
    """Read as many pixels of a slide as may fit ``share`` bytes.

    ``l0_patch`` is the side of a patch in level-0 pixels; None means no patches. Memory grows with the share and
    not with the slide. Raises the reader's :class:`SlideReadError`.
    """
    look = worth_trying(share)[0]
    l0_size = slide.info.l0_size
    l0_per_px = max(1.0, max(l0_size) / look.side_px)
    picture_HW3 = slide_picture(slide, canvas_size(l0_size, l0_per_px), l0_per_px=l0_per_px)
    patches: list[RgbImage] = []
    if l0_patch is not None:
        side_px = min(look.patch_px, max(1, round(l0_patch)))  # not enlarged
        patches = [
            patch_picture(slide, (place.l0_x, place.l0_y), l0_patch, side_px=side_px) for place in places
        ]
    return Pixels(l0_size, l0_per_px, picture_HW3, patches)


def draw_pictures(pixels: Pixels, heat: Heat | None, places: Sequence[Place], *, share: int) -> Pictures:
    """The pictures of a slide, with at most ``share`` bytes as data URIs.

    They are drawn in the largest size in which all of them fit. If they do not even fit in the smallest, the most
    informative ones are kept: the overlay, the slide, then patches from the first rank on.
    """
    *larger, smallest = worth_trying(share)
    bytes_by_weight = 0.0
    for look in larger:
        weight = look.weight(len(places))
        if bytes_by_weight * weight > SURELY_TOO_LARGE * share:
            continue  # drawing a look costs as much as reading it
        drawn = _drawn(pixels, heat, places, look)
        if _bytes(drawn) <= share:
            return drawn
        bytes_by_weight = _bytes(drawn) / weight
    return _as_much_as_fits(_drawn(pixels, heat, places, smallest), share)


def _drawn(pixels: Pixels, heat: Heat | None, places: Sequence[Place], look: Look) -> Pictures:
    l0_per_px = max(pixels.l0_per_px, max(pixels.l0_size) / look.side_px)
    picture_HW3 = _smaller(pixels, l0_per_px)
    patches = [
        (place, _jpeg(_square(patch, look.patch_px), look.quality))
        for place, patch in zip(places, pixels.patches, strict=False)
    ]
    overlay = None
    if heat is not None:
        overlay = _jpeg(_under_heat(picture_HW3, pixels.l0_size, l0_per_px, heat), look.quality)
    return Pictures(None if picture_HW3 is None else _jpeg(picture_HW3, look.quality), overlay, patches)


def _under_heat(picture_HW3: RgbImage | None, l0_size: Size, l0_per_px: float, heat: Heat) -> RgbImage:
    """The picture, or white of its size, with the map over it, on the scale that all slides share."""
    width, height = canvas_size(l0_size, l0_per_px)
    alpha = 1.0 if picture_HW3 is None else ALPHA
    shown_HW3 = np.full((height, width, 3), WHITE, np.uint8) if picture_HW3 is None else picture_HW3.copy()
    coords = heat.coords
    raster = PatchRaster.of(
        coords.l0_exact_corners(), coords.l0_patch, heat.values_N, l0_size=l0_size, l0_per_px=l0_per_px
    )
    display, table = (
        heat.scale(COLOURS),
        colours_of(COLOURS, heat.kind),
    )
    blend(shown_HW3, raster.window((0, 0), (width, height)), display, table, alpha)
    return shown_HW3


def _smaller(pixels: Pixels, l0_per_px: float) -> RgbImage | None:
    """The picture at a coarser scale, each pixel the mean of the area that it covers."""
    picture_HW3 = pixels.picture_HW3
    if picture_HW3 is None or l0_per_px <= pixels.l0_per_px:
        return picture_HW3
    size_px = canvas_size(pixels.l0_size, l0_per_px)
    return slide_picture(MemoryReader(picture_HW3), size_px, l0_per_px=l0_per_px / pixels.l0_per_px)


def _square(patch: RgbImage, side_px: int) -> RgbImage:
    if len(patch) <= side_px:
        return patch
    # Pillow's mean over the triangle around a pixel, and not over its own area: nothing has to lie over a patch.
    return np.asarray(Image.fromarray(patch).resize((side_px, side_px), Image.Resampling.BILINEAR))


def _jpeg(pixels_HW3: NDArray[np.uint8], quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, format="JPEG", quality=quality, optimize=True)
    return Picture(data_uri(file.getvalue(), "image/jpeg"), pixels_HW3.shape[1], pixels_HW3.shape[0])


def data_uri(content: bytes, kind: str) -> str:
    """The content as a data URI: ``data:<kind>;base64,…``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _bytes(pictures: Pictures) -> int:
    whole = [picture for picture in (pictures.slide, pictures.overlay) if picture is not None]
    return sum(len(picture.uri) for picture in (*whole, *(patch for _, patch in pictures.patches)))


def _as_much_as_fits(pictures: Pictures, share: int) -> Pictures:
    kept: dict[str, Picture | None] = {}
    for name, picture in (("overlay", pictures.overlay), ("slide", pictures.slide)):
        kept[name] = picture if picture is not None and len(picture.uri) <= share else None
        share -= len(picture.uri) if picture is not None and kept[name] is not None else 0
    patches = []
    for place, patch in pictures.patches:
        if len(patch.uri) > share:
            break
        share -= len(patch.uri)
        patches.append((place, patch))
    return Pictures(kept["slide"], kept["overlay"], patches, len(pictures.patches) - len(patches))


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its title."""

    title: str
    picture: Picture


def plots_of(paths: Iterable[Path], *, room: int = LARGEST_PLOTS_BYTES) -> tuple[list[Plot], list[str]]:
    """The plots that can be read and for which there is room, and a note for each of the others.

    ``room`` is in bytes of the data URIs.
    """
    shown, notes = [], []
    for path in paths:
        try:
            picture = _few_colours(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
            notes.append(f"{path.name} is not shown: {error}")
            continue
        if len(picture.uri) > room:
            notes.append(f"{path.name} is not shown: the report has no room for it.")
            continue
        room -= len(picture.uri)
        kind = next((name for name in NAMES if f"{path.stem}_".startswith(f"{name}_")), path.stem)
        of = path.stem[len(kind) + 1 :]
        shown.append(Plot(NAMES.get(kind, kind) + (f", {of}" if of else ""), picture))
    return shown, notes


def training_plots(history: Mapping[str, Sequence[float]], *, name: str) -> list[Plot]:
    """Plots of a training run's losses and of its selection; none if matplotlib is not installed.

    Selection is only plotted if the history has it.

    ``history`` maps columns to one number per epoch.
    """
    try:
        check_can_plot()
    except ConfigError:
        return []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "loss.png"
        draw_history(path, history, title=f"losses of {name}")
        plots = [Plot("Losses", _few_colours(path))]
        if any(column in history for column in SELECTION):
            path = Path(folder) / "selection.png"
            draw_selection(path, history, title=f"selection of {name}")
            plots.append(Plot("Selection", _few_colours(path)))
    return plots


def _few_colours(path: Path) -> Picture:
    """A PNG with few colours. Raises ``OSError`` or ``ValueError`` for what is no PNG of a plot's size."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a picture that is too large to be sound is a mere warning to Pillow
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST_PLOT_PX:
                raise ValueError(f"{image.width}x{image.height} pixels are no plot's")
            few = image.convert("RGB").quantize(PLOT_COLOURS)
    file = io.BytesIO()
    few.save(file, format="PNG", optimize=True)
    return Picture(data_uri(file.getvalue(), "image/png"), few.width, few.height)
