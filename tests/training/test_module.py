"""What a training run does with bags that cannot be read, with several tasks, and with its settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.models.attention import DirectAttention
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.training.fit import train_bags
from wsi_ips.training.run_state import FinetuneReport

CPU = torch.device("cpu")


def config_of(tasks: list[dict[str, Any]] | None = None, **training: Any) -> FinetuneConfig:
    training = {
        "epochs": 3,
        "warmup_epochs": 0,
        "slides_per_step": 2,
        "lr": 0.003,
        "flips": False,
        **training,
    }
    model = {**SMALL_MODEL["model"], **({"tasks": tasks} if tasks else {})}  # type: ignore[dict-item]
    return FinetuneConfig.model_validate({**SMALL_MODEL, "model": model, "training": training})


def bag(number: int, *, broken: bool | int = False, lost: bool = False, **targets: Any) -> MemoryBag:
    """Dark patches in bags of even number, bright ones in the others."""
    generator = torch.Generator().manual_seed(number)
    pixels = 0.2 + 0.6 * (number % 2) + 0.1 * torch.rand(6, 3, 32, 32, generator=generator)
    return MemoryBag(f"slide{number}", pixels, targets or {"label": number % 2}, broken, lost)


def fit(
    train: list[MemoryBag], val: list[MemoryBag], config: FinetuneConfig, out: Path, **options: Any
) -> FinetuneReport:
    return train_bags(train, val, config, out, device=CPU, **options)


def test_an_unreadable_bag_is_replaced_by_one_like_it_counted_and_not_asked_again(tmp_path: Path) -> None:
    train = [bag(n, broken=n == 2) for n in range(6)]
    val = [bag(8), bag(9), bag(10, broken=True)]
    report = fit(train, val, config_of(), tmp_path, max_bad=2)
    assert report.bad == {name: f"{name}: is broken; replace the file" for name in ("slide2", "slide10")}
    assert len(train[2].opened) == 1
    # Two other bags of its label stood in for it in each of the three epochs.
    opened = {b.bag_id: len(b.opened) for b in train if not b.broken}
    even, odd = (sum(opened[f"slide{n}"] for n in of) for of in ((0, 4), (1, 3, 5)))
    assert even == odd
    assert len(report.history) == 3
    with pytest.raises(TrainingError, match=r"2 slides could not be read.*is broken"):
        fit(train, val, config_of(), tmp_path / "strict", max_bad=1)


def test_a_bag_that_is_lost_between_scoring_and_learning_is_replaced(tmp_path: Path) -> None:
    """It can be scored, and not be read when its patches are learned from: as if it had been gone before."""
    lost = [bag(n, lost=n == 2) for n in range(4)]
    report = fit(lost, [bag(8), bag(9)], config_of(epochs=1, slides_per_step=4), tmp_path / "lost", max_bad=1)
    assert report.bad == {"slide2": "slide2: is broken; replace the file"}
    never = [bag(n, broken=n == 2) for n in range(4)]
    other = fit(
        never, [bag(8), bag(9)], config_of(epochs=1, slides_per_step=4), tmp_path / "never", max_bad=1
    )
    assert report.history == other.history


def test_without_a_readable_validation_bag_the_training_loss_decides(tmp_path: Path) -> None:
    train = [bag(0), bag(1)]
    report = fit(train, [bag(8, broken=True)], config_of(epochs=2), tmp_path, max_bad=1)
    assert set(report.history[0]) == {"epoch", "train_loss", "kept_attention", "attention_spread"}


def test_tasks_of_every_kind_are_learned_at_once(tmp_path: Path) -> None:
    tasks = [
        {"name": "grade", "classes": ["dark", "bright"]},
        {"name": "found", "classes": ["a", "b"], "activation": "sigmoid"},
        {"name": "alone", "classes": ["yes"], "activation": "sigmoid"},
        {"name": "age", "classes": ["years"], "activation": "linear"},
    ]

    def labelled(n: int) -> MemoryBag:
        odd = float(n % 2)
        return bag(n, grade=n % 2, found=(odd, 1 - odd), alone=(odd,), age=(2 * odd - 1,))

    config = config_of(tasks, epochs=12, slides_per_step=4)
    report = fit([labelled(n) for n in range(8)], [labelled(n) for n in range(8, 12)], config, tmp_path)
    first, last = report.history[0], report.history[-1]
    assert {"val_grade_auc", "val_grade_accuracy", "val_found_auc", "val_alone_auc", "val_age_mae"} <= set(
        last
    )
    assert last["val_loss"] < 0.5 * first["val_loss"]
    assert last["val_grade_auc"] == last["val_found_auc"] == last["val_alone_auc"] == 1
    assert last["val_age_mae"] < 0.6


def test_patches_are_selected_again_every_k_epochs_only(tmp_path: Path) -> None:
    train = [bag(0), bag(1)]
    fit(train, [], config_of(epochs=4, select_every=2), tmp_path)
    assert len(train[0].scored) == 2
    assert len(train[0].opened) == 4  # once a step, whether patches are selected, embedded or learned from
    once = [bag(0), bag(1)]
    every = fit(once, [], config_of(epochs=4), tmp_path / "every")
    seldom = fit(train, [], config_of(epochs=4, select_every=4), tmp_path / "seldom")
    assert every.history[0] == seldom.history[0]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_mixed_precision_learns(precision: str, tmp_path: Path) -> None:
    train = [bag(n) for n in range(4)]
    report = fit(train, train, config_of(precision=precision, epochs=6), tmp_path)
    assert report.history[-1]["val_auc"] == 1


def test_only_the_encoder_trains_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head start, selection, learning and validation alike; what the encoder gives is float32."""
    inside: set[Any] = set()
    behind: set[Any] = set()
    encoded, read = TimmEncoder._features, DirectAttention.read

    def features(self: TimmEncoder, x: torch.Tensor) -> torch.Tensor:
        inside.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return encoded(self, x)

    def reading(self: DirectAttention, x: torch.Tensor, *more: Any) -> Any:
        found = read(self, x, *more)
        behind.update({x.dtype, found.tokens_BTE.dtype, found.attention_BHTM.dtype})
        behind.add("half" if torch.is_autocast_enabled("cpu") else torch.float32)
        return found

    monkeypatch.setattr(TimmEncoder, "_features", features)
    monkeypatch.setattr(DirectAttention, "read", reading)
    config = config_of(precision="bf16", epochs=1, head_start={"epochs": 1, "keep_features": True})
    attention = {"block": "direct", "heads": 2, "key_dim": 8}
    model = {**config.model.model_dump(mode="json"), "attention": attention}
    config = FinetuneConfig.model_validate({**config.model_dump(mode="json"), "model": model})
    fit([bag(n) for n in range(4)], [bag(4), bag(5)], config, tmp_path)
    assert inside == {torch.bfloat16}
    assert behind == {torch.float32}
    stored = [folder.name for folder in (tmp_path / "head_start" / "features").iterdir()]
    assert stored
    assert all(name.endswith("-bf16") for name in stored)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        fit([bag(0), bag(1)], [], config_of(precision="fp16"), tmp_path)
    with pytest.raises(ValueError, match=r"set training\.micro_batch=null"):
        FinetuneConfig.model_validate({"model": {"encoder": {"batch_norm": "batch"}}})


def test_gradients_are_clipped_to_the_largest_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, closure: Any = None) -> Any:
        result = step(self, closure)
        weights = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([p.grad.norm() for p in weights if p.grad is not None]).norm()))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    fit([bag(0), bag(1)], [], config_of(gradient_clip=1e-3, epochs=1), tmp_path)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_losses_are_logged_for_tensorboard_where_asked(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit([bag(0), bag(1)], [bag(2), bag(3)], config_of(tensorboard=True, epochs=2), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"step_loss", "lr", "val_loss", "val_auc"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("step_loss")) == 2


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_says_how_the_device_calculates(deterministic: bool, tmp_path: Path) -> None:
    train = [bag(0), bag(1)]
    report = fit(train, train, config_of(epochs=1, deterministic=deterministic), tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    expected = {"tf32_convolutions": not deterministic, "tf32_matmul": False, "deterministic": deterministic}
    assert run["numerics"] == expected
    assert len(report.history) == 1
    assert not torch.are_deterministic_algorithms_enabled()
