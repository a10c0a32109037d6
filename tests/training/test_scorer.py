"""``selection.scorer``: the scores of another checkpoint fill the memory, and the model reads what was kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import SMALL_MODEL
from tests.training.test_aggregators import _coords
from tests.training.test_head_start import CPU, WIDTH, features_bag, pixels_bag
from tests.training.test_selectors import bag as image_bag
from wsi_ips.commands.recipe import JOBS, keys_of
from wsi_ips.config import FinetuneConfig, PipelineConfig, StreamingConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.inference.results import SlideResult
from wsi_ips.models.build import build_selecting_net, check_aggregator
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.checkpoint_head import METADATA_KEY
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection.reading import read_bag
from wsi_ips.selection.slide_reading import SlideReading, read_scored, score_part
from wsi_ips.training.fit import train_bags

Json = dict[str, Any]
FEATURES: Json = {"name": "features", "features": WIDTH, "project": 16}
M = 6


def settings(aggregator: Any, *, encoder: Json = FEATURES, selection: Json, **model: Any) -> FinetuneConfig:
    model = {"encoder": encoder, "aggregator": aggregator, **model}
    training = {"epochs": 2, "lr": 3e-3, "head_start": {"epochs": 1}}
    return FinetuneConfig.model_validate({"selection": selection, "model": model, "training": training})


def fit(config: FinetuneConfig, out: Path, *, kind: Any = features_bag) -> Path:
    held = [kind(number) for number in range(8)]
    return train_bags(held[:4], held[4:], config, out, device=CPU).checkpoint


def untrained(config: FinetuneConfig, path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, build_selecting_net(config.model, config.selection), config.pipeline)
    return path


def scorer(tmp_path: Path, aggregator: Any = "abmil", **model: Any) -> Path:
    """A checkpoint that scores patches of stored features."""
    config = settings(aggregator, selection={"m": M, "i": M}, **model)
    return untrained(config, tmp_path / "scorer.safetensors", seed=3)


def read(checkpoint: Path, bag: Any) -> tuple[IPSNet, SlideReading]:
    net, pipeline = load_checkpoint(checkpoint)
    assert isinstance(net, IPSNet)
    with bag.open(StreamingConfig(), CPU) as source:
        return net, read_bag(net, source, pipeline.selection)


@pytest.mark.parametrize("rule", ["buffer", "global"])
@pytest.mark.parametrize("aggregator", ["transmil", "mean", "clam_mb"])
def test_the_model_reads_the_patches_that_the_scorer_keeps(
    aggregator: str, rule: str, tmp_path: Path
) -> None:
    other = scorer(tmp_path)
    selection = {"m": M, "i": M, "rule": rule}
    report = fit(settings(aggregator, selection={**selection, "scorer": str(other)}), tmp_path / "run")
    its, _ = load_checkpoint(other)
    other.unlink()  # the checkpoint needs no other file
    net, reading = read(report, features_bag(1))
    assert isinstance(its, IPSNet)
    with features_bag(1).open(StreamingConfig(), CPU) as source:
        own = read_bag(its, source, PipelineConfig.model_validate({"selection": selection}).selection)
        emb_MD = net.encode(source.read(reading.kept.ids_M).pixels_n3PP)
    assert reading.kept.ids_M.tolist() == own.kept.ids_M.tolist()
    assert torch.equal(reading.store.logits(), own.store.logits())
    torch.testing.assert_close(reading.emb_MD, emb_MD)
    assert not torch.allclose(reading.emb_MD, own.emb_MD)
    assert reading.bag.attention_BHTM.shape[-1] == M
    probabilities = net.read_bag(emb_MD, reading.kept.ids_M).probabilities["label"]
    torch.testing.assert_close(reading.bag.probabilities["label"], probabilities)
    assert net.scorer is not None
    for name, weight in its.state_dict().items():
        assert torch.equal(net.scorer.state_dict()[name], weight), name


def test_what_is_drawn_of_a_task_is_the_scorer_s_row(tmp_path: Path) -> None:
    """CLAM-MB has a row for each class; TransMIL, which reads the kept patches, has one for the task."""
    other = scorer(tmp_path, "clam_mb")
    report = fit(settings("transmil", selection={"m": M, "i": M, "scorer": str(other)}), tmp_path / "run")
    _, reading = read(report, features_bag(1))
    _, pipeline = load_checkpoint(report)
    result = SlideResult.of(
        reading, _coords(30), tasks=pipeline.model.tasks, slide_path="slide.svs", checkpoint="sha"
    )
    predicted = int(reading.bag.probabilities["label"][0].argmax())
    assert result.query_names == ("label: normal", "label: tumor")
    assert result.task_queries == {"label": predicted}


def test_a_slide_in_parts_is_read_as_in_one(tmp_path: Path) -> None:
    selection = {"m": M, "i": M, "rule": "global", "scorer": str(scorer(tmp_path))}
    net, whole = read(fit(settings("transmil", selection=selection), tmp_path / "run"), features_bag(1))
    with features_bag(1).open(StreamingConfig(), CPU) as source:
        parts = [score_part(net, _Part(source, ids)).store for ids in source.ids().split(16)]
        apart = read_scored(net, source, parts, m=M, batch=64)
    assert apart.kept.ids_M.tolist() == whole.kept.ids_M.tolist()
    torch.testing.assert_close(apart.bag.probabilities["label"], whole.bag.probabilities["label"])


class _Part:
    def __init__(self, source: Any, ids_n: torch.Tensor) -> None:
        self._source, self._ids_n = source, ids_n

    def __iter__(self) -> Any:
        yield self._source.read(self._ids_n)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


ENCODER: Json = {**SMALL_MODEL["model"]["encoder"], "project": 8, "trainable": False}  # type: ignore[dict-item]


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["ips", "cascade"])
def test_it_trains_and_reads_on_slides_with_the_same_encoder(selector: str, tmp_path: Path) -> None:
    coarse = {"mpp": 4.0, "channels": (4, 8), "share": 0.5}
    kind: Any = pixels_bag if selector == "ips" else (lambda number: image_bag(number, side=128))
    first = fit(settings("abmil", encoder=ENCODER, selection={"m": 3, "i": 3}), tmp_path / "abmil", kind=kind)
    selection = {"selector": selector, "m": 3, "i": 3, "coarse": coarse, "scorer": str(first)}
    second = fit(settings("transmil", encoder=ENCODER, selection=selection), tmp_path / "transmil", kind=kind)
    _, reading = read(second, kind(1))
    assert len(reading.kept.ids_M) == 3
    if selector == "ips":
        _, own = read(first, kind(1))
        assert reading.kept.ids_M.tolist() == own.kept.ids_M.tolist()


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    config = settings("abmil", encoder=ENCODER, selection={"m": 3, "i": 3})
    other = untrained(config, tmp_path / "other.safetensors", seed=99)
    selection = {"m": 3, "i": 3, "scorer": str(other)}
    with pytest.raises(CheckpointError, match="another encoder than that of this model"):
        fit(settings("transmil", encoder=ENCODER, selection=selection), tmp_path / "run", kind=pixels_bag)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"selector": "all"}, "scorer goes with selector: ips or cascade, and all ranks no patches"),
        ({"scorer": None}, None),
    ],
)
def test_a_scorer_goes_with_a_selector_that_ranks(change: Json, said: str | None) -> None:
    given = {"m": 3, "i": 3, "scorer": "model.safetensors", **change}
    if said is None:
        assert "scorer" not in settings("abmil", selection=given).selection.model_dump()
        return
    with pytest.raises(ValidationError, match=said):
        settings("transmil", selection=given)


def test_an_encoder_that_learns_is_refused() -> None:
    selection = {"m": 3, "i": 3, "scorer": "model.safetensors"}
    with pytest.raises(ValidationError, match="an encoder that does not change: set"):
        settings("transmil", encoder={**ENCODER, "trainable": True}, selection=selection)


@pytest.mark.parametrize(
    ("aggregator", "model", "said"),
    [
        ("mean", {}, "is a mean, which has no score for a single patch"),
        (
            "abmil",
            {"encoder": {**FEATURES, "features": 4}},
            "features of width 4, and those of this model are 8",
        ),
        (
            "abmil",
            {"tasks": [{"name": "grade", "classes": ["low", "high"]}]},
            r"learned grade \(low, high\), and this model learns label \(normal, tumor\)",
        ),
    ],
)
def test_a_scorer_that_cannot_score_these_patches_is_refused_before_anything_is_read(
    aggregator: str, model: Json, said: str, tmp_path: Path
) -> None:
    selection = {"selector": "all"} if aggregator == "mean" else {"m": M, "i": M}
    other = untrained(settings(aggregator, selection=selection, **model), tmp_path / "other.safetensors")
    config = settings("transmil", selection={"m": M, "i": M, "scorer": str(other)})
    with pytest.raises(ConfigError, match=said):
        check_aggregator(config.model, config.selection)


def test_what_training_fills_in_is_not_offered_as_a_setting() -> None:
    keys = [key for key in keys_of(JOBS.load("finetune")) if key.startswith("selection.scorer")]
    assert keys == ["selection.scorer", "selection.scorer.checkpoint"]


def test_a_scorer_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = settings("transmil", selection={"m": M, "i": M, "scorer": str(tmp_path / "gone.safetensors")})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        check_aggregator(config.model, config.selection)


def test_with_another_scorer_it_is_another_run(tmp_path: Path) -> None:
    other = scorer(tmp_path)
    config = settings("transmil", selection={"m": M, "i": M, "scorer": str(other)})
    fit(config, tmp_path / "run")
    fit(config, tmp_path / "run")  # nothing is left to do
    untrained(settings("abmil", selection={"m": M, "i": M}), other, seed=5)
    with pytest.raises(ConfigError, match="other settings or slides"):
        fit(config, tmp_path / "run")


def test_a_stranger_s_checkpoint_cannot_name_a_file_to_read(tmp_path: Path) -> None:
    report = fit(settings("transmil", selection={"m": M, "i": M, "scorer": str(scorer(tmp_path))}), tmp_path)
    with safe_open(report, framework="pt") as file:
        held = json.loads(file.metadata()[METADATA_KEY])
    its = held["config"]["selection"]["scorer"]
    for changed, said in (
        ({"checkpoint": its["checkpoint"]}, "holds the network of its scorer"),
        ({**its, "model": {**its["model"], "encoder": {"name": "resnet18"}}}, "no encoder of its own"),
    ):
        held["config"]["selection"]["scorer"] = changed
        save_file(load_file(report), tmp_path / "odd.safetensors", metadata={METADATA_KEY: json.dumps(held)})
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / "odd.safetensors")
