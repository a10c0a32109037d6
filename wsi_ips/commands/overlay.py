"""``overlay``: pictures from the attention that ``predict`` stored; no model."""

from pathlib import Path

from wsi_ips.commands.inputs import slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ResultsError, WsiIpsError
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.results import read_result
from wsi_ips.location import Location, locate
from wsi_ips.progress import Progress
from wsi_ips.recipe import OverlayJob
from wsi_ips.slides.registry import open_slide


def overlay(job: OverlayJob, progress: Progress) -> Outcome:
    """Draw every stored slide; one that cannot be drawn is reported, the others finish."""
    stored = sorted((job.run / "attention").glob("*.h5"))
    if not stored:
        raise ResultsError(job.run, "holds no attention/*.h5", "name the folder that predict wrote")
    elsewhere = slides_by_id(job.slides) if job.slides else {}
    out = job.out or job.run / "overlays"
    failures: list[str] = []
    with progress("Drawing", total=len(stored)) as advance:
        for path in stored:
            try:
                _draw(job, path, elsewhere, out)
            except WsiIpsError as error:
                failures.append(str(error))
            advance(path.stem)
    return Outcome.of_slides(failures, f"{len(stored) - len(failures)} overlays in {out}")


def _draw(job: OverlayJob, stored: Path, elsewhere: dict[str, Location], out: Path) -> None:
    result = read_result(stored)
    slide_id = result.coords.slide_id
    with open_slide(elsewhere.get(slide_id, locate(result.slide_path))) as slide:
        write_overlay(
            out / f"{slide_id}.png", slide, result, side_px=job.side_px, alpha=job.alpha, scale=job.scale
        )
