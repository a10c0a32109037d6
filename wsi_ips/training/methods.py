"""What a step learns from the bags of one selector. The Lightning module knows only this much of a selector.

A selector that learns in its own way adds a :class:`Method` to :data:`METHODS`, or from another package under the
entry point group ``wsi_ips.methods``. Another package's selector without a method of its own is learned from as
IPS is: from the patches that it keeps.
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
    """How the bags of a step are learned from: patches are found first, without gradients, then learned from.

    remembered: what it keeps of bags from one epoch to the next, part of the state that a run resumes from.
    watched: figures of every selection since somebody took them away; only IPS and the cascade have any.
    """

    @property
    def remembered(self) -> dict[str, Tensor]: ...

    @property
    def watched(self) -> list[SelectionFigures]: ...

    def keep(self, bag: Bag, *, epoch: int, device: torch.device) -> Any:
        """What the step learns from in this bag, found without gradients. Raises the bag's own error."""
        ...

    def learn(self, kept: Sequence[Any], *, epoch: int, device: torch.device, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss over these bags, and return the mean loss.

        Raises :class:`BagLost` for a bag that can no longer be read, and :class:`TrainingError` where the loss is
        not finite.
        """
        ...


class MethodMaker(Protocol):
    """Makes the method of a selector.

    net: the network that learns. weights: {task: (C,) weights of its classes, or None for equal ones}. backward:
    what takes a loss backwards; the training engine's own where precision is mixed. penalty: what is added to a
    step's loss against collapse, for methods that learn through an aggregator; others ignore it.
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
        "cascade": "wsi_ips.training.cascade:cascade_method",
        "image_attention": "wsi_ips.images.learning:image_method",
    },
    group="wsi_ips.methods",
)
"""By :attr:`SelectionConfig.way`."""


def make_method(
    net: Any,
    config: FinetuneConfig,
    weights: Mapping[str, Tensor | None],
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
    penalty: Callable[[BagsRead], Tensor] | None = None,
) -> Method:
    """The method of ``config.selection``. Arguments: see :class:`MethodMaker`."""
    way = config.selection.way
    return METHODS.load(way if way in METHODS else "ips")(net, config, weights, backward, penalty)
