"""What IPS is compared with: models that read a whole bag of frozen features, and the loop that trains them.

Shape suffixes: N patches of a bag, D feature width, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi_ips.config import TaskConfig
from wsi_ips.models.aggregators.abmil import Abmil
from wsi_ips.models.aggregators.embedding import Embedding
from wsi_ips.models.aggregators.mean import Mean
from wsi_ips.models.heads import Heads
from wsi_ips.training.losses import lr_multiplier
from wsi_ips.training.refinement import refinement_loss


@dataclass(frozen=True, slots=True)
class FeatureBag:
    """A slide's patches as frozen features (N, D) float32, and the place of its class in each task."""

    slide_id: str
    features_ND: Tensor
    targets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Learning:
    """AdamW, half an epoch of warm-up, cosine. ``seeds``: how many beginnings are tried."""

    epochs: int
    lr: float
    weight_decay: float
    seeds: int = 3

    def at_most(self, epochs: int) -> Self:
        """With fewer epochs, where these are fewer."""
        return replace(self, epochs=min(epochs, self.epochs))


class BagModel(nn.Module):
    """Reads a bag's features. Learns from the first task alone, unless it knows better."""

    task = "label"

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (1, C) of the first task, and attention (N,) that sums to 1 or nothing."""
        raise NotImplementedError

    def loss(self, bag: FeatureBag) -> Tensor:
        return cross_entropy(self(bag.features_ND)[0], torch.tensor([bag.targets[self.task]]))


class MeanPool(BagModel):
    """The package's mean of a bag's features, one linear layer. It attends to nothing."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.aggregator = Mean(dim, queries=1)
        self.heads = Heads(dim, [_task(classes)])

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (1, C), and no attention."""
        return self.heads(self.aggregator.read(x_ND[None]).tokens_BTE)["label"], None


class GatedAttention(BagModel):
    """The package's gated attention MIL, sized as in CLAM."""

    def __init__(
        self, dim: int, classes: int, *, hidden: int = 256, gate: int = 128, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.embed = Embedding(dim, hidden, dropout=dropout)
        self.aggregator = Abmil(hidden, queries=1, hidden=gate)
        self.heads = Heads(hidden, [_task(classes)])

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (1, C) and attention (N,), which sums to 1."""
        read = self.aggregator.read(self.embed(x_ND)[None])
        return self.heads(read.tokens_BTE)["label"], read.attention_BHTM[0, 0, 0]


def _task(classes: int) -> TaskConfig:
    return TaskConfig(name="label", classes=tuple(str(number) for number in range(classes)))


Model = TypeVar("Model", bound=BagModel)


def best_of(
    make: Callable[[], Model],
    bags: Sequence[FeatureBag],
    val: Sequence[FeatureBag],
    learning: Learning,
    *,
    first_seed: int = 0,
) -> tuple[Model, list[list[float]]]:
    """The beginning with the lowest :func:`validation_loss` at its end; and the losses of every one."""
    tried: list[tuple[Model, list[float]]] = []
    for seed in range(first_seed, first_seed + learning.seeds):
        torch.manual_seed(seed)
        model = make()
        tried.append((model, train(model, bags, val, learning, seed=seed)))
    best = min(tried, key=lambda model_and_losses: model_and_losses[1][-1])
    return best[0], [losses for _, losses in tried]


def train(
    model: BagModel,
    bags: Sequence[FeatureBag],
    val: Sequence[FeatureBag],
    learning: Learning,
    *,
    seed: int = 0,
) -> list[float]:
    """Learn from one bag a step, to the last epoch. Returns the validation losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning.lr, weight_decay=learning.weight_decay)
    total, warmup = learning.epochs * len(bags), len(bags) // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: lr_multiplier(min(done + 1, total), warmup=warmup, total=total)
    )
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(learning.epochs):
        model.train()
        for place in torch.randperm(len(bags), generator=order).tolist():
            optimizer.zero_grad()
            model.loss(bags[place]).backward()
            optimizer.step()
            schedule.step()
        losses.append(validation_loss(model, val))
    return losses


@torch.no_grad()
def validation_loss(model: BagModel, bags: Sequence[FeatureBag]) -> float:
    """The loss of the first task at the best temperature. Leaves the model in eval mode."""
    model.eval()
    p_SC = torch.cat([model(bag.features_ND)[0].softmax(dim=1) for bag in bags])
    return refinement_loss(p_SC.numpy(), np.array([bag.targets[model.task] for bag in bags]))
