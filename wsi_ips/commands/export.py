"""``export``: stored attention as files of other programs; no model."""

from collections.abc import Callable
from typing import Any

from wsi_ips.commands.outcome import Outcome
from wsi_ips.commands.stored import chosen_heat, of_every_result
from wsi_ips.heatmaps.display_scale import HeatColours
from wsi_ips.heatmaps.export import Exporter, make_exporter
from wsi_ips.inference.results import SlideResult
from wsi_ips.progress import Progress
from wsi_ips.recipe import EXPORT_OPTIONS, ExportJob
from wsi_ips.slides.base import SlideReader


def export(job: ExportJob, progress: Progress) -> Outcome:
    """Write every stored slide in one format. Raises as :func:`of_every_result`, and for a missing package."""
    exporter = _exporter(job)
    out = job.out or job.run / "exports" / job.format

    def write(stem: str, result: SlideResult, open_its_slide: Callable[[], SlideReader]) -> None:
        heat = chosen_heat(job, result)
        path = out / f"{stem}{exporter.suffix}"
        # Slides that were named are opened even where none is needed: is it the one that was predicted?
        if not exporter.needs_slide and job.slides is None:
            exporter.write(path, heat, None)
            return
        with open_its_slide() as slide:
            exporter.write(path, heat, slide)

    return of_every_result(
        job, progress, out=out, doing="Exporting", done=f"{job.format} exports", write=write
    )


def _exporter(job: ExportJob) -> Exporter:
    if job.format not in EXPORT_OPTIONS:  # another package's
        return make_exporter(job.format, job.options)
    known = EXPORT_OPTIONS[job.format]
    options: dict[str, Any] = {name: getattr(job, name) for name in known}
    if job.format == "deepzoom":
        colours = {name: options.pop(name) for name in ("colormap", "scale", "low", "high")}
        options["colours"] = HeatColours(**colours)
    return make_exporter(job.format, {name: value for name, value in options.items() if value is not None})
