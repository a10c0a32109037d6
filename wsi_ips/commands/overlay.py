"""``overlay``: pictures from the contributions or the attention that ``predict`` stored; no model."""

from collections.abc import Callable

from wsi_ips.commands.outcome import Outcome
from wsi_ips.commands.stored import of_every_result
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.results import SlideResult
from wsi_ips.progress import Progress
from wsi_ips.recipe import OverlayJob
from wsi_ips.slides.base import SlideReader


def overlay(job: OverlayJob, progress: Progress) -> Outcome:
    """Draw every stored slide. Raises as :func:`of_every_result`."""
    out = job.out or job.run / "overlays"

    def draw(stem: str, result: SlideResult, open_its_slide: Callable[[], SlideReader]) -> None:
        with open_its_slide() as slide:
            write_overlay(
                out / f"{stem}.png",
                slide,
                result,
                side_px=job.side_px,
                alpha=job.alpha,
                colormap=job.colormap,
                scale=job.scale,
                low=job.low,
                high=job.high,
                kind=job.map_kind,
                task=job.task,
                class_name=job.class_name,
                query=job.query,
                head=job.head,
            )

    return of_every_result(job, progress, out=out, doing="Drawing", done="overlays", write=draw)
