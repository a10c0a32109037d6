"""What is done to one slide of a run, in whatever process: label it, store its result, draw it.

:class:`SlideWork` labels slides, :class:`SlideRecorder` writes what becomes of them.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips import timeline
from wsi_ips.config import StreamingConfig, TaskConfig
from wsi_ips.errors import CoordsError, ProcessDied, ResultsError, SlideFailed, WsiIpsError, count, first_of
from wsi_ips.inference.checkpoints import EnsemblePredictor
from wsi_ips.inference.known_results import KnownResults, known_line
from wsi_ips.inference.made_from import MadeFrom, SlideSource
from wsi_ips.inference.predictions import PredictionRow
from wsi_ips.inference.results import SlideResult, read_result, write_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.slide_stamps import Stamps, stamp
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import failure_in_words
from wsi_ips.storage.location import Location
from wsi_ips.tiling.patches import FindPatches, note_of_patches
from wsi_ips.units import Mpp

if TYPE_CHECKING:
    from wsi_ips.inference.predict import Predictor, PreparedSlide

logger = logging.getLogger(__name__)

SHOWN_BAD_TILES = 3
"""How many unreadable tiles a message names."""

Draw = Callable[[SlideResult, Path, str], None]
"""A function that draws the overlay of a result into a file. The text is the fingerprint of the slide now, so that
it need not be taken again; empty if it is not known.
"""


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide to predict.

    Attributes:
        slide_id: Its name.
        path: The slide.
        mpp: µm per pixel, used instead of the resolution that the file states.
    """

    slide_id: str
    path: Location
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a slide.

    Attributes:
        row: Its row of ``predictions.csv``.
        telemetry: Where the time went. None if an earlier run did it, or it failed.
        error: The error of a slide that failed, to be raised if that ends the run.
        note: Its note in ``slides.csv``.
        known: Its line in ``known.jsonl``, if a next start can know the result from it.
    """

    row: PredictionRow
    telemetry: SlideTelemetry | None = None
    error: WsiIpsError | None = None
    note: str = ""
    known: str = ""


class SlideRecorder:
    """Writes what becomes of the slides of a run, and finds what an earlier start wrote. It needs no network."""

    def __init__(
        self,
        run: RunFolder,
        *,
        checkpoint: str,
        draw: Draw | None = None,
        embeddings: bool = False,
        gradients: bool = False,
        start: str | None = None,
        streaming: StreamingConfig | None = None,
        find_patches: FindPatches | None = None,
        precision: str = "32",
        turns: int | None = None,
    ) -> None:
        """Prepare to write.

        Args:
            run: The folder.
            checkpoint: SHA-256 of the model.
            draw: Draws overlays, if given.
            embeddings: Also store the embeddings of the kept patches.
            gradients: Whether a stored result counts as done only with gradient times input of the kept patches.
            start: Id of the start of the run. Nothing is touched once the folder belongs to another start.
            streaming: How slides are read.
            find_patches: How patches are found, see :class:`Predictor`.
            precision: What the encoder computes in, see :class:`wsi_ips.inference.made_from.MadeFrom`.
            turns: In how many orientations kept patches are read. None: as the model was trained.
        """
        self._run = run
        self.checkpoint = checkpoint
        self.embeddings = embeddings
        self.gradients = gradients
        self._draw = draw
        self._start = start
        self._streaming = streaming or StreamingConfig()
        self._find_patches = find_patches
        self._precision = precision
        self._turns = turns

    def source(self, job: SlideJob) -> SlideSource:
        """What a slide is about to be read from."""
        stamps = self._stamps(job)
        return SlideSource(self._made_from(job), stamps)

    @timeline.staged("write results")
    def write(self, job: SlideJob, result: SlideResult, source: SlideSource) -> Done:
        """Store a new result, and draw it. If the overlay cannot be drawn, the label stands and the row says
        why. An overlay of an earlier result is removed, whether a new one is drawn or not.

        Args:
            job: The slide.
            result: What was found.
            source: What :meth:`source` said before the slide was opened.

        Raises:
            ResultsError: The folder belongs to another run by now.
            SlideReadError: The slide, or the file of its coordinates, was replaced while it was read.
        """
        if not self._still_ours():
            raise ResultsError(
                self._run.root, "belongs to another run by now", "the result of this worker is dropped"
            )
        self._check_unchanged(job, source)
        result = replace(result, made_from=source.made_from)
        path = self._run.attention(job.slide_id)
        # Before the result: the next start takes a picture that is there for the stored result's.
        self._run.overlay(job.slide_id).unlink(missing_ok=True)
        write_result(path, result, embeddings=self.embeddings)
        holds = self.embeddings and result.kept_emb_MD is not None
        known = self._known(job, result, source.stamps, stamp(path), embeddings=holds)
        return Done(
            self._row(job, result, source, redraw=True),
            result.telemetry,
            note=note_of_patches(result.coords),
            known=known,
        )

    def _check_unchanged(self, job: SlideJob, source: SlideSource) -> None:
        """Raise :class:`SlideReadError` if the files are not those that were there before the slide was read.
        Their content is looked at only if the file system cannot tell.
        """
        before, stamps = source.made_from, source.stamps
        if before is None or (stamps.slide and replace(self._stamps(job), settled=stamps.settled) == stamps):
            return
        now = self._made_from(job)
        if now is not None:
            before.check_unchanged(now, job.path)

    def failed(self, job: SlideJob, error: Exception) -> Done:
        """Note the failure of a slide. What an earlier run left of it is removed."""
        if self._still_ours():
            self._run.forget(job.slide_id)
        why = reason(job, error)
        known = error if isinstance(error, WsiIpsError) else SlideFailed(f"{job.slide_id}: {why}")
        return Done(PredictionRow.failed(job.slide_id, why), error=known)

    def found(self, job: SlideJob, *, redraw: bool = True) -> Done | None:
        """What an earlier start with the same checkpoint found of the same slide and patches. None if it has to
        be done.

        If only the overlay is missing, it is drawn; without ``redraw`` the slide counts as not done.
        """
        if not redraw and self._draw is not None and not self._run.overlay(job.slide_id).exists():
            return None
        stored_as = stamp(self._run.attention(job.slide_id))
        stored = self._stored(job)
        if stored is None:
            return None
        result, source = stored
        known = self._known(job, result, source.stamps, stored_as, embeddings=result.kept_emb_MD is not None)
        row = self._row(job, result, source, redraw=False)
        return Done(row, note=note_of_patches(result.coords), known=known)

    def known(self, jobs: Sequence[SlideJob], tasks: Sequence[TaskConfig]) -> Iterator[Done]:
        """What :func:`found` would tell of these slides, as far as it is known without opening a file of theirs.

        A slide without its overlay, where overlays are drawn, is not among them.
        """
        drawn = None
        if self._draw is not None:
            folder = self._run.overlay("x").parent
            drawn = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208 - names are enough
        at_hand = jobs if drawn is None else [job for job in jobs if f"{job.slide_id}.png" in drawn]
        for _, row, note in KnownResults(self._run.known, self._run.root / "attention").matching(
            at_hand, self, tasks
        ):
            yield Done(row, note=note)

    def same_settings(self, made_from: MadeFrom, mpp: float | None, *, bad_tiles: bool) -> bool:
        """Whether a result made from this would be made with the same settings now, its files being the same.

        ``mpp`` is the µm per pixel given for the slide now, ``bad_tiles`` whether it had unreadable tiles.
        """
        now = replace(
            made_from,
            mpp_given=mpp,
            decode=self._streaming.decode,
            max_bad_tiles=self._streaming.max_bad_tiles,
            precision=self._precision,
            turns=self._turns,
        )
        return not made_from.difference(now, bad_tiles=bad_tiles)

    def coordinates(self, slide_id: str) -> Sequence[Path] | None:
        """The files that the patches of a slide are read from: none if they are found by segmentation, None if
        there are no such files any more.
        """
        if self._find_patches is None:
            return ()
        try:
            return self._find_patches.read_from(slide_id)
        except CoordsError:
            return None

    def _stamps(self, job: SlideJob) -> Stamps:
        return Stamps.of(job.path, self.coordinates(job.slide_id))

    def _known(
        self, job: SlideJob, result: SlideResult, stamps: Stamps, stored: str, *, embeddings: bool
    ) -> str:
        """The line of ``known.jsonl`` of a result whose file has the stamp ``stored``."""
        if result.made_from is None or bool(result.made_from.patches) != bool(stamps.patches):
            return ""
        error = unreadable(job.slide_id, result.bad_tiles) if result.bad_tiles else ""
        gradients = result.kept_gradients_MK is not None
        return known_line(
            PredictionRow.done(result, error=error),
            result.made_from,
            slide_path=result.slide_path,
            stamps=stamps,
            result=stored,
            checkpoint=self.checkpoint,
            bad_tiles=bool(result.bad_tiles),
            holds=["embeddings"] * embeddings + ["gradients"] * gradients,
            note=note_of_patches(result.coords),
        )

    def lacks_picture(self, job: SlideJob) -> bool:
        """Whether a result is stored but not its overlay, so that :meth:`found` may open the slide to draw it."""
        wanted = self._draw is not None and not self._run.overlay(job.slide_id).exists()
        return wanted and self._run.attention(job.slide_id).exists()

    def died(self, job: SlideJob, error: ProcessDied) -> Done:
        """Note that a slide killed the process that read it. If it is labelled already, only its overlay has
        failed.
        """
        stored = self._stored(job)
        if stored is None:
            return self.failed(job, error)
        result, _ = stored
        complaint = f"overlay of {job.slide_id} not drawn: {error}"
        return Done(PredictionRow.done(result, error=complaint), note=note_of_patches(result.coords))

    def _stored(self, job: SlideJob) -> tuple[SlideResult, SlideSource] | None:
        """The stored result of the same slide and patches by the same checkpoint, if there is one, and what the
        slide is now.
        """
        path = self._run.attention(job.slide_id)
        if not self.checkpoint or not path.exists():
            return None
        try:
            result = read_result(path)
        except ResultsError as error:
            logger.warning("slide %s is done again: %s", job.slide_id, error)
            return None
        if result.checkpoint != self.checkpoint or result.slide_path != str(job.path):
            return None
        if self.embeddings and result.kept_emb_MD is None:
            return None
        if self.gradients and result.kept_gradients_MK is None:
            return None
        source = self.source(job)
        if why := self._outdated(result, source):
            logger.warning("slide %s is done again: %s", job.slide_id, why)
            return None
        return result, source

    def _outdated(self, result: SlideResult, source: SlideSource) -> str:
        """Why a stored result has to be made again, as a text. Empty if it has not."""
        if result.made_from is None:
            return "it does not say what it was made from"
        now = source.made_from
        # Coordinates that have disappeared are no reason, because nothing is left to make the result from.
        return "" if now is None else result.made_from.difference(now, bad_tiles=bool(result.bad_tiles))

    def _made_from(self, job: SlideJob) -> MadeFrom | None:
        try:
            return MadeFrom.now(
                job.path,
                slide_id=job.slide_id,
                mpp=job.mpp,
                streaming=self._streaming,
                find_patches=self._find_patches,
                precision=self._precision,
                turns=self._turns,
            )
        except CoordsError:  # gone since they were read
            return None

    def _still_ours(self) -> bool:
        return self._start is None or self._run.is_of(self._start)

    def _row(self, job: SlideJob, result: SlideResult, source: SlideSource, *, redraw: bool) -> PredictionRow:
        complaints = []
        if result.bad_tiles:
            complaints.append(unreadable(job.slide_id, result.bad_tiles))
        overlay = self._run.overlay(job.slide_id)
        if self._draw is not None and (redraw or not overlay.exists()):
            overlay.unlink(missing_ok=True)
            try:
                with timeline.span("draw overlay"):
                    self._draw(result, overlay, source.made_from.slide if source.made_from else "")
            except Exception as error:  # noqa: BLE001 - the label took minutes and stands without its picture
                complaints.append(f"overlay of {job.slide_id} not drawn: {reason(job, error)}")
        return PredictionRow.done(result, error="; ".join(complaints))


@dataclass(frozen=True, slots=True)
class SlideWork:
    """Labels slides with a network, or several. An error is that of the slide, never that of the run.

    Attributes:
        predictor: The network, or several.
        recorder: Where results go.
    """

    predictor: "Predictor | EnsemblePredictor"
    recorder: SlideRecorder

    def label(
        self,
        job: SlideJob,
        prepared: "Callable[[], PreparedSlide] | None" = None,
        *,
        progress: Progress = silent,
    ) -> Done:
        """Label a slide, and write what is known of it.

        Args:
            job: The slide.
            prepared: Gives the slide if it is prepared already, or raises why it is not.
            progress: Shows how far it is.
        """
        try:
            with timeline.slide(job.slide_id):
                slide = self.prepare(job) if prepared is None else prepared()
                result = self.predictor.read(slide, progress=progress)
                return self.recorder.write(job, result, slide.known_source)
        except Exception as error:  # noqa: BLE001 - whatever a decoder may raise is this slide's failure
            return self.recorder.failed(job, error)

    def prepare(self, job: SlideJob) -> "PreparedSlide":
        """Open the slide and find its patches. Raises the error of the slide, see :meth:`Predictor.prepare`."""
        source = self.recorder.source(job)
        return replace(self.predictor.prepare(job.path, slide_id=job.slide_id, mpp=job.mpp), source=source)


def unreadable(slide_id: str, bad_tiles: Sequence[str]) -> str:
    """What is said of a slide with tiles that could not be read."""
    shown = first_of(bad_tiles, SHOWN_BAD_TILES)
    return f"{slide_id}: {count(len(bad_tiles), 'tile')} unreadable, read as white: {shown}"


def reason(job: SlideJob, error: Exception) -> str:
    """The error as a text. An error that was not raised on purpose is logged with its traceback."""
    return failure_in_words(job.slide_id, error)
