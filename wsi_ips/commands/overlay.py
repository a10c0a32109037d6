"""``overlay``: pictures from the attention that ``predict`` stored; no model."""

from pathlib import Path

from wsi_ips.commands.inputs import slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError
from wsi_ips.heatmaps.maps import attention_map, query_of_task
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.location import Location, locate
from wsi_ips.progress import Progress
from wsi_ips.recipe import OverlayJob
from wsi_ips.slides.registry import open_slide


def overlay(job: OverlayJob, progress: Progress) -> Outcome:
    """Draw every stored slide; one that cannot be drawn is reported, the others finish.

    Raises :class:`ResultsError` for a folder without results, :class:`ConfigError` for a task, query or head
    that the run does not have.
    """
    stored = sorted((job.run / "attention").glob("*.h5"))
    if not stored:
        raise ResultsError(job.run, "holds no attention/*.h5", "name the folder that predict wrote")
    _check_choice(job, stored)
    elsewhere = slides_by_id(job.slides) if job.slides else {}
    out = job.out or job.run / "overlays"
    failures: list[str] = []
    with progress("Drawing", total=len(stored)) as advance:
        for path in stored:
            try:
                _draw(job, path, elsewhere, out)
            except ConfigError as error:  # names no file: a colour scale that this slide's values do not have
                failures.append(f"{path.stem}: {error}")
            except WsiIpsError as error:
                failures.append(str(error))
            advance(path.stem)
    return Outcome.of_slides(failures, f"{len(stored) - len(failures)} overlays in {out}")


def _draw(job: OverlayJob, stored: Path, elsewhere: dict[str, Location], out: Path) -> None:
    result = read_result(stored)
    slide_id = result.coords.slide_id
    with open_slide(elsewhere.get(slide_id, locate(result.slide_path))) as slide:
        write_overlay(
            out / f"{slide_id}.png",
            slide,
            result,
            side_px=job.side_px,
            alpha=job.alpha,
            colormap=job.colormap,
            scale=job.scale,
            low=job.low,
            high=job.high,
            query=_query(job, result),
            head=job.head,
        )


def _check_choice(job: OverlayJob, stored: list[Path]) -> None:
    """One model wrote the whole run, so the first file that can be read speaks for all."""
    if job.task is None and job.query is None and job.head is None:
        return
    for path in stored:
        try:
            result = read_result(path)
        except ResultsError:
            continue
        attention_map(result, query=_query(job, result), head=job.head)
        return


def _query(job: OverlayJob, result: SlideResult) -> int | None:
    return job.query if job.task is None else query_of_task(result, job.task)
