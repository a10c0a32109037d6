"""Several networks on one slide: what their result is made of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.errors import SlideClosed
from wsi_ips.inference.checkpoints import EnsemblePredictor, mean_and_spread, mean_result
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import read_result, write_result
from wsi_ips.models.build import build_net

PIPELINE = PipelineConfig.model_validate(SMALL_MODEL)


def predictor(seed: int) -> Predictor:
    torch.manual_seed(seed)
    net = build_net(PIPELINE.model)
    return Predictor(
        net, PIPELINE, streaming=StreamingConfig(), device=torch.device("cpu"), checkpoint=str(seed)
    )


def test_mean_and_the_samples_deviation() -> None:
    told = [{"label": {"a": p, "b": 1 - p}} for p in (0.2, 0.4, 0.9)]
    means, spread = mean_and_spread(told)
    assert means["label"] == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    assert spread["label"]["a"] == pytest.approx((0.13) ** 0.5)


def test_a_slide_is_opened_once_read_by_each_and_closed(small_data: SmallData, tmp_path: Path) -> None:
    path = sorted(small_data.slides.iterdir())[0]
    members = [predictor(seed) for seed in range(3)]
    together = EnsemblePredictor(members, checkpoint="all three")
    prepared = replace(together.prepare(path, slide_id="s"), seconds=1000.0)
    result = together.read(prepared)
    n_patches = len(prepared.coords)
    assert result.telemetry.open_s == 1000
    assert 1000 < result.telemetry.seconds < 2000
    assert result.telemetry.patches == 3 * n_patches
    with pytest.raises(SlideClosed):
        prepared.slide.read((0, 0), level=0, size_px=(8, 8))
    alone = [member.predict(path, slide_id="s") for member in members]
    assert result.checkpoint == "all three"
    assert (result.attention_NHT == alone[0].attention_NHT).all()
    assert result.probabilities == mean_and_spread([one.probabilities for one in alone])[0]
    write_result(tmp_path / "s.h5", result)
    read = read_result(tmp_path / "s.h5")
    assert read.spread == result.spread
    assert read.probabilities == result.probabilities


def test_tiles_that_any_of_them_found_bad_are_named_once(small_data: SmallData) -> None:
    path = sorted(small_data.slides.iterdir())[0]
    one = predictor(0).predict(path, slide_id="s")
    found = mean_result(
        [replace(one, bad_tiles=("x", "y")), replace(one, bad_tiles=("y", "z"))], checkpoint="both"
    )
    assert found.bad_tiles == ("x", "y", "z")
    assert set(found.spread["label"].values()) == {0.0}
