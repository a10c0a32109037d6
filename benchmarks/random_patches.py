"""M random patches of each slide, end to end: what selection is worth. The same network, optimiser and budget."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import BagReading, IPSNet
from wsi_ips.selection.baselines import some_of
from wsi_ips.training.augment import quarter_turns_and_flips
from wsi_ips.training.bags import SlideBag
from wsi_ips.training.learning import make_optimizer, set_learning_rate, step_loss
from wsi_ips.training.metrics import SplitMetrics
from wsi_ips.training.standardise import standardise

CPU = torch.device("cpu")


class RandomPatches:
    """Draws anew in every epoch; for validation and test, one draw per slide."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.tasks = config.model.tasks
        torch.manual_seed(config.training.seed)
        self.net: IPSNet = build_net(config.model)

    def fit(self, train: Sequence[SlideBag], val: Sequence[SlideBag]) -> list[float]:
        """Train to the last epoch. Returns the validation losses at the best temperature
        (:func:`wsi_ips.training.refinement.refinement_loss`)."""
        training = self.config.training
        standardise(self.net, train, self.config.streaming, device=CPU)
        optimizer = make_optimizer(self.net, training)
        per_epoch = -(-len(train) // training.slides_per_step)
        step = 0
        order = torch.Generator().manual_seed(training.seed)
        losses: list[float] = []
        for epoch in range(training.epochs):
            self.net.train()
            for places in torch.randperm(len(train), generator=order).split(training.slides_per_step):
                loss = self._loss([train[place] for place in places.tolist()], epoch=epoch)
                optimizer.zero_grad()
                loss.backward()
                if training.gradient_clip:
                    torch.nn.utils.clip_grad_norm_(self.net.parameters(), training.gradient_clip)
                set_learning_rate(optimizer.param_groups, step, training=training, per_epoch=per_epoch)
                optimizer.step()
                step += 1
            losses.append(self._validation_loss(val))
        return losses

    @torch.no_grad()
    def read(self, bag: SlideBag) -> tuple[BagReading, Tensor]:
        """What the network says of M random patches of the slide, and their ids."""
        self.net.eval()
        pixels_M3PP, ids_M = self._drawn(bag, epoch=-1)
        return self.net(pixels_M3PP, ids_M, [len(ids_M)]), ids_M

    def _loss(self, bags: Sequence[SlideBag], *, epoch: int) -> Tensor:
        drawn = [self._drawn(bag, epoch=epoch) for bag in bags]
        counts = [len(ids_M) for _, ids_M in drawn]
        reading = self.net(torch.cat([p for p, _ in drawn]), torch.cat([i for _, i in drawn]), counts)
        return self._mean_loss(reading, bags)

    def _mean_loss(self, reading: BagReading, bags: Sequence[SlideBag]) -> Tensor:
        return step_loss(reading, [bag.targets for bag in bags], self.tasks, weights={})

    def _validation_loss(self, bags: Sequence[SlideBag]) -> float:
        metrics, unweighted = SplitMetrics(self.tasks), {task.name: None for task in self.tasks}
        figures = metrics.figures(
            metrics.measure(self.read(bag)[0], [bag.targets], weights=unweighted) for bag in bags
        )
        return figures["refined_loss"]

    def _drawn(self, bag: SlideBag, *, epoch: int) -> tuple[Tensor, Tensor]:
        training = self.config.training
        key = f"{training.seed}/{epoch}/{bag.bag_id}"
        ids_M = some_of(torch.from_numpy(bag.coords.ids_N), self.config.selection.memory_size, key)
        with bag.open(self.config.streaming, CPU) as stream:
            pixels_M3PP = stream.read(ids_M).pixels_n3PP
        if training.flips and epoch >= 0:
            pixels_M3PP = quarter_turns_and_flips(pixels_M3PP, ids_M, key=key)
        return pixels_M3PP, ids_M
