"""What several tests of inference use."""

from pathlib import Path

import pytest
import torch

from wsi_ips.config import StreamingConfig
from wsi_ips.inference.predict import Predictor
from wsi_ips.models.checkpoint import load_checkpoint

SHA256 = "c" * 64
"""What the results of the fixture ``predictor`` say of its checkpoint."""


@pytest.fixture
def predictor(small_checkpoint: Path) -> Predictor:
    """The small trained model, on the CPU."""
    net, pipeline = load_checkpoint(small_checkpoint)
    streaming = StreamingConfig(batch=16)
    return Predictor(net, pipeline, streaming=streaming, device=torch.device("cpu"), checkpoint=SHA256)
