"""How well a network reads bags: the figures by which training is judged, on bags that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.models.ips_net import BagNet, BagReading
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.reading import read_bag
from wsi_ips.training.bags import Bag
from wsi_ips.training.metrics import Measured, SplitMetrics


@dataclass(frozen=True, slots=True)
class BagRow:
    """One bag in one task: its target, and the probabilities that the network gives."""

    bag_id: str
    task: str
    target: Target
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BagScores:
    """Figures over all bags, and what the network says of each.

    ``figures`` are the mean loss and, per task, AUC and accuracy (for a sigmoid task: all labels of a bag right)
    or the mean absolute error, named as :class:`SplitMetrics` names them. ``rows`` has one row per bag and task.
    """

    figures: dict[str, float]
    rows: list["BagRow"]


@torch.no_grad()
def score_bags(
    net: BagNet,
    bags: Sequence[Bag],
    config: PipelineConfig,
    *,
    streaming: StreamingConfig,
    device: torch.device,
    progress: Progress = silent,
) -> BagScores:
    """Read every bag without augmentation and compare it with its targets.

    ``net`` is moved to ``device``, in eval mode.

    Raises a bag's own error, and ``ValueError`` without bags.
    """
    if not bags:
        raise ValueError("no bags to score")
    tasks = config.model.tasks
    metrics = SplitMetrics(tasks)
    measured: list[Measured] = []
    net = net.to(device).eval()
    rows: list[BagRow] = []
    with progress("Scoring", total=len(bags)) as advance:
        for bag in bags:
            with bag.open(streaming, device) as source:
                reading: BagReading = read_bag(net, source, config.selection).bag
            measured.append(metrics.measure(reading, [bag.targets], weights={}))
            for task in tasks:
                said = tuple(float(p) for p in reading.probabilities[task.name][0])
                rows.append(BagRow(bag.bag_id, task.name, bag.targets[task.name], said))
            advance(bag.bag_id)
    return BagScores(metrics.figures(measured), rows)
