"""Rates: stated for a card, read from a file, measured; and what is simulated for them."""

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import FinetuneConfig, StreamingConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.planning.measure import Wanted, measured_rates
from wsi_ips.planning.rates import Rates, known_devices, read_rates, stated_rates
from wsi_ips.planning.simulated import Flops, Simulations, encoder_flops
from wsi_ips.planning.survey import SlideToRead, survey
from wsi_ips.tiling.patches import PatchesInTissue


def config(name: str = "resnet18", **encoder: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "tiling": {"patch_px": 64},
            "selection": {"m": 8},
            "streaming": {"batch": 4},
            "model": {"encoder": {"name": name, **encoder}},
            "training": {"micro_batch": 4, "slides_per_step": 2},
        }
    )


def test_every_listed_card_names_the_source_of_its_numbers() -> None:
    devices = known_devices()
    assert {"h200", "a100"} <= set(devices)
    for device in devices.values():
        assert device.source
        assert device.share_source
        assert 0 < device.convolution_share < device.transformer_share < 1


def test_a_card_s_rate_is_its_peak_times_its_share() -> None:
    card = known_devices()["h200"]
    flops = Flops(forward=1e12, learn=3e12, convolutions=0.0)
    exact = stated_rates("h200", config(), flops, host=None)
    assert exact.forward_s == pytest.approx(1 / (card.fp32 * card.transformer_share))
    assert exact.learn_s == pytest.approx(3 / (card.fp32 * card.transformer_share))
    training = config().training.model_copy(update={"precision": "bf16"})
    half = stated_rates("h200", config().model_copy(update={"training": training}), flops, host=None)
    assert half.forward_s == pytest.approx(1 / (card.bf16 * card.transformer_share))
    assert half.forward_s is not None
    assert exact.forward_s is not None
    assert exact.forward_s / half.forward_s == pytest.approx(exact.half_gain)
    assert exact.how == "estimated"
    assert any("not measured" in note for note in exact.notes)
    with pytest.raises(ConfigError, match="h300: known are cpu, cuda"):
        stated_rates("h300", config(), flops, host=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "no mapping"),
        ("device: mine\n", "cores: Field required"),
        ("device: mine\ncores: 2\nforward_s: -1\n", "forward_s"),
        ("device: mine\ncores: 2\nfoward_s: 1\n", "foward_s"),
        ("device: [", "cannot be read"),
    ],
)
def test_a_wrong_file_of_rates_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_rates(path)
    assert str(path) in str(raised.value)


def test_rates_are_read_from_a_file_or_from_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text("device: mine\ncores: 2\nforward_s: 0.5\n")
    assert read_rates(path).how == "given"
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps({"rates": {"device": "mine", "how": "measured", "cores": 2, "forward_s": 0.5}})
    )
    assert read_rates(plan).forward_s == read_rates(path).forward_s == 0.5
    with pytest.raises(ConfigError, match="no such file"):
        read_rates(tmp_path / "none.yaml")


def test_the_arithmetic_of_known_networks() -> None:
    resnet = encoder_flops(config().model_copy(update={"tiling": TilingConfig(patch_px=224)}))
    assert resnet.forward == pytest.approx(2 * 1.82e9, rel=0.02)  # timm: 1.82 GMACs
    assert resnet.learn == pytest.approx(3 * resnet.forward, rel=0.05)
    assert resnet.convolutions == pytest.approx(1)
    frozen = encoder_flops(config(trainable=False))
    assert frozen.learn == frozen.forward
    transformer = encoder_flops(
        config("vit_small_patch16_224").model_copy(update={"tiling": TilingConfig(patch_px=224)})
    )
    assert transformer.forward == pytest.approx(2 * 4.6e9, rel=0.05)  # timm: 4.6 GMACs
    assert transformer.convolutions < 0.05


def test_both_rules_of_selection_are_simulated() -> None:
    settings = config()
    ruled = {
        rule: Simulations(learning=True)(
            settings.model_copy(update={"selection": settings.selection.model_copy(update={"rule": rule})})
        )
        for rule in ("buffer", "global")
    }
    assert ruled["global"] == ruled["buffer"]
    assert ruled["global"].selection > 0


def test_a_configuration_is_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_ips.planning import simulated

    count = 0
    real = simulated.simulated_peaks

    def counted(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(simulated, "simulated_peaks", counted)
    simulations = Simulations(learning=True)
    first = simulations(config())
    assert simulations(config()) == first
    assert count == 1
    smaller = config().model_copy(update={"streaming": StreamingConfig(batch=2)})
    assert simulations(smaller).selection < first.selection
    assert simulations(smaller).step == first.step
    assert simulations(config()) == first
    assert count == 2
    assert Simulations(learning=False)(config()).step == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "predict", "features"])
def test_a_measurement_fills_in_what_its_kind_of_work_needs(small_data: SmallData, kind: str) -> None:
    settings = FinetuneConfig.model_validate(
        {**SMALL_MODEL, "training": {"head_start": {"epochs": 4}, "micro_batch": 4, "slides_per_step": 2}}
    )
    slides = [SlideToRead(path.stem, path, "train") for path in sorted(small_data.slides.glob("*.tif"))[:1]]
    seen = survey(slides, PatchesInTissue(settings.tiling), settings.streaming)
    wanted = Wanted(
        kind=kind,  # type: ignore[arg-type]
        config=settings,
        sample=seen.samples[0],
        device="cpu",
        overlays=True,
        mean_patches=30,
        budget_s=0.2,
    )
    rates = measured_rates(wanted)
    assert isinstance(rates, Rates)
    assert rates.how == "measured"
    assert rates.forward_s is not None
    assert rates.forward_s > 0
    assert rates.megapixel_s is not None
    assert rates.peak_mb is not None
    assert rates.base_mb is not None
    assert rates.peak_mb >= rates.base_mb > 100
    assert (rates.learn_s is not None) == (rates.head is not None) == (kind == "finetune")
    assert (rates.overlay_s > 0) == (kind == "predict")
