"""Encoders of every origin are under contract: timm's, a listed one with weights of its own, a user's function."""

from pathlib import Path

import pytest
from torch import nn

from wsi_ips.config import EncoderConfig
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.testing.encoders import EncoderContract

MINE = """
from torch import nn

class Mine(nn.Module):
    dim = 4
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
    def forward(self, pixels):
        return self.linear(nn.functional.adaptive_avg_pool2d(pixels, (1, 2)).flatten(1))

def build():
    return Mine()
"""


class TestConvolutions(EncoderContract):
    name = "test_convnext"


class TestStagesSideBySide(EncoderContract):
    def made(self) -> nn.Module:
        return TimmEncoder(EncoderConfig(name="test_resnet", weights="none", pooling="levels"))


class TestStagesWithDeviations(EncoderContract):
    def made(self) -> nn.Module:
        return TimmEncoder(EncoderConfig(name="test_resnet", weights="none", pooling="levels_std", stage=1))


class TestTokens(EncoderContract):
    """Patches are resized to what the transformer takes."""

    def made(self) -> nn.Module:
        return TimmEncoder(
            EncoderConfig.model_validate(
                {"name": "test_vit", "weights": "none", "pooling": "cls_mean", "transform": {"resize": 160}}
            )
        )


class TestFunctionInAFile(EncoderContract):
    @pytest.fixture(autouse=True)
    def _written(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(MINE)
        self.name = f"{tmp_path / 'mine.py'}:build"
