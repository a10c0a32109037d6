"""How IPS learns in a step: from kept patches to gradients, without loops over epochs, files or processes.

:class:`Learner` takes the loss of the bags of a step (:func:`bag_loss`) back to the weights. The loss needs all
patches of a step at once, but the encoder works patch by patch. So :func:`backward_in_parts` computes the
features without a graph, takes the loss back to the features, and runs the encoder once more in micro-batches,
each with its rows of that gradient (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"). The gradients are those of the one large graph; memory is that of one micro-batch.

:class:`Steps` says which bags are learned from in which step. It is a function of the seed, so that a run
resumes where it was. :func:`make_optimizer` and :func:`set_learning_rate` are the optimiser and its schedule.

Shape suffixes: B bags, K all kept patches of a step in a row, C width of features or classes of a task.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from wsi_ips.config import FinetuneConfig, TaskConfig, TrainingConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.models.ips_net import BagNet, BagReading, BagsRead, IPSNet
from wsi_ips.survival.losses import bins_of, hazard_loss
from wsi_ips.timeline import span, staged
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import KeptPatches, PatchKeeper, SelectionFigures
from wsi_ips.training.losses import lr_multiplier, mean_loss, task_loss
from wsi_ips.training.optimizer import layer_rates
from wsi_ips.training.step_bags import StepBags
from wsi_ips.training.survival import EpochRisks, follow_up_of

Parts = Callable[[], Iterable[Tensor]]
"""A function that is called for each pass. It returns the pixels of the step in micro-batches, always the same
ones in the same order.
"""


@dataclass(frozen=True, slots=True)
class Learner:
    """Takes the loss of the bags of a step back to the weights. It is a
    :class:`wsi_ips.training.module.Method`.

    Attributes:
        net: The network that learns.
        config: The settings of the run.
        keeper: Selects the patches that are learned from.
        weights: ``{task: (C,) weights of its classes}``; None for equal weights.
        backward: Takes the loss back. With mixed precision it is that of the training engine, which scales the
            loss.
        penalty: Gives a scalar that is added to the loss of bags, for instance against collapse.
    """

    net: IPSNet
    config: FinetuneConfig
    keeper: PatchKeeper
    weights: Mapping[str, Tensor | None] = field(default_factory=dict)
    backward: Callable[[Tensor], None] = Tensor.backward
    penalty: Callable[[BagsRead], Tensor] | None = None

    @property
    def remembered(self) -> dict[str, Tensor]:
        """The patches that each bag kept last, and the risks of Cox tasks."""
        return self.keeper.remembered

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> KeptPatches:
        """The patches of a bag to learn from, see :meth:`wsi_ips.training.kept_patches.PatchKeeper.keep`."""
        return self.keeper.keep(bag, epoch=epoch, device=device)

    @property
    def bags(self) -> StepBags:
        """Opens bags, each once in a step."""
        return self.keeper.bags

    def prepare(self, bag: Bag, *, epoch: int, device: torch.device) -> None:
        """Open a bag that is kept from next, in a thread, and decode its first patches."""
        self.keeper.prepare(bag, epoch=epoch, device=device)

    def learn(self, kept: Sequence[KeptPatches], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss over these bags, and return the mean loss.

        Args:
            kept: The patches of the bags.
            epoch: The epoch, from 0.
            device: Where the network is.
            share: The part of the bags of the step that these are, if other processes learn from the rest.

        Raises:
            BagLost: A bag can no longer be read.
            TrainingError: The loss is not finite.
        """
        places_K = torch.cat([each.places_M for each in kept])
        counts = [len(each.ids_M) for each in kept]
        targets = [each.bag.targets for each in kept]

        def loss_of(features_KC: Tensor) -> Tensor:
            reading = self.net.read_features(features_KC, places_K, counts)
            risks = EpochRisks(self.remembered, [each.bag.bag_id for each in kept])
            loss = bag_loss(reading, targets, self.config.model.tasks, weights=self.weights, risks=risks)
            if self.penalty is not None and reading.read is not None:
                loss = loss + self.penalty(reading.read)
            return share * loss

        learn_encoder = epoch >= self.config.all_patches_epochs
        micro_batch = self.config.training.micro_batch
        if next(self.net.encoder.parameters(), None) is None:
            micro_batch = None  # stored features need no encoder, so parts would save nothing
        elif not learn_encoder and micro_batch is None:
            micro_batch = self.config.streaming.batch  # all patches of a slide are too many for one graph
        loss = take_back(
            loss_of,
            self.net.encoder,
            self.keeper,
            kept,
            micro_batch=micro_batch,
            features_KC=None if micro_batch is None else self._known_features(kept),
            learn_encoder=learn_encoder,
            epoch=epoch,
            device=device,
            backward=self.backward,
        )
        return loss / share

    @property
    def watched(self) -> list[SelectionFigures]:
        """Figures of every selection, until they are taken away."""
        return self.keeper.watched

    def _known_features(self, kept: Sequence[KeptPatches]) -> Tensor | None:
        """What the selection made of the kept patches, if learning would make the same of them."""
        known = [each.features_MC for each in kept if each.features_MC is not None]
        same = not random_in_training(self.net.encoder)
        return torch.cat(known) if same and len(known) == len(kept) else None


def ips_method(
    net: IPSNet,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> Learner:
    """The method of iterative patch selection, for :data:`wsi_ips.training.module.METHODS`.

    For the arguments see :class:`wsi_ips.training.module.MethodMaker`.
    """
    return Learner(net, config, PatchKeeper(net, config), weights, backward, penalty)


def bag_loss(
    reading: BagReading,
    targets: Sequence[Mapping[str, Target]],
    tasks: Sequence[TaskConfig],
    *,
    weights: Mapping[str, Tensor | None],
    risks: EpochRisks | None = None,
) -> Tensor:
    """What training learns from: :func:`step_loss`, and what the aggregator adds to it.

    An aggregator may add further predictions and auxiliary losses. Validation measures only :func:`step_loss`.
    Arguments are those of :func:`step_loss`.
    """
    loss = step_loss(reading, targets, tasks, weights=weights, risks=risks)
    if reading.read is None:
        return loss
    aggregated, bag_weight = reading.read.aggregated, reading.read.bag_weight
    loss = loss if bag_weight == 1 else bag_weight * loss
    for weight, logits in aggregated.further_logits.values():
        loss = loss + weight * step_loss(replace(reading, logits=logits), targets, tasks, weights=weights)
    if aggregated.auxiliary is not None:
        classes = {
            task.name: [_class_of(target.get(task.name)) for target in targets]
            for task in tasks
            if task.activation == "softmax"
        }
        for auxiliary in aggregated.auxiliary(classes).values():
            loss = loss + auxiliary
    return loss


def step_loss(
    reading: BagReading,
    targets: Sequence[Mapping[str, Target]],
    tasks: Sequence[TaskConfig],
    *,
    weights: Mapping[str, Tensor | None],
    risks: EpochRisks | None = None,
) -> Tensor:
    """The loss of bags by their labels: mean over tasks of the mean over bags.

    A bag without a label for a task adds nothing to the sum of that task, and still counts as a bag: a step with
    few labels teaches less, and the parts of several processes add up to the loss of the step.

    Args:
        reading: What the network says of the bags.
        targets: ``{task: target}`` of each bag.
        tasks: The tasks.
        weights: ``{task: (C,) weights of its classes}``; None for equal weights.
        risks: The risks of the other bags, for Cox tasks. None: Cox tasks count 0, because a bag has no Cox loss
            by itself.
    """
    losses = []
    for task in tasks:
        logits_BC = reading.logits[task.name]
        labelled = with_label(task, targets)
        if not labelled:
            losses.append(logits_BC.float().new_zeros(()))
            continue
        if task.survival is not None:
            losses.append(survival_loss(task, logits_BC, targets, labelled, risks))
            continue
        loss = task_loss(
            logits_BC[labelled],
            target_tensor(task, [targets[place] for place in labelled], reading.tokens_BTD.device),
            activation=task.activation,
            weights=weights.get(task.name),
        )
        losses.append(loss * (len(labelled) / len(targets)) if len(labelled) < len(targets) else loss)
    return mean_loss(losses)


def survival_loss(
    task: TaskConfig,
    logits_BC: Tensor,
    targets: Sequence[Mapping[str, Target]],
    labelled: Sequence[int],
    risks: EpochRisks | None,
) -> Tensor:
    """The loss of a survival task over the bags at the places ``labelled``, as a part of the mean over all bags.

    Args:
        task: The survival task.
        logits_BC: What its head says of all bags.
        targets: ``{task: target}`` of each bag.
        labelled: The places of the bags that have a label.
        risks: The risks of the other bags, for a Cox task. None: a Cox task counts 0.

    Raises:
        ConfigError: The edges of the time bins are not known.
    """
    assert task.survival is not None
    raw_BC = logits_BC[list(labelled)]
    raw_BC = raw_BC.float() if raw_BC.dtype.itemsize < 4 else raw_BC
    part = len(labelled) / len(targets)
    if task.survival.loss == "cox":
        return raw_BC.sum() * 0 if risks is None else part * risks.loss(task, raw_BC[:, 0], targets, labelled)
    if task.survival.edges is None:
        raise ConfigError(
            f"task {task.name}: survival.edges are not known: train with finetune, which finds them"
        )
    known = follow_up_of(task, [targets[place] for place in labelled])
    bin_B = bins_of(known, torch.tensor(task.survival.edges, dtype=torch.float64)).to(raw_BC.device)
    event_B = torch.from_numpy(known.event).to(raw_BC.device)
    return part * hazard_loss(raw_BC, bin_B, event_B, alpha=task.survival.alpha)


def _class_of(target: Target | None) -> int | None:
    """The class index that the target of a softmax task is."""
    assert not isinstance(target, tuple)
    return target


def with_label(task: TaskConfig, targets: Sequence[Mapping[str, Target]]) -> list[int]:
    """The places of the bags that have a label for the task."""
    return [place for place, target in enumerate(targets) if task.name in target]


def target_tensor(task: TaskConfig, targets: Sequence[Mapping[str, Target]], device: torch.device) -> Tensor:
    """The targets of bags as a tensor.

    Returns:
        For softmax, (B,) int64 class indices; for survival, (B, 2) float64, time and event; otherwise (B, C)
            float32.
    """
    dtype = torch.int64 if task.activation == "softmax" else torch.float32
    dtype = torch.float64 if task.survival is not None else dtype
    return torch.tensor([target[task.name] for target in targets], dtype=dtype, device=device)


def take_back(
    loss_of: Callable[[Tensor], Tensor],
    encoder: nn.Module,
    keeper: PatchKeeper,
    kept: Sequence[KeptPatches],
    *,
    micro_batch: int | None,
    features_KC: Tensor | None = None,
    learn_encoder: bool = True,
    epoch: int,
    device: torch.device,
    backward: Callable[[Tensor], None],
) -> Tensor:
    """Take a loss back from the features of all kept patches to the encoder.

    Args:
        loss_of: Maps the features (K, C) to the loss.
        encoder: The encoder.
        keeper: Reads the pixels of the patches.
        kept: The patches of the bags.
        micro_batch: How many patches go through the encoder at a time. None: all of them, in one graph.
        features_KC: The features, if they are known already from the pass that scored the patches.
        learn_encoder: False leaves the encoder as it is.
        epoch: The epoch, from 0.
        device: Where the network is.
        backward: Takes the loss back.

    Returns:
        The detached loss.

    Raises:
        BagLost: A bag can no longer be read.
        TrainingError: The loss is not finite.
    """
    most = sum(len(each.ids_M) for each in kept) if micro_batch is None else micro_batch
    encode, loss_of, backward = (
        staged("encode")(encoder),
        staged("head")(loss_of),
        staged("backward")(backward),
    )

    def parts() -> Iterable[Tensor]:
        return keeper.pixels(kept, epoch=epoch, device=device, most=most)

    if micro_batch is None:
        return backward_in_one_graph(encode, parts, loss_of, backward=backward)
    return backward_in_parts(
        encode,
        parts,
        loss_of,
        features_KC=features_KC,
        learn_encoder=learn_encoder and any(weight.requires_grad for weight in encoder.parameters()),
        backward=backward,
    )


def backward_in_one_graph(
    encode: Callable[[Tensor], Tensor],
    parts: Parts,
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Take a loss back with all patches in one graph, as an encoder with batch statistics needs it.

    Args:
        encode: The encoder.
        parts: Gives the pixels.
        loss_of: Maps the features (K, C) of all patches to the loss.
        backward: Takes the loss back. With mixed precision it is that of the training engine, which scales the
            loss.

    Returns:
        The detached loss.

    Raises:
        TrainingError: The loss is not finite.
    """
    loss = finite(loss_of(encode(torch.cat(list(parts())))))
    backward(loss)
    return loss.detach()


def backward_in_parts(
    encode: Callable[[Tensor], Tensor],
    parts: Parts,
    loss_of: Callable[[Tensor], Tensor],
    *,
    features_KC: Tensor | None = None,
    learn_encoder: bool = True,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Take a loss back with the graph of one micro-batch at a time. The gradients are those of one graph.

    Random layers draw the same numbers in both passes.

    Args:
        encode: The encoder.
        parts: Gives the pixels, for each of the two passes.
        loss_of: Maps the features (K, C) of all patches to the loss.
        features_KC: The output of ``encode`` for all parts, if it is known already from the pass that scored
            them.
        learn_encoder: False leaves the gradients of the encoder out.
        backward: Takes the loss back. With mixed precision it is that of the training engine, which scales the
            loss.

    Returns:
        The detached loss.

    Raises:
        TrainingError: The loss is not finite. No gradient has been added then.
    """
    states: list[list[Tensor]] = []
    if features_KC is None:
        features = []
        with torch.no_grad():
            for pixels in parts():
                states.append(_random_states(pixels.device))
                features.append(encode(pixels))
        features_KC = torch.cat(features)
    leaf_KC = features_KC.detach().float() if features_KC.dtype.itemsize < 4 else features_KC.detach()
    leaf_KC = leaf_KC.clone().requires_grad_()
    loss = finite(loss_of(leaf_KC))
    backward(loss)
    if learn_encoder:
        assert leaf_KC.grad is not None
        _backward_to_encoder(encode, parts(), leaf_KC.grad, states)
    return loss.detach()


def _backward_to_encoder(
    encode: Callable[[Tensor], Tensor], parts: Iterable[Tensor], grad_KC: Tensor, states: list[list[Tensor]]
) -> None:
    start = 0
    for number, pixels in enumerate(parts):
        with _replayed(pixels.device, states[number] if states else None):
            features_nC = encode(pixels)
        end = start + len(features_nC)
        with span("backward"):
            torch.autograd.backward(features_nC, grad_KC[start:end].to(features_nC.dtype))
        start = end
    assert start == len(grad_KC), "the second pass saw other patches than the first"


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _replayed(device: torch.device, states: list[Tensor] | None) -> Iterator[None]:
    """Random numbers as they were before. Those after the block are not disturbed."""
    if states is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield


def random_in_training(encoder: nn.Module) -> bool:
    """Whether the encoder, in its present mode, gives other features each time or for each batch."""
    for module in encoder.modules():
        if not module.training:
            continue
        rate = getattr(module, "p", getattr(module, "drop_prob", getattr(module, "prob", None)))
        drops = "Drop" in type(module).__name__ and (not isinstance(rate, int | float) or rate > 0)
        if drops or isinstance(module, nn.modules.batchnorm._BatchNorm):
            return True
    return False


def finite(loss: Tensor) -> Tensor:
    """Return the loss itself. Raises :class:`TrainingError` if it is not finite."""
    if not torch.isfinite(loss.detach()).all():
        raise TrainingError(
            f"the loss is {loss.item()}: lower training.lr, set training.gradient_clip=1, or use another "
            "training.precision"
        )
    return loss


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the optimiser.

    Attributes:
        number: Its number, from 0 over all epochs.
        epoch: Its epoch, from 0.
        bags: Indices of the bags that are learned from.
    """

    number: int
    epoch: int
    bags: tuple[int, ...]


class Steps:
    """The steps of a training. Iterating gives the rest of the current epoch.

    Attributes:
        per_epoch: Steps of an epoch.
        done: How many steps have been taken.
    """

    def __init__(
        self, n_bags: int, *, per_step: int, order: Callable[[int], Sequence[int]], done: int = 0
    ) -> None:
        """Divide bags into steps.

        Args:
            n_bags: Number of bags.
            per_step: How many bags each step learns from.
            order: Maps an epoch to the indices of the bags in the order in which they are learned from,
                ``n_bags`` of them.
            done: How many steps have been taken already.
        """
        self._order = order
        self._orders: dict[int, list[int]] = {}
        self._per_step = per_step
        self.per_epoch = -(-n_bags // per_step)
        self.done = done

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.done // self.per_epoch

    def __iter__(self) -> Iterator[Step]:
        first, epoch = self.done, self.epoch
        for number in range(first, (epoch + 1) * self.per_epoch):
            yield self._step(number)

    def following(self, step: Step) -> Step | None:
        """The step after this one, or None if it is the last of its epoch."""
        number = step.number + 1
        return self._step(number) if number % self.per_epoch else None

    def _step(self, number: int) -> Step:
        epoch = number // self.per_epoch
        if epoch not in self._orders:
            self._orders = {epoch: list(self._order(epoch))}
        start = (number - epoch * self.per_epoch) * self._per_step
        return Step(number, epoch, tuple(self._orders[epoch][start : start + self._per_step]))


def make_optimizer(net: BagNet, training: TrainingConfig) -> AdamW:
    """AdamW with weight decay on every parameter, as in the paper.

    The encoder and the coarse scorer have learning rates of their own if ``training.encoder_lr`` and
    ``training.coarse_lr`` are set, and each layer of the encoder if ``training.layer_decay`` is.

    Raises:
        ConfigError: The encoder does not say what its layers are, as ``training.layer_decay`` needs.
    """
    rates: dict[int, float] = {}
    for part, rate in ((net.coarse, training.coarse_lr), (net.encoder, training.encoder_lr)):
        rates |= {id(weight): rate for weight in (part.parameters() if part else ()) if rate is not None}
    if training.layer_decay is not None:
        rate = training.lr if training.encoder_lr is None else training.encoder_lr
        rates |= layer_rates(net.encoder, rate, decay=training.layer_decay)
    groups: dict[float, list[nn.Parameter]] = {}
    for weight in net.parameters():
        if weight.requires_grad:
            groups.setdefault(rates.get(id(weight), training.lr), []).append(weight)
    return AdamW(
        [{"params": weights, "lr": rate, "peak_lr": rate} for rate, weights in groups.items()],
        weight_decay=training.weight_decay,
    )


def set_learning_rate(
    groups: Iterable[dict[str, Any]], step: int, *, training: TrainingConfig, per_epoch: int
) -> float:
    """Give the groups of an optimiser the learning rate of the schedule for ``step`` (from 0).

    Returns its share of the peak.
    """
    warmup = round(training.warmup_epochs * per_epoch)
    if training.schedule == "cosine":
        multiplier = lr_multiplier(step + 1, warmup=warmup, total=training.epochs * per_epoch)
    else:
        drops = sum(step >= epoch * per_epoch for epoch in training.drop_epochs)
        multiplier = min(1.0, (step + 1) / max(1, warmup)) * 0.1**drops
    for group in groups:
        group["lr"] = group["peak_lr"] * multiplier
    return multiplier
