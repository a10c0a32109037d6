"""The Lightning module: it selects patches without gradients over all of a bag, and learns on the kept ones.

Optimisation is manual, because the encoder is run backwards in parts and the slides of a step are shared
unevenly among processes.

How a selector learns: the choice of a :class:`Method`. The Lightning module knows only this much of a
selector.

A selector that learns in its own way adds a :class:`MethodMaker` to :data:`METHODS`, or from another package
under the entry point group ``wsi_ips.methods``. A selector of another package without a method of its own is
learned from as IPS is: from the patches that it keeps.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from wsi_ips import timeline
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError, TrainingError, WsiIpsError, count
from wsi_ips.models.encoders.network import float32_behind
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.ips_net import BagNet, BagsRead
from wsi_ips.registry import Registry
from wsi_ips.selection.reading import read_bag
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import BagLost, SelectionFigures
from wsi_ips.training.learning import Step, Steps, make_optimizer, set_learning_rate
from wsi_ips.training.losses import AgainstCollapse, class_weights
from wsi_ips.training.metrics import Measured, SplitMetrics
from wsi_ips.training.optimizer import WeightAverage
from wsi_ips.training.processes import (
    StepNews,
    average_statistics,
    backward_of_nothing,
    in_turn,
    of_all,
    raise_failures,
    sum_gradients,
)
from wsi_ips.training.step_bags import StepBags


class Method(Protocol):
    """How the bags of a step are learned from: first patches are found without gradients, then they are learned
    from.

    ``remembered`` is what the method keeps of bags from one epoch to the next, part of the state that a run
    resumes from. ``watched`` are figures of every selection until they are taken away; only IPS and the cascade
    have any.
    """

    @property
    def remembered(self) -> dict[str, Tensor]: ...

    @property
    def watched(self) -> list[SelectionFigures]: ...

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> Any:
        """What the step learns from in this bag, found without gradients. Raises the error of the bag if it
        cannot be read.
        """
        ...

    def learn(self, kept: Sequence[Any], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss over these bags, and return the mean loss.

        Raises:
            BagLost: A bag can no longer be read.
            TrainingError: The loss is not finite.
        """
        ...


@runtime_checkable
class StreamingMethod(Method, Protocol):
    """A method that opens each bag once in a step, and the next one ahead of time."""

    @property
    def bags(self) -> StepBags: ...

    def prepare(self, bag: Bag, *, epoch: int, device: torch.device) -> None:
        """Begin to open a bag that :meth:`Method.keep` gets next. Raises nothing of the bag's."""
        ...


class MethodMaker(Protocol):
    """A function that makes the method of a selector.

    Args:
        net: The network that learns.
        config: The settings of the run.
        weights: ``{task: (C,) weights of its classes}``; None for equal weights.
        backward: Takes a loss back. With mixed precision it is that of the training engine, which scales the
            loss.
        penalty: Gives what is added to the loss of a step against collapse. Methods that do not learn through an
            aggregator ignore it.
    """

    def __call__(
        self,
        net: Any,
        config: FinetuneConfig,
        weights: Mapping[str, Tensor | None],
        backward: Callable[[Tensor], None] = ...,
        penalty: Callable[[BagsRead], Tensor] | None = None,
    ) -> Method: ...


METHODS: Registry[MethodMaker] = Registry(
    "selector",
    {
        "ips": "wsi_ips.training.learning:ips_method",
        "attention_sampling": "wsi_ips.training.sampling:sampling_method",
        "all": "wsi_ips.training.learning:ips_method",
        "random": "wsi_ips.training.learning:ips_method",
        "cascade": "wsi_ips.training.cascade:cascade_method",
        "image_attention": "wsi_ips.images.learning:image_method",
    },
    group="wsi_ips.methods",
)
"""The methods by the name of their way, :attr:`SelectionConfig.way`."""


def make_method(
    net: Any,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> Method:
    """The method of ``config.selection``. For the arguments see :class:`MethodMaker`."""
    way = config.selection.way
    return METHODS.load(way if way in METHODS else "ips")(net, config, weights, backward, penalty)


logger = logging.getLogger(__name__)


class IPSModule(LightningModule):
    """Fine-tunes ``net`` on ``bags`` in the order of ``steps``, and measures it on validation bags.

    A bag that cannot be read is replaced by another with the same targets, if there is one, and not tried again;
    ``bad`` says which bags these are and why.
    """

    def __init__(
        self, net: BagNet, config: FinetuneConfig, *, bags: Sequence[Bag], steps: Steps, max_bad: int = 1
    ) -> None:
        """Prepare the training.

        Args:
            net: The network.
            config: The settings of the run.
            bags: The bags to learn from.
            steps: Which bags are learned from in which step.
            max_bad: How many bags may turn out to be unreadable before training fails.
        """
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self.steps = steps
        self.bad: dict[str, str] = {}
        """``{bag_id: why it could not be read}``."""
        self.losses: list[float] = []
        """The loss of every step of this epoch so far."""
        self.watched: list[SelectionFigures] = []
        """Figures of the selections of this epoch so far."""
        self.val_figures: dict[str, float] = {}
        """The figures of the last validation."""
        self._val_metrics = SplitMetrics(config.model.tasks)
        self._measured: list[Measured | None] = []
        self._max_bad = max_bad
        self._config = config
        self._bags = bags
        tasks, choice = config.model.tasks, config.training.class_weights
        self._weights = {
            task.name: class_weights(choice, task, [bag.targets for bag in bags]) for task in tasks
        }
        self._collapse = AgainstCollapse.of(net, config)
        ema = config.training.ema
        self._average = None if ema is None else WeightAverage(net, ema)
        if config.training.encoder_checkpointing:
            save_memory(net)
        self.method = make_method(
            net,
            config,
            self._weights,
            backward=self.manual_backward,
            penalty=None if self._collapse is None else self._collapse.penalty,
        )

    def training_step(self, step: Step, _: int) -> None:
        """Learn from the bags of a step. Raises :class:`TrainingError` if too many bags are bad."""
        with timeline.step(step.number):
            self._take(step)

    def _take(self, step: Step) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        with float32_behind(self.device.type):
            loss, slides = self._learned_by_all(step)
        training = self._config.training
        multiplier = set_learning_rate(
            optimizer.param_groups, step.number, training=training, per_epoch=self.steps.per_epoch
        )
        if slides:  # without slides there is no gradient, and weights must not decay either
            with timeline.span("optimizer"):
                optimizer.step()
            if self._collapse is not None:
                self._collapse.stepped()
            if self._average is not None:
                self._average.stepped()
            loss = loss / (slides / len(step.bags))
            self.losses.append(float(loss))
            self.log("step_loss", loss, on_step=True, on_epoch=False, batch_size=len(step.bags))
        self.log("lr", training.lr * multiplier, on_step=True, on_epoch=False, batch_size=1)
        self.steps.done = step.number + 1

    def _learned_by_all(self, step: Step) -> tuple[Tensor, int]:
        """Gradients of the parts of all processes; returns the loss of the step, and how many slides were
        learned from.

        Afterwards each process knows of the unreadable bags of the others, and which patches they selected. If
        one process fails, all do. Raises what the part of this process raised, or :class:`TrainingError`.
        """
        several = self.trainer.world_size > 1
        bad, remembered = set(self.bad), dict(self.method.remembered)
        learned: tuple[Tensor, int] | None = None
        failed: Exception | None = None
        try:
            while learned is None:  # a bag was lost on the way: learn again, with another bag in its place
                learned = self._learned(step)
        except Exception as error:
            if not several:
                raise
            failed = error
        loss, slides = learned or (torch.zeros((), device=self.device), 0)
        watched = list(self.method.watched)
        self.method.watched.clear()
        if not several:
            self.watched += watched
            return loss, slides
        news = of_all(
            StepNews(
                slides,
                {bag_id: why for bag_id, why in self.bad.items() if bag_id not in bad},
                {
                    bag_id: ids_M
                    for bag_id, ids_M in self.method.remembered.items()
                    if remembered.get(bag_id) is not ids_M
                },
                watched,
                None if failed is None else str(failed),
            )
        )
        if failed is not None:
            raise failed
        raise_failures(news)
        for each in news:
            self.bad.update(each.bad)
            self.method.remembered.update(each.remembered)
            self.watched += each.watched
        self._check_bad()
        sum_gradients(self.net, loss)
        average_statistics(self.net, slides)
        return loss, sum(each.slides for each in news)

    def _learned(self, step: Step) -> tuple[Tensor, int] | None:
        """Gradients of the part of this process; returns its part of the loss, and how many slides it learned
        from.

        Returns None if a bag was lost.
        """
        # Random layers draw the same numbers in a run that was killed and resumed.
        torch.manual_seed((self._config.training.seed * 1_000_003 + step.number) * 1_009 + self.global_rank)
        self.net.zero_grad()
        before = dict(self.method.remembered)
        with self.method.bags.step() if isinstance(self.method, StreamingMethod) else nullcontext():
            return self._learned_from(self._share(step), step, before)

    def _learned_from(
        self, share: Sequence[int], step: Step, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, int] | None:
        kept = []
        for index, coming in zip_longest(share, share[1:]):
            self._prepare(coming, step)
            if (bag := self._keep(index, step)) is not None:
                kept.append(bag)
        if (following := self.steps.following(step)) is not None:
            self._prepare(next(iter(self._share(following)), None), following)
        if not kept:
            if self.trainer.world_size > 1:
                self.manual_backward(backward_of_nothing(self.net))
            return torch.zeros((), device=self.device), 0
        part = len(kept) / len(step.bags)
        try:
            loss = self.method.learn(kept, epoch=step.epoch, device=self.device, share=part)
        except BagLost as lost:
            # The other bags are selected from once more, as if for the first time.
            self.method.watched.clear()
            self.method.remembered.clear()
            self.method.remembered.update(before)
            self._count_bad(lost.bag, lost.error)
            self._check_bad()
            return None
        return part * loss, len(kept)

    def _share(self, step: Step) -> tuple[int, ...]:
        """The bags of a step that this process learns from."""
        return step.bags[self.global_rank :: self.trainer.world_size]

    def _prepare(self, index: int | None, step: Step) -> None:
        """Have a bag opened while another is worked on. It is asked for in ``step``."""
        if index is None or self._bags[index].bag_id in self.bad:
            return
        if isinstance(self.method, StreamingMethod):
            self.method.prepare(self._bags[index], epoch=step.epoch, device=self.device)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients. Here they are no longer scaled for mixed precision."""
        clip, weights = self._config.training.gradient_clip, list(self.net.parameters())
        if clip:
            for clipped in [weights] if self._config.training.clip == "all" else [[w] for w in weights]:
                torch.nn.utils.clip_grad_norm_(clipped, clip)

    def on_train_epoch_start(self) -> None:
        """Forget the figures of the last epoch, except when an epoch is resumed in its middle."""
        if self.steps.done % self.steps.per_epoch == 0:
            self.losses.clear()
            self.watched.clear()

    def shown(self) -> AbstractContextManager[None]:
        """Context manager in which ``net`` has the weights that are validated and stored: its own, or their moving
        average.
        """
        return nullcontext() if self._average is None else self._average.in_place()

    def on_validation_epoch_start(self) -> None:
        """Validate with the averaged weights, if there are any."""
        self._showing = self.shown()
        self._showing.__enter__()

    def validation_step(self, bag: Bag, _: int) -> None:
        """Measure a validation bag, or count it as bad if it cannot be read."""
        try:
            streaming = self._config.streaming
            with (
                timeline.slide(bag.bag_id),
                float32_behind(self.device.type),
                bag.open(streaming, self.device) as source,
            ):
                reading = read_bag(self.net, source, self._config.selection).bag
        except WsiIpsError as error:
            self._count_bad(bag, error)
            self._measured.append(None)
            if self.trainer.world_size == 1:  # several processes count together at the end of the epoch
                self._check_bad()
            return
        with float32_behind(self.device.type):
            self._measured.append(self._val_metrics.measure(reading, [bag.targets], weights=self._weights))

    def on_validation_epoch_end(self) -> None:
        """Put together what all processes measured, and compute the figures."""
        self._showing.__exit__(None, None, None)
        mine = self._measured, dict(self.bad)
        everyone = of_all(mine)
        for _, bad in everyone:
            self.bad.update(bad)
        self._check_bad()
        measured = [each for each in in_turn([theirs for theirs, _ in everyone]) if each is not None]
        self._measured = []
        # No process had a readable slide: there are no figures.
        self.val_figures = self._val_metrics.figures(measured) if measured else {}
        if self.val_figures:
            self.log_dict({f"val_{name}": value for name, value in self.val_figures.items()})

    def configure_optimizers(self) -> Optimizer:
        """The optimiser, see :func:`make_optimizer`."""
        rates = {"encoder_lr": self._config.encoder_lr}
        return make_optimizer(self.net, self._config.training.model_copy(update=rates))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the bag as it is: it holds no tensors, and its pixels go to the device chunk by chunk."""
        return batch

    def _keep(self, index: int, step: Step) -> Any | None:
        for candidate in self._candidates(index, step):
            bag = self._bags[candidate]
            if bag.bag_id in self.bad:
                continue
            try:
                with timeline.slide(bag.bag_id):
                    return self.method.keep(bag, epoch=step.epoch, device=self.device)
            except WsiIpsError as error:
                self._count_bad(bag, error)
                self._check_bad()
        return None

    def _candidates(self, index: int, step: Step) -> Iterator[int]:
        """The bag itself, then those with the same targets, in an order that depends on the step."""
        yield index
        generator = torch.Generator().manual_seed(self._config.training.seed * 1_000_003 + step.number)
        for other in torch.randperm(len(self._bags), generator=generator).tolist():
            if other not in step.bags and self._bags[other].targets == self._bags[index].targets:
                yield other

    def _count_bad(self, bag: Bag, error: WsiIpsError) -> None:
        logger.warning("%s is left out: %s", bag.bag_id, error)
        self.bad[bag.bag_id] = str(error)

    def _check_bad(self) -> None:
        if len(self.bad) > self._max_bad:
            raise TrainingError(
                f"{count(len(self.bad), 'slide')} could not be read, more than training.max_bad_slides allows; "
                f"the last one: {list(self.bad.values())[-1]}"
            ) from None

    def state(self) -> Mapping[str, Any]:
        """What a run resumes from, beside weights and optimiser."""
        return {
            "done": self.steps.done,
            "losses": list(self.losses),
            "watched": [astuple(each) for each in self.watched],
            "bad": dict(self.bad),
            "remembered": dict(self.method.remembered),
            **({} if self._collapse is None else self._collapse.state()),
            **({} if self._average is None else {"ema": self._average.state()}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        self.steps.done = int(state["done"])
        self.losses[:] = state["losses"]
        self.watched[:] = [SelectionFigures(*each) for each in state["watched"]]
        self.bad.update(state["bad"])
        self.method.remembered.update(state["remembered"])
        if self._collapse is not None:
            self._collapse.restore(state)
        if self._average is not None:
            self._average.restore(state["ema"])


def save_memory(net: BagNet) -> None:
    """Have the encoder recompute its blocks in the backward pass.

    Raises:
        ConfigError: It cannot do that.
    """
    if not isinstance(net.encoder, TimmEncoder):
        raise ConfigError(
            "training.encoder_checkpointing: this encoder cannot recompute its blocks; leave it out"
        )
    net.encoder.save_memory()
