"""Labelling cases (patients) whose slides are one bag each: :func:`label_cases` from slides,
:func:`label_feature_cases` from stored features.

A slide that cannot be read fails by itself, as in a run of slides: it becomes a row with its error, and its case
is read from the other slides (``batch.on_error: report``), or the run ends (``stop``). ``cases.csv`` names the
slides that an answer had to do without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from wsi_ips import timeline
from wsi_ips.datasets.feature_files import FeatureFile
from wsi_ips.errors import ConfigError, ProcessDied, count
from wsi_ips.evaluation.conformal import Calibration
from wsi_ips.inference.feature_predict import FeaturePredictor
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.predict import PreparedSlide, SlideLost
from wsi_ips.inference.results import PartOfCase
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.run_tables import RunTables
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder, SlideWork
from wsi_ips.inference.worker import WorkerSetup
from wsi_ips.progress import Progress, silent

OnError = Literal["report", "stop"]
"""What is done when a slide fails: ``report`` goes on, ``stop`` raises its error."""
Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class CaseJob:
    """A case to predict, and its slides in the order of their names."""

    case_id: str
    slides: tuple[SlideJob, ...]

    @property
    def name(self) -> str:
        """What it is called among slides, one of which may have the same name."""
        return f"case {self.case_id}"


def case_jobs(jobs: Sequence[SlideJob], case_of: Mapping[str, str]) -> list[CaseJob]:
    """The cases of these slides, in the order of their first slides. ``case_of`` is ``{slide_id: case_id}``."""
    by_case: dict[str, list[SlideJob]] = {}
    for job in jobs:
        by_case.setdefault(case_of[job.slide_id], []).append(job)
    return [
        CaseJob(case_id, tuple(sorted(slides, key=lambda job: job.slide_id)))
        for case_id, slides in by_case.items()
    ]


def label_cases(
    cases: Sequence[CaseJob],
    setup: WorkerSetup,
    tables: RunTables,
    *,
    on_error: OnError = "report",
    progress: Progress = silent,
) -> None:
    """Label what no earlier start has labelled, in this process. A case that an earlier start died of comes last,
    in a process of its own.

    Args:
        cases: The cases.
        setup: What there is to know of the run.
        tables: The tables of the run, which are kept up to date.
        on_error: What is done when a slide fails.
        progress: Shows how far it is.
    """
    with SlidesInHand(setup.run.root) as in_hand:
        running = set(tables.left_running)
        in_hand.suspect(case.name for case in cases if running & {job.slide_id for job in case.slides})
        try:
            left = take_known(cases, setup.recorder(), tables)
            left = [case for case in left if not take_found(case, setup.recorder(), tables)]
            others, suspects = in_hand.apart(left, lambda case: case.name)
            if others:
                label_cases_here(
                    others, setup.load(0), tables, on_error=on_error, progress=progress, in_hand=in_hand
                )
            for case in suspects:
                _begun(case, tables)
                try:
                    done = in_hand.alone(case.name, case.slides[0].path, _label_alone, (setup, case))
                except ProcessDied as error:
                    done = [_failed(case, job, error, setup.recorder()) for job in case.slides]
                _note(done, tables, on_error)
        except BaseException:
            tables.give_up()
            raise


def label_cases_here(
    cases: Sequence[CaseJob],
    work: SlideWork,
    tables: RunTables,
    *,
    on_error: OnError = "report",
    progress: Progress = silent,
    in_hand: SlidesInHand | None = None,
) -> None:
    """Label cases one after the other with the network of ``work``. For the arguments see :func:`label_cases`."""
    with progress("Predicting", total=len(cases)) as advance:
        for case in cases:
            if in_hand is not None:
                in_hand.begin(case.name)
            _begun(case, tables)
            done = label_case(case, work, progress=progress)
            _note(done, tables, on_error)
            if in_hand is not None:
                in_hand.end(case.name)
            advance(
                f"{case.name}: {sum(one.row.status == 'ok' for one in done)} of {count(len(done), 'slide')} read"
            )


def label_case(case: CaseJob, work: SlideWork, *, progress: Progress = silent) -> list[Done]:
    """Label a case from all of its slides that can be read, and store the result of each."""
    with timeline.slide(case.name), ExitStack() as opened:

        def prepare(job: SlideJob) -> PreparedSlide:
            prepared = work.prepare(job)
            opened.callback(prepared.slide.close)
            return prepared

        def read(jobs: Sequence[SlideJob], slides: Sequence[PreparedSlide]) -> list[Done]:
            results = work.predictor.read_case(slides, case_id=case.case_id, progress=progress)
            return [
                work.recorder.write(job, result, slide.known_source)
                for job, result, slide in zip(jobs, results, slides, strict=True)
            ]

        return _from_what_can_be_read(case, prepare, read, work.recorder)


def take_known(cases: Sequence[CaseJob], recorder: SlideRecorder, tables: RunTables) -> list[CaseJob]:
    """Note the cases that are known to be labelled from all of their slides as they are now, without opening a
    file of theirs, and return the others.
    """
    slides = [job for case in cases for job in case.slides]
    known = {done.row.slide_id: done for done in recorder.known(slides, tables.tasks)}
    left = []
    for case in cases:
        found = [known.get(job.slide_id) for job in case.slides]
        if not _take(case, found, tables):
            left.append(case)
    return left


def take_found(case: CaseJob, recorder: SlideRecorder, tables: RunTables) -> bool:
    """Whether an earlier start has labelled the case from all of its slides as they are now. Its rows are noted
    then; otherwise all of it has to be done again.
    """
    found: list[Done | None] = []
    for job in case.slides:
        found.append(recorder.found(job))
        if not _is_of(case, found[-1]):
            return False
    return _take(case, found, tables)


def _take(case: CaseJob, found: Sequence[Done | None], tables: RunTables) -> bool:
    """Note what was found of the slides of a case, if it is of all of them, read together."""
    whole = [done for done in found if done is not None and _is_of(case, done)]
    if len(whole) < len(case.slides):
        return False
    for done in whole:
        tables.add(done)
    return True


def _is_of(case: CaseJob, done: Done | None) -> bool:
    names = tuple(job.slide_id for job in case.slides)
    return (
        done is not None
        and done.row.case is not None
        and (done.row.case.case_id, done.row.case.slides) == (case.case_id, names)
    )


def predict_feature_cases(
    paths: Mapping[str, Path],
    case_of: Mapping[str, str],
    predictor: FeaturePredictor,
    run: RunFolder,
    *,
    on_error: OnError = "report",
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> tuple[RunTables, list[str]]:
    """Label every case from stored features and write the tables of the run, as
    :func:`wsi_ips.inference.feature_predict.predict_features` does for slides.

    Args:
        paths: ``{slide_id: features file}``.
        case_of: ``{slide_id: case_id}``.
        predictor: The network.
        run: The folder to write to.
        on_error: What is done when a file cannot be used.
        calibration: What is done to the probabilities before they are written.
        progress: Shows how far it is.

    Returns:
        The tables, and the ids of the slides whose files do not say how large their patches are.
    """
    jobs = [SlideJob(slide_id, path) for slide_id, path in paths.items()]
    tables = RunTables(
        run,
        jobs,
        tasks=predictor.pipeline.model.tasks,
        spread=bool(predictor.others),
        calibration=calibration,
        by_case=True,
    )
    unplaced = label_feature_cases(
        case_jobs(jobs, case_of), predictor, run, tables, on_error=on_error, progress=progress
    )
    tables.close()
    return tables, unplaced


def label_feature_cases(
    cases: Sequence[CaseJob],
    predictor: FeaturePredictor,
    run: RunFolder,
    tables: RunTables,
    *,
    on_error: OnError = "report",
    progress: Progress = silent,
) -> list[str]:
    """Label cases from stored features. ``path`` of a job is the file of a slide's features.

    Returns:
        The ids of the slides whose files do not say how large their patches are.
    """
    recorder = SlideRecorder(run, checkpoint=predictor.checkpoint)
    unplaced: list[str] = []

    def check(job: SlideJob) -> FeatureFile:
        return predictor.checked(job.slide_id, Path(job.path))

    with progress("Predicting", total=len(cases)) as advance:
        for case in cases:
            _begun(case, tables)

            def read(
                jobs: Sequence[SlideJob], held: Sequence[FeatureFile], case_id: str = case.case_id
            ) -> list[Done]:
                names = [job.slide_id for job in jobs]
                unplaced.extend(name for name, one in zip(names, held, strict=True) if one.coords is None)
                return predictor.predict_case(case_id, names, held, run)

            done = _from_what_can_be_read(case, check, read, recorder)
            _note(done, tables, on_error)
            advance(
                f"{case.name}: {sum(one.row.status == 'ok' for one in done)} of {count(len(done), 'slide')} read"
            )
    return unplaced


def _from_what_can_be_read(
    case: CaseJob,
    open_slide: Callable[[SlideJob], Opened],
    read: Callable[[Sequence[SlideJob], Sequence[Opened]], list[Done]],
    recorder: SlideRecorder,
) -> list[Done]:
    """What becomes of each slide of a case, in their order. A slide that fails while the case is read is left out,
    and the case is read again without it.
    """
    failed: dict[str, Done] = {}
    opened: dict[str, Opened] = {}
    for job in case.slides:
        try:
            opened[job.slide_id] = open_slide(job)
        except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
            failed[job.slide_id] = _failed(case, job, error, recorder)
    done: dict[str, Done] = {}
    while opened and not done:
        jobs = [job for job in case.slides if job.slide_id in opened]
        try:
            told = read(jobs, [opened[job.slide_id] for job in jobs])
            done = {one.row.slide_id: one for one in told}
        except SlideLost as lost:
            job = jobs[lost.place]
            del opened[job.slide_id]
            failed[job.slide_id] = _failed(case, job, lost.error, recorder)
        except Exception as error:  # noqa: BLE001 - the network's failure is that of all slides that it read
            failed |= {job.slide_id: _failed(case, job, error, recorder) for job in jobs}
            break
    return [(failed | done)[job.slide_id] for job in case.slides]


def _failed(case: CaseJob, job: SlideJob, error: Exception, recorder: SlideRecorder) -> Done:
    done = recorder.failed(job, error)
    return replace(done, row=replace(done.row, case=PartOfCase(case.case_id)))


def _begun(case: CaseJob, tables: RunTables) -> None:
    for job in case.slides:
        tables.begun(job.slide_id)


def _note(done: Sequence[Done], tables: RunTables, on_error: OnError) -> None:
    for one in done:
        tables.add(one)
    errors: Iterator[Exception] = (one.error for one in done if one.error is not None)
    if on_error == "stop" and (error := next(errors, None)) is not None:
        raise error


def _label_alone(task: tuple[WorkerSetup, CaseJob]) -> list[Done]:
    setup, case = task
    return label_case(case, setup.load(0))


def check_in_turn(*, workers: int | None, scheduler: str | None, shard_patches: int | None) -> None:
    """Check that cases are labelled one after the other.

    Raises:
        ConfigError: Workers, or parts of slides, are wanted.
    """
    for name, value in (("workers", workers), ("scheduler", scheduler), ("shard_patches", shard_patches)):
        if value is not None:
            raise ConfigError(
                f"batch.{name} goes with slides that are read by themselves, and this checkpoint reads all slides "
                "of a case as one bag (bag: case): leave it out"
            )
