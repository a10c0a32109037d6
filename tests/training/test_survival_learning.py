"""How survival and grades are learned: Cox over an epoch's risks, heads that keep their order, the baseline."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.models.checkpoint import checkpoint_config, load_checkpoint
from wsi_ips.models.heads import Heads
from wsi_ips.survival.follow_up import FollowUp
from wsi_ips.survival.losses import baseline_hazard, cox_loss
from wsi_ips.training.fit import train_bags
from wsi_ips.training.run_state import merit
from wsi_ips.training.survival import EpochRisks

SURVIVAL = {"time": "t", "event": "e", "at": [1, 3]}
COX = TaskConfig.model_validate({"name": "death", "kind": "survival", "survival": SURVIVAL})
GRADES = TaskConfig(name="grade", kind="ordinal", classes=("1", "2", "3", "4"))
TIMES = ((2.0, 1.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0), (4.0, 0.0), (2.0, 1.0))


def targets() -> list[dict[str, tuple[float, ...]]]:
    return [{"death": each} for each in TIMES]


def whole_gradient(risk: Tensor) -> Tensor:
    time, event = torch.tensor(TIMES).T
    return torch.autograd.grad(cox_loss(risk, time, event), risk)[0]


@pytest.mark.parametrize("per_step", [1, 2, 3])
def test_small_steps_add_up_to_the_gradient_of_all_patients(per_step: int) -> None:
    """With weights that stand still, the mean over an epoch's steps is the gradient of the whole likelihood."""
    risk = torch.randn(len(TIMES), generator=torch.Generator().manual_seed(0), requires_grad=True)
    remembered: dict[str, Tensor] = {}
    names = [f"s{number}" for number in range(len(TIMES))]
    for _ in range(2):  # the first epoch fills the memory
        sums, losses = torch.zeros_like(risk), []
        for start in range(0, len(TIMES), per_step):
            its = list(range(start, start + per_step))
            known = EpochRisks(remembered, [names[place] for place in its])
            loss = known.loss(COX, risk[its], [targets()[place] for place in its], range(per_step))
            sums += torch.autograd.grad(loss, risk)[0] * per_step / len(TIMES)
            losses.append(float(loss.detach()))
    assert torch.allclose(sums, whole_gradient(risk), atol=1e-6)
    time, event = torch.tensor(TIMES).T
    assert losses == pytest.approx([float(cox_loss(risk.detach(), time, event))] * len(losses), abs=1e-6)
    assert len(remembered) == len(TIMES)


def test_a_risk_set_of_the_step_alone_remembers_nothing() -> None:
    alone = COX.model_copy(update={"survival": COX.survival.model_copy(update={"risk_set": "step"})})  # type: ignore[union-attr]
    risk, remembered = torch.randn(3, requires_grad=True), {}  # type: ignore[var-annotated]
    loss = EpochRisks(remembered, ["a", "b", "c"]).loss(alone, risk, targets()[:3], range(3))
    time, event = torch.tensor(TIMES[:3]).T
    assert float(loss.detach()) == pytest.approx(float(cox_loss(risk.detach(), time, event)))
    assert not remembered


def test_grades_are_probabilities_in_order_whatever_is_learned() -> None:
    torch.manual_seed(0)
    heads = Heads(5, [GRADES]).double()
    even = heads.probabilities(heads(torch.zeros(1, 1, 5, dtype=torch.float64)))["grade"]
    assert torch.allclose(even, torch.full((1, 4), 0.25, dtype=torch.float64))
    for weight in heads.parameters():
        torch.nn.init.normal_(weight, std=3)
    tokens = torch.randn(40, 1, 5, dtype=torch.float64)
    said = heads.probabilities(heads(tokens))["grade"]
    assert torch.allclose(said.sum(dim=1), torch.ones(40, dtype=torch.float64))
    score = heads.layers[0].score(tokens[:, 0])[:, 0]
    above = said.flip(1).cumsum(1)[:, :-1].flip(1)  # the chance of each grade or a higher one
    thresholds = heads.layers[0].thresholds
    assert (thresholds.diff() > 0).all()
    assert torch.allclose(above, torch.sigmoid(score[:, None] - thresholds), atol=1e-9)
    assert heads.weights()["grade"].shape == (4, 5)


def test_extreme_scores_of_grades_keep_finite_losses_and_gradients() -> None:
    heads = Heads(1, [GRADES])
    tokens = torch.tensor([[[-500.0]], [[500.0]]], requires_grad=True)
    torch.nn.init.ones_(heads.layers[0].score.weight)
    logits = heads(tokens)["grade"]
    assert torch.isfinite(logits).all()
    logits[0, 3].backward()
    assert tokens.grad is not None
    assert tokens.grad[0, 0, 0] == pytest.approx(1)


def bags(*, seed: int, count: int) -> list[MemoryBag]:
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        risk = torch.randn((), generator=generator)
        features = risk + 0.1 * torch.randn(5, 3, generator=generator)
        time = float((-torch.log(torch.rand((), generator=generator)) * (-2 * risk).exp()).clamp(0.05, 4))
        made.append(MemoryBag(f"{seed}_{number}", features, {"death": (time, float(number % 3 > 0))}))
    return made


def config(**training: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "model": {"encoder": {"name": "features", "features": 3, "project": 0}, "tasks": [COX],
                      "attention": {"heads": 1, "key_dim": 2, "dropout": 0}},
            "selection": {"m": 4, "i": 4},
            "training": {"epochs": 3, "lr": 0.03, "slides_per_step": 2, "monitor": "c_index", **training},
        }
    )  # fmt: skip


def test_the_checkpoint_has_the_baseline_of_its_own_training_risks(tmp_path: Path) -> None:
    train, val = bags(seed=0, count=24), bags(seed=1, count=12)
    report = train_bags(train, val, config(), tmp_path, device=torch.device("cpu"))
    best = report.history[report.best_epoch]
    assert best["val_c_index"] == max(row["val_c_index"] for row in report.history) > 0.6
    assert merit(best, "c_index")[0] == best["val_c_index"]
    net, pipeline = load_checkpoint(report.checkpoint)
    survival = pipeline.model.tasks[0].survival
    assert survival is not None
    assert survival.baseline is not None
    risks = []
    for bag in train:
        # 4 of 5 patches are kept; all are read here, so the risks agree only roughly.
        reading = net.read_bag(net.projector(bag.pixels_N), torch.arange(5))  # type: ignore[union-attr, operator]
        risks.append(float(reading.probabilities["death"][0, 0].detach()))
    follow_up = FollowUp.of(*zip(*(bag.targets["death"] for bag in train), strict=True))
    assert survival.baseline == pytest.approx(baseline_hazard(follow_up, risks, survival.at), rel=0.1)
    last = checkpoint_config(tmp_path / "last.safetensors").model.tasks[0].survival
    assert last is not None
    assert last.baseline is None


def test_a_finished_run_is_told_as_it_was_and_its_checkpoint_stays(tmp_path: Path) -> None:
    train, val = bags(seed=0, count=12), bags(seed=1, count=8)
    first = train_bags(train, val, config(epochs=2), tmp_path, device=torch.device("cpu"))
    before = first.checkpoint.read_bytes()
    again = train_bags(train, val, config(epochs=2), tmp_path, device=torch.device("cpu"))
    assert again.history == first.history
    assert first.checkpoint.read_bytes() == before


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_killed_run_remembers_the_risks_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the weights of the end tells whether the steps after the restart had the same risk sets."""
    train, val, cpu = bags(seed=0, count=12), bags(seed=1, count=8), torch.device("cpu")
    plan = config(epochs=2, save_minutes=0)
    whole = train_bags(train, val, plan, tmp_path / "whole", device=cpu)
    learned, loss = 0, EpochRisks.loss

    def killed(self: EpochRisks, *given: object) -> Tensor:
        nonlocal learned
        learned += 1
        if learned == 10:  # in the second epoch, after 3 of its 6 steps
            raise Killed
        return loss(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(EpochRisks, "loss", killed)
    with pytest.raises(Killed):
        train_bags(train, val, plan, tmp_path / "killed", device=cpu)
    monkeypatch.setattr(EpochRisks, "loss", loss)
    again = train_bags(train, val, plan, tmp_path / "killed", device=cpu)
    assert again.history == whole.history
    theirs, ours = (load_checkpoint(report.checkpoint)[0].state_dict() for report in (whole, again))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_bag_that_is_lost_at_the_end_is_left_out_of_the_baseline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, val = bags(seed=0, count=12), bags(seed=1, count=8)
    epochs = 2
    # All patches first: each epoch opens a bag for what is kept and for what is learned, then the baseline does.
    whole = train_bags(train, val, config(epochs=epochs), tmp_path / "whole", device=torch.device("cpu"))
    times = len(train[0].opened)
    lost = MemoryBag(train[0].bag_id, train[0].pixels_N, train[0].targets, broken=times - 1)
    report = train_bags(
        [lost, *train[1:]], val, config(epochs=epochs), tmp_path / "lost", device=torch.device("cpu")
    )
    assert report.history == whole.history
    assert "0_0 is left out of the baseline hazard" in caplog.text
    baselines = [
        checkpoint_config(each.checkpoint).model.tasks[0].survival.baseline  # type: ignore[union-attr]
        for each in (whole, report)
    ]
    assert None not in baselines
    assert baselines[0] != baselines[1]
