"""What a network costs: its parameters, and the multiply-adds of its convolutions and linear layers.

Start with :func:`cost_of`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Number of trainable parameters. The running statistics of BatchNorm do not count.
        macs: Multiply-adds of one forward pass.
    """

    parameters: int
    macs: int


def parameters_of(net: nn.Module) -> int:
    """The number of trainable parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def cost_of(net: nn.Module, run: Callable[[], object]) -> Cost:
    """The cost of ``net``, and of what ``run`` does with it. On the device "meta" nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        run()
    # The counter counts operations, and a multiply-add is two of them.
    return Cost(parameters_of(net), counter.get_total_flops() // 2)
