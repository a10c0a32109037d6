import pytest
import torch
from pydantic import ValidationError

from wsi_ips.config import EncoderConfig, ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.build import build_net

CAMELYON16 = {
    "encoder": {"name": "features", "features": 2048, "project": 512},
    "attention": {"heads": 8, "key_dim": 64, "value_dim": 64, "inner_dim": 2048},
    "tasks": [{"name": "label", "classes": ["tumor"], "activation": "sigmoid"}],
}


def test_the_paper_s_camelyon16_model_has_its_parameters() -> None:
    """4,201,473 in the reference: projector 1,050,112, transformer 3,150,848, head 513."""
    net = build_net(ModelConfig.model_validate(CAMELYON16))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parts == {"encoder": 0, "projector": 1_050_112, "attention": 3_150_848, "heads": 513}
    assert sum(parts.values()) == 4_201_473


def test_features_of_another_width_and_pixels_are_refused() -> None:
    net = build_net(ModelConfig.model_validate({"encoder": {"name": "features", "features": 8}}))
    assert net.encode(torch.rand(3, 8, dtype=torch.float64)).dtype == torch.float32
    for wrong in (torch.rand(3, 9), torch.zeros(3, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ConfigError, match="stored features of width 8"):
            net.encode(wrong)


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "features"},
        {"name": "resnet18", "features": 8},
        {"name": "features", "features": 10**9},
        {"name": "features", "features": 8, "stage": 1},
    ],
)
def test_an_encoder_of_features_needs_their_width_and_nothing_else(encoder: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EncoderConfig.model_validate(encoder)
