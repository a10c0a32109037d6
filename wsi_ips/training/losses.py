"""The losses of the tasks, what classes weigh in them, and the schedule of the learning rate.

:func:`task_loss` and :func:`lr_multiplier` are those of the paper (IPS reference code).

Keeps attention from settling on a few patches early, for any aggregator whose attention is a softmax.

:class:`AgainstCollapse` applies what ``training.against_collapse`` asks for:

- Attention entropy (AEM: Zhang et al. 2024): a penalty on peaked attention.
- Stochastic top-k masking (STKIM: ACMIL, ECCV 2024): in training some of the highest-scored patches are hidden,
  so that others have to be read as well.
- An anchor (ASMIL, ICLR 2026): a slowly moving copy of the aggregator, whose attention the learned one is held
  to.

Shape suffixes: B bags, C classes, H heads, T attention rows, M patches of the largest bag, N patches of a bag,
k patches of the top, h hidden patches.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from wsi_ips.config import AgainstCollapseConfig, ClassWeights, FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregator
from wsi_ips.models.ips_net import BagNet, BagsRead, IPSNet

EPS = 1e-6
"""Added to a probability before its logarithm is taken."""
FLOOR = 0.001
"""The learning rate at the end of the cosine, as a share of the peak."""


def task_loss(
    logits_BC: Tensor,
    target: Tensor,
    *,
    activation: Literal["softmax", "sigmoid", "linear"],
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of a task, a scalar: the mean over bags.

    Half precision is widened to float32 first: the sigmoid of a half-precision logit of 8.5 is 1, whose loss has
    no gradient, and a sum of small losses loses its digits. The sigmoid loss never sees probabilities, which
    autocast forbids on CUDA.

    Args:
        logits_BC: The output of the head, before its activation.
        target: For softmax (B,) int64 class indices; for sigmoid (B,) or (B, C) of 0 and 1; for linear (B, C)
            numbers.
        activation: ``softmax``: -log(p + 1e-6). ``sigmoid``: binary cross entropy over all elements. ``linear``
            (not in the paper): mean squared error over all elements.
        weights: (C,), from :func:`class_weights`. For softmax the loss of each bag is multiplied by the weight
            of its class. The mean is over bags, not over weights as in PyTorch's ``NLLLoss``: there a step of
            one class, or of one bag, is not weighted at all, and processes could not add up their shares. For
            sigmoid it is the factor on the positive term of each class, as in
            ``BCEWithLogitsLoss(pos_weight=)``. For linear it has to be None.
    """
    logits_BC = logits_BC.float() if logits_BC.dtype.itemsize < 4 else logits_BC
    if activation == "linear":
        return mse_loss(logits_BC, target.to(logits_BC.dtype))
    if activation == "softmax":
        loss_B = -(logits_BC.softmax(dim=1).gather(1, target[:, None])[:, 0] + EPS).log()
        return (loss_B if weights is None else weights.to(loss_B)[target] * loss_B).mean()
    target_BC = target.reshape(logits_BC.shape).to(logits_BC.dtype)
    factor_C = None if weights is None else weights.to(logits_BC)
    return binary_cross_entropy_with_logits(logits_BC, target_BC, pos_weight=factor_C)


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """The mean of the losses of several tasks."""
    return torch.stack(list(losses)).mean()


def class_weights(
    choice: ClassWeights, task: TaskConfig, targets: Sequence[Mapping[str, Target]]
) -> Tensor | None:
    """The weights of ``TrainingConfig.class_weights`` as (C,) float32 for :func:`task_loss`. None if all weigh
    the same.

    With ``balanced``, a class of a softmax task weighs B / (C' * bags of the class) over the C' classes that
    occur, and a class of a sigmoid task weighs the number of bags without it over the number with it. A class
    that never occurs, or always, weighs 1.

    Args:
        choice: The setting.
        task: The task.
        targets: ``{task: target}`` of each training bag.
    """
    if choice == "none" or task.activation == "linear":
        return None
    if isinstance(choice, Mapping):
        given = choice.get(task.name)
        return None if given is None else torch.tensor([given.get(name, 1.0) for name in task.classes])
    values = [bag[task.name] for bag in targets if task.name in bag]
    if task.activation == "softmax":
        occur = Counter(values)
        return torch.tensor(
            [len(values) / (len(occur) * occur[index]) if occur[index] else 1.0
             for index in range(len(task.classes))]
        )  # fmt: skip
    positive_C = torch.tensor(values, dtype=torch.float32).reshape(len(values), len(task.classes)).sum(dim=0)
    negative_C = len(values) - positive_C
    both_C = (positive_C > 0) & (negative_C > 0)
    return torch.where(both_C, negative_C / positive_C.clamp(min=1), 1.0)


def lr_multiplier(step: int, *, warmup: int, total: int) -> float:
    """The share of the peak learning rate at ``step``, which counts from 1 to ``total``.

    It rises linearly up to ``warmup``; from there half a cosine leads down to 0.001 at ``total``.
    """
    if step < warmup:
        return step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return cosine + FLOOR * (1 - cosine)


HIDDEN = -1e9
"""The attention logit of a patch without attention, where minus infinity would make a gradient NaN."""


def negative_entropy(logits_BHTM: Tensor, *, by_size: bool = False) -> Tensor:
    """The sum of a log a over the patches of each bag, in nats; mean over attention rows, then over bags.

    Args:
        logits_BHTM: Attention before the softmax, minus infinity where there is no patch.
        by_size: Divide by log N of each bag, so that one weight suits bags of any size. A bag of one patch then
            gives 0.

    Returns:
        A scalar.
    """
    log_attention_BHTM = finite_logits(logits_BHTM).log_softmax(dim=-1)
    entropy_BHT = (log_attention_BHTM.exp() * log_attention_BHTM).sum(dim=-1)
    if by_size:
        patches_BHT = torch.isfinite(logits_BHTM).sum(dim=-1).to(entropy_BHT)
        entropy_BHT = entropy_BHT / patches_BHT.clamp(min=2).log()
    return entropy_BHT.mean()


def finite_logits(logits_BHTM: Tensor) -> Tensor:
    """The logits in float32 or wider, with a large negative number in place of minus infinity."""
    wide_BHTM = logits_BHTM.float() if logits_BHTM.dtype.itemsize < 4 else logits_BHTM
    return wide_BHTM.masked_fill(wide_BHTM == -torch.inf, HIDDEN)


@dataclass(frozen=True, slots=True)
class HideTopPatches:
    """Hides some of the highest attention logits of every row, at random.

    Random numbers are those of PyTorch, so a step with the same seed hides the same patches.

    Attributes:
        top: How many of the highest logits are candidates.
        share: int(min(top, N) * share) of the candidates are hidden, but never the last patch of a bag.
    """

    top: int
    share: float

    def __call__(self, logits_BHTM: Tensor, uniform_BHTk: Tensor | None = None) -> Tensor:
        """Return the logits with minus infinity where a patch is hidden.

        Args:
            logits_BHTM: Attention before the softmax, minus infinity where there is no patch.
            uniform_BHTk: Numbers whose order decides which candidates are hidden, k of them or more. None: they
                are drawn.
        """
        hidden = torch.zeros_like(logits_BHTM, dtype=torch.bool)
        for bag, logits_HTM in enumerate(logits_BHTM):
            count = int((logits_HTM[0, 0] != -torch.inf).sum())
            k = min(self.top, count)
            hide = min(int(k * self.share), count - 1)
            if hide < 1:
                continue
            top_HTk = logits_HTM.topk(k, dim=-1).indices
            uniform_HTk = (
                torch.rand(top_HTk.shape, device=top_HTk.device)
                if uniform_BHTk is None
                else uniform_BHTk[bag]
            )
            chosen_HTh = uniform_HTk[..., :k].argsort(dim=-1)[..., :hide]
            hidden[bag].scatter_(-1, top_HTk.gather(-1, chosen_HTh), True)
        return logits_BHTM.masked_fill(hidden, -torch.inf)


def anchor_target(logits_BHTM: Tensor, *, temperature: float) -> Tensor:
    """The attention that the logits of an anchor ask for: their sigmoids, divided by their sum over the bag.

    It is 0 where there is no patch. The logits are divided by ``temperature`` first.
    """
    gates_BHTM = (logits_BHTM / temperature).sigmoid()
    return gates_BHTM / (gates_BHTM.sum(dim=-1, keepdim=True) + 1e-8)


def anchor_loss(logits_BHTM: Tensor, target_BHTM: Tensor) -> Tensor:
    """The cross entropy of the learned attention against the target of the anchor, a scalar.

    It is summed over the patches of each bag; mean over attention rows, then over bags. Patches without
    attention, because they are hidden or not there, count nothing.

    Args:
        logits_BHTM: The learned attention before the softmax, minus infinity where there is none.
        target_BHTM: The target, see :func:`anchor_target`.
    """
    target_BHTM = target_BHTM.masked_fill(logits_BHTM == -torch.inf, 0)
    log_attention_BHTM = finite_logits(logits_BHTM).log_softmax(dim=-1)
    return -(target_BHTM * log_attention_BHTM).sum(dim=-1).mean()


class Anchor:
    """A copy of a module whose weights slowly follow the learned ones.

    It begins as an exact copy and is always in eval mode, without gradients.

    Args:
        module: The module that learns.
        momentum: After each step a weight of the copy becomes momentum * itself + (1 - momentum) * the learned
            one. Buffers that are not floating are copied.
    """

    def __init__(self, module: nn.Module, *, momentum: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._momentum = momentum

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Move towards the module as it is now. Call it after each step of the optimiser."""
        for ours, theirs in zip(_tensors(self.module), _tensors(module), strict=True):
            if ours.is_floating_point():
                ours.mul_(self._momentum).add_(theirs.to(ours), alpha=1 - self._momentum)
            else:
                ours.copy_(theirs)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class AgainstCollapse:
    """Applies ``training.against_collapse`` to an aggregator: hides patches, adds penalties, moves the anchor.

    Args:
        aggregator: The aggregator that learns.
        config: What to do.
        name: What the configuration calls the aggregator, for messages.

    Raises:
        ConfigError: The attention of the aggregator is not a softmax over patches.
    """

    def __init__(self, aggregator: Aggregator, config: AgainstCollapseConfig, *, name: str) -> None:
        if not aggregator.has_softmax:
            raise ConfigError(
                f"training.against_collapse works on attention that is a softmax over patches, and {name} has "
                "none: leave training.against_collapse out"
            )
        self._aggregator = aggregator
        self._config = config
        self._anchor = Anchor(aggregator, momentum=config.anchor_momentum) if config.anchor else None
        if config.hide_share:
            aggregator.masking = HideTopPatches(config.hide_top, config.hide_share)

    @classmethod
    def of(cls, net: BagNet, config: FinetuneConfig) -> "AgainstCollapse | None":
        """What the configuration asks for; None if it asks for nothing.

        Raises:
            ConfigError: The attention of the aggregator is not a softmax over patches.
        """
        asked, aggregator = config.training.against_collapse, config.model.aggregator
        if not asked.is_on:
            return None
        assert isinstance(net, IPSNet)  # the configuration refuses it for attention sampling
        return cls(net.attention, asked, name="attention" if aggregator is None else aggregator.name)

    def penalty(self, read: BagsRead) -> Tensor:
        """A scalar to add to the loss of these bags."""
        logits_BHTM, config = read.aggregated.attention_logits_BHTM, self._config
        assert logits_BHTM is not None  # has_softmax says so
        penalty = finite_logits(logits_BHTM).new_zeros(())
        if config.entropy:
            penalty = penalty + config.entropy * negative_entropy(logits_BHTM, by_size=config.entropy_by_size)
        if self._anchor is not None:
            penalty = penalty + config.anchor * anchor_loss(logits_BHTM, self._target(self._anchor, read))
        return penalty

    def _target(self, anchor: Anchor, read: BagsRead) -> Tensor:
        with torch.no_grad():
            anchored = anchor.module.to(read.x_BMD.device)
            assert isinstance(anchored, Aggregator)
            asked_BHTM = anchored.read(read.x_BMD, read.empty_BM).attention_logits_BHTM
            assert asked_BHTM is not None
            return anchor_target(asked_BHTM, temperature=self._config.anchor_temperature)

    def stepped(self) -> None:
        """Move the anchor, if there is one. Call it after each step of the optimiser."""
        if self._anchor is not None:
            self._anchor.module.to(next(self._aggregator.parameters()).device)
            self._anchor.follow(self._aggregator)

    def state(self) -> dict[str, Any]:
        """What a run resumes from. It is not part of the model."""
        return {} if self._anchor is None else {"anchor": dict(self._anchor.module.state_dict())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        if self._anchor is not None:
            self._anchor.module.load_state_dict(state["anchor"])
