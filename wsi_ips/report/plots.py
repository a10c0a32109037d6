"""Plots on the page: those that ``evaluate`` drew, and the losses of a training run.

A PNG from a folder is decoded and written anew with few colours: a third of the bytes, and nothing of the file
but its pixels reaches the page.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from wsi_ips.errors import ConfigError
from wsi_ips.evaluation.plots import SELECTION, check_can_plot, draw_history, draw_selection
from wsi_ips.report.budget import LARGEST_PLOTS_BYTES
from wsi_ips.report.pictures import Picture, data_uri

LARGEST_PLOT_PX = 4000 * 4000
COLOURS = 96
NAMES = {"roc": "ROC", "froc": "FROC", "reliability": "Calibration"}


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    picture: Picture


def plots_of(paths: Iterable[Path], *, room: int = LARGEST_PLOTS_BYTES) -> tuple[list[Plot], list[str]]:
    """The plots that are sound and for which there is room, and a line for each that is not shown."""
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
        kind, _, of = path.stem.partition("_")
        shown.append(Plot(NAMES.get(kind, kind) + (f", {of}" if of else ""), picture))
    return shown, notes


def training_plots(history: Mapping[str, Sequence[float]], *, name: str) -> list[Plot]:
    """The losses of a training run, and how selection went where its history says so.

    Empty where matplotlib is not installed.
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
    """Raises ``OSError`` or ``ValueError`` for what is no PNG of a plot's size."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a picture that is too large to be sound is a mere warning to Pillow
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST_PLOT_PX:
                raise ValueError(f"{image.width}x{image.height} pixels are no plot's")
            few = image.convert("RGB").quantize(COLOURS)
    file = io.BytesIO()
    few.save(file, format="PNG", optimize=True)
    return Picture(data_uri(file.getvalue(), "image/png"), few.width, few.height)
