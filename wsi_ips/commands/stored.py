"""What the commands on stored maps share: every result of a run in turn, a bad one costing only itself."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from wsi_ips.commands.inputs import slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError
from wsi_ips.heatmaps.maps import Heat, choose_heat
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import stored_location
from wsi_ips.progress import Progress
from wsi_ips.recipe import ExportJob, OverlayJob
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.files import sweep
from wsi_ips.storage.location import Location

Write = Callable[[str, SlideResult, Callable[[], SlideReader]], None]
"""Given the stem of the file to write, the result, and what opens its slide."""


def of_every_result(
    job: OverlayJob | ExportJob, progress: Progress, *, out: Path, doing: str, done: str, write: Write
) -> Outcome:
    """Call ``write`` for each stored slide; one that fails is reported, the others finish.

    out: the folder that ``write`` writes into; what a killed command left there unfinished goes. doing: the
    progress bar's word. done: before ``out`` and after the number of slides, in the last line. Raises
    :class:`ResultsError` for a folder without results, :class:`ConfigError` for a task, class, query or head that
    the run does not have, and for contributions that its model does not tell.
    """
    stored = sorted((job.run / "attention").glob("*.h5"))
    if not stored:
        raise ResultsError(job.run, "holds no attention/*.h5", "name the folder that predict wrote")
    _check_choice(job, stored)
    elsewhere = slides_by_id(job.slides) if job.slides else {}
    sweep(out)
    failures: list[str] = []
    with progress(doing, total=len(stored)) as advance:
        for path in stored:
            try:
                result = read_result(path)
                write(path.stem, result, partial(_opened, job, path, result, elsewhere))
            except ConfigError as error:  # names no file: a scale or threshold that this slide's values lack
                failures.append(f"{path.stem}: {error}")
            except WsiIpsError as error:
                failures.append(str(error))
            except OSError as error:  # a full disk, a place that may not be written to
                failures.append(f"{path.stem}: {error.filename or 'writing'}: {error.strerror or error}")
            advance(path.stem)
    return Outcome.of_slides(failures, f"{len(stored) - len(failures)} {done} in {out}")


def _opened(
    job: OverlayJob | ExportJob, path: Path, result: SlideResult, elsewhere: Mapping[str, Location]
) -> SlideReader:
    """The slide of the result in ``path``: among those that were named, or where ``predict`` read it."""
    if not job.slides:
        return open_slide(stored_location(result.slide_path, open_urls=job.open_urls))
    if result.coords.slide_id not in elsewhere:
        raise ResultsError(path, f"is of a slide that is not in {job.slides}", "leave --slides out")
    return open_slide(elsewhere[result.coords.slide_id])


def _check_choice(job: OverlayJob | ExportJob, stored: list[Path]) -> None:
    """One model wrote the whole run, so the first file that can be read speaks for all."""
    if job.map_kind is None and job.task is None:
        return
    for path in stored:
        try:
            result = read_result(path)
        except ResultsError:
            continue
        chosen_heat(job, result)
        return


def chosen_heat(job: OverlayJob | ExportJob, result: SlideResult) -> Heat:
    """The map of the result that the job's options ask for: attention or contributions, of which task and class.

    Raises the same errors as :func:`choose_heat`.
    """
    return choose_heat(
        result,
        kind=job.map_kind,
        task=job.task,
        class_name=job.class_name,
        query=job.query,
        head=job.head,
    )
