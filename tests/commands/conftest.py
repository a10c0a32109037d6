from pathlib import Path

import pytest
import torch

from tests.commands.console import Console, make_console
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.models import build_retinanet, save_detector


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


@pytest.fixture(scope="session")
def small_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained: it finds a few objects in every patch, wherever they are."""
    torch.manual_seed(0)
    config = DetectorConfig(
        backbone="resnet10t", pyramid_channels=8, head_channels=8, head_convs=1, mpp=2.0, score_threshold=0.0,
        most_per_image=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("detector") / "d.safetensors"
    save_detector(path, build_retinanet(config), config)
    return path
