"""``predict --views``: each patch is encoded in several symmetries, and a result says in how many."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.commands.console import Console
from tests.conftest import SmallData
from wsi_ips.config import StreamingConfig
from wsi_ips.errors import CalibrationError
from wsi_ips.evaluation.conformal import check_belongs
from wsi_ips.evaluation.run.doubt import calibrate_run
from wsi_ips.inference.results import read_result
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import silent
from wsi_ips.selection.slide_reading import encode_again
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import PatchStream


@pytest.fixture
def slide(small_data: SmallData) -> Path:
    return sorted(small_data.slides.iterdir())[0]


def words_of(slide: Path, checkpoint: Path, run: Path) -> tuple[object, ...]:
    """The command that labels a slide into ``run``."""
    where = ("--out", run, "--no-overlays", "--device", "cpu", "--embeddings")
    return ("predict", slide, "--checkpoint", checkpoint, *where)


def probability(run: Path) -> float:
    with (run / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return float(row["prob_tumor"])


def test_views_are_part_of_what_a_result_is_made_from(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    words, stored = words_of(slide, small_checkpoint, run), run / "attention" / f"{slide.stem}.h5"
    assert console(*words).code == 0
    plain, before = read_result(stored), stored.read_bytes()
    with h5py.File(stored) as file:
        assert "views" not in str(dict(file.attrs)), "one view is stored as earlier versions did"
    assert console(*words, "--views", "1").code == 0
    assert not caplog.records
    assert stored.read_bytes() == before

    assert console(*words, "--views", "4").code == 0
    assert "views was 1, now it is 4" in caplog.text
    four = read_result(stored)
    assert four.made_from is not None
    assert four.made_from.views == 4
    assert json.loads((run / "run.json").read_text())["config"]["views"] == 4
    assert probability(run) == pytest.approx(four.probabilities["label"]["tumor"], abs=1e-4)
    assert not np.allclose(four.logits_NHT, plain.logits_NHT, atol=1e-6), "the attention is of one view"
    caplog.clear()
    assert console(*words, "--views", "4").code == 0
    assert not caplog.records, "nothing is made again"
    assert console(*words).code == 0
    assert "views was 4, now it is 1" in caplog.text
    assert stored.read_bytes() == before


def test_label_attention_and_contributions_are_of_the_mean_embeddings(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    assert console(*words_of(slide, small_checkpoint, tmp_path / "run"), "--views", "8").code == 0
    result = read_result(tmp_path / "run" / "attention" / f"{slide.stem}.h5")
    net, _ = load_checkpoint(small_checkpoint)
    assert isinstance(net, IPSNet)
    compute_in(net.eval(), Compute(views=8))
    ids_M = torch.from_numpy(result.kept_ids_M)
    with open_slide(slide) as opened, torch.no_grad():
        stream = PatchStream(opened, result.coords, config=StreamingConfig(), device=torch.device("cpu"))
        emb_MD = encode_again(net, stream, ids_M, batch=8)
        reading = net.read_bag(emb_MD, ids_M)
    assert result.kept_emb_MD is not None
    assert np.allclose(result.kept_emb_MD, emb_MD.numpy(), atol=1e-3)
    said = result.probabilities["label"].values()
    assert list(said) == pytest.approx(reading.probabilities["label"][0].tolist(), abs=1e-5)


def test_a_calibration_is_of_as_many_views(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    words = words_of(small_data.slides, small_checkpoint, tmp_path / "run")
    assert console(*words, "--views", "4").code == 0
    how = {"split": "val", "task": None, "risk": 0.5, "by_class": False, "seed": 0, "progress": silent}
    calibration, _ = calibrate_run(tmp_path / "run", small_data.manifest, **how)  # type: ignore[arg-type]
    assert calibration.views == 4
    path, sha256 = tmp_path / "calibration.json", calibration.checkpoint
    check_belongs(
        path, calibration, sha256=sha256, tasks=load_checkpoint(small_checkpoint)[1].model.tasks, views=4
    )
    with pytest.raises(CalibrationError, match="belongs to a run with views 4, this one has 1"):
        check_belongs(path, calibration, sha256=sha256, tasks=())


def test_what_cannot_be_is_one_line_and_nothing_is_written(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    told = console(*words_of(slide, small_checkpoint, tmp_path / "a"), "--views", "3")
    assert (told.code, "views" in told.complaint) == (2, True)
    told = console("predict", "--features", tmp_path, "--checkpoint", small_checkpoint, "--views", "4",
                   "--out", tmp_path / "b")  # fmt: skip
    assert (told.code, "views go with slides" in told.complaint) == (2, True)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
