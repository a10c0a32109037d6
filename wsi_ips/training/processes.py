"""Training in several processes, each with its own share of the slides of a step.

DistributedDataParallel is not used for this: it averages the gradients of one backward pass per process, but
here the encoder is run backwards several times in a step, and processes have different numbers of slides, even
none. :class:`SharedSteps` starts the processes; the functions below exchange values, gradients and statistics.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.timeline import staged
from wsi_ips.training.kept_patches import SelectionFigures

Value = TypeVar("Value")


class SharedSteps(DDPStrategy):
    """Starts and joins the processes as DDP does; the module adds up its gradients itself."""

    def configure_ddp(self) -> None:
        """Give all processes the weights of the first one, and leave the module unwrapped."""
        assert self.model is not None
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            distributed.broadcast(tensor.data, src=0)


def is_first_process() -> bool:
    """Whether this process is the one that reports and writes. Lightning and torchrun number the others.

    Only torchrun starts processes on several machines, and each of these has a first one of its own.
    """
    rank = "RANK" if started_by_torchrun() else "LOCAL_RANK"
    return int(os.environ.get(rank, "0")) == 0


def started_by_torchrun() -> bool:
    """Whether torchrun started this process, on one machine or on several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def place_among_processes() -> tuple[int, int]:
    """The number of this process and how many there are, as torchrun says; (0, 1) without torchrun.

    Lightning starts its own processes only when training begins, after all that is prepared before.
    """
    if not started_by_torchrun():
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_nodes(nodes: int) -> None:
    """Check that somebody has started the processes of other machines.

    Raises:
        ConfigError: There are to be several machines, and this process does not know of the others.
    """
    if nodes > 1 and not started_by_torchrun():
        raise ConfigError(
            f"training.nodes: {nodes}: start the same command on each machine with torchrun, as "
            "pipelines/slurm/finetune.sbatch does"
        )


@staged("wait for processes")
def of_all(mine: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; ``[mine]`` if there is only one process.

    Every process has to call this as often and in the same order as the others. The value is pickled.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [mine]
    theirs: list[Value] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(theirs, mine)
    return theirs


def in_turn(shares: Sequence[Sequence[Value]]) -> list[Value]:
    """The items whose shares were ``items[rank::processes]``, in their original order."""
    longest = max(map(len, shares), default=0)
    return [share[place] for place in range(longest) for share in shares if place < len(share)]


@dataclass(frozen=True, slots=True)
class StepNews:
    """What the other processes have to know of the part of a step that a process did.

    Attributes:
        slides: How many slides it learned from.
        bad: ``{bag_id: why it could not be read}``.
        remembered: ``{bag_id: patches}`` that were selected in this step.
        watched: Figures of these selections.
        failure: What ended the part of the process, if anything did.
    """

    slides: int
    bad: Mapping[str, str]
    remembered: Mapping[str, Tensor]
    watched: Sequence[SelectionFigures]
    failure: str | None = None


def raise_failures(news: Sequence[StepNews]) -> None:
    """Raise :class:`TrainingError` if a process failed. Otherwise the others would wait for it forever."""
    for rank, each in enumerate(news):
        if each.failure is not None:
            raise TrainingError(f"process {rank} of {len(news)} failed: {each.failure}")


def backward_of_nothing(net: nn.Module) -> Tensor:
    """A loss of 0 whose gradients are 0, for a process without slides.

    It is taken back like any other loss, because the scaler of mixed precision (fp16) sets itself up at the
    first loss that it sees, and refuses to step without one.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    return torch.stack([weight.flatten()[0].float() * 0 for weight in weights]).sum()


@torch.no_grad()
def average_statistics(net: nn.Module, slides: int) -> None:
    """Give all processes the mean of their running statistics of BatchNorm, weighted by their slides, in place.

    Only layers that gather statistics take part. What is validated, saved and resumed is then one network,
    whichever process does it.
    """
    device = next(net.parameters()).device
    total = torch.tensor(float(slides), device=device)
    distributed.all_reduce(total)
    for module in net.modules():
        if not (isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training):
            continue
        for statistic in (module.running_mean, module.running_var):
            if statistic is not None and total > 0:
                statistic.mul_(slides)
                distributed.all_reduce(statistic)
                statistic.div_(total)
        if module.num_batches_tracked is not None:
            distributed.all_reduce(module.num_batches_tracked, op=distributed.ReduceOp.MAX)


@staged("wait for processes")
def sum_gradients(net: nn.Module, loss: Tensor) -> None:
    """Add up the gradient of every weight that learns, and ``loss``, over all processes, in place.

    A process without slides takes part with zeros.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    # All have to be contiguous, because memory is added up: channels-last gradients would meet zeros in another
    # order.
    sums = [
        torch.zeros_like(w, memory_format=torch.contiguous_format) if w.grad is None else w.grad
        for w in weights
    ]
    sums = [gradient.contiguous() for gradient in sums]
    pending = [distributed.all_reduce(each, async_op=True) for each in [loss, *sums]]
    for work in pending:
        work.wait()
    for weight, gradient in zip(weights, sums, strict=True):
        weight.grad = gradient
