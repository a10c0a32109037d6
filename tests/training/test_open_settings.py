"""``model.attention.layer_norm``, which training decides where it is left open.

``model.encoder.standardise``, the other one, is in test_standardise.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL
from tests.training.test_standardise import pixels_bag
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.attention import DirectAttention
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.training.fit import train_bags
from wsi_ips.training.open_settings import decide_open_settings
from wsi_ips.training.run_state import BEST_NAME

Json = dict[str, Any]
SCRATCH: Json = {"name": "resnet10t", "stage": 2, "weights": "none"}


def learning(*, layer_norm: bool | None = None, **training: Any) -> FinetuneConfig:
    model: Json = {**SMALL_MODEL["model"]}  # type: ignore[dict-item]
    model["attention"] = {"heads": 2, "key_dim": 4, "layer_norm": layer_norm}
    training = {"epochs": 2, "lr": 1e-3, **training}
    return FinetuneConfig.model_validate(
        {"selection": {"m": 3, "i": 3}, "model": model, "training": training}
    )


def trained(config: FinetuneConfig, out: Path) -> tuple[bool, bool | None]:
    """Whether the network of the best checkpoint has the LayerNorm, and what its configuration says."""
    bags = [pixels_bag(number) for number in range(8)]
    report = train_bags(bags[4:], bags[:4], config, out, device=torch.device("cpu"))
    net, held = load_checkpoint(report.checkpoint)
    assert isinstance(net.attention, DirectAttention)
    return net.attention.layer_norm, held.model.attention.layer_norm


@pytest.mark.parametrize(
    ("model", "more", "decided"),
    [
        ({"encoder": SCRATCH}, {}, True),
        ({"encoder": {**SCRATCH, "weights": "timm"}}, {}, None),
        ({"encoder": {"name": "features", "features": 8}}, {}, None),
        ({"encoder": {"name": "features", "features": 8, "weights": "none"}}, {}, None),
        ({"encoder": SCRATCH, "attention": {"layer_norm": False}}, {}, False),
        ({"encoder": {**SCRATCH, "weights": "timm"}, "attention": {"layer_norm": True}}, {}, True),
        ({"encoder": SCRATCH, "attention": "paper"}, {}, None),
        ({"encoder": SCRATCH, "aggregator": {"name": "abmil"}}, {}, None),
        ({"encoder": SCRATCH}, {"selection": {"selector": "attention_sampling"}}, None),
    ],
)
def test_it_is_decided_where_the_user_says_nothing(
    tmp_path: Path, model: Json, more: Json, decided: bool | None
) -> None:
    config = FinetuneConfig.model_validate({"model": model, **more})
    assert decide_open_settings(config, tmp_path).model.attention.layer_norm is decided


def test_attention_sampling_refuses_it() -> None:
    """It has no head of attention."""
    with pytest.raises(ValidationError, match=r"leave model\.attention\.layer_norm out"):
        FinetuneConfig.model_validate(
            {
                "model": {"encoder": SCRATCH, "attention": {"layer_norm": True}},
                "selection": {"selector": "attention_sampling"},
            }
        )


def test_a_training_writes_down_what_was_decided(tmp_path: Path) -> None:
    assert trained(learning(), tmp_path) == (True, True)
    assert (
        json.loads((tmp_path / "run.json").read_text())["config"]["model"]["attention"]["layer_norm"] is True
    )


def test_a_run_that_an_earlier_version_began_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("wsi_ips.training.fit.decide_open_settings", lambda config, _out: config)
        assert trained(learning(), tmp_path) == (False, None)
    assert trained(learning(), tmp_path) == (False, None)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_as_it_began_where_the_setting_is_left_out_later(tmp_path: Path, before: bool) -> None:
    """Scales too, which say false where they were turned off."""
    config = learning(layer_norm=before)
    encoder = config.model.encoder.model_copy(update={"standardise": False})
    config = config.model_copy(update={"model": config.model.model_copy(update={"encoder": encoder})})
    trained(config, tmp_path)
    assert trained(learning(), tmp_path) == (before, before)
    with pytest.raises(ConfigError, match=rf"attention\.layer_norm {before} there, {not before} here"):
        trained(learning(layer_norm=not before), tmp_path)


@pytest.mark.parametrize("before", [True, False])
def test_a_training_goes_on_as_the_checkpoint_that_it_begins_from(tmp_path: Path, before: bool) -> None:
    trained(learning(layer_norm=before), tmp_path / "first")
    start = tmp_path / "first" / BEST_NAME
    assert trained(learning(start=start), tmp_path / "second") == (before, before)
    other = learning(layer_norm=not before, start=start)
    with pytest.raises(CheckpointError, match=rf"layer_norm: {str(before).lower()}, and this model has"):
        trained(other, tmp_path / "third")
