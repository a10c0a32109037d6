"""Training in several processes, each with its own share of a step's slides.

Not DistributedDataParallel: it averages the gradients of one backward pass per process, and here the encoder
is run backwards several times a step and processes have different numbers of slides, even none.
"""

import os

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn


class SharedSteps(DDPStrategy):
    """Starts and joins the processes as DDP does; the module adds up its gradients by itself."""

    def configure_ddp(self) -> None:
        """Leave the module as it is, with the weights of the first process."""
        assert self.model is not None
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            distributed.broadcast(tensor.data, src=0)


def is_first_process() -> bool:
    """Whether this process is the one that reports and writes; Lightning and torchrun number the others."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def sum_gradients(net: nn.Module, loss: Tensor) -> None:
    """Add up every learned weight's gradient and ``loss`` over all processes, in place.

    A process without slides takes part with zeros.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    # Contiguous: what is added up is memory, and channels-last gradients would meet zeros in another order.
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
