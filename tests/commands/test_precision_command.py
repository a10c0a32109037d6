"""``--precision`` of ``predict`` and ``features``: the same labels, and a result says what it was made in."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.errors import ConfigError
from wsi_ips.inference.feature_export import READ_FROM
from wsi_ips.inference.results import read_result

ENCODER = ("--encoder", "resnet10t", "--weights", "none", "--patch-px", "32", "--patch-mpp", "2")


@pytest.fixture
def slide(small_data: SmallData) -> Path:
    return sorted(small_data.slides.iterdir())[0]


def label_of(run: Path) -> tuple[str, float]:
    with (run / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row["pred"], float(row["prob_tumor"])


def test_predict_in_bf16_keeps_labels_and_is_done_again_for_another_precision(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    words = (
        "predict",
        slide,
        "--checkpoint",
        small_checkpoint,
        "--out",
        run,
        "--no-overlays",
        "--device",
        "cpu",
    )
    stored = run / "attention" / f"{slide.stem}.h5"
    assert console(*words).code == 0
    label, probability = label_of(run)
    before = stored.read_bytes()
    with h5py.File(stored) as file:
        assert "precision" not in str(dict(file.attrs)), "float32 is stored as earlier versions did"
    assert console(*words, "--precision", "32").code == 0
    assert not caplog.records, "auto is float32 on a CPU: nothing is made again"
    assert stored.read_bytes() == before

    assert console(*words, "--precision", "bf16").code == 0
    assert "its encoder computed in precision 32, now it is bf16" in caplog.text
    result = read_result(stored)
    assert result.made_from is not None
    assert result.made_from.precision == "bf16"
    assert stored.read_bytes() != before
    assert label_of(run)[0] == label
    assert label_of(run)[1] == pytest.approx(probability, abs=0.01)
    assert json.loads((run / "run.json").read_text())["config"]["precision"] == "bf16"
    caplog.clear()
    assert console(*words, "--precision", "bf16").code == 0
    assert not caplog.records
    assert console(*words).code == 0
    assert "precision bf16, now it is 32" in caplog.text
    assert label_of(run) == (label, probability)


def test_features_in_bf16_are_close_and_made_again_for_another_precision(
    console: Console, slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("features", slide, "--out", tmp_path, *ENCODER, "--device", "cpu")
    stored = tmp_path / "h5_files" / f"{slide.stem}.h5"

    def features() -> torch.Tensor:
        with h5py.File(stored) as file:
            assert file["features"].dtype == np.float32
            return torch.from_numpy(file["features"][()])

    assert console(*words).code == 0
    exact, before = features(), stored.read_bytes()
    assert console(*words, "--precision", "bf16").code == 0
    assert "made again: its encoder computed in precision 32, now it is bf16" in caplog.text
    close = features()
    assert not torch.equal(close, exact)
    assert torch.cosine_similarity(close, exact).min() >= 0.999
    with h5py.File(stored) as file:
        assert json.loads(file.attrs[READ_FROM])["made_from"]["precision"] == "bf16"
    tensor = torch.load(tmp_path / "pt_files" / f"{slide.stem}.pt", weights_only=True)
    assert torch.equal(tensor, close)
    assert console(*words).code == 0
    assert stored.read_bytes() == before


def test_what_cannot_be_is_one_line_and_nothing_is_written(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = ("predict", slide, "--checkpoint", small_checkpoint)
    told = console(*predict, "--out", tmp_path / "a", "--precision", "bf8")
    assert (told.code, "precision" in told.complaint) == (2, True)
    told = console("features", slide, *ENCODER, "--out", tmp_path / "b", "--precision", "64")
    assert (told.code, "precision" in told.complaint) == (2, True)
    told = console("predict", "--features", tmp_path, "--checkpoint", small_checkpoint, "--precision", "bf16",
                   "--out", tmp_path / "c")  # fmt: skip
    assert "precision and compile go with slides" in told.complaint

    def no_compiler(_: torch.device) -> None:
        raise ConfigError("compile: true: PyTorch cannot compile for cpu here (no g++)")

    monkeypatch.setattr("wsi_ips.models.encoders.network.check_compiles", no_compiler)
    told = console("features", slide, *ENCODER, "--out", tmp_path / "d", "--compile")
    assert (told.code, "cannot compile" in told.complaint) == (2, True)
    told = console(*predict, "--out", tmp_path / "e", "--compile", "--device", "cpu")
    assert (told.code, "cannot compile" in told.complaint) == (2, True)
    assert not list(tmp_path.iterdir())
