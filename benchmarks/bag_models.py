"""What IPS is compared with: models that read a whole bag of frozen features, and the loop that trains them.

Shape suffixes: N patches of a bag, D feature width, C classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi_ips.config import AttentionConfig, SelectionConfig, TaskConfig
from wsi_ips.models.cross_attention import CrossAttention
from wsi_ips.models.encoders.projector import Projector
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.ips import select_patches
from wsi_ips.selection.score_store import ScoreStore


@dataclass(frozen=True, slots=True)
class FeatureBag:
    """A slide's patches as frozen features (N, D) float32, and the place of its class."""

    slide_id: str
    features_ND: Tensor
    target: int


@dataclass(frozen=True, slots=True)
class Learning:
    """How a bag model is trained. Early stopping: the epoch with the lowest validation loss is kept."""

    epochs: int
    lr: float
    weight_decay: float
    per_step: int = 1
    seed: int = 0

    def for_epochs(self, epochs: int) -> Self:
        return replace(self, epochs=epochs)


class MeanPool(nn.Module):
    """The mean feature of a bag, one linear layer. It attends to nothing."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (1, C), and no attention."""
        return self.head(x_ND.mean(dim=0, keepdim=True)), None


class GatedAttention(nn.Module):
    """Attention MIL with the gate of Ilse, Tomczak, Welling 2018 (equation 9), sized as in CLAM."""

    def __init__(
        self, dim: int, classes: int, *, hidden: int = 256, gate: int = 128, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.tanh = nn.Linear(hidden, gate)
        self.sigmoid = nn.Linear(hidden, gate)
        self.score = nn.Linear(gate, 1)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (1, C) and attention (N,), which sums to 1."""
        h_NE = self.embed(x_ND)
        gated_NE = self.tanh(h_NE).tanh() * self.sigmoid(h_NE).sigmoid()
        attention_N = self.score(gated_NE)[:, 0].softmax(dim=0)
        return self.head(attention_N[None] @ h_NE), attention_N


class FrozenIPS(nn.Module):
    """The project's own selection, projector and cross-attention, on features instead of pixels."""

    def __init__(
        self,
        dim: int,
        task: TaskConfig,
        attention: AttentionConfig,
        selection: SelectionConfig,
        *,
        project: int | None = None,
    ) -> None:
        super().__init__()
        projector = Projector(dim, project) if project else None
        dim = project or dim
        heads = Heads(dim, [task])
        reader = CrossAttention(
            dim,
            queries=heads.queries,
            heads=attention.heads,
            key_dim=attention.key_dim,
            value_dim=attention.value_dim,
            inner_dim=attention.inner_dim,
            attention_dropout=attention.attention_dropout,
            dropout=attention.dropout,
        )
        self.net = IPSNet(nn.Identity(), reader, heads, projector=projector)
        self.task = task
        self.selection = selection

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (1, C) from the M kept patches and attention (N,) over all."""
        store = ScoreStore()
        with scoring(self.net):
            kept = select_patches(
                [(torch.arange(len(x_ND)), x_ND)],
                encode=self.net.encode,
                logits=self.net.logits,
                m=self.selection.m,
                i=self.selection.i,
                store=store,
            )
        reading = self.net.read_features(x_ND[kept.ids_M], kept.ids_M, [len(kept.ids_M)])
        return reading.logits[self.task.name], store.attention().mean(dim=(1, 2))


def train(
    model: nn.Module, bags: Sequence[FeatureBag], val: Sequence[FeatureBag], learning: Learning
) -> list[float]:
    """Train with AdamW and keep the weights of the best epoch. Returns the validation losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning.lr, weight_decay=learning.weight_decay)
    order = torch.Generator().manual_seed(learning.seed)
    losses: list[float] = []
    best = copy.deepcopy(model.state_dict())
    for _ in range(learning.epochs):
        model.train()
        for places in torch.randperm(len(bags), generator=order).split(learning.per_step):
            logits_BC = torch.cat([model(bags[place].features_ND)[0] for place in places.tolist()])
            loss = cross_entropy(logits_BC, torch.tensor([bags[place].target for place in places.tolist()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(validation_loss(model, val))
        if losses[-1] == min(losses):
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return losses


@torch.no_grad()
def validation_loss(model: nn.Module, bags: Sequence[FeatureBag]) -> float:
    """Mean cross entropy."""
    model.eval()
    losses = [cross_entropy(model(bag.features_ND)[0], torch.tensor([bag.target])) for bag in bags]
    return float(torch.stack(losses).mean())
