"""A run says how the device calculated."""

import json
from pathlib import Path

import pytest

from tests.conftest import SmallData
from wsi_ips.commands.predict import predict
from wsi_ips.errors import ConfigError
from wsi_ips.progress import silent
from wsi_ips.recipe import PredictJob


def job(data: SmallData, checkpoint: Path, out: Path, *, deterministic: bool) -> PredictJob:
    return PredictJob.model_validate(
        {
            "slides": sorted(data.slides.iterdir())[0],
            "checkpoint": checkpoint,
            "out": out,
            "overlays": False,
            "deterministic": deterministic,
        }
    )


def test_run_json_says_how_the_device_calculated(
    small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    for deterministic in (False, True):
        out = tmp_path / str(deterministic)
        predict(job(small_data, small_checkpoint, out, deterministic=deterministic), silent)
        told = json.loads((out / "run.json").read_text())["numerics"]
        assert told["deterministic"] is deterministic
        assert told["tf32_convolutions"] is not deterministic
    with pytest.raises(ConfigError, match="deterministic"):
        predict(job(small_data, small_checkpoint, tmp_path / "False", deterministic=True), silent)
