"""``report``: a run as one HTML file that can be mailed; no model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi_ips.commands.evaluate_join import tasks_of_run
from wsi_ips.commands.inputs import slides_by_id
from wsi_ips.commands.outcome import Outcome
from wsi_ips.errors import ResultsError
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.progress import Progress
from wsi_ips.recipe import ReportJob
from wsi_ips.report.cards import Card, Line, line_of, make_card
from wsi_ips.report.page import Page, write_page
from wsi_ips.report.pictures import plots_of, share_of_a_slide, training_plots
from wsi_ips.report.stored_run import StoredEvaluation, StoredRun, read_evaluation, read_run, read_training
from wsi_ips.report.summary import summarise

NO_MATPLOTLIB = "matplotlib is not installed: pip install 'wsi_ips[plots]'"


def report(job: ReportJob, progress: Progress) -> Outcome:
    """Write the page. A slide that cannot be shown costs its pictures: its card says why, and so does the exit
    code.

    Slides are opened one after the other, so memory is one slide's. Raises :class:`ResultsError`, before anything
    is written, for a folder without a run, an evaluation or training that is none or is of another run, a place
    that cannot be written to; :class:`SlideNotFound` for a folder of slides without any.
    """
    out = job.out or job.run / "report.html"
    _check_place(out)
    run = _run_of(job.run)
    evaluation, notes = _evaluation(job, run)
    training = read_training(job.training, run) if job.training else None
    elsewhere = slides_by_id(job.slides) if job.slides else None
    judged = evaluation.slides if evaluation else {}
    lines = [line_of(run, slide, judged.get(slide.slide_id, {})) for slide in run.slides]
    shown = [line for line in lines if line.has_card]
    share = share_of_a_slide(len(shown))
    failures: list[str] = []

    def cards() -> Iterator[Card]:
        with progress("Reporting", total=len(shown)) as advance:
            for line in shown:
                card = make_card(
                    run, line, elsewhere=elsewhere, top=job.top, share=share, open_urls=job.open_urls
                )
                if card.problem:
                    failures.append(f"{line.slide.slide_id}: {card.problem}")
                yield card
                advance(line.slide.slide_id)

    plots, more = plots_of(evaluation.plots) if evaluation else ([], [])
    notes += more
    drawn = training_plots(training.history, name=training.folder.resolve().name) if training else []
    if training and not drawn:
        notes.append(f"The losses are a table only: {NO_MATPLOTLIB}")
    notes += _notes(run, lines, share, without_slides=job.slides is None)
    write_page(
        out,
        Page(
            run=run, summary=summarise(run), lines=lines, cards=cards(), evaluation=evaluation, plots=plots,
            training=training, training_plots=drawn, notes=notes,
        ),
    )  # fmt: skip
    size = out.stat().st_size / 1e6
    return Outcome.of_slides(failures, f"{len(lines)} slides in {out} ({size:.1f} MB)")


def _check_place(out: Path) -> None:
    """Said before minutes of drawing, not after."""
    mend = "name another file with --out"
    if out.is_dir():
        raise ResultsError(out, "is a folder", mend)
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ResultsError(out, f"cannot be written ({above} is no folder)", mend)


def _run_of(root: Path) -> StoredRun:
    if not root.is_dir():
        raise ResultsError(root, "no such folder", "name the folder that wsi-ips predict wrote")
    folder = RunFolder(root)
    return read_run(folder, tasks_of_run(folder))


def _evaluation(job: ReportJob, run: StoredRun) -> tuple[StoredEvaluation | None, list[str]]:
    """The evaluation that was named; or the one in the run's folder, unless it is out of date."""
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


def _notes(run: StoredRun, lines: Sequence[Line], share: int, *, without_slides: bool) -> list[str]:
    notes = list(run.notes)
    if run.of_features and without_slides:
        notes.append("Stored features were labelled: there are no pictures of slides (--slides names them).")
    unfinished = sum(line.slide.status == "unfinished" for line in lines)
    if unfinished:
        notes.append(f"The run is not finished: {unfinished} of {len(lines)} slides are left to do.")
    if not share:
        notes.append(f"No pictures: {len(lines)} slides leave no room for them in a file that can be mailed.")
    return notes
