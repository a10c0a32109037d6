"""What a step learns, selector by selector; the Lightning module knows only this much of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.attention_nets import AttentionNet
from wsi_ips.models.bag_net import BagNet
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.training.bags import Bag
from wsi_ips.training.cascade import CascadeLearner
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.learning import Learner
from wsi_ips.training.sampled_images import ImageLearner
from wsi_ips.training.sampled_slides import SlideLearner
from wsi_ips.training.selection_watch import SelectionFigures


class Method(Protocol):
    """remembered: what it keeps of bags from one epoch to the next, part of the state that a run resumes from.

    watched: one for each bag selected from since somebody took them away; of IPS alone, others leave it empty.
    """

    @property
    def remembered(self) -> dict[str, Tensor]: ...

    @property
    def watched(self) -> list[SelectionFigures]: ...

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> Any:
        """What the step learns from in this bag, found without gradients. Raises the bag's own error."""
        ...

    def learn(self, kept: Sequence[Any], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss over these bags; returns the mean loss. Raises
        :class:`BagLost`, and :class:`TrainingError` where the loss is not finite."""
        ...


def make_method(
    net: BagNet,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Method:
    """The one that ``config.selection`` names. weights, backward: as of :class:`Learner`."""
    if isinstance(net, SamplingNet):
        if isinstance(net.coarse, AttentionNet):
            return ImageLearner(net, config, weights, backward)
        return SlideLearner(net, config, PatchKeeper(net, config), weights, backward)
    ips = cast(IPSNet, net)
    learner = Learner(ips, config, PatchKeeper(ips, config), weights, backward)
    return CascadeLearner(learner) if config.selection.selector == "cascade" else learner
