"""What is done to one slide of a run, in whatever process: label it, write its attention, draw it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.config import StreamingConfig
from wsi_ips.errors import CoordsError, ProcessDied, ResultsError, SlideFailed, WsiIpsError
from wsi_ips.inference.checkpoints import EnsemblePredictor
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.results import SlideResult, read_result, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import failure_in_words
from wsi_ips.storage.location import Location
from wsi_ips.tiling.patches import FindPatches, upsampling_note
from wsi_ips.units import Mpp

logger = logging.getLogger(__name__)

SHOWN_BAD_TILES = 3

Draw = Callable[[SlideResult, Path], None]
"""Draws a slide's overlay."""


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide to predict; ``mpp`` is used instead of the file's own resolution."""

    slide_id: str
    path: Location
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a slide. telemetry: None of one that was done by an earlier run, or failed. error: of one
    that failed, to be raised where that ends the run. note: as in ``slides.csv``."""

    row: PredictionRow
    telemetry: SlideTelemetry | None = None
    error: WsiIpsError | None = None
    note: str = ""


class SlideRecorder:
    """Writes what becomes of a run's slides, and finds what an earlier start wrote. Knows no network."""

    def __init__(
        self,
        run: RunFolder,
        *,
        checkpoint: str,
        draw: Draw | None = None,
        embeddings: bool = False,
        start: str | None = None,
        streaming: StreamingConfig | None = None,
        find_patches: FindPatches | None = None,
    ) -> None:
        """``checkpoint``: its SHA-256. ``streaming``: how slides are read. ``draw`` draws the overlays;
        ``embeddings`` of the kept patches are stored with the attention. ``start``: of the run; nothing is
        touched once the folder is another's. ``find_patches``: see :class:`Predictor`."""
        self._run = run
        self._checkpoint = checkpoint
        self._draw = draw
        self._embeddings = embeddings
        self._start = start
        self._streaming = streaming or StreamingConfig()
        self._find_patches = find_patches

    def write(self, job: SlideJob, result: SlideResult) -> Done:
        """Store a new result, and draw it. Where the overlay cannot be drawn the label stands, and the row says
        why. Raises :class:`ResultsError` where the folder is another run's by now."""
        if not self._still_ours():
            raise ResultsError(self._run.root, "is another run's by now", "what this worker found is dropped")
        result = replace(result, made_from=self._made_from(job))
        write_result(self._run.attention(job.slide_id), result, embeddings=self._embeddings)
        return Done(
            self._row(job, result, redraw=True), result.telemetry, note=upsampling_note(result.coords)
        )

    def failed(self, job: SlideJob, error: Exception) -> Done:
        """The slide's failure; what an earlier run left of it goes."""
        if self._still_ours():
            self._run.forget(job.slide_id)
        why = reason(job, error)
        known = error if isinstance(error, WsiIpsError) else SlideFailed(f"{job.slide_id}: {why}")
        return Done(PredictionRow.failed(job.slide_id, why), error=known)

    def found(self, job: SlideJob, *, redraw: bool = True) -> Done | None:
        """What an earlier start with the same checkpoint found of the same slide and patches; None where the slide
        has to be done. Where its overlay is missing, that is drawn, or without ``redraw`` counts as not done."""
        if not redraw and self._draw is not None and not self._run.overlay(job.slide_id).exists():
            return None
        result = self._stored(job)
        if result is None:
            return None
        return Done(self._row(job, result, redraw=False), note=upsampling_note(result.coords))

    def lacks_picture(self, job: SlideJob) -> bool:
        """Whether a result is stored, but not its overlay: :meth:`found` may open the slide to draw it."""
        wanted = self._draw is not None and not self._run.overlay(job.slide_id).exists()
        return wanted and self._run.attention(job.slide_id).exists()

    def died(self, job: SlideJob, error: ProcessDied) -> Done:
        """A slide that killed the process which read it has failed; where it is labelled already, only its overlay
        has."""
        result = self._stored(job)
        if result is None:
            return self.failed(job, error)
        complaint = f"overlay of {job.slide_id} not drawn: {error}"
        return Done(PredictionRow.done(result, error=complaint), note=upsampling_note(result.coords))

    def _stored(self, job: SlideJob) -> SlideResult | None:
        """The result of the same slide and patches by the same checkpoint, where it is stored."""
        path = self._run.attention(job.slide_id)
        if not self._checkpoint or not path.exists():
            return None
        try:
            result = read_result(path)
        except ResultsError as error:
            logger.warning("slide %s is done again: %s", job.slide_id, error)
            return None
        if result.checkpoint != self._checkpoint or result.slide_path != str(job.path):
            return None
        if self._embeddings and result.kept_emb_MD is None:
            return None
        if why := self._outdated(job, result):
            logger.warning("slide %s is done again: %s", job.slide_id, why)
            return None
        return result

    def _outdated(self, job: SlideJob, result: SlideResult) -> str:
        """Why a stored result has to be made again, in words; empty where it has not."""
        if result.made_from is None:
            return "it does not say what it was made from"
        now = self._made_from(job)
        # Coordinates that are gone by now are no reason: there is nothing to make the result anew from.
        return "" if now is None else result.made_from.difference(now, bad_tiles=bool(result.bad_tiles))

    def _made_from(self, job: SlideJob) -> MadeFrom | None:
        try:
            return MadeFrom.now(
                job.path,
                slide_id=job.slide_id,
                mpp=job.mpp,
                streaming=self._streaming,
                find_patches=self._find_patches,
            )
        except CoordsError:  # gone since they were read
            return None

    def _still_ours(self) -> bool:
        return self._start is None or self._run.is_of(self._start)

    def _row(self, job: SlideJob, result: SlideResult, *, redraw: bool) -> PredictionRow:
        complaints = []
        if result.bad_tiles:
            complaints.append(unreadable(job.slide_id, result.bad_tiles))
        overlay = self._run.overlay(job.slide_id)
        if self._draw is not None and (redraw or not overlay.exists()):
            overlay.unlink(missing_ok=True)
            try:
                self._draw(result, overlay)
            except Exception as error:  # noqa: BLE001 - the label took minutes and stands without its picture
                complaints.append(f"overlay of {job.slide_id} not drawn: {reason(job, error)}")
        return PredictionRow.done(result, error="; ".join(complaints))


@dataclass(frozen=True, slots=True)
class SlideWork:
    """A network, or several, and where the results go. An error is the slide's, never the run's."""

    predictor: Predictor | EnsemblePredictor
    recorder: SlideRecorder

    def label(
        self,
        job: SlideJob,
        prepared: Callable[[], PreparedSlide] | None = None,
        *,
        progress: Progress = silent,
    ) -> Done:
        """Label a slide, already ``prepared`` or not, and write what is known of it."""
        try:
            slide = self.prepare(job) if prepared is None else prepared()
            return self.recorder.write(job, self.predictor.read(slide, progress=progress))
        except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
            return self.recorder.failed(job, error)

    def prepare(self, job: SlideJob) -> PreparedSlide:
        """Open the slide and find its patches. Raises as :meth:`Predictor.prepare`."""
        return self.predictor.prepare(job.path, slide_id=job.slide_id, mpp=job.mpp)


def unreadable(slide_id: str, bad_tiles: Sequence[str]) -> str:
    """What is said of a slide some of whose tiles could not be read."""
    shown = ", ".join(bad_tiles[:SHOWN_BAD_TILES]) + (", …" if len(bad_tiles) > SHOWN_BAD_TILES else "")
    return f"{slide_id}: {len(bad_tiles)} tiles unreadable, read as white: {shown}"


def reason(job: SlideJob, error: Exception) -> str:
    """The error in words; what was not raised on purpose goes to the log with its trace."""
    return failure_in_words(job.slide_id, error)
