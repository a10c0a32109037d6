"""``overlay``: pictures from the contributions or the attention that ``predict`` stored; no model."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field, PositiveInt

from wsi_ips.commands.options import COLOUR_END, OpenUrls, Outcome, start
from wsi_ips.commands.stored_maps import ClassName, Head, Map, MapJob, Query, Task, Writing, of_every_result
from wsi_ips.config import LARGEST_OVERLAY_PX
from wsi_ips.config.heat import DEFAULT_HEAT
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.inference.results import SlideResult
    from wsi_ips.slides.base import SlideReader


class OverlayJob(MapJob):
    """Draw overlays from what is stored: contributions where the head tells them, else attention.

    Whoever asks for what only attention has (a query, a head, a colour map, a scale or its ends) gets attention.
    """

    command: Literal["overlay"] = "overlay"
    out: Path | None = None
    """None: ``overlays/`` in ``run``. A map that is not the default one goes to a folder below it, named after the
    map."""
    side_px: Annotated[PositiveInt, Field(le=LARGEST_OVERLAY_PX)] = 2048
    """Longest side of the slide's picture; a smaller slide is not enlarged."""


def command(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/overlays.")] = None,
    map_: Map = None,
    task: Task = None,
    class_name: ClassName = None,
    query: Query = None,
    head: Head = None,
    side_px: Annotated[int | None, typer.Option(help="Longest side in pixels (default 2048).")] = None,
    alpha: Annotated[float | None, typer.Option(help="Opacity of the heat, 0 to 1 (default 0.5).")] = None,
    colormap: Annotated[
        str | None, typer.Option(help="Attention: blue_yellow (default) or blue_red.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Attention: even (default): times the even share 1/N; rank; absolute.")
    ] = None,
    low: Annotated[float | None, typer.Option(help=COLOUR_END.format("Low"))] = None,
    high: Annotated[float | None, typer.Option(help=COLOUR_END.format("High"))] = None,
) -> None:
    """Draw overlays from stored contributions or attention; no model is needed."""
    flags = {"run": run, "slides": slides, "open_urls": open_urls, "out": out, "map": map_, "task": task,
             "class_name": class_name, "query": query, "head": head,
             "side_px": side_px, "alpha": alpha, "colormap": colormap, "scale": scale, "low": low,
             "high": high}  # fmt: skip
    start("overlay", flags)


def overlay(job: OverlayJob, progress: Progress) -> Outcome:
    """Draw the map of every stored slide; a slide that fails costs only itself.

    Raises :class:`ResultsError` for a folder without results, and :class:`ConfigError` for a map that cannot be.
    """
    from wsi_ips.heatmaps.overlay import write_overlay

    def draw(path: Path, result: "SlideResult", open_its_slide: Callable[[], "SlideReader"]) -> None:
        with open_its_slide() as slide:
            write_overlay(path, slide, result, job.heat)

    pictures = Writing("overlay", ".png", job.run / "overlays", DEFAULT_HEAT, doing="Drawing", done="overlay")
    return of_every_result(job, progress, pictures, draw)
