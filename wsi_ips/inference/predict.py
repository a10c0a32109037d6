"""One slide: find tissue, stream every patch, keep M, read the label and the attention of all."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.errors import NoTissue
from wsi_ips.inference.results import SlideResult
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.location import Location
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.selection.slide_reading import read_slide
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.tile import tile_slide
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True)
class PreparedSlide:
    """An open slide whose patches are known. ``seconds``: what that took. Whoever has it closes ``slide``."""

    slide: SlideReader
    location: Location
    coords: PatchCoords
    seconds: float


class Predictor:
    """A trained network with the settings that it was trained with, on one device."""

    def __init__(
        self,
        net: IPSNet,
        pipeline: PipelineConfig,
        *,
        streaming: StreamingConfig,
        device: torch.device,
        checkpoint: str = "",
    ) -> None:
        """``checkpoint`` (its fingerprint) is written into every result."""
        self.pipeline = pipeline
        self.checkpoint = checkpoint
        self._net = net.to(device).eval()
        self._streaming = streaming
        self._device = device

    def predict(
        self, path: Location, *, slide_id: str, mpp: Mpp | None = None, progress: Progress = silent
    ) -> SlideResult:
        """Label one slide. ``mpp`` is used instead of the file's own resolution.

        Raises the slide's error (:class:`SlideReadError`, :class:`MissingResolution`, …) or :class:`NoTissue`.
        """
        return self.read(self.prepare(path, slide_id=slide_id, mpp=mpp), progress=progress)

    def prepare(self, path: Location, *, slide_id: str, mpp: Mpp | None = None) -> PreparedSlide:
        """Open a slide and find its patches: what can be done while another slide is encoded.

        Raises as :meth:`predict`.
        """
        started = time.perf_counter()
        slide = open_slide(path)
        try:
            coords, _ = tile_slide(slide, self.pipeline.tiling, slide_id=slide_id, mpp=mpp)
            if not len(coords):
                raise NoTissue(path)
        except BaseException:
            slide.close()
            raise
        return PreparedSlide(slide, path, coords, time.perf_counter() - started)

    def read(self, prepared: PreparedSlide, *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide, and close it. ``seconds`` of the result: preparing and reading."""
        started = time.perf_counter()
        coords = prepared.coords
        with prepared.slide as slide:
            stream = PatchStream(slide, coords, config=self._streaming, device=self._device)
            with progress(coords.slide_id, total=len(stream)) as advance:
                reading = read_slide(
                    self._net,
                    stream,
                    self.pipeline.selection,
                    through=lambda chunks: _counted(chunks, advance),
                )
        telemetry = SlideTelemetry.of(
            stream.telemetry, reading, threads=self._streaming.threads, open_s=prepared.seconds
        )
        return SlideResult.of(
            reading,
            coords,
            tasks=self.pipeline.model.tasks,
            slide_path=str(prepared.location),
            seconds=prepared.seconds + time.perf_counter() - started,
            checkpoint=self.checkpoint,
            telemetry=telemetry,
            bad_tiles=stream.telemetry.bad_tiles,
        )


def _counted(chunks: Iterable[Chunk], advance: Advance) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        advance()
