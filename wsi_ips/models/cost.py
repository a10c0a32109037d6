"""What a network costs: parameters, and multiply-adds of convolutions and linear layers."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Cost:
    """parameters: trainable ones (BatchNorm's running statistics are none). macs: of one forward pass."""

    parameters: int
    macs: int


def parameters_of(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def cost_of(net: nn.Module, run: Callable[[], object]) -> Cost:
    """Cost of ``net`` and of what ``run`` does with it. On the device "meta" nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        run()
    # The counter's unit is an operation: two make a multiply-add.
    return Cost(parameters_of(net), counter.get_total_flops() // 2)
