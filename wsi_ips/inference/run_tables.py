"""The two tables of a run, kept up to date while slides are begun and done: :class:`RunTables`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError, count, first_of
from wsi_ips.evaluation.conformal import Calibration
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.known_results import KnownResults
from wsi_ips.inference.predictions import Doubt, PredictionRow, write_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_rows import Pace
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder
from wsi_ips.inference.telemetry import (
    NOTHING_MEASURED,
    SlideRow,
    SlideTelemetry,
    read_slide_table,
    write_slide_table,
)
from wsi_ips.storage.files import many_objects
from wsi_ips.timeline import staged, working

logger = logging.getLogger(__name__)

MOST_DROPPED = 5
"""How many slides a warning names."""


class RunTables:
    """``predictions.csv`` and ``slides.csv``, written completely after every change, so that a killed run leaves
    both.

    With more than 500 slides they are written once a second, and less often if that took more than a fiftieth of
    the time (:class:`Pace`): with 100,000 slides about once a minute. What a killed run had not written yet, the
    next start finds by its results. A table that cannot be written now (a full disk) is tried again with a later
    change, because a slide that was labelled must not be lost for it. Only :meth:`close` raises the error.
    """

    def __init__(
        self,
        run: RunFolder,
        jobs: Sequence[SlideJob],
        *,
        tasks: Sequence[TaskConfig],
        spread: bool = False,
        calibration: Calibration | None = None,
        by_case: bool = False,
    ) -> None:
        """Read what an earlier start of the run noted.

        Args:
            run: The folder.
            jobs: The slides.
            tasks: The tasks.
            spread: Whether several models label each slide.
            calibration: What is done to the probabilities before they are written. Stored results stay those of
                the network.
            by_case: Whether all slides of a case are one bag.
        """
        self._run = run
        self._calibration = calibration
        self._doubt = Doubt(spread, frozenset(calibration.tasks if calibration else ()), by_case)
        self._tasks = tasks
        self._predictions: dict[str, PredictionRow] = {}
        self._measured: list[SlideTelemetry] = []
        self._pace = Pace()
        self._unwritten = True
        self._known = KnownResults(run.known, run.root / "attention")
        self._found_again: set[str] = set()
        earlier = _earlier(run)
        _tell_of_dropped(run, earlier, jobs)
        self._left_running = [
            job.slide_id
            for job in jobs
            if job.slide_id in earlier
            and earlier[job.slide_id].status == "running"
            and not earlier[job.slide_id].worker
        ]
        self._slides: dict[str, SlideRow] = {}
        with many_objects():
            for job in jobs:
                noted = earlier.get(job.slide_id)
                self._slides[job.slide_id] = SlideRow(
                    slide_id=job.slide_id,
                    path=str(job.path),
                    attempts=noted.attempts if noted else 0,
                    telemetry=noted.telemetry if noted else NOTHING_MEASURED,
                )

    @property
    def rows(self) -> list[PredictionRow]:
        """The rows of the slides that are done, as they are written, in the order of the jobs."""
        return [self._predictions[slide_id] for slide_id in self._slides if slide_id in self._predictions]

    @property
    def slides(self) -> Mapping[str, SlideRow]:
        """``{slide_id: row}`` of ``slides.csv``, in the order of the jobs."""
        return self._slides

    @property
    def left_running(self) -> Sequence[str]:
        """The slides that an earlier start was reading itself, without workers, when it died."""
        return self._left_running

    @property
    def measured(self) -> Sequence[SlideTelemetry]:
        """The telemetry of the slides that were labelled by this start."""
        return self._measured

    @property
    def told(self) -> list[str]:
        """In words, how many slides an earlier start had labelled; nothing where there are none."""
        again, slides = len(self._found_again), count(len(self._slides), "slide was", "slides were")
        words = f"{again} of {slides} labelled already, from the same files and settings"
        return [words] if again else []

    @property
    def recorded(self) -> Sequence[SlideTelemetry]:
        """The telemetry of the slides that were labelled by this start or an earlier one."""
        rows = self._slides.values()
        return [row.telemetry for row in rows if row.status == "ok" and row.telemetry.seconds]

    @property
    def tasks(self) -> Sequence[TaskConfig]:
        """The tasks of the run."""
        return self._tasks

    def begun(self, slide_id: str, *, worker: str = "") -> None:
        """Note that a slide is begun, which counts as another attempt. ``worker`` says who does it."""
        working()
        row = self._slides[slide_id]
        if slide_id in self._predictions:  # the news came late
            self._slides[slide_id] = replace(row, attempts=row.attempts + 1, worker=worker)
            return
        self._slides[slide_id] = replace(
            row, status="running", attempts=row.attempts + 1, worker=worker, error=""
        )
        self._write()

    def take_known(
        self, jobs: Sequence[SlideJob], recorder: SlideRecorder, *, in_hand: SlidesInHand | None = None
    ) -> list[SlideJob]:
        """Note the slides that are known to be done without opening any file, and return the jobs that are left.

        Args:
            jobs: The slides.
            recorder: Knows what is wanted of stored results.
            in_hand: Is told of slides that need no reading any more.
        """
        with many_objects():
            for done in recorder.known(jobs, self._tasks):
                self._note(done)
                if in_hand is not None:
                    in_hand.end(done.row.slide_id)
        return [job for job in jobs if job.slide_id not in self._predictions]

    def take_found(
        self,
        jobs: Sequence[SlideJob],
        recorder: SlideRecorder,
        *,
        redraw: bool = True,
        in_hand: SlidesInHand | None = None,
    ) -> list[SlideJob]:
        """Note the slides that an earlier start of the run has done, and return the jobs that are left.

        Args:
            jobs: The slides.
            recorder: Finds stored results.
            redraw: Draw a missing overlay here. Otherwise, and for slides that ``in_hand`` suspects, a slide
                without its overlay is left.
            in_hand: Is told of a slide that is opened for its overlay.
        """
        left = []
        for job in jobs:
            suspected = in_hand is not None and in_hand.suspected(job.slide_id)
            drawn = redraw and not suspected and recorder.lacks_picture(job)
            if drawn and in_hand is not None:
                in_hand.begin(job.slide_id)  # the slide is opened for its picture
            done = recorder.found(job, redraw=redraw and not suspected)
            if drawn and in_hand is not None:
                in_hand.end(job.slide_id)
            if done is None:
                left.append(job)
            else:
                self._note(done)
                if in_hand is not None:
                    in_hand.end(job.slide_id)  # a start died after all of it was stored
        self._write()
        return left

    @staged("write results")
    def add(self, done: Done) -> None:
        """Note that a slide is labelled, or that it failed."""
        self._note(done)
        self._write()

    def _note(self, done: Done) -> None:
        slide_id = done.row.slide_id
        self._unwritten = True
        if done.known:
            self._known.add(done.known)
        row = replace(self._slides[slide_id], status=done.row.status, error=done.row.error, note=done.note)
        if done.telemetry is None and done.row.status == "ok":
            self._found_again.add(slide_id)
        if done.telemetry is not None:
            self._found_again.discard(slide_id)
            working()
            self._measured.append(done.telemetry)
            row = replace(row, telemetry=done.telemetry)
        elif done.row.status == "failed":
            row = replace(row, telemetry=SlideTelemetry())
        self._slides[slide_id] = row
        calibration = self._calibration
        self._predictions[slide_id] = done.row if calibration is None else done.row.calibrated(calibration)

    def give_up(self) -> None:
        """Note that the run ends early: what was begun and not done waits for the next start."""
        for slide_id, row in self._slides.items():
            if row.status == "running":
                self._slides[slide_id] = replace(row, status="waiting")
        self._pace.at_once()  # however many slides there are
        self._unwritten = True
        self._write()

    def close(self) -> None:
        """Write both tables, unless they hold everything already. Raises ``OSError`` if that fails."""
        if not self._unwritten and self._run.predictions.is_file() and self._run.slides.is_file():
            return
        with many_objects():
            write_predictions(self._run.predictions, self.rows, tasks=self._tasks, doubt=self._doubt)
            write_slide_table(self._run.slides, list(self._slides.values()))
        self._unwritten = False

    def _write(self) -> None:
        self._unwritten = True
        if not self._pace.due(len(self._slides)):
            return
        try:
            with self._pace.writing():
                self.close()
        except OSError as error:
            logger.warning("the run's tables are not written yet: %s", error)


def _tell_of_dropped(run: RunFolder, earlier: Mapping[str, SlideRow], jobs: Sequence[SlideJob]) -> None:
    """Warn of slides that an earlier start labelled and this one does not name: the tables will lack them."""
    named = {job.slide_id for job in jobs}
    others = [name for name, row in earlier.items() if name not in named and row.status == "ok"]
    dropped = [name for name in others if run.attention(name).is_file()]
    if dropped:
        logger.warning(
            "%s lists the slides of this start only, no longer %s, which an earlier start labelled (their results "
            "stay in attention/); name all slides at once to have them in one table",
            run.predictions,
            first_of(dropped, MOST_DROPPED),
        )


def _earlier(run: RunFolder) -> dict[str, SlideRow]:
    """What an earlier start of the run noted, by slide."""
    if not run.slides.is_file():
        return {}
    try:
        with many_objects():
            return read_slide_table(run.slides)
    except ResultsError as error:
        logger.warning("attempts are counted anew: %s", error)
        return {}
