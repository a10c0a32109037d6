"""``model.aggregator``: every aggregator learns on stored features and end to end, and its attention is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.memory_bags import MemoryBag
from tests.training.test_head_start import CPU, SMALL_MODEL, WIDTH, features_bag, pixels_bag
from wsi_ips.config import FinetuneConfig, HeatOptions, ModelConfig, TrainingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.maps import choose_heat
from wsi_ips.inference.results import SlideResult, read_result, write_result
from wsi_ips.models.aggregators.registry import AGGREGATORS
from wsi_ips.models.attention import DirectAttention
from wsi_ips.models.build import build_net, build_selecting_net, complete_model
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.training.fit import train_bags
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.run_state import FinetuneReport
from wsi_ips.units import Mpp

SCORELESS = ("mean", "transmil")
NAMES = (*AGGREGATORS, "direct", "paper")
LEARNS_A_NEEDLE = ("max", "abmil", "clam_mb")
"""Those that must find the one patch of 30 in the few steps of a test."""


def selection_of(name: str, m: int) -> dict[str, Any]:
    return {"selector": "all"} if name in SCORELESS else {"m": m, "i": m}


def on_features(name: str, *, selection: dict[str, Any] | None = None, **training: Any) -> FinetuneConfig:
    model = {"encoder": {"name": "features", "features": WIDTH, "project": 16}, "aggregator": name}
    return FinetuneConfig.model_validate(
        {
            "selection": selection or selection_of(name, 6),
            "model": model,
            "training": {"epochs": 2, "lr": 3e-3, **training},
        }
    )


def fit(config: FinetuneConfig, out: Path, *, bags: int = 8, kind: Any = features_bag) -> FinetuneReport:
    held = [kind(number) for number in range(bags + 4)]
    return train_bags(held[:bags], held[bags:], config, out, device=CPU)


def read(checkpoint: Path, bag: MemoryBag) -> tuple[SlideReading, Any]:
    net, pipeline = load_checkpoint(checkpoint)
    with bag.open(FinetuneConfig().streaming, CPU) as source:
        return read_bag(net, source, pipeline.selection), pipeline


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_on_features_and_its_attention_is_kept(name: str, tmp_path: Path) -> None:
    report = fit(on_features(name), tmp_path / "model")
    assert all(torch.isfinite(torch.tensor(row["train_loss"])) for row in report.history)
    bag = features_bag(3)
    reading, pipeline = read(report.checkpoint, bag)
    again, _ = read(report.checkpoint, bag)
    assert torch.equal(reading.bag.probabilities["label"], again.bag.probabilities["label"])
    assert len(reading.kept.ids_M) == (30 if name in SCORELESS else 6)
    attention_NHT = reading.store.attention()
    assert len(attention_NHT) == 30
    torch.testing.assert_close(attention_NHT.sum(dim=0), torch.ones(attention_NHT.shape[1:]))
    coords = _coords(30)
    result = SlideResult.of(
        reading, coords, tasks=pipeline.model.tasks, slide_path="slide.svs", checkpoint="sha"
    )
    write_result(tmp_path / "result.h5", result)
    stored = read_result(tmp_path / "result.h5")
    assert stored.task_queries == result.task_queries
    assert stored.query_names == result.query_names
    if name == "clam_mb":
        assert stored.query_names == ("label: normal", "label: tumor")
        predicted = max(stored.probabilities["label"], key=lambda each: stored.probabilities["label"][each])
        assert stored.query_names[stored.task_queries["label"]] == f"label: {predicted}"
        assert choose_heat(stored, HeatOptions(map="attention", query=0)).shown == "Attention, label: normal"


def test_a_result_says_which_tasks_are_of_numbers(tmp_path: Path) -> None:
    given = on_features("abmil").model_dump()
    given["model"]["tasks"] = [
        {"name": "ages", "classes": ["low", "middle", "high"], "activation": "linear"},
        {"name": "label"},
        {"name": "marks", "classes": ["er", "pr"], "activation": "sigmoid"},
        {"name": "death", "kind": "survival", "survival": {"time": "days", "event": "died", "at": [12]}},
    ]
    model = FinetuneConfig.model_validate(given).model
    with features_bag(3).open(FinetuneConfig().streaming, CPU) as source:
        reading = read_bag(build_net(model).eval(), source, on_features("abmil").selection)
    result = SlideResult.of(reading, _coords(30), tasks=model.tasks, slide_path="a.svs", checkpoint="sha")
    assert result.number_tasks == ("ages",)
    write_result(tmp_path / "result.h5", result)
    assert choose_heat(read_result(tmp_path / "result.h5")).output == ("ages", "low")


def _coords(count: int) -> PatchCoords:
    ids = np.arange(count)
    return PatchCoords(
        slide_id="slide", l0_size=(32 * count, 32), slide_mpp=Mpp(1.0), patch_px=32, patch_mpp=Mpp(1.0),
        overlap_px=0, l0_patch=32.0, g_size=(count, 1), ids_N=ids,
        l0_xy_N2=np.stack([32 * ids, 0 * ids], axis=1), tissue_N=np.ones(count, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_end_to_end(name: str, tmp_path: Path) -> None:
    model = {**SMALL_MODEL["model"], "attention": {}, "aggregator": name}  # type: ignore[dict-item]
    model["encoder"] = {**SMALL_MODEL["model"]["encoder"], "project": 8}  # type: ignore[index]
    config = FinetuneConfig.model_validate(
        {
            "selection": selection_of(name, 3),
            "model": model,
            "training": {"epochs": 1, "lr": 1e-3, "head_start": {"epochs": 1}, "micro_batch": 2},
        }
    )
    torch.manual_seed(config.training.seed)  # as the training begins
    before = build_selecting_net(config.model, config.selection).encoder.backbone.state_dict()
    report = fit(config, tmp_path / "model", bags=4, kind=pixels_bag)
    net, _ = load_checkpoint(report.checkpoint)
    after = net.encoder.backbone.state_dict()
    assert any(not torch.equal(after[weight], before[weight]) for weight in before)
    reading, _ = read(report.checkpoint, pixels_bag(1))
    assert len(reading.kept.ids_M) == (5 if name in SCORELESS else 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS_A_NEEDLE)
def test_it_finds_the_one_patch_that_decides(name: str, tmp_path: Path) -> None:
    report = fit(on_features(name, epochs=25, lr=0.003), tmp_path / "model", bags=24)
    for number in (101, 103, 105):
        bag = features_bag(number)
        reading, _ = read(report.checkpoint, bag)
        assert int(bag.pixels_N[:, 0].argmax()) in reading.kept.ids_M


@pytest.mark.parametrize("name", SCORELESS)
@pytest.mark.parametrize("selector", ["ips", "cascade"])
def test_one_without_a_score_says_what_to_do(name: str, selector: str) -> None:
    model = {"encoder": {"name": "test_convnext", "weights": "none"}, "aggregator": name}
    config = FinetuneConfig.model_validate({"selection": {"selector": selector}, "model": model})
    with pytest.raises(ConfigError, match=f"{name} has no score .*selection.selector=all.*direct, abmil"):
        build_selecting_net(config.model, config.selection)


def test_a_checkpoint_holds_every_setting_of_its_aggregator(tmp_path: Path) -> None:
    report = fit(on_features("abmil"), tmp_path / "model")
    _, pipeline = load_checkpoint(report.checkpoint)
    assert pipeline.model.aggregator is not None
    assert pipeline.model.aggregator.settings == {
        "dropout": 0.25, "gated": True, "hidden": 256, "score_dropout": 0.0
    }  # fmt: skip
    assert complete_model(pipeline.model) == pipeline.model
    given = ModelConfig.model_validate(
        {"encoder": {"name": "features", "features": 4}, "aggregator": "dsmil"}
    )
    assert complete_model(given).encoder.project == 0


def test_without_an_aggregator_everything_is_stored_as_before() -> None:
    assert "aggregator" not in ModelConfig().model_dump()
    assert "against_collapse" not in TrainingConfig().model_dump()
    plain = ModelConfig.model_validate({"encoder": {"name": "features", "features": 4}})
    assert isinstance(build_net(plain).attention, DirectAttention)
    direct = ModelConfig.model_validate({"aggregator": {"name": "direct", "heads": 2}})
    assert direct == ModelConfig.model_validate({"attention": {"heads": 2}})
    paper = ModelConfig.model_validate({"aggregator": "paper", "attention": {"positions": "slide"}})
    assert paper == ModelConfig.model_validate({"attention": {"block": "paper", "positions": "slide"}})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"model": {"aggregator": "abmil", "attention": {"heads": 2}}}, "attention.heads is not a setting of"),
        ({"model": {"aggregator": "abmil", "attention": "paper"}}, "is not a setting of aggregator: abmil"),
        ({"model": {"aggregator": "paper", "attention": "direct"}}, "aggregator: paper is not attention.block"),
        ({"model": {"aggregator": "abmil"}, "selection": {"selector": "attention_sampling"}},
         "leave model.aggregator out"),
        ({"training": {"against_collapse": {"entropy": 0.1}}, "selection": {"selector": "attention_sampling"}},
         "against_collapse works on"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        FinetuneConfig.model_validate(given)


COLLAPSE = {"entropy": 0.1, "hide_share": 0.5, "hide_top": 4, "anchor": 0.5, "anchor_momentum": 0.9}


@pytest.mark.parametrize("name", ["direct", "paper", "abmil", "clam_mb", "dsmil", "abmilx"])
def test_collapse_can_be_worked_against_with_any_softmax(name: str, tmp_path: Path) -> None:
    plain = fit(on_features(name, epochs=1), tmp_path / "plain", bags=3)
    for word in ("entropy", "hide_share", "anchor"):
        report = fit(on_features(name, epochs=1, against_collapse={word: 0.5}), tmp_path / word, bags=3)
        assert report.history[-1]["train_loss"] != plain.history[-1]["train_loss"], word
        net, _ = load_checkpoint(report.checkpoint)
        assert not any("anchor" in weight for weight in net.state_dict())


@pytest.mark.parametrize("name", ["mean", "max", "transmil"])
def test_attention_that_is_no_softmax_cannot(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} has none"):
        fit(on_features(name, against_collapse={"entropy": 0.1}), tmp_path)


class Killed(Exception):
    pass


def test_a_killed_run_with_an_anchor_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_features("abmil", against_collapse=COLLAPSE, save_minutes=0)
    whole, _ = load_checkpoint(fit(config, tmp_path / "whole").checkpoint)
    keep, calls = PatchKeeper.keep, iter(range(100))

    def dies(self: PatchKeeper, *given: Any, **options: Any) -> Any:
        if next(calls) == 11:
            raise Killed
        return keep(self, *given, **options)

    monkeypatch.setattr(PatchKeeper, "keep", dies)
    with pytest.raises(Killed):
        fit(config, tmp_path / "killed")
    monkeypatch.setattr(PatchKeeper, "keep", keep)
    resumed, _ = load_checkpoint(fit(config, tmp_path / "killed").checkpoint)
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
