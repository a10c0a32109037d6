"""One slide: find tissue, stream every patch, keep M, read the label and the attention of all."""

import time
from collections.abc import Iterator

import torch

from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.errors import NoTissue
from wsi_ips.inference.results import SlideResult
from wsi_ips.location import Location
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import Advance, Progress, silent
from wsi_ips.selection.slide_reading import read_slide
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.tile import tile_slide
from wsi_ips.units import Mpp


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
        self._checkpoint = checkpoint
        self._net = net.to(device).eval()
        self._streaming = streaming
        self._device = device

    def predict(
        self, path: Location, *, slide_id: str, mpp: Mpp | None = None, progress: Progress = silent
    ) -> SlideResult:
        """Label one slide. ``mpp`` is used instead of the file's own resolution.

        Raises the slide's error (:class:`SlideReadError`, :class:`MissingResolution`, …) or :class:`NoTissue`.
        """
        started = time.perf_counter()
        with open_slide(path) as slide:
            coords, _ = tile_slide(slide, self.pipeline.tiling, slide_id=slide_id, mpp=mpp)
            if not len(coords):
                raise NoTissue(path)
            stream = PatchStream(slide, coords, config=self._streaming, device=self._device)
            with progress(slide_id, total=len(stream)) as advance:
                reading = read_slide(self._net, _counted(stream, advance), self.pipeline.selection)
        return SlideResult(
            slide_path=str(path),
            coords=coords,
            logits_NHT=reading.store.logits().numpy(),
            attention_NHT=reading.store.attention().numpy(),
            kept_ids_M=reading.kept.ids_M.cpu().numpy(),
            kept_scores_M=reading.kept.scores_M.cpu().numpy(),
            probabilities={
                task.name: dict(zip(task.classes, probabilities_BC[0].tolist(), strict=True))
                for task, probabilities_BC in (
                    (task, reading.bag.probabilities[task.name]) for task in self.pipeline.model.tasks
                )
            },
            seconds=time.perf_counter() - started,
            checkpoint=self._checkpoint,
        )


def _counted(stream: PatchStream, advance: Advance) -> Iterator[Chunk]:
    for chunk in stream:
        yield chunk
        advance()
