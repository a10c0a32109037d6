"""Learning from images: training of attention sampling, and the figures of a network on bags.

Attention sampling is trained on whole images as the published models do it: a step's images are in one graph.
The figures, by which training is judged, are of bags that it has not seen.

Shape suffixes: B images, C channels, H height, W width; h, w height and width of the small view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig, PipelineConfig, StreamingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError
from wsi_ips.images.bags import ImageViews
from wsi_ips.models.ips_net import BagNet, BagReading, BagsRead
from wsi_ips.models.sampling import entropy_regulariser
from wsi_ips.models.sampling_net import AttentionNet, SamplingNet
from wsi_ips.progress import Progress, silent
from wsi_ips.selection.baselines import seeded
from wsi_ips.selection.reading import read_bag
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import SelectionFigures, bag_key
from wsi_ips.training.learning import finite, step_loss
from wsi_ips.training.metrics import Measured, SplitMetrics
from wsi_ips.training.step_bags import whole_bag
from wsi_ips.training.survival import EpochRisks


@dataclass(frozen=True, slots=True)
class KeptViews:
    """An image in both resolutions, uint8, as it is seen in this epoch."""

    bag: Bag
    image_CHW: Tensor
    small_CHW: Tensor
    patch_px: int


@dataclass(frozen=True, slots=True)
class ImageLearner:
    """Takes the loss of a step's images back to the network's gradients.

    It is a :class:`wsi_ips.training.module.Method`.

    The loss is that of the tasks, of the entropy, and the attention network's own penalty.
    """

    net: SamplingNet
    config: FinetuneConfig
    weights: Mapping[str, Tensor | None] = field(default_factory=dict)
    backward: Callable[[Tensor], None] = Tensor.backward
    remembered: dict[str, Tensor] = field(default_factory=dict, init=False)
    watched: list[SelectionFigures] = field(default_factory=list, init=False)

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> KeptViews:
        """Load an image as it is seen in this epoch.

        Raises the bag's own error, and :class:`ConfigError` for a bag that is no image.
        """
        key = bag_key(bag, self.config, epoch)
        with whole_bag(bag, key).open(self.config.streaming, device) as source:
            if not isinstance(source, ImageViews):
                scorer = self.config.selection.coarse.scorer
                raise ConfigError(f"a network with coarse.scorer: {scorer} learns from images, not slides")
            return KeptViews(bag, source.image, source.small, source.patch_px)

    def learn(self, kept: Sequence[KeptViews], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Backpropagate the loss of these images, weighted with ``share``, and return the tasks' loss."""
        generator = seeded("/".join(bag_key(each.bag, self.config, epoch) for each in kept), device)
        found = self.net(
            torch.stack([each.small_CHW for each in kept]),
            torch.stack([each.image_CHW for each in kept]),
            patch_px=kept[0].patch_px,
            generator=generator,
        )
        reading = self.net.reading(found.features_BD, found.attention_Bhw.flatten(1))
        targets = [each.bag.targets for each in kept]
        risks = EpochRisks(self.remembered, [each.bag.bag_id for each in kept])
        loss = step_loss(reading, targets, self.config.model.tasks, weights=self.weights, risks=risks)
        attention_net = self.net.coarse
        assert isinstance(attention_net, AttentionNet)
        strength = self.net.sampling.entropy
        added = entropy_regulariser(found.attention_Bhw, strength=strength) + attention_net.penalty().to(
            device
        )
        self.backward(finite(share * (loss + added)))
        return loss.detach()


def image_method(
    net: SamplingNet,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> ImageLearner:
    """The learner of attention sampling on images, for :data:`wsi_ips.training.module.METHODS`.

    ``penalty`` belongs to aggregators, which attention sampling does not have, and is ignored.
    """
    return ImageLearner(net, config, weights, backward)


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
