"""``report``: a run as one HTML file that can be mailed; no model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from pydantic import Field, NonNegativeInt, model_validator

from wsi_ips.commands.options import OpenUrls, Outcome, start
from wsi_ips.commands.recipe import Job
from wsi_ips.commands.slides import SlidesOfJob, slides_by_id
from wsi_ips.commands.stored_maps import Map, check_choice, name_of_map
from wsi_ips.config import HeatOptions
from wsi_ips.config.heat import DEFAULT_HEAT, MapKind
from wsi_ips.errors import ResultsError, count
from wsi_ips.progress import Progress

if TYPE_CHECKING:
    from wsi_ips.report.cards import Line
    from wsi_ips.report.stored_run import StoredEvaluation, StoredRun

NO_MATPLOTLIB = "matplotlib is not installed: pip install 'wsi_ips[plots]'"
MOST_PATCHES_SHOWN = 100


class ReportJob(Job):
    """Write a run as one HTML file that can be mailed; no model."""

    command: Literal["report"] = "report"
    run: Path
    """The folder that ``predict`` wrote."""
    out: Path | None = None
    """An ``.html`` file; none: ``report.html`` in ``run``, with a map that is not the default one
    ``report_<map>.html``."""
    evaluation: Path | None = None
    """The folder that ``evaluate`` wrote; none: ``evaluation/`` in ``run``, where it is of this run."""
    training: Path | None = None
    """The folder that ``finetune`` wrote, for the losses."""
    slides: SlidesOfJob | None = None
    """Where the slides are now; none: where ``predict`` read them."""
    open_urls: bool = False
    """Open slides at URLs that the run names, too: without ``slides``, a run folder decides no requests."""
    top: Annotated[NonNegativeInt, Field(le=MOST_PATCHES_SHOWN)] = 9
    """How many of a slide's patches are shown, those with the most attention."""
    map: MapKind | None = None
    """Which map is drawn; none: contributions where the head tells them, else attention."""

    @model_validator(mode="after")
    def _out_is_a_page(self) -> Self:
        if self.out is not None and self.out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"out {self.out} must end in .html")
        return self


def command(
    run: Annotated[Path, typer.Argument(help="The folder that predict wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: RUN/report.html, or report_MAP.html.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="The folder that evaluate wrote; default: RUN/evaluation, if there.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="The folder that finetune wrote: adds its losses.")
    ] = None,
    slides: Annotated[str | None, typer.Option(help="The slides; default: where predict read them.")] = None,
    open_urls: OpenUrls = None,
    top: Annotated[int | None, typer.Option(help="Patches shown of each slide (default 9).")] = None,
    map_: Map = None,
) -> None:
    """Write a run as one HTML file that can be mailed: figures, pictures, failures; no model is needed."""
    flags = {"run": run, "out": out, "evaluation": evaluation, "training": training, "slides": slides,
             "open_urls": open_urls, "top": top, "map": map_}  # fmt: skip
    start("report", flags)


def report(job: ReportJob, progress: Progress) -> Outcome:
    """Write the page. A slide that cannot be shown costs its pictures: its card says why, and so does the exit
    code.

    Slides are opened one after the other, so memory is one slide's. Raises, before anything is written,
    :class:`ConfigError` for a map that the run does not hold, :class:`ResultsError` for a folder without a run, an
    evaluation or training that is none or is of another run, and a place that cannot be written to, and
    :class:`SlideNotFound` for a folder of slides without any.
    """
    from wsi_ips.report.cards import Card, line_of, make_card
    from wsi_ips.report.page import Page, write_page
    from wsi_ips.report.pictures import plots_of, share_of_a_slide, training_plots
    from wsi_ips.report.shown import shown_slides, with_room
    from wsi_ips.report.stages import stage_shares
    from wsi_ips.report.stored_run import read_training
    from wsi_ips.report.summary import summarise

    out = job.out or job.run / _name_of_page(job)
    _check_place(out)
    run = _run_of(job.run, job.map)
    evaluation, notes = _evaluation(job, run)
    training = read_training(job.training, run) if job.training else None
    elsewhere = slides_by_id(job.slides) if job.slides else None
    judged = evaluation.slides if evaluation else {}
    rows = shown_slides(run.slides, judged)
    lines = with_room([line_of(run, slide, judged.get(slide.slide_id, {})) for slide in rows])
    shown = [line for line in lines if line.has_card]
    share = share_of_a_slide(len(shown))
    failures: list[str] = []

    def cards() -> Iterator[Card]:
        with progress("Reporting", total=len(shown)) as advance:
            for line in shown:
                card = make_card(run, line, elsewhere=elsewhere, top=job.top, share=share, kind=job.map,
                                 open_urls=job.open_urls)  # fmt: skip
                if card.problem:
                    failures.append(f"{line.slide.slide_id}: {card.problem}")
                yield card
                advance(line.slide.slide_id)

    plots, more = plots_of(evaluation.plots) if evaluation else ([], [])
    notes += more
    drawn = training_plots(training.history, name=training.folder.resolve().name) if training else []
    if training and not drawn:
        notes.append(f"The losses are a table only: {NO_MATPLOTLIB}")
    notes += _notes(run, lines, without_slides=job.slides is None)
    write_page(
        out,
        Page(
            run=run, summary=summarise(run), lines=lines, cards=cards(), evaluation=evaluation, plots=plots,
            training=training, training_plots=drawn, notes=notes, of_gradients=job.map == "gradient",
            stages=stage_shares(run),
        ),
    )  # fmt: skip
    size = out.stat().st_size / 1e6
    return Outcome.of_slides(failures, f"{count(len(run.slides), 'slide')} in {out} ({size:.1f} MB)")


def _name_of_page(job: ReportJob) -> str:
    """The report of another map than the default one does not replace that of the default one."""
    stored = sorted((job.run / "attention").glob("*.h5"))
    other = job.map is not None and name_of_map(HeatOptions(map=job.map), stored, by_default=DEFAULT_HEAT)
    return f"report_{job.map}.html" if other else "report.html"


def _check_place(out: Path) -> None:
    """Said before minutes of drawing, not after."""
    fix = "name another file with --out"
    if out.is_dir():
        raise ResultsError(out, "is a folder", fix)
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ResultsError(out, f"cannot be written ({above} is no folder)", fix)


def _run_of(root: Path, shown: MapKind | None) -> "StoredRun":
    """The run, which has to hold the map that is to be shown."""
    from wsi_ips.inference.run_folder import RunFolder, tasks_of_run
    from wsi_ips.report.stored_run import read_run

    if not root.is_dir():
        raise ResultsError(root, "no such folder", "name the folder that wsi-ips predict wrote")
    if shown is not None:
        check_choice(HeatOptions(map=shown), sorted((root / "attention").glob("*.h5")))
    folder = RunFolder(root)
    return read_run(folder, tasks_of_run(folder))


def _evaluation(job: ReportJob, run: "StoredRun") -> "tuple[StoredEvaluation | None, list[str]]":
    """The evaluation that was named; or the one in the run's folder, unless it is out of date."""
    from wsi_ips.report.stored_run import read_evaluation

    if job.evaluation is not None:
        found = read_evaluation(job.evaluation, run)
    else:
        usual = job.run / "evaluation"
        if not (usual / "metrics.json").is_file():
            return None, []
        try:
            found = read_evaluation(usual, run)
        except ResultsError as error:
            return None, [f"The evaluation in the run's folder is left out: {error}"]
    if found.plots:
        return found, []
    return found, [f"{found.folder} holds no plots: evaluate again where matplotlib is installed."]


def _notes(run: "StoredRun", lines: "Sequence[Line]", *, without_slides: bool) -> list[str]:
    from wsi_ips.report.shown import left_out

    notes = list(run.notes)
    if run.of_features and without_slides:
        notes.append("Stored features were labelled: there are no pictures of slides (--slides names them).")
    unfinished = sum(slide.status == "unfinished" for slide in run.slides)
    if unfinished:
        notes.append(f"The run is not finished: {unfinished} of {len(run.slides)} slides are left to do.")
    return [*notes, *left_out(len(run.slides), lines)]
