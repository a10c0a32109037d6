"""How a selector learns: the choice of a :class:`Method`. The Lightning module knows only this much of a
selector.

A selector that learns in its own way adds a :class:`MethodMaker` to :data:`METHODS`, or from another package
under the entry point group ``wsi_ips.methods``. A selector of another package without a method of its own is
learned from as IPS is: from the patches that it keeps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wsi_ips.config import FinetuneConfig
from wsi_ips.models.ips_net import BagsRead
from wsi_ips.registry import Registry
from wsi_ips.training.bags import Bag
from wsi_ips.training.kept_patches import SelectionFigures


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
