"""One slide by several networks: the mean of what they say, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wsi_ips.inference.predict import Predictor, PreparedSlide
from wsi_ips.inference.results import Probabilities, SlideResult
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.location import Location
from wsi_ips.progress import Progress, silent
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.units import Mpp


class EnsemblePredictor:
    """Several networks that read the same patches for the same tasks. Each slide is read once by each of them."""

    def __init__(self, members: Sequence[Predictor], *, checkpoint: str = "") -> None:
        """``checkpoint``: what results name all of them by together."""
        self.members = tuple(members)
        self.checkpoint = checkpoint
        self.pipeline = members[0].pipeline
        self.device = members[0].device
        self.find_patches = members[0].find_patches

    def prepare(self, path: Location, *, slide_id: str, mpp: Mpp | None = None) -> PreparedSlide:
        """See :meth:`Predictor.prepare`."""
        return self.members[0].prepare(path, slide_id=slide_id, mpp=mpp)

    def opened(self, path: Location, coords: PatchCoords, *, seconds: float) -> PreparedSlide:
        """See :meth:`Predictor.opened`."""
        return self.members[0].opened(path, coords, seconds=seconds)

    def read(self, prepared: PreparedSlide, *, progress: Progress = silent) -> SlideResult:
        """Label a prepared slide by each network in turn, and close it. See :func:`mean_result`."""
        with prepared.slide:
            results = [self.members[0].read_open(prepared, progress=progress)]
            again = replace(prepared, seconds=0.0)  # opened and segmented once
            results += [member.read_open(again, progress=progress) for member in self.members[1:]]
        return mean_result(results, checkpoint=self.checkpoint)


def mean_result(results: Sequence[SlideResult], *, checkpoint: str) -> SlideResult:
    """Several networks' results of one slide as one.

    Probabilities are means, ``spread`` their standard deviations, telemetry is that of all passes together, bad
    tiles are those that any pass met. Coordinates, attention, kept patches and contributions are the first
    network's: logits of different networks have no common scale.
    """
    probabilities, spread = mean_and_spread([result.probabilities for result in results])
    return replace(
        results[0],
        checkpoint=checkpoint,
        probabilities=probabilities,
        spread=spread,
        telemetry=SlideTelemetry.total(result.telemetry for result in results),
        bad_tiles=tuple(dict.fromkeys(name for result in results for name in result.bad_tiles)),
    )


def mean_and_spread(
    told: Sequence[Probabilities],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """{task: {class: mean}} and {task: {class: standard deviation}} over two networks or more.

    The deviation is the sample's, with the number of networks less one below the line.
    """
    values = {
        task: {name: np.array([one[task][name] for one in told], np.float64) for name in classes}
        for task, classes in told[0].items()
    }
    means = {task: {name: float(x.mean()) for name, x in its.items()} for task, its in values.items()}
    spread = {task: {name: float(x.std(ddof=1)) for name, x in its.items()} for task, its in values.items()}
    return means, spread
