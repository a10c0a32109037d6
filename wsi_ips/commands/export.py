"""``export``: stored attention as files of other programs; no model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from pydantic import Field, FiniteFloat, JsonValue, PositiveInt, field_validator, model_validator

from wsi_ips.commands.command_line import one_of
from wsi_ips.commands.options import COLOUR_END, OpenUrls, Outcome, start
from wsi_ips.commands.stored_maps import ClassName, Head, MapJob, Query, Task, Writing, of_every_result
from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import MapKind
from wsi_ips.progress import Progress
from wsi_ips.registry import check_known

if TYPE_CHECKING:
    from wsi_ips.heatmaps.export import Exporter
    from wsi_ips.inference.results import SlideResult
    from wsi_ips.slides.base import SlideReader

_ON_COLOURS = ("alpha", "colormap", "scale", "low", "high", "side_px", "heat_only")
EXPORT_OPTIONS: Mapping[str, Sequence[str]] = {
    "ome-tiff": ("um_per_px",), "ome-zarr": ("um_per_px",), "geojson": ("top",), "deepzoom": _ON_COLOURS,
    "sheet": ("top",), "asap": ("threshold", "percentile"),
}  # fmt: skip
"""Which of :class:`ExportJob`'s settings a format of wsi_ips has; whose attention is shown is every format's."""


class ExportJob(MapJob):
    """Write stored attention for other programs; with ``map: contribution`` contributions, with
    ``map: gradient`` gradient times input.

    Formats that hold several maps (geojson, ome-zarr) have the contributions to every class beside the attention,
    and gradient times input where the run holds it.
    """

    command: Literal["export"] = "export"
    format: str
    """One of :data:`EXPORT_OPTIONS`, or the name of another package's export."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of another package's export, by the names of its fields."""
    out: Path | None = None
    """None: ``exports/<format>/`` in ``run``. A map that is not the default one goes to a folder below it, named
    after the map."""
    um_per_px: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """µm a pixel; none: a pixel a patch, or as fine as overlaps need it."""
    heat_only: bool = False
    """Transparent tiles without the slide."""
    top: PositiveInt | None = None
    """How many patches with the largest values; geojson (none: all), sheet: and with the smallest (none: 10)."""
    threshold: FiniteFloat | None = None
    """Raw attention, or contribution, from which on a place is in a region."""
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    """The same as a percentile of the slide's patches, of contributions of its kept ones; neither: 95."""

    @property
    def map_kind(self) -> MapKind:
        """Attention, unless another map is asked for: numbers mean what they meant in earlier versions."""
        return self.map or ("attention" if self.class_name is None else "contribution")

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        return check_known("export", name, tuple(EXPORT_OPTIONS), group="wsi_ips.exporters")

    @model_validator(mode="after")
    def _options_are_the_format_s(self) -> Self:
        known = EXPORT_OPTIONS.get(self.format, ())
        others = {option for options in EXPORT_OPTIONS.values() for option in options if option not in known}
        for option in sorted(others & self.model_fields_set):
            has = ", ".join(known) or "its own: give them under options"
            raise ValueError(f"{option} is no option of {self.format}, which has {has}")
        if self.options and known:
            raise ValueError(f"options are another package's export's; {self.format} has {', '.join(known)}")
        if self.threshold is not None and self.percentile is not None:
            raise ValueError("threshold and percentile say the same thing: give one of them")
        return self


ExportMap = Annotated[
    str | None, typer.Option("--map", help="attention (default), contribution or gradient.")
]


def command(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="ome-tiff, ome-zarr, geojson, deepzoom, sheet or asap.",
            autocompletion=one_of(*EXPORT_OPTIONS),
        ),
    ],
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: RUN/exports/FORMAT.")] = None,
    map_: ExportMap = None,
    task: Task = None,
    class_name: ClassName = None,
    query: Query = None,
    head: Head = None,
    um_per_px: Annotated[
        float | None, typer.Option(help="ome-tiff, ome-zarr: µm a pixel; default: a pixel a patch.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="geojson: only so many patches; sheet: so many of each kind.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="asap: regions from this raw value on.")] = None,
    percentile: Annotated[float | None, typer.Option(help="asap: the same as a percentile (95).")] = None,
    heat_only: Annotated[
        bool | None, typer.Option("--heat-only", help="deepzoom: transparent tiles without the slide.")
    ] = None,
    side_px: Annotated[int | None, typer.Option(help="deepzoom: longest side; default: the slide's.")] = None,
    alpha: Annotated[float | None, typer.Option(help="deepzoom: opacity of the heat (0.5).")] = None,
    colormap: Annotated[str | None, typer.Option(help="deepzoom: blue_yellow (default), blue_red.")] = None,
    scale: Annotated[str | None, typer.Option(help="deepzoom: even (default), rank, absolute.")] = None,
    low: Annotated[float | None, typer.Option(help="deepzoom: " + COLOUR_END.format("low"))] = None,
    high: Annotated[float | None, typer.Option(help="deepzoom: " + COLOUR_END.format("high"))] = None,
) -> None:
    """Write stored attention or contributions for QuPath, OMERO, napari, ASAP, web viewers; needs no model."""
    flags = {"run": run, "format": format_, "slides": slides, "open_urls": open_urls, "out": out,
             "map": map_, "task": task, "class_name": class_name, "query": query, "head": head,
             "um_per_px": um_per_px, "top": top, "threshold": threshold,
             "percentile": percentile, "heat_only": heat_only, "side_px": side_px, "alpha": alpha,
             "colormap": colormap, "scale": scale, "low": low, "high": high}  # fmt: skip
    start("export", flags)


def export(job: ExportJob, progress: Progress) -> Outcome:
    """Write the map of every stored slide in one format; a slide that fails costs only itself.

    Raises :class:`ResultsError` for a folder without results, :class:`ConfigError` for a map or an option that
    cannot be, :class:`ExportNotInstalled` where the format's package is missing.
    """
    from wsi_ips.heatmaps.maps import choose_heat

    exporter = _exporter(job)

    def write(path: Path, result: "SlideResult", open_its_slide: Callable[[], "SlideReader"]) -> None:
        heat = choose_heat(result, job.heat)
        # Slides that were named are opened even where none is needed: is it the one that was predicted?
        if not exporter.needs_slide and job.slides is None:
            exporter.write(path, heat, None)
            return
        with open_its_slide() as slide:
            exporter.write(path, heat, slide)

    exports = Writing(
        job.format, exporter.suffix, job.run / "exports" / job.format, HeatOptions(map="attention"),
        doing="Exporting", done=f"{job.format} export",
    )  # fmt: skip
    return of_every_result(job, progress, exports, write)


def _exporter(job: ExportJob) -> "Exporter":
    from wsi_ips.heatmaps.export import make_exporter

    if job.format not in EXPORT_OPTIONS:  # another package's
        return make_exporter(job.format, job.options)
    options: dict[str, Any] = {name: getattr(job, name) for name in EXPORT_OPTIONS[job.format]}
    if job.format == "deepzoom":
        options = {"options": job.heat, "heat_only": job.heat_only}
    return make_exporter(job.format, {name: value for name, value in options.items() if value is not None})
