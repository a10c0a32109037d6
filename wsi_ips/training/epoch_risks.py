"""The Cox likelihood over all training bags, though a step sees only a few of them: :class:`EpochRisks`.

A step of one slide has a risk set of one, and nothing to learn from. So the risks of the slides outside the step
are taken as they were last computed.

Shape suffix: B bags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.survival.cox import cox_loss
from wsi_ips.training.survival_start import follow_up_of

PREFIX = "survival/"
"""What the names of risks begin with among the other tensors that a method remembers. No name of a slide has a
slash.
"""


@dataclass(frozen=True, slots=True)
class EpochRisks:
    """The risk of every training bag as it was last computed, at most an epoch ago.

    Attributes:
        remembered: What the training's method keeps from one step to the next
            (:class:`wsi_ips.training.methods.Method`). Risks are kept there beside other tensors, so that they
            are saved, resumed and shared between processes like those.
        bag_ids: The ids of the bags of this step, in order.
    """

    remembered: dict[str, Tensor]
    bag_ids: Sequence[str]

    def loss(
        self, task: TaskConfig, risk_B: Tensor, targets: Sequence[Mapping[str, Target]], places: Sequence[int]
    ) -> Tensor:
        """The loss of a step, a scalar. The risks of the step are remembered.

        The value is the negative log partial likelihood per event of all bags known so far. The gradient is that
        of the risks of these bags alone, times the number of known bags over the number of these: over an epoch,
        the steps add up to the gradient of the whole.

        Args:
            task: The Cox task.
            risk_B: Risks of the bags at ``places`` of the step, which have a label.
            targets: ``{task: target}`` of each bag of the step.
            places: Which bags of the step have a label.
        """
        assert task.survival is not None
        known = follow_up_of(task, [targets[place] for place in places])
        time_B, event_B = torch.from_numpy(known.time), torch.from_numpy(known.event).double()
        if task.survival.risk_set == "step":
            return cox_loss(
                risk_B, time_B.to(risk_B.device), event_B.to(risk_B.device), ties=task.survival.ties
            )
        names = [f"{PREFIX}{task.name}/{self.bag_ids[place]}" for place in places]
        begins, mine = f"{PREFIX}{task.name}/", set(names)
        others = [
            tensor for name, tensor in self.remembered.items() if name.startswith(begins) and name not in mine
        ]
        own_B3 = torch.stack([risk_B.detach().double().cpu(), time_B, event_B], dim=1)
        self.remembered.update(zip(names, own_B3.unbind(), strict=True))
        other_3 = (torch.stack(others) if others else own_B3.new_zeros((0, 3))).to(risk_B.device).T
        loss = cox_loss(
            torch.cat([risk_B, other_3[0].to(risk_B)]),
            torch.cat([time_B.to(risk_B.device), other_3[1]]),
            torch.cat([event_B.to(risk_B.device), other_3[2]]),
            ties=task.survival.ties,
        )
        share = len(places) / (len(places) + len(others))
        return loss.detach() + (loss - loss.detach()) / share
