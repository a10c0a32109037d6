"""Predicting one slide: find tissue, stream every patch, keep M of them, read the label and the attention of
all.

Start with :meth:`Predictor.predict`.

From the reading of a case back to its slides: :func:`slides_of_case`.

The attention of a case is one softmax over the patches of all its slides. Each slide gets its rows of it as they
are, so that the attention of a slide sums to the slide's share, and that of all slides together to 1.

Shape suffixes: N patches of the case, M kept patches of the case.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.inference.made_from import SlideSource
from wsi_ips.inference.results import PartOfCase, SlideResult
from wsi_ips.inference.slide_tasks import Part
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.selection.memory import Kept
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.score_store import Normalisers, ScoreStore
from wsi_ips.selection.slide_reading import (
    SlideReading,
    check_explained,
    kept_gradients,
    read_scored,
    score_part,
)
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.storage.location import Location
from wsi_ips.streaming.device import calculating
from wsi_ips.streaming.patch_source import CaseSource
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.streaming.telemetry import StreamTelemetry
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import FindPatches, PatchesInTissue
from wsi_ips.units import Mpp


class SlideLost(Exception):
    """A slide of a case that could be opened cannot be read: ``SlideLost(place, error)``."""

    def __init__(self, place: int, error: Exception) -> None:
        super().__init__(place, error)
        self.place, self.error = place, error


@dataclass(frozen=True, slots=True)
class SlideOfCase:
    """One slide of a case that was read as a bag.

    Attributes:
        reading: What was found on the slide, with the ids that its patches have by themselves. The label and the
            tokens are those of the case.
        normalisers: What the softmax over all patches of the case divides by.
        part: What the slide is in its case.
    """

    reading: SlideReading
    normalisers: Normalisers
    part: PartOfCase


def slides_of_case(
    reading: SlideReading, source: CaseSource, *, case_id: str, slide_ids: Sequence[str]
) -> list[SlideOfCase]:
    """The reading of a case, slide by slide.

    Args:
        reading: What one pass over the case found.
        source: Its patches.
        case_id: The case.
        slide_ids: The names of the slides, in the order of the source.
    """
    ids_N, logits_NHT = reading.store.ids(), reading.store.logits()
    normalisers = reading.store.normalisers()
    scores_N = normalisers.scores(logits_NHT)
    kept_M = reading.kept.ids_M.cpu()
    slides = []
    for number, ids in enumerate(source.parts()):
        rows = ((ids_N >= ids.start) & (ids_N < ids.stop)).nonzero()[:, 0]
        kept = ((kept_M >= ids.start) & (kept_M < ids.stop)).nonzero()[:, 0]
        store = ScoreStore()
        store.add(source.own_ids(number, ids_N[rows]), logits_NHT[rows])
        its = replace(
            reading,
            kept=_rows_of(reading.kept, kept, source, number),
            store=store,
            emb_MD=reading.emb_MD[kept.to(reading.emb_MD.device)],
            bag=replace(reading.bag, contributions=_contributions(reading, kept)),
        )
        part = PartOfCase(case_id, tuple(slide_ids), float(scores_N[rows].sum()), len(scores_N))
        slides.append(SlideOfCase(its, normalisers, part))
    return slides


def _rows_of(kept: Kept, rows: torch.Tensor, source: CaseSource, number: int) -> Kept:
    return Kept(
        source.own_ids(number, kept.ids_M.cpu()[rows]),
        None if kept.emb_MD is None else kept.emb_MD[rows.to(kept.emb_MD.device)],
        kept.scores_M[rows.to(kept.scores_M.device)],
        kept.logits_MHT[rows.to(kept.logits_MHT.device)],
    )


def _contributions(reading: SlideReading, rows: torch.Tensor) -> dict[str, torch.Tensor] | None:
    told = reading.bag.contributions
    return None if told is None else {task: share[rows.to(share.device)] for task, share in told.items()}


@dataclass(frozen=True, slots=True)
class PreparedSlide:
    """An open slide whose patches are known. Whoever has it has to close ``slide``.

    Attributes:
        slide: The open slide.
        location: Its path or URL, as given.
        coords: Where its patches lie.
        seconds: How long it took to open it and to find its patches.
        source: What its files were before it was opened. None if nobody asked, because no result is stored.
    """

    slide: SlideReader
    location: Location
    coords: PatchCoords
    seconds: float
    source: SlideSource | None = None

    @property
    def known_source(self) -> SlideSource:
        """``source``, of a slide whose result is to be stored."""
        assert self.source is not None
        return self.source


@dataclass(frozen=True, slots=True)
class ScoredPart(Part):
    """A part of a slide that has been scored, on its way to whoever puts the parts together.

    Attributes:
        store: The attention logits of its patches.
        telemetry: Where the time went.
        bad_tiles: Names of tiles that were unreadable and white.
        source: What the files of the slide were before it was opened for this part.
    """

    store: ScoreStore
    telemetry: SlideTelemetry
    bad_tiles: tuple[str, ...]
    source: SlideSource | None = None


class Predictor:
    """A trained network with the settings that it was trained with, on one device."""

    def __init__(
        self,
        net: BagNet,
        pipeline: PipelineConfig,
        *,
        streaming: StreamingConfig,
        device: torch.device,
        checkpoint: str = "",
        find_patches: FindPatches | None = None,
        deterministic: bool = False,
        gradients: bool = False,
        compute: Compute | None = None,
    ) -> None:
        """Move a network to its device.

        Args:
            net: The network.
            pipeline: The configuration that it was trained with.
            streaming: How slides are read.
            device: Where the network runs.
            checkpoint: Its SHA-256, which is written into every result.
            find_patches: Finds the patches of a slide. None: those in tissue, tiled as the network was trained.
            deterministic: See :func:`wsi_ips.streaming.device.calculating`.
            gradients: Whether results also hold gradient times input of the kept patches.
            compute: What the encoder computes in, and whether it is compiled. None: float32, not compiled.

        Raises:
            ConfigError: Gradients are asked for, and this selector cannot give them.
        """
        if gradients:
            check_explained(pipeline)
        self._gradients = gradients
        self.pipeline = pipeline
        self.checkpoint = checkpoint
        self._net = net.to(device).eval()
        compute_in(net, compute or Compute())
        self._streaming = streaming
        self._device = device
        self._deterministic = deterministic
        self._find_patches = find_patches or PatchesInTissue(pipeline.tiling)

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return self._device

    @property
    def find_patches(self) -> FindPatches:
        """Finds the patches of a slide."""
        return self._find_patches

    def predict(
        self, path: Location, *, slide_id: str, mpp: Mpp | None = None, progress: Progress = silent
    ) -> SlideResult:
        """Label one slide.

        Args:
            path: The slide.
            slide_id: Its name.
            mpp: µm per pixel, used instead of the resolution that the file states.
            progress: Shows how far it is.

        Raises:
            FileError: The slide cannot be opened or read; the error is that of the slide, such as
                :class:`SlideReadError` or :class:`MissingResolution`.
            NoTissue: The slide has no patches.
            NotFinite: The network computed NaN or infinity.
        """
        return self.read(self.prepare(path, slide_id=slide_id, mpp=mpp), progress=progress)

    def prepare(self, path: Location, *, slide_id: str, mpp: Mpp | None = None) -> PreparedSlide:
        """Open a slide and find its patches, which can be done while another slide is encoded.

        Args:
            path: The slide.
            slide_id: Its name.
            mpp: µm per pixel, used instead of the resolution that the file states.

        Raises:
            FileError: The slide cannot be opened or read; the error is that of the slide.
            NoTissue: The slide has no patches.
        """
        started = time.perf_counter()
        slide = open_slide(path)
        try:
            coords = self._find_patches(slide, slide_id=slide_id, mpp=mpp)
        except BaseException:
            slide.close()
            raise
        return PreparedSlide(slide, path, coords, time.perf_counter() - started)

    def opened(self, path: Location, coords: PatchCoords, *, seconds: float) -> PreparedSlide:
        """Open a slide whose patches have been found already by ``find_patches``, which took ``seconds``."""
        started = time.perf_counter()
        return PreparedSlide(open_slide(path), path, coords, seconds + time.perf_counter() - started)

    def read(self, prepared: PreparedSlide, *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide, and close it. ``seconds`` of its telemetry are those of preparing
        and reading.
        """
        with prepared.slide:
            return self.read_open(prepared, progress=progress)

    def read_open(self, prepared: PreparedSlide, *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide and leave it open, so that it can be read once more."""
        started = time.perf_counter()
        stream = self._stream(prepared.slide, prepared.coords)
        with self._calculating(), progress(prepared.coords.slide_id, total=len(stream)) as advance:
            reading = read_bag(
                self._net,
                stream,
                self.pipeline.selection,
                through=lambda chunks: _counted(chunks, advance),
            )
            gradients = self._explain(reading, stream)
        telemetry = self._telemetry(prepared, started, stream.telemetry, reading.encode_s, reading.select_s)
        if reading.coarse is not None:
            # The stream counted the windows too, so the numbers are taken from the report.
            recall = reading.coarse.recall
            telemetry = replace(
                telemetry,
                patches=reading.coarse.let_through,
                patches_saved=reading.coarse.saved,
                recall=math.nan if recall is None else recall,
            )
        return self._result(prepared, reading, telemetry, stream.telemetry.bad_tiles, gradients)

    def read_case(
        self, slides: Sequence[PreparedSlide], *, case_id: str, progress: Progress = silent
    ) -> list[SlideResult]:
        """Label a case whose slides are prepared, as one bag, and leave the slides open.

        Args:
            slides: The slides, in the order of their names. Their patches are streamed in this order.
            case_id: The name of the case.
            progress: Shows how far it is.

        Returns:
            The result of each slide: with the label of the case, and the slide's rows of its attention.

        Raises:
            SlideLost: A slide cannot be read; it says which, and why.
            NotFinite: The network computed NaN or infinity.
        """
        started = time.perf_counter()
        streams = [self._stream(slide.slide, slide.coords) for slide in slides]
        source = CaseSource(streams)
        try:
            with self._calculating(), progress(f"case {case_id}", total=sum(map(len, streams))) as advance:
                reading = read_bag(
                    self._net,
                    source,
                    self.pipeline.selection,
                    through=lambda chunks: _counted(chunks, advance),
                )
        except Exception as error:
            if source.lost is None:
                raise
            raise SlideLost(source.lost, error) from error
        names = [slide.coords.slide_id for slide in slides]
        seconds = time.perf_counter() - started
        results = []
        for slide, stream, its in zip(
            slides,
            streams,
            slides_of_case(reading, source, case_id=case_id, slide_ids=names),
            strict=True,
        ):
            of_all = len(its.reading.store.ids()) / len(reading.store.ids())
            telemetry = SlideTelemetry.of(
                stream.telemetry,
                threads=self._streaming.threads,
                seconds=slide.seconds + of_all * seconds,
                open_s=slide.seconds,
                encode_s=of_all * reading.encode_s,
                select_s=of_all * reading.select_s,
                device=self._device,
            )
            results.append(self._result(slide, its.reading, telemetry, stream.telemetry.bad_tiles, of=its))
        return results

    def parts(self, n_patches: int, *, most: int) -> list[range]:
        """Cut a slide of ``n_patches`` so that no part has more than ``most`` patches (or one chunk).

        The cuts are at the ends of chunks, so that every patch is encoded beside the same others as in one pass.

        Raises:
            ConfigError: The selection cannot be done in parts.
        """
        check_parts(self.pipeline)
        step = max(1, most // self._streaming.batch) * self._streaming.batch
        return [range(first, min(first + step, n_patches)) for first in range(0, n_patches, step)]

    def score_part(self, prepared: PreparedSlide, part: range) -> ScoredPart:
        """Score the patches ``part`` of a prepared slide, and close it."""
        started = time.perf_counter()
        with prepared.slide as slide, self._calculating():
            stream = self._stream(slide, prepared.coords, part=part)
            scores = score_part(cast(IPSNet, self._net), stream)
        telemetry = self._telemetry(prepared, started, stream.telemetry, scores.encode_s, scores.select_s)
        return ScoredPart(scores.store, telemetry, tuple(stream.telemetry.bad_tiles), prepared.source)

    def read_parts(self, prepared: PreparedSlide, parts: Sequence[ScoredPart]) -> SlideResult:
        """Label a prepared slide whose parts have all been scored, and close it.

        Raises:
            SlideReadError: The slide was replaced after a part of it had been scored.
        """
        started = time.perf_counter()
        with prepared.slide as slide, self._calculating():
            _check_same_source(prepared, parts)
            stream = self._stream(slide, prepared.coords)
            reading = read_scored(
                cast(IPSNet, self._net),
                stream,
                [part.store for part in parts],
                m=self.pipeline.selection.memory_size,
                batch=self._streaming.batch,
                turns=self.pipeline.selection.turns,
            )
            gradients = self._explain(reading, stream)
        telemetry = self._telemetry(prepared, started, stream.telemetry, reading.encode_s, reading.select_s)
        total = SlideTelemetry.total([*(part.telemetry for part in parts), telemetry])
        bad_tiles = dict.fromkeys([name for part in parts for name in part.bad_tiles])
        bad_tiles |= dict.fromkeys(stream.telemetry.bad_tiles)
        return self._result(prepared, reading, total, bad_tiles, gradients)

    def _explain(self, reading: SlideReading, stream: PatchStream) -> dict[str, Tensor] | None:
        """Gradient times input of the kept patches if results are to hold it."""
        return kept_gradients(cast(IPSNet, self._net), stream, reading) if self._gradients else None

    def _calculating(self) -> AbstractContextManager[None]:
        return calculating(deterministic=self._deterministic)

    def _stream(self, slide: SlideReader, coords: PatchCoords, *, part: range | None = None) -> PatchStream:
        return PatchStream(slide, coords, config=self._streaming, device=self._device, part=part)

    def _telemetry(
        self,
        prepared: PreparedSlide,
        started: float,
        stream: StreamTelemetry,
        encode_s: float,
        select_s: float,
    ) -> SlideTelemetry:
        return SlideTelemetry.of(
            stream,
            threads=self._streaming.threads,
            seconds=prepared.seconds + time.perf_counter() - started,
            open_s=prepared.seconds,
            encode_s=encode_s,
            select_s=select_s,
            device=self._device,
        )

    def _result(
        self,
        prepared: PreparedSlide,
        reading: SlideReading,
        telemetry: SlideTelemetry,
        bad_tiles: Iterable[str],
        gradients: Mapping[str, Tensor] | None = None,
        of: SlideOfCase | None = None,
    ) -> SlideResult:
        return SlideResult.of(
            reading,
            prepared.coords.only(reading.store.ids().numpy()),
            tasks=self.pipeline.model.tasks,
            slide_path=str(prepared.location),
            checkpoint=self.checkpoint,
            telemetry=telemetry,
            bad_tiles=bad_tiles,
            gradients=gradients,
            normalisers=None if of is None else of.normalisers,
            case=None if of is None else of.part,
        )


def _check_same_source(prepared: PreparedSlide, parts: Sequence[ScoredPart]) -> None:
    now = prepared.source and prepared.source.made_from
    for part in parts:
        before = part.source and part.source.made_from
        if now and before:
            before.check_unchanged(now, prepared.location)


def check_parts(pipeline: PipelineConfig) -> None:
    """Raise :class:`ConfigError` if the selection cannot be done in parts."""
    if pipeline.selection.rule != "global" or pipeline.selection.selector != "ips":
        raise ConfigError(
            "a slide is scored in parts by selection.selector: ips under selection.rule: global only; leave "
            "batch.shard_patches out"
        )


def _counted(chunks: Iterable[Chunk], advance: Advance) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        advance()
