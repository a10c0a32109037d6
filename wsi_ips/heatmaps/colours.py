"""Colour maps for values in 0..1, as tables of 256 colours.

``blue_yellow`` grows ever brighter from deep blue over green to yellow: hues that H&E does not
have, an order that survives greyscale and colour-blindness. ``blue_red`` goes over grey in the middle (the
diverging form of Moreland 2009, "Diverging Color Maps for Scientific Visualization"), as users of CLAM know it:
the colours of contributions, which have a sign.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb

from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.display_scale import DisplayScale, Scale

Colormap = Literal["blue_yellow", "blue_red"]
MapKind = Literal["attention", "contribution"]
"""What a map shows: how much the network looked at a patch, or what a patch adds to an output."""

COLOURS = 256

CLASS_COLOURS = ((64, 128, 160), (200, 60, 60), (70, 150, 70), (150, 90, 170), (200, 140, 40), (60, 60, 60))
"""One a class, in the task's order."""

# Points of the path: lightness, chroma, hue in degrees (CIE LCh of CIELAB, D65), inside sRGB's gamut.
PATHS_LCH: dict[Colormap, list[tuple[float, float, float]]] = {
    "blue_yellow": [
        (22, 50, 298),
        (36, 38, 274),
        (48, 29, 235),
        (58, 31, 185),
        (72, 55, 142),
        (90, 82, 102),
    ],
    "blue_red": [(35, 70, 297), (62, 42, 285), (86, 0, 285), (86, 0, 40), (62, 52, 40), (40, 78, 36)],
}


def colour_table(name: Colormap) -> NDArray[np.uint8]:
    """(256, 3) uint8 RGB, from low to high, neighbours equally far apart to the eye (in CIELAB)."""
    path = np.array(PATHS_LCH[name])
    places = np.linspace(0, len(path) - 1, 16 * COLOURS)
    lightness, chroma, hue = (np.interp(places, np.arange(len(path)), path[:, part]) for part in range(3))
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    walked = np.cumsum([0.0, *np.linalg.norm(np.diff(lab, axis=0), axis=1)])
    at = np.linspace(0, walked[-1], COLOURS)
    even = np.stack([np.interp(at, walked, lab[:, part]) for part in range(3)], axis=-1)
    return np.asarray(np.rint(lab2rgb(even).clip(0, 1) * 255), np.uint8)


def colourise(shares: NDArray[np.floating], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shares (...,) in 0..1 to RGB (..., 3) uint8."""
    return np.asarray(table[np.rint(shares * (len(table) - 1)).astype(np.intp)])


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatColours:
    """How raw values become colours. scale, low, high: see :class:`DisplayScale`. None: what the kind of map has,
    which is ``blue_yellow`` and ``even`` for attention, ``blue_red`` and ``signed`` for contributions.
    """

    colormap: Colormap | None = None
    scale: Scale | None = None
    low: float | None = None
    high: float | None = None

    def table(self, kind: MapKind) -> NDArray[np.uint8]:
        """The colours, (256, 3) uint8. Raises :class:`ConfigError` for colours that this kind cannot have."""
        return colour_table(self.colormap_of(kind))

    def colormap_of(self, kind: MapKind) -> Colormap:
        """The colour map by name. Raises :class:`ConfigError` for one that this kind cannot have."""
        if kind == "attention":
            return self.colormap or "blue_yellow"
        if self.colormap not in (None, "blue_red"):
            raise ConfigError(
                f"{self.colormap} has no middle: contributions have a sign and are drawn in blue_red; "
                "leave the colour map out, or choose the attention map"
            )
        return "blue_red"

    def display(self, values_N: NDArray[np.floating], kind: MapKind = "attention") -> DisplayScale:
        """The scale of a slide's values. Raises :class:`ConfigError` for ends that cannot be, and for a scale that
        this kind of map cannot have."""
        scale = self.scale or ("even" if kind == "attention" else "signed")
        if (scale == "signed") != (kind == "contribution"):
            raise ConfigError(
                f"scale {scale} is none of {kind} maps, which have "
                + ("even, rank and absolute" if kind == "attention" else "signed")
            )
        return DisplayScale(values_N, scale=scale, low=self.low, high=self.high)
