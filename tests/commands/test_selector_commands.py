"""Attention sampling and the cascade from the command line: fine-tune, predict, look at what is written."""

import csv
import json
from pathlib import Path

import h5py
import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.heatmaps.overlay import write_overlay
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.slides.registry import open_slide

SMALL = [
    "tiling={patch_px: 32, patch_mpp: 2.0, min_tissue: 0.2}",
    "model={encoder: {name: test_convnext, weights: none, stage: 1}, "
    "attention: {heads: 2, key_dim: 8, value_dim: 8, inner_dim: 16}}",
    "training={epochs: 1, warmup_epochs: 0, slides_per_step: 2}",
]
SELECTIONS = {
    "attention_sampling": "{selector: attention_sampling, sampling: {samples: 5}, "
    "coarse: {mpp: 8, channels: [4, 8]}}",
    "cascade": "{selector: cascade, m: 4, i: 8, coarse: {mpp: 8, channels: [4, 8], recall: 0.5}}",
}


def settings(*given: str) -> list[str]:
    return [word for each in given for word in ("--set", each)]


@pytest.mark.parametrize("selector", SELECTIONS)
@pytest.mark.slow
def test_a_selector_is_trained_and_predicts_like_any_other(
    console: Console, small_data: SmallData, tmp_path: Path, selector: str
) -> None:
    model, out = tmp_path / "model", tmp_path / "predictions"
    chosen = settings(*SMALL, f"selection={SELECTIONS[selector]}")
    said = console("finetune", small_data.manifest, "--out", model, "--device", "cpu", *chosen)
    assert said.code == 0, said.complaint
    slides = small_data.slides
    said = console(
        "predict", slides, "--checkpoint", model / "model.safetensors", "--out", out, "--device", "cpu"
    )
    assert said.code == 0, said.complaint
    with (out / "slides.csv").open() as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    with (out / "predictions.csv").open() as file:
        predicted = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(predicted) == 6
    run = RunFolder(out)
    for slide_id, row in rows.items():
        result = read_result(run.attention(slide_id))
        report = result.coarse
        assert report is not None
        assert float(row["encode_s"]) > 0
        assert float(row["select_s"]) > 0
        assert int(float(row["patches"])) == report.let_through
        assert int(float(row["patches_saved"])) == report.saved > 0
        assert int(predicted[slide_id]["n_patches"]) == report.patches == report.let_through + report.saved
        assert result.attention_NHT.sum(axis=0) == pytest.approx(1, abs=1e-4)
        assert (out / "overlays" / f"{slide_id}.png").exists()
        if selector == "attention_sampling":
            # Its map is of the whole tissue.
            assert len(result.coords) == report.patches
            assert report.let_through == min(5, report.patches)
        else:
            assert len(result.coords) == report.let_through
            assert float(row["recall"]) == pytest.approx(report.recall)
            assert report.recall is not None
            assert report.recall >= 0.5 - 1e-6
    in_parts = ("--out", tmp_path / "parts", "--set", "batch.shard_patches=8")
    said = console("predict", slides, "--checkpoint", model / "model.safetensors", *in_parts)
    assert said.code == 2
    assert "scored in parts by selection.selector: ips" in said.complaint
    assert not (tmp_path / "parts").exists()
    first = next(iter(rows))
    result = read_result(run.attention(first))
    assert result.coarse is not None
    with h5py.File(run.attention(first)) as file:
        assert json.loads(file["about"][()])["coarse"]["saved"] == result.coarse.saved
    with open_slide(result.slide_path) as slide:
        write_overlay(tmp_path / "again.png", slide, result)


def test_an_attention_level_finer_than_the_patches_is_one_line(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    given = settings(*SMALL, "selection={selector: attention_sampling, coarse: {mpp: 1}}")
    said = console("finetune", small_data.manifest, "--out", tmp_path / "out", *given)
    assert said.code == 2
    assert "selection.coarse.mpp 1 is finer than the patches' tiling.patch_mpp 2" in said.complaint
    assert len(said.complaint.strip().splitlines()) == 1
