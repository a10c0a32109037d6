"""Metrics of tasks whose answers have an order: the C-index of survival, and the quadratic kappa of grades.

Shape suffixes: B bags, C outputs of a task.
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCohenKappa

from wsi_ips.config import TaskConfig
from wsi_ips.survival.concordance import harrell
from wsi_ips.survival.cox import cox_loss
from wsi_ips.survival.follow_up import FollowUp


class CIndex(Metric):
    """Harrell's C-index of a survival task. It is NaN if no two bags can be compared, or a risk is not finite."""

    said: list[Tensor]
    target: list[Tensor]

    def __init__(self, task: TaskConfig) -> None:
        super().__init__(sync_on_compute=False)
        assert task.survival is not None
        self._survival = task.survival
        self.add_state("said", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, said_BC: Tensor, target_B2: Tensor) -> None:
        """Add bags. The first column of ``said_BC`` is the risk; ``target_B2`` are time and event."""
        self.said.append(said_BC[:, 0])
        self.target.append(target_B2)

    def compute(self) -> Tensor:
        """The C-index of all bags, a float64 scalar."""
        risk_B, target_B2 = torch.cat(self.said).double(), torch.cat(self.target)
        if not risk_B.isfinite().all():
            return torch.tensor(math.nan, dtype=torch.float64)
        counted = harrell(FollowUp.of(target_B2[:, 0].numpy(), target_B2[:, 1].numpy()), risk_B.numpy())
        return torch.tensor(counted.index if counted.pairs else math.nan, dtype=torch.float64)

    def loss(self) -> float:
        """The Cox loss per event of all bags together.

        It is 0 for ``loss: hazards``, where each bag has a loss of its own, and if no bag has a label.
        """
        if self._survival.loss != "cox" or not self.said:
            return 0.0
        target_B2 = torch.cat(self.target)
        risk_B = torch.cat(self.said).double()
        return float(cox_loss(risk_B, target_B2[:, 0], target_B2[:, 1], ties=self._survival.ties))


class QuadraticKappa(MulticlassCohenKappa):
    """Cohen's kappa with quadratic weights between the likeliest class and the label.

    It is NaN if all bags have the same class and are classified so.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, weights="quadratic", sync_on_compute=False)
