import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import BagReading
from wsi_ips.training.learning import step_loss
from wsi_ips.training.losses import class_weights, lr_multiplier, mean_loss, task_loss

GRADE = TaskConfig(name="grade", classes=("a", "b", "c"))
FOUND = TaskConfig(name="found", classes=("x", "y"), activation="sigmoid")
AGE = TaskConfig(name="age", classes=("years",), activation="linear")


def test_softmax_loss_is_the_mean_log_of_the_target_s_probability() -> None:
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    loss = task_loss(probabilities.log(), torch.tensor([1, 0]), activation="softmax")
    assert loss.item() == pytest.approx(-(math.log(0.75 + 1e-6) + math.log(0.5 + 1e-6)) / 2, rel=1e-6)


def test_sigmoid_loss_takes_one_label_or_many() -> None:
    one = task_loss(torch.tensor([[0.9], [0.2]]).logit(), torch.tensor([1, 0]), activation="sigmoid")
    assert one.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, rel=1e-5)
    many = task_loss(torch.tensor([[0.9, 0.2]]).logit(), torch.tensor([[1.0, 0.0]]), activation="sigmoid")
    assert many.item() == pytest.approx(one.item())


def test_a_probability_of_zero_costs_a_finite_amount() -> None:
    loss = task_loss(torch.tensor([[200.0, 0.0]]), torch.tensor([1]), activation="softmax")
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


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 99))
def test_weighted_losses_are_pytorch_s(labels: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    target = torch.tensor(labels)
    softmax = task_loss(logits, target, activation="softmax", weights=weights)
    # 1e-6 is added to our probabilities, which moves the loss a little.
    each = functional.cross_entropy(logits, target, weight=weights, reduction="none")
    assert softmax.item() == pytest.approx(each.mean().item(), rel=1e-3)
    present = functional.one_hot(target, 3)
    sigmoid = task_loss(logits, present, activation="sigmoid", weights=weights)
    theirs = functional.binary_cross_entropy_with_logits(logits, present.double(), pos_weight=weights)
    assert sigmoid.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_equal_weights_change_nothing() -> None:
    logits = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    for activation, target in (("softmax", torch.tensor([0, 1])), ("sigmoid", torch.eye(2))):
        plain = task_loss(logits, target, activation=activation)  # type: ignore[arg-type]
        weighted = task_loss(
            logits,
            target,
            activation=activation,  # type: ignore[arg-type]
            weights=torch.ones(2),
        )
        assert weighted.item() == pytest.approx(plain.item())


def test_balanced_weights_make_rare_classes_count_as_much() -> None:
    targets = [{"grade": 0, "found": (1.0, 0.0)}] * 3 + [{"grade": 1, "found": (0.0, 0.0)}]
    softmax = class_weights("balanced", GRADE, targets)
    assert softmax is not None
    # 4 bags, 2 classes that occur: 4 / (2 * 3) and 4 / (2 * 1); class c never occurs.
    assert softmax.tolist() == pytest.approx([2 / 3, 2, 1])
    sigmoid = class_weights("balanced", FOUND, targets)
    assert sigmoid is not None
    assert sigmoid.tolist() == pytest.approx([1 / 3, 1])
    assert class_weights("balanced", AGE, [{"age": (60.0,)}]) is None
    assert class_weights("none", GRADE, targets) is None


def test_given_weights_are_taken_by_name() -> None:
    weights = class_weights({"grade": {"c": 3}}, GRADE, [])
    assert weights is not None
    assert weights.tolist() == [1, 1, 3]
    assert class_weights({"grade": {"c": 3}}, FOUND, []) is None


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"class_weights": {"stage": {}}}, "no task 'stage'"),
        ({"class_weights": {"age": {"years": 2}}}, "no task 'age' with classes"),
        ({"class_weights": {"grade": {"z": 2}}}, "task grade has no class 'z'; known: a, b, c"),
        (
            {"class_weights": {"grade": {"a": 0}}},
            "task grade, class a: a weight is .*greater than 0, not '0'",
        ),
        ({"class_weights": {"grade": {"a": float("nan")}}}, "a finite number greater than 0, not 'nan'"),
        ({"class_weights": {"grade": {"a": float("inf")}}}, "a finite number greater than 0, not 'inf'"),
        ({"class_weights": {"grade": {"a": "x"}}}, "a finite number greater than 0, not 'x'"),
        ({"class_weights": {"grade": {"a": None}}}, "a finite number greater than 0, not 'None'"),
        ({"class_weights": {"grade": 3}}, "task grade: write {class: weight}, not '3'"),
        ({"class_weights": float("nan")}, "write none, balanced, or .*, not 'nan'"),
        ({"class_weights": "equal"}, "write none, balanced, or .*, not 'equal'"),
    ],
)
def test_weights_that_cannot_be_are_refused(training: dict[str, object], message: str) -> None:
    model = {"tasks": [GRADE, FOUND, AGE]}
    with pytest.raises(ValidationError, match=message):
        FinetuneConfig.model_validate({"model": model, "training": training})


def test_balanced_sampling_needs_classes() -> None:
    with pytest.raises(ValidationError, match="balanced needs a softmax task"):
        FinetuneConfig.model_validate(
            {"model": {"tasks": [FOUND, AGE]}, "training": {"sampling": "balanced"}}
        )


def test_weights_of_sigmoid_tasks_work_one_slide_at_a_time() -> None:
    training = {"class_weights": {"found": {"x": 2}}, "slides_per_step": 1}
    FinetuneConfig.model_validate({"model": {"tasks": [GRADE, FOUND]}, "training": training})


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "linear"])
def test_losses_are_float32_under_cuda_s_autocast(
    precision: torch.dtype, activation: Literal["softmax", "sigmoid", "linear"], fake_cuda: None
) -> None:
    """On simulated CUDA tensors, where autocast's rules hold: it forbids binary cross entropy of probabilities."""
    task = TaskConfig(name="task", classes=("x", "y"), activation=activation)
    with torch.device("cuda"):
        heads = Heads(4, [task])
        with torch.autocast("cuda", dtype=precision):
            logits = heads(torch.rand(3, 1, 4))
            reading = BagReading(
                logits, heads.probabilities(logits), torch.rand(3, 1, 4), torch.rand(3, 1, 1, 1)
            )
            assert logits["task"].dtype == precision
            targets: list[dict[str, Target]] = [{"task": 1 if activation == "softmax" else (1.0, 0.0)}] * 3
            loss = step_loss(reading, targets, [task], weights={"task": torch.ones(2)})
    assert loss.dtype == torch.float32
    assert loss.device.type == "cuda"


def test_a_sure_half_precision_logit_still_learns() -> None:
    """The half-precision sigmoid of 9 is 1: as a probability it has no gradient."""
    logits = torch.full((1, 1), 9.0, dtype=torch.float16, requires_grad=True)
    loss = task_loss(logits, torch.zeros(1, 1), activation="sigmoid")
    loss.backward()
    assert loss.item() == pytest.approx(9.000123, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(1, abs=1e-3)
