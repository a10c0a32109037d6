"""One drawn slide through the predictor, under both selection rules and with positions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import SlideResult
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint


def predict(data: SmallData, *, rule: str, positions: str, batch: int = 64) -> SlideResult:
    attention = {**SMALL_MODEL["model"]["attention"], "positions": positions}  # type: ignore[index]
    pipeline = PipelineConfig.model_validate(
        {
            **SMALL_MODEL,
            "selection": {"rule": rule, "m": 9, "i": 8},
            "model": {**SMALL_MODEL["model"], "attention": attention},  # type: ignore[dict-item]
        }
    )
    torch.manual_seed(0)
    net = build_net(pipeline.model)
    streaming = StreamingConfig(batch=batch)
    slide = sorted(data.slides.iterdir())[0]
    return Predictor(net, pipeline, streaming=streaming, device=torch.device("cpu")).predict(
        slide, slide_id="drawn"
    )


@pytest.mark.parametrize("positions", ["none", "slide"])
def test_the_global_rule_keeps_the_patches_with_the_most_attention(
    small_data: SmallData, positions: str
) -> None:
    """The written map and the written choice agree, which the paper's memory does not promise."""
    result = predict(small_data, rule="global", positions=positions)
    scores_N = result.attention_NHT.astype(float).mean(axis=(1, 2))
    best = result.coords.ids_N[np.argsort(-scores_N, kind="stable")[:9]]
    assert set(result.kept_ids_M) == set(best)
    kept = scores_N[np.searchsorted(result.coords.ids_N, result.kept_ids_M)]
    np.testing.assert_allclose(result.kept_scores_M, kept, rtol=1e-5)
    buffer = predict(small_data, rule="buffer", positions=positions)
    assert np.array_equal(buffer.attention_NHT, result.attention_NHT)


def test_how_many_patches_are_decoded_together_does_not_change_what_is_kept(small_data: SmallData) -> None:
    large, small = (predict(small_data, rule="global", positions="slide", batch=batch) for batch in (64, 7))
    assert large.kept_ids_M.tolist() == small.kept_ids_M.tolist()
    for name, share in large.probabilities["label"].items():
        assert small.probabilities["label"][name] == pytest.approx(share, abs=1e-5)


def test_a_checkpoint_remembers_rule_and_positions(tmp_path: Path) -> None:
    attention = {**SMALL_MODEL["model"]["attention"], "positions": "slide", "wavelengths_um": [64, 5000]}  # type: ignore[index]
    pipeline = PipelineConfig.model_validate(
        {
            **SMALL_MODEL,
            "selection": {"rule": "global"},
            "model": {**SMALL_MODEL["model"], "attention": attention},  # type: ignore[dict-item]
        }
    )
    net = build_net(pipeline.model)
    save_checkpoint(tmp_path / "model.safetensors", net, pipeline)
    loaded, config = load_checkpoint(tmp_path / "model.safetensors")
    assert config.selection.rule == "global"
    assert config.model.attention.wavelengths_um == (64, 5000)
    emb, um = torch.randn(4, net.attention.query_tokens.shape[-1]), torch.rand(4, 2).double() * 9000
    assert torch.equal(loaded.logits(emb, um), net.eval().logits(emb, um))


def test_deterministic_holds_while_a_slide_is_read(small_data: SmallData) -> None:
    pipeline = PipelineConfig.model_validate(SMALL_MODEL)
    net = build_net(pipeline.model)
    held: list[bool] = []
    net.encoder.register_forward_pre_hook(
        lambda *_: held.append(torch.are_deterministic_algorithms_enabled())
    )
    for deterministic in (False, True):
        held.clear()
        Predictor(
            net,
            pipeline,
            streaming=StreamingConfig(),
            device=torch.device("cpu"),
            deterministic=deterministic,
        ).predict(sorted(small_data.slides.iterdir())[0], slide_id="drawn")
        assert held
        assert set(held) == {deterministic}
        assert not torch.are_deterministic_algorithms_enabled()
