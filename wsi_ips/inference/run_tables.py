"""The two tables of a run, kept up to date while slides are begun and done: :class:`RunTables`."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError
from wsi_ips.evaluation.conformal import Calibration
from wsi_ips.inference.in_hand import SlidesInHand
from wsi_ips.inference.predictions import Doubt, PredictionRow, write_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_work import Done, SlideJob, SlideRecorder
from wsi_ips.inference.telemetry import SlideRow, SlideTelemetry, read_slide_table, write_slide_table
from wsi_ips.timeline import staged

logger = logging.getLogger(__name__)

MANY = 500
"""Number of slides above which the tables are not written after every change."""
AT_MOST_EVERY_S = 1.0
"""Seconds between two writes then."""


class RunTables:
    """``predictions.csv`` and ``slides.csv``, written completely after every change, so that a killed run leaves
    both.

    With more than 500 slides they are written once a second. A table that cannot be written now (a full disk) is
    tried again with the next change, because a slide that was labelled must not be lost for it. Only
    :meth:`close` raises the error.
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
        self._written = -math.inf
        earlier = _earlier(run)
        self._left_running = [
            job.slide_id
            for job in jobs
            if job.slide_id in earlier
            and earlier[job.slide_id].status == "running"
            and not earlier[job.slide_id].worker
        ]
        self._slides: dict[str, SlideRow] = {}
        for job in jobs:
            fresh = SlideRow(slide_id=job.slide_id, path=str(job.path))
            self._slides[job.slide_id] = replace(
                earlier.get(job.slide_id, fresh),
                path=fresh.path,
                status="waiting",
                error="",
                note="",
                worker="",
            )

    @property
    def rows(self) -> list[PredictionRow]:
        """The rows of the slides that are done, as they are written, in the order of the jobs."""
        return [self._predictions[slide_id] for slide_id in self._slides if slide_id in self._predictions]

    @property
    def left_running(self) -> Sequence[str]:
        """The slides that an earlier start was reading itself, without workers, when it died."""
        return self._left_running

    @property
    def measured(self) -> Sequence[SlideTelemetry]:
        """The telemetry of the slides that were labelled by this start."""
        return self._measured

    @property
    def recorded(self) -> Sequence[SlideTelemetry]:
        """The telemetry of the slides that were labelled by this start or an earlier one."""
        rows = self._slides.values()
        return [row.telemetry for row in rows if row.status == "ok" and row.telemetry.seconds]

    def begun(self, slide_id: str, *, worker: str = "") -> None:
        """Note that a slide is begun, which counts as another attempt. ``worker`` says who does it."""
        row = self._slides[slide_id]
        if slide_id in self._predictions:  # the news came late
            self._slides[slide_id] = replace(row, attempts=row.attempts + 1, worker=worker)
            return
        self._slides[slide_id] = replace(
            row, status="running", attempts=row.attempts + 1, worker=worker, error=""
        )
        self._write()

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
        row = replace(self._slides[slide_id], status=done.row.status, error=done.row.error, note=done.note)
        if done.telemetry is not None:
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
        self._written = -math.inf  # write now, however many slides there are
        self._write()

    def close(self) -> None:
        """Write both tables once more. Raises ``OSError`` if that fails."""
        write_predictions(self._run.predictions, self.rows, tasks=self._tasks, doubt=self._doubt)
        write_slide_table(self._run.slides, list(self._slides.values()))

    def _write(self) -> None:
        # Thousands of lines take a while to write, too long to do it after each of thousands of slides.
        if len(self._slides) > MANY and time.monotonic() - self._written < AT_MOST_EVERY_S:
            return
        self._written = time.monotonic()
        try:
            self.close()
        except OSError as error:
            logger.warning("the run's tables are not written yet: %s", error)


def _earlier(run: RunFolder) -> dict[str, SlideRow]:
    """What an earlier start of the run noted, by slide."""
    if not run.slides.is_file():
        return {}
    try:
        return read_slide_table(run.slides)
    except ResultsError as error:
        logger.warning("attempts are counted anew: %s", error)
        return {}
