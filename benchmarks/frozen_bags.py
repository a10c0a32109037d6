"""Aggregators of the package on all frozen features of a slide, and the loop that trains them.

The network is that of :func:`wsi_ips.models.build.build_net`, so that an aggregator here is the one that users
train. The loop holds the features of all slides in memory and learns from one slide a step.

Shape suffixes: N patches of a bag, C classes, F width of the features, S slides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from wsi_ips.config import ModelConfig, TaskConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.projectors import StandardisedProjector
from wsi_ips.models.ips_net import BagReading, IPSNet
from wsi_ips.training.losses import lr_multiplier
from wsi_ips.training.refinement import refinement_loss


@dataclass(frozen=True, slots=True)
class FeatureBag:
    """A slide as frozen features.

    features_NF: float32. ids_N: int64, where the patches stand in the slide's grid. targets: the index of the
    slide's class in each task.
    """

    slide_id: str
    features_NF: Tensor
    ids_N: Tensor
    targets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Learning:
    """AdamW with half an epoch of warm-up and a cosine. The last epoch is kept."""

    epochs: int
    lr: float
    weight_decay: float


class FrozenNet:
    """A network on frozen features that learns the first of the tasks alone.

    Args:
        model: The settings of the network: ``aggregator`` or ``attention``, and ``project``, the width of the
            layer in front of it (left out: the aggregator's own; 0: none), and ``standardise``.
        width: F.
        task: What is learned, of kind label.
    """

    def __init__(self, model: Mapping[str, Any], *, width: int, task: TaskConfig) -> None:
        encoder = {"name": "features", "features": width}
        encoder |= {name: model[name] for name in ("project", "standardise") if name in model}
        block = {name: model[name] for name in ("aggregator", "attention") if name in model}
        self.net: IPSNet = build_net(
            ModelConfig.model_validate({"encoder": encoder, "tasks": [task], **block})
        )
        self.task = task.name

    def logits(self, bag: FeatureBag) -> Tensor:
        """The logits (1, C)."""
        return self._read(bag).logits[self.task]

    def loss(self, bag: FeatureBag) -> Tensor:
        """The cross entropy of the slide's class, and what the aggregator adds to it in training: further
        predictions (DSMIL), an instance loss (CLAM)."""
        reading, target = self._read(bag), torch.tensor([bag.targets[self.task]])
        loss = cross_entropy(reading.logits[self.task], target)
        assert reading.read is not None
        aggregated = reading.read.aggregated
        if reading.read.bag_weight != 1:
            loss = reading.read.bag_weight * loss
        for weight, logits in aggregated.further_logits.values():
            loss = loss + weight * cross_entropy(logits[self.task], target)
        if aggregated.auxiliary is not None:
            for auxiliary in aggregated.auxiliary({self.task: target.tolist()}).values():
                loss = loss + auxiliary
        return loss

    @torch.no_grad()
    def told(self, bag: FeatureBag) -> tuple[list[float], dict[str, NDArray[np.float32]]]:
        """What a trained network says of a slide, in eval mode: the probability of each class, and its maps.

        A map (N,) is not negative and says where a lesion is; class 0 is the healthy one. ``attention`` is the
        mean over heads and queries, or the row of the likeliest lesion class where rows belong to classes.
        ``contribution``, where it is exact: what each patch adds to the logit of that class against the mean of
        all classes.
        """
        self.net.eval()
        reading = self.net.read_bag(self.net.encode(bag.features_NF), bag.ids_N)
        p_C = reading.probabilities[self.task][0]
        lesion = 1 + int(p_C[1:].argmax())
        attention_HTN = reading.attention_BHTM[0]
        attention_N = (attention_HTN[:, lesion] if reading.row_names else attention_HTN).mean(
            dim=0 if reading.row_names else (0, 1)
        )
        maps = {"attention": attention_N.clamp(min=0).numpy()}
        if reading.contributions is not None:
            share_NC = reading.contributions[self.task]
            share_NC = share_NC - share_NC.mean(dim=1, keepdim=True)
            maps["contribution"] = share_NC[:, lesion].clamp(min=0).numpy()
        return p_C.tolist(), maps

    def _read(self, bag: FeatureBag) -> BagReading:
        return self.net.read_features(bag.features_NF, bag.ids_N, [len(bag.features_NF)])


def train(
    frozen: FrozenNet,
    bags: Sequence[FeatureBag],
    val: Sequence[FeatureBag],
    learning: Learning,
    *,
    seed: int = 0,
) -> list[float]:
    """Learn from one bag a step, to the last epoch. Returns the validation loss of every epoch."""
    net = frozen.net
    if isinstance(net.projector, StandardisedProjector):
        features_NF = torch.cat([bag.features_NF for bag in bags])
        net.projector.take(features_NF.mean(dim=0), features_NF.std(dim=0))
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning.lr, weight_decay=learning.weight_decay)
    total, warmup = learning.epochs * len(bags), len(bags) // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: lr_multiplier(min(done + 1, total), warmup=warmup, total=total)
    )
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(learning.epochs):
        net.train()
        for place in torch.randperm(len(bags), generator=order).tolist():
            optimizer.zero_grad()
            frozen.loss(bags[place]).backward()
            optimizer.step()
            schedule.step()
        losses.append(validation_loss(frozen, val))
    return losses


@torch.no_grad()
def validation_loss(frozen: FrozenNet, bags: Sequence[FeatureBag]) -> float:
    """The loss at the best temperature. It leaves the network in eval mode."""
    frozen.net.eval()
    p_SC = torch.cat([frozen.logits(bag).softmax(dim=1) for bag in bags])
    return refinement_loss(p_SC.numpy(), np.array([bag.targets[frozen.task] for bag in bags]))
