"""Features of unequal scales (``model.encoder.standardise``)."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.projectors import StandardisedProjector
from wsi_ips.models.ips_net import BagNet
from wsi_ips.training.fit import train_bags
from wsi_ips.training.open_settings import decide_open_settings
from wsi_ips.training.run_state import BEST_NAME, HEAD_START, RUN_NAME, STATE_NAME, forget_run
from wsi_ips.training.standardise import MOST_BAGS, MOST_PATCHES, standardise

CPU = torch.device("cpu")
WIDTH, PATCHES = 8, 30
SCALES_C = torch.tensor([0.1, *[3.0] * (WIDTH - 1)])
"""The feature that decides the label varies thirty times less than the others."""
OFFSET = 20.0
"""What all features have in common."""
Json = dict[str, Any]


Standardise = Literal["centre"] | bool | None
CHOICES: tuple[Standardise, ...] = (False, True, "centre")


def on_features(*, standardise: Standardise = True, **more: Any) -> FinetuneConfig:
    encoder = {"name": "features", "features": WIDTH, "project": 16, "standardise": standardise}
    return FinetuneConfig.model_validate(
        {
            "selection": {"m": 4, "i": 4},
            "model": {"encoder": encoder},
            "training": {"epochs": 5, "lr": 3e-3},
            **more,
        }
    )


def on_pixels(**training: Any) -> FinetuneConfig:
    model: Json = {**SMALL_MODEL["model"], "attention": {"heads": 2, "key_dim": 4}}  # type: ignore[dict-item]
    model["encoder"] = {**model["encoder"], "standardise": True}
    training = {"epochs": 1, "lr": 1e-3, "head_start": {"epochs": 2}, **training}
    return FinetuneConfig.model_validate(
        {"selection": {"m": 3, "i": 3}, "model": model, "training": training}
    )


def features_bag(number: int, *, scales_C: torch.Tensor = SCALES_C, unit: float = 1.0) -> MemoryBag:
    """One patch of 30 says what an odd bag is."""
    generator = torch.Generator().manual_seed(number)
    x_NC = torch.randn(PATCHES, WIDTH, generator=generator)
    if number % 2:
        x_NC[int(torch.randint(PATCHES, (), generator=generator)), 0] += 8
    return MemoryBag(f"bag{number}", (x_NC * scales_C + OFFSET) * unit, {"label": number % 2})


def pixels_bag(number: int) -> MemoryBag:
    generator = torch.Generator().manual_seed(number)
    pixels = 0.2 + 0.6 * (number % 2) + 0.1 * torch.rand(5, 3, 32, 32, generator=generator)
    return MemoryBag(f"slide{number}", pixels, {"label": number % 2})


def scales(net: BagNet) -> StandardisedProjector:
    assert isinstance(net.projector, StandardisedProjector)
    return net.projector


def test_a_small_feature_far_from_zero_is_learned_from(tmp_path: Path) -> None:
    bags = [features_bag(number) for number in range(36)]
    training, aucs = {"epochs": 12, "lr": 3e-3}, {}
    each: Standardise
    for each in (False, True):
        config = on_features(standardise=each, training=training)
        report = train_bags(bags[12:], bags[:12], config, tmp_path / str(each), device=CPU)
        aucs[each] = report.history[-1]["val_auc"]
    assert aucs[True] == 1
    assert aucs[False] < 0.75


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_features_far_from_zero_are_learned_from_in_whatever_unit(tmp_path: Path, unit: float) -> None:
    """Where nothing is said they are centred, and divided by what they vary on average."""
    bags = [features_bag(number, scales_C=torch.ones(WIDTH), unit=unit) for number in range(36)]
    training, aucs = {"epochs": 12, "lr": 3e-3}, {}
    for each in ("as they are", None):
        config = on_features(standardise=False if each else None, training=training)
        report = train_bags(bags[12:], bags[:12], config, tmp_path / str(each), device=CPU)
        aucs[each] = report.history[-1]["val_auc"]
    net, held = load_checkpoint(report.checkpoint)
    assert held.model.encoder.standardise == "centre"
    assert len(set(scales(net).deviation.tolist())) == 1
    assert aucs[None] == 1
    assert aucs["as they are"] < 0.75


def test_means_and_deviations_are_those_of_the_training_patches(tmp_path: Path) -> None:
    bags, config = [features_bag(number) for number in range(8)], on_features()
    report = train_bags(bags[2:], bags[:2], config, tmp_path, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)
    x_NC = torch.cat([bag.pixels_N for bag in bags[2:]])
    assert torch.allclose(scales(net).mean, x_NC.mean(dim=0), rtol=1e-5)
    assert torch.allclose(scales(net).deviation, x_NC.std(dim=0, correction=0), rtol=1e-4)


def test_of_large_bags_and_many_a_part_is_read_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []

    class Noting(torch.nn.Module):
        dim = 1

        def forward(self, x_nC: torch.Tensor) -> torch.Tensor:
            read.append(x_nC)
            return x_nC

    config = on_features()
    net = build_net(config.model)
    monkeypatch.setattr(net, "encoder", Noting())
    net.projector = StandardisedProjector(1, None)
    bags = [
        MemoryBag(f"bag{number}", torch.arange(1000.0)[:, None] + 1000 * number, {"label": 0})
        for number in range(100)
    ]
    standardise(net, bags, config.streaming, device=CPU)
    seen = torch.cat(read)
    assert len(seen) == MOST_BAGS * MOST_PATCHES
    assert (seen.min(), seen.max()) == (0, 99_999)
    assert abs(float(scales(net).mean) - 49_999.5) < 1


def test_a_bag_that_cannot_be_read_is_passed_over_and_reported_by_training(tmp_path: Path) -> None:
    good = [features_bag(number) for number in range(6)]
    bad = MemoryBag("bad", good[0].pixels_N, {"label": 0}, broken=True)
    report = train_bags([bad, *good[2:]], good[:2], on_features(), tmp_path, device=CPU, max_bad=1)
    assert list(report.bad) == ["bad"]
    net, _ = load_checkpoint(report.checkpoint)
    assert torch.allclose(
        scales(net).mean, torch.cat([bag.pixels_N for bag in good[2:]]).mean(dim=0), rtol=1e-5
    )


def test_features_that_are_not_finite_change_no_scale() -> None:
    config = on_features()
    net, good = build_net(config.model), features_bag(0)
    broken = MemoryBag("broken", torch.full((PATCHES, WIDTH), float("nan")), {"label": 1})
    standardise(net, [broken, good], config.streaming, device=CPU)
    assert torch.allclose(scales(net).mean, good.pixels_N.mean(dim=0), rtol=1e-5)
    alone = build_net(config.model)
    standardise(alone, [broken], config.streaming, device=CPU)
    assert scales(alone).mean.tolist() == [0] * WIDTH
    assert scales(alone).deviation.tolist() == [1] * WIDTH


def test_end_to_end_training_keeps_the_scales_of_its_head_start(tmp_path: Path) -> None:
    bags, config = [pixels_bag(number) for number in range(8)], on_pixels()
    report = train_bags(bags[4:], bags[:4], config, tmp_path, device=CPU)
    start, of_start = load_checkpoint(tmp_path / HEAD_START / BEST_NAME)
    net, _ = load_checkpoint(report.checkpoint)
    assert of_start.model.encoder.standardise
    assert torch.equal(scales(net).mean, scales(start).mean)
    assert torch.equal(scales(net).deviation, scales(start).deviation)
    assert float(scales(net).mean.abs().sum()) > 0


def test_without_a_head_start_they_are_those_of_the_encoder_as_it_begins(tmp_path: Path) -> None:
    bags, config = [pixels_bag(number) for number in range(8)], on_pixels(head_start={"epochs": 0})
    report = train_bags(bags[4:], bags[:4], config, tmp_path, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)
    assert float(scales(net).mean.abs().sum()) > 0
    assert not torch.equal(scales(net).deviation, torch.ones_like(scales(net).deviation))


def test_what_begins_from_a_checkpoint_keeps_its_scales(tmp_path: Path) -> None:
    first = [features_bag(number) for number in range(8)]
    report = train_bags(first[2:], first[:2], on_features(), tmp_path / "first", device=CPU)
    held, _ = load_checkpoint(report.checkpoint)
    others = [MemoryBag(bag.bag_id, bag.pixels_N + 100, bag.targets) for bag in first]
    training = {"epochs": 1, "lr": 3e-3, "start": report.checkpoint}
    report = train_bags(
        others[2:], others[:2], on_features(training=training), tmp_path / "second", device=CPU
    )
    net, _ = load_checkpoint(report.checkpoint)
    assert torch.equal(scales(net).mean, scales(held).mean)


def test_a_scorer_brings_its_own_scales(tmp_path: Path) -> None:
    bags = [features_bag(number) for number in range(8)]
    scorer = train_bags(bags[2:], bags[:2], on_features(), tmp_path / "scorer", device=CPU)
    selection = {"m": 4, "i": 4, "scorer": str(scorer.checkpoint)}
    report = train_bags(
        bags[2:], bags[:2], on_features(standardise=False, selection=selection), tmp_path / "net", device=CPU
    )
    net: Any
    net, _ = load_checkpoint(report.checkpoint)
    held, _ = load_checkpoint(scorer.checkpoint)
    assert torch.equal(scales(net.scorer).mean, scales(held).mean)
    assert not isinstance(net.projector, StandardisedProjector)


def test_settings_without_it_are_stored_as_before() -> None:
    assert "standardise" not in on_features(standardise=None).model_dump(mode="json")["model"]["encoder"]
    given: Standardise
    for given in (False, True, "centre"):
        stored = on_features(standardise=given).model_dump(mode="json")["model"]["encoder"]
        assert stored["standardise"] == given
    assert not isinstance(build_net(on_features(standardise=None).model).projector, StandardisedProjector)


STAGES: Json = {"name": "resnet10t", "stage": 2, "pooling": "levels_std", "project": 16}
PAPER: Json = {"attention": {"block": "paper", "heads": 2, "key_dim": 4, "value_dim": 4, "inner_dim": 8}}
STORED: Json = {"name": "features", "features": WIDTH, "project": 16}


@pytest.mark.parametrize(
    ("model", "more", "decided"),
    [
        ({"encoder": STAGES}, {}, True),
        ({"encoder": {**STAGES, "pooling": "levels"}}, {}, True),
        ({"encoder": STAGES, "aggregator": {"name": "abmil"}}, {}, True),
        ({"encoder": {**STAGES, "pooling": "model"}}, {}, "centre"),
        ({"encoder": {**STAGES, "weights": "none"}}, {}, None),
        ({"encoder": STAGES, **PAPER}, {}, None),
        ({"encoder": STORED, **PAPER}, {}, None),
        ({"encoder": STAGES}, {"selection": {"selector": "attention_sampling"}}, None),
        ({"encoder": {**STAGES, "standardise": False}}, {}, False),
        ({"encoder": {**STAGES, "standardise": "centre"}}, {}, "centre"),
        ({"encoder": STORED}, {}, "centre"),
        (
            {"encoder": STORED, "aggregator": {"name": "transmil"}},
            {"selection": {"selector": "all"}},
            "centre",
        ),
        ({"encoder": {**STORED, "standardise": True}, **PAPER}, {}, True),
    ],
)
def test_it_is_decided_where_the_user_says_nothing(
    tmp_path: Path, model: Json, more: Json, decided: Standardise
) -> None:
    """Scales differ much where several stages are pooled; the published networks stay as they were published."""
    config = decide_open_settings(FinetuneConfig.model_validate({"model": model, **more}), tmp_path)
    assert config.model.encoder.standardise == decided


def test_a_training_writes_down_what_was_decided(tmp_path: Path) -> None:
    """And its head start, which sees features alone, does the same."""
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_convnext").state_dict(), weights)
    encoder = {"name": "test_convnext", "weights": str(weights), "stage": 1, "pooling": "levels_std"}
    values = on_pixels().model_dump(mode="json")
    config = FinetuneConfig.model_validate({**values, "model": {**values["model"], "encoder": encoder}})
    bags = [pixels_bag(number) for number in range(8)]
    report = train_bags(bags[4:], bags[:4], config, tmp_path / "run", device=CPU)
    for path in (report.checkpoint, tmp_path / "run" / HEAD_START / BEST_NAME):
        net, held = load_checkpoint(path)
        assert held.model.encoder.standardise is True
        assert float(scales(net).mean.abs().sum()) > 0


def as_an_earlier_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training leaves features as they are where nothing else is said, and says nothing of it."""
    monkeypatch.setattr("wsi_ips.training.fit.decide_open_settings", lambda config, _out: config)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_run_that_an_earlier_version_began_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    bags, run = [features_bag(number) for number in range(8)], tmp_path / "run"
    config = on_features(standardise=None, training={"epochs": 3, "lr": 3e-3, "restarts": restarts})
    with monkeypatch.context() as earlier:
        as_an_earlier_version(earlier)
        first = train_bags(bags[2:], bags[:2], config, run, device=CPU)
    assert "standardise" not in json.loads((run / "run.json").read_text())["config"]["model"]["encoder"]
    again = train_bags(bags[2:], bags[:2], config, run, device=CPU)
    assert again.history == first.history
    _, held = load_checkpoint(again.checkpoint)
    assert held.model.encoder.standardise is None


def test_a_run_whose_head_start_an_earlier_version_made_is_continued(tmp_path: Path) -> None:
    """It was killed before its first epoch."""
    run, config = tmp_path / "run", on_pixels()
    encoder = config.model.encoder.model_copy(update={"standardise": None, "weights": "timm"})
    config = config.model_copy(update={"model": config.model.model_copy(update={"encoder": encoder})})
    assert decide_open_settings(config, run).model.encoder.standardise == "centre"
    (run / HEAD_START).mkdir(parents=True)
    (run / HEAD_START / STATE_NAME).touch()
    of_start = on_features(standardise=None).model_dump(mode="json")
    (run / HEAD_START / RUN_NAME).write_text(json.dumps({"config": of_start}))
    assert decide_open_settings(config, run).model.encoder.standardise is None


def test_a_run_that_begins_anew_is_decided_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags, config = [features_bag(number) for number in range(8)], on_features(standardise=None)
    with monkeypatch.context() as earlier:
        as_an_earlier_version(earlier)
        train_bags(bags[2:], bags[:2], config, tmp_path, device=CPU)
    forget_run(tmp_path)
    report = train_bags(bags[2:], bags[:2], config, tmp_path, device=CPU)
    assert load_checkpoint(report.checkpoint)[1].model.encoder.standardise == "centre"


@pytest.mark.parametrize("before", [False, True, "centre"])
def test_a_training_goes_on_as_the_checkpoint_that_it_begins_from(
    tmp_path: Path, before: Standardise
) -> None:
    """Also from a checkpoint of an earlier version, which says nothing."""
    bags = [features_bag(number) for number in range(8)]
    config = on_features(standardise=before)
    first = train_bags(bags[2:], bags[:2], config, tmp_path / "first", device=CPU).checkpoint
    if not before:
        net, held = load_checkpoint(first)
        encoder = held.model.encoder.model_copy(update={"standardise": None})
        held = held.model_copy(update={"model": held.model.model_copy(update={"encoder": encoder})})
        save_checkpoint(first := tmp_path / "earlier.safetensors", net, held)
    training = {"epochs": 1, "lr": 3e-3, "start": first}
    report = train_bags(
        bags[2:], bags[:2], on_features(standardise=None, training=training), tmp_path / "second", device=CPU
    )
    net, held = load_checkpoint(report.checkpoint)
    assert held.model.encoder.standardise == (before or None)
    assert isinstance(net.projector, StandardisedProjector) is bool(before)


@pytest.mark.parametrize(("before", "asked"), [(x, y) for x in CHOICES for y in CHOICES if x != y])
def test_a_training_that_asks_for_other_scales_than_its_start_has_is_refused(
    tmp_path: Path, before: Standardise, asked: Standardise
) -> None:
    """Their weights have equal shapes, and the start would bring its own scales along."""
    bags = [features_bag(number) for number in range(8)]
    first = train_bags(
        bags[2:], bags[:2], on_features(standardise=before), tmp_path / "first", device=CPU
    ).checkpoint
    config = on_features(standardise=asked, training={"epochs": 1, "start": first})
    with pytest.raises(
        CheckpointError, match=rf"standardise: {str(before).lower()}, and this model has"
    ) as told:
        train_bags(bags[2:], bags[:2], config, tmp_path / "second", device=CPU)
    assert f"or set it to {str(before).lower()}" in str(told.value)


@pytest.mark.parametrize("standardise", ["yes", 5, [1], "center"])
def test_a_run_json_that_says_nonsense_of_it_is_passed_over(tmp_path: Path, standardise: object) -> None:
    bags, config = [features_bag(number) for number in range(8)], on_features(standardise=None)
    train_bags(bags[2:], bags[:2], config, tmp_path, device=CPU)
    described = json.loads((tmp_path / "run.json").read_text())
    described["config"]["model"]["encoder"]["standardise"] = standardise
    (tmp_path / "run.json").write_text(json.dumps(described))
    assert decide_open_settings(config, tmp_path).model.encoder.standardise == "centre"


def test_what_it_may_be_is_said() -> None:
    with pytest.raises(ValidationError, match="'center' is none of centre, true and false"):
        on_features(standardise="center")  # type: ignore[arg-type]


def test_features_as_large_as_float32_goes_have_finite_scales() -> None:
    projector = StandardisedProjector(2, None, each=False)
    projector.take(torch.zeros(2), torch.tensor([1e37, 1.0]))
    assert float(projector.deviation[0]) == pytest.approx(1e37 / math.sqrt(2), rel=1e-6)
    assert projector(torch.tensor([[1e37, 1.0]])).isfinite().all()


def test_centred_features_keep_how_much_they_vary_beside_each_other() -> None:
    projector = StandardisedProjector(2, None, each=False)
    projector.take(torch.tensor([5.0, 5.0]), torch.tensor([1.0, 7.0]))
    assert projector(torch.tensor([[6.0, 12.0]])).tolist() == [[pytest.approx(0.2), pytest.approx(1.4)]]
    projector.take(torch.tensor([5.0, 5.0]), torch.zeros(2))
    assert projector(torch.tensor([[6.0, 12.0]])).tolist() == [[1.0, 7.0]]


def test_a_feature_that_never_varies_is_only_shifted() -> None:
    projector = StandardisedProjector(2, None)
    projector.take(torch.tensor([7.0, 7.0]), torch.zeros(2))
    assert projector(torch.tensor([[7.0, 8.0]])).tolist() == [[0.0, 1.0]]
    assert projector(torch.full((3, 2), 7.0)).isfinite().all()


def test_noise_of_a_dead_feature_is_not_blown_up() -> None:
    projector = StandardisedProjector(2, None)
    projector.take(torch.zeros(2), torch.tensor([1e-9, 1.0]))
    assert float(projector(torch.tensor([[1e-3, 0.0]]))[0, 0]) < 0.2
