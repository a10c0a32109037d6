"""Training of attention sampling on whole images, as the published models do it: a step's images in one graph.

Shape suffixes: B images, C channels, H height, W width; h, w height and width of the small view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError
from wsi_ips.images.bags import ImageViews
from wsi_ips.models.ips_net import BagsRead
from wsi_ips.models.sampling import entropy_regulariser
from wsi_ips.models.sampling_net import AttentionNet, SamplingNet
from wsi_ips.selection.random_patches import seeded
from wsi_ips.training.bags import Bag
from wsi_ips.training.epoch_risks import EpochRisks
from wsi_ips.training.kept_patches import SelectionFigures, bag_key, whole_bag
from wsi_ips.training.learning import finite, step_loss


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

    It is a :class:`wsi_ips.training.methods.Method`.

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
    """The learner of attention sampling on images, for :data:`wsi_ips.training.methods.METHODS`.

    ``penalty`` belongs to aggregators, which attention sampling does not have, and is ignored.
    """
    return ImageLearner(net, config, weights, backward)
