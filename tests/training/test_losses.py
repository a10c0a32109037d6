import math
from itertools import pairwise

import pytest
import torch

from wsi_ips.training.losses import mean_loss, task_loss
from wsi_ips.training.schedule import lr_multiplier


def test_softmax_loss_is_the_mean_log_of_the_target_s_probability() -> None:
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    loss = task_loss(probabilities, torch.tensor([1, 0]), activation="softmax")
    assert loss.item() == pytest.approx(-(math.log(0.75 + 1e-6) + math.log(0.5 + 1e-6)) / 2, rel=1e-6)


def test_sigmoid_loss_takes_one_label_or_many() -> None:
    one = task_loss(torch.tensor([[0.9], [0.2]]), torch.tensor([1, 0]), activation="sigmoid")
    assert one.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, rel=1e-5)
    many = task_loss(torch.tensor([[0.9, 0.2]]), torch.tensor([[1.0, 0.0]]), activation="sigmoid")
    assert many.item() == pytest.approx(one.item())


def test_a_probability_of_zero_costs_a_finite_amount() -> None:
    loss = task_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), activation="softmax")
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-3)


def test_tasks_count_the_same() -> None:
    assert mean_loss([torch.tensor(1.0), torch.tensor(4.0)]).item() == 2.5


def test_the_schedule_warms_up_to_one_and_ends_at_a_thousandth() -> None:
    rates = [lr_multiplier(step, warmup=10, total=100) for step in range(1, 101)]
    assert rates[4] == pytest.approx(0.5)
    assert max(rates) == rates[9] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0.001)
    assert all(earlier > later for earlier, later in pairwise(rates[9:]))


def test_a_schedule_without_warm_up_starts_high() -> None:
    assert lr_multiplier(1, warmup=0, total=10) > 0.95
