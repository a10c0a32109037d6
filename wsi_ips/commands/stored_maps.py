"""What ``overlay`` and ``export`` share: which of a run's stored maps is shown, and every result in turn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from pydantic import model_validator

from wsi_ips.commands.options import Outcome
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import SlidesOfJob, slides_by_id
from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import MapKind
from wsi_ips.errors import ConfigError, ResultsError, WsiIpsError, count
from wsi_ips.progress import Progress
from wsi_ips.storage.location import Location

if TYPE_CHECKING:
    from wsi_ips.heatmaps.map_files import MapFiles
    from wsi_ips.inference.results import SlideResult
    from wsi_ips.slides.base import SlideReader

    Write = Callable[[Path, SlideResult, Callable[[], SlideReader]], None]
    """Given the file to write, the result, and what opens its slide."""

Map = Annotated[
    str | None,
    typer.Option("--map", help="contribution (default where the model tells), attention, or gradient."),
]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Contribution, gradient: to this class; default: last of two, else likeliest; of numbers, the first.",
    ),
]
Task = Annotated[
    str | None, typer.Option(help="This task's map; default: its first, of attention the mean over queries.")
]
Query = Annotated[int | None, typer.Option(help="Attention of one query, from 0.")]
Head = Annotated[int | None, typer.Option(help="Attention of one head, from 0; default: mean over heads.")]


class MapJob(HeatOptions, Job):
    """Which of a run's stored maps is shown; no model."""

    run: Path
    """The folder that ``predict`` wrote."""
    out: Path | None = None
    """None: a folder in ``run``. A map that is not the default one goes to a folder below it, named after it."""
    slides: SlidesOfJob | None = None
    """Where the slides are now; none: where ``predict`` read them."""
    open_urls: bool = False
    """Open slides at URLs that the run names, too: without ``slides``, a run folder decides no requests."""

    @property
    def map_kind(self) -> MapKind | None:
        """The kind of map that is asked for, by name or by what only one of them has; None: neither was."""
        if self.map is not None or self.class_name is not None:
            return self.map or "contribution"
        of_attention = (self.query, self.head, self.colormap, self.scale, self.low, self.high)
        return None if all(choice is None for choice in of_attention) else "attention"

    @property
    def heat(self) -> HeatOptions:
        """What is drawn: the job's options, with the kind of map that they ask for."""
        options = {name: getattr(self, name) for name in HeatOptions.model_fields}
        return HeatOptions.model_validate({**options, "map": self.map_kind})

    @model_validator(mode="after")
    def _choices_can_be(self) -> Self:
        if self.task is not None and self.query is not None:
            raise ValueError("task and query name the same thing: give one of them")
        if self.map == "attention" and self.class_name is not None:
            raise ValueError("class_name goes with map contribution: attention does not belong to a class")
        if self.map_kind in ("contribution", "gradient"):
            return self._of_an_output(plural=f"{self.map_kind}s")
        low, high = self.low, self.high
        if self.scale in (None, "even"):
            low, high = 0.25 if low is None else low, 64 if high is None else high
            if low <= 0:
                raise ValueError(f"low {low:g} must be above 0: it is a multiple of the even share")
        if self.scale == "rank":
            low, high = 0 if low is None else low, 100 if high is None else high
            if low < 0 or high > 100:
                raise ValueError(f"low and high are percentiles, 0 to 100, not {low:g} and {high:g}")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low {low:g} must be below high {high:g}")
        return self

    def _of_an_output(self, *, plural: str) -> Self:
        for name in ("query", "head", "scale", "low"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} goes with map attention: {plural} have none")
        if self.colormap == "blue_yellow":
            raise ValueError(f"{plural} have a sign: their colours are blue_red, which has a middle")
        if self.high is not None and self.high <= 0:
            raise ValueError(f"high {self.high:g} must be above 0: the colours go from -high to high")
        return self


@dataclass(frozen=True, slots=True)
class Writing:
    """What a command writes of every result of a run.

    ``purpose`` is ``overlay``, or the name of an export, and ``suffix`` that of its files. ``usual`` is the folder
    that they are written to where the user names none, ``by_default`` the map that is written where none is asked
    for. ``doing`` is the word of the progress bar, ``done`` what is done of a slide, in the singular, for the last
    line.
    """

    purpose: str
    suffix: str
    usual: Path
    by_default: HeatOptions
    doing: str
    done: str


def of_every_result(job: MapJob, progress: Progress, writing: Writing, write: "Write") -> Outcome:
    """Call ``write`` for each stored slide; one that fails is reported, the others finish.

    Files go to the job's folder, or to one below it that is named after the map, where it is not the default one
    (:mod:`wsi_ips.heatmaps.map_files`); what a killed command left there unfinished goes. Raises
    :class:`ResultsError` for a folder without results, :class:`ConfigError` for a task, class, query or head that
    the run does not have, for contributions that its model does not tell, for gradients that it does not hold, and
    for files of others in a folder that the user named; and :class:`SlidesUnnamed` where slides are needed and the
    run, made from features, does not know them.
    """
    from wsi_ips.inference.results import read_result
    from wsi_ips.storage.files import no_empty_folder, sweep

    stored = sorted((job.run / "attention").glob("*.h5"))
    if not stored:
        raise ResultsError(job.run, "holds no attention/*.h5", "name the folder that predict wrote")
    _check_choice(job, stored)
    elsewhere = slides_by_id(job.slides) if job.slides else {}
    files = _files_of(job, writing, stored)
    sweep(files.folder)
    failures: list[str] = []
    with no_empty_folder(files.folder), progress(writing.doing, total=len(stored)) as advance:
        for path in stored:
            name = f"{path.stem}{writing.suffix}"
            try:
                result = read_result(path)
                write(files.folder / name, result, partial(_opened, job, path, result, elsewhere))
                files.note(name)
            except SlidesUnnamed:  # as is true of every other slide of the run
                raise
            except ConfigError as error:  # names no file: a scale or threshold that this slide's values lack
                failures.append(f"{path.stem}: {error}")
            except WsiIpsError as error:
                failures.append(str(error))
            except OSError as error:  # a full disk, a place that may not be written to
                failures.append(f"{path.stem}: {error.filename or 'writing'}: {error.strerror or error}")
            advance(path.stem)
    return Outcome.of_slides(
        failures, f"{count(len(stored) - len(failures), writing.done)} in {files.folder}"
    )


def _files_of(job: MapJob, writing: Writing, stored: Sequence[Path]) -> "MapFiles":
    """The files that are written, of which none may be there as something else."""
    from wsi_ips.heatmaps.map_files import MapFiles

    shared = job.out is not None and job.out.resolve() != writing.usual.resolve()
    folder = (job.out or writing.usual) / name_of_map(job.heat, stored, by_default=writing.by_default)
    files = MapFiles(folder, run=job.run, purpose=writing.purpose, shared=shared)
    files.check(f"{path.stem}{writing.suffix}" for path in stored)
    return files


def name_of_map(heat: HeatOptions, stored: Iterable[Path], *, by_default: HeatOptions) -> str:
    """What a map of a run is called in the names of files and folders; "" for the map that ``by_default`` chooses.

    The first of the results that can be read speaks for all. Raises :class:`ConfigError` for a map that the run
    does not have.
    """
    from wsi_ips.heatmaps.map_files import map_name

    for result in _readable(stored):
        try:
            return map_name(result, heat, by_default)
        except ResultsError:  # values that are not finite, which cost this slide only
            continue
    return ""


FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt")
"""Suffixes of stored features, which a run made from them names in place of slides."""


class SlidesUnnamed(ResultsError):
    """A run was made from stored features, which do not say where their slides are."""


def _opened(
    job: MapJob, path: Path, result: "SlideResult", elsewhere: Mapping[str, Location]
) -> "SlideReader":
    """The slide of the result in ``path``: among those that were named, or where ``predict`` read it."""
    from wsi_ips.inference.run_folder import stored_location
    from wsi_ips.slides.registry import open_slide

    if not job.slides:
        if Path(result.slide_path).suffix.lower() in FEATURE_SUFFIXES:
            raise SlidesUnnamed(job.run, "its features name no slides", "give --slides FOLDER")
        return open_slide(stored_location(result.slide_path, open_urls=job.open_urls))
    if result.coords.slide_id not in elsewhere:
        raise ResultsError(path, f"is of a slide that is not in {job.slides}", "leave --slides out")
    return open_slide(elsewhere[result.coords.slide_id])


def _check_choice(job: MapJob, stored: list[Path]) -> None:
    if job.map_kind is not None or job.task is not None:
        check_choice(job.heat, stored)


def check_choice(heat: HeatOptions, stored: Iterable[Path]) -> None:
    """Raise :class:`ConfigError` if the results of a run do not have this map.

    One model wrote the whole run, so the first of the files that can be read speaks for all.
    """
    from wsi_ips.heatmaps.maps import choose_heat

    for result in _readable(stored):
        try:
            choose_heat(result, heat)
            return
        except ResultsError:  # values that are not finite, which cost this slide only
            continue


def _readable(stored: Iterable[Path]) -> "Iterator[SlideResult]":
    from wsi_ips.inference.results import read_result

    for path in stored:
        try:
            result = read_result(path)
        except ResultsError:
            continue
        yield result
