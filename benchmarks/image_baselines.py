"""What IPS is compared with on images: readers without selection, and the loop that trains them.

Shape suffixes: B images, K patches of all images in a row, N patches of an image, D embedding width, T tasks.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wsi_ips.config import FinetuneConfig
from wsi_ips.images.bags import ImageBag
from wsi_ips.images.image_sets import ImageSplits
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import BagReading
from wsi_ips.training.learning import make_optimizer, set_learning_rate, step_loss
from wsi_ips.training.metrics import SplitMetrics

TEST_EPOCH = -1
"""The draw of patches that validation and test images get."""


class Reader(nn.Module, ABC):
    """Reads images as bags; :func:`make_optimizer` may give ``encoder`` and ``coarse`` rates of their own."""

    encoder: nn.Module
    coarse = None
    """Nothing looks from afar."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def read(self, bags: Sequence[ImageBag], *, epoch: int, device: torch.device) -> BagReading:
        """What the network says of these images in this epoch."""

    def pixels(self, bag: ImageBag, ids_n: Tensor, device: torch.device) -> Tensor:
        with bag.open(self.config.streaming, device) as source:
            return source.read(ids_n).pixels_n3PP


class RandomPatches(Reader):
    """The network that IPS trains, on M patches that are drawn anew in every epoch, not selected."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        self.net = build_net(config.model)
        self.encoder = self.net.encoder

    def read(self, bags: Sequence[ImageBag], *, epoch: int, device: torch.device) -> BagReading:
        ids = [self._drawn(bag, epoch) for bag in bags]
        pixels_K = torch.cat([self.pixels(bag, ids_M, device) for bag, ids_M in zip(bags, ids, strict=True)])
        return self.net(pixels_K, torch.cat(ids).to(device), [len(ids_M) for ids_M in ids])

    def _drawn(self, bag: ImageBag, epoch: int) -> Tensor:
        rng = np.random.default_rng([self.config.training.seed, epoch + 1, *bag.bag_id.encode()])
        return torch.from_numpy(
            rng.choice(len(bag), min(self.config.selection.memory_size, len(bag)), replace=False)
        ).sort()[0]


class MeanPooling(Reader):
    """The mean embedding of all patches, one linear layer per task."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        encoder = TimmEncoder(config.model.encoder)
        self.encoder = encoder
        self.heads = Heads(encoder.dim, config.model.tasks)

    def read(self, bags: Sequence[ImageBag], *, epoch: int, device: torch.device) -> BagReading:
        pixels_K = torch.cat([self.pixels(bag, torch.arange(len(bag)), device) for bag in bags])
        emb = self.encoder(pixels_K).split([len(bag) for bag in bags])
        mean_BD = torch.stack([emb_ND.mean(dim=0) for emb_ND in emb])
        tokens_BTD = mean_BD[:, None].expand(-1, self.heads.queries, -1)
        logits = self.heads(tokens_BTD)
        return BagReading(logits, self.heads.probabilities(logits), tokens_BTD, mean_BD.new_empty(0))


def fit(
    reader: Reader, splits: ImageSplits, config: FinetuneConfig, *, device: torch.device
) -> Mapping[str, float]:
    """Train with the same losses, optimiser, schedule and choice of the epoch as IPS; the test images' figures."""
    training, train = config.training, splits["train"]
    reader.to(device)
    optimizer = make_optimizer(reader, training)
    per_epoch = -(-len(train) // training.slides_per_step)
    order = torch.Generator().manual_seed(training.seed)
    best, lowest = copy.deepcopy(reader.state_dict()), float("inf")
    step = 0
    for epoch in range(training.epochs):
        reader.train()
        for places in torch.randperm(len(train), generator=order).split(training.slides_per_step):
            bags = [train[place] for place in places.tolist()]
            reading = reader.read(bags, epoch=epoch, device=device)
            loss = step_loss(reading, [bag.targets for bag in bags], config.model.tasks, weights={})
            optimizer.zero_grad()
            loss.backward()
            set_learning_rate(optimizer.param_groups, step, training=training, per_epoch=per_epoch)
            optimizer.step()
            step += 1
        figures = measured(reader, splits["val"], device=device)
        if figures["loss"] <= lowest:
            best, lowest = copy.deepcopy(reader.state_dict()), figures["loss"]
    reader.load_state_dict(best)
    return measured(reader, splits["test"], device=device)


@torch.no_grad()
def measured(reader: Reader, bags: Sequence[ImageBag], *, device: torch.device) -> dict[str, float]:
    """Loss and accuracies in eval mode, a step's number of images at a time."""
    reader.eval()
    metrics, said = SplitMetrics(reader.config.model.tasks), []
    for start in range(0, len(bags), reader.config.training.slides_per_step):
        some = bags[start : start + reader.config.training.slides_per_step]
        reading = reader.read(some, epoch=TEST_EPOCH, device=device)
        said.append(metrics.measure(reading, [bag.targets for bag in some], weights={}))
    return metrics.figures(said)
