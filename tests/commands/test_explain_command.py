"""``predict --explain gradient``: stored, made again where it is missing, drawn, exported, reported, viewed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.heatmaps.display_scale import DisplayScale
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.ips_net import IPSNet

ATTENTION = {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16}
PAPER = {"attention": {**ATTENTION, "block": "paper"}}
ABMIL = {"aggregator": {"name": "abmil", "hidden": 6}}
TRANSMIL = {"aggregator": {"name": "transmil", "heads": 2, "landmarks": 4}}

Predicted = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def made(model: dict[str, Any] | None = None, **sections: Any) -> Path:
        values = {**SMALL_MODEL, "command": "finetune", "manifest": "m", "out": "o", **sections}
        encoder = SMALL_MODEL["model"]["encoder"]
        values["model"] = {"encoder": encoder, "attention": ATTENTION, **(model or {})}
        if "aggregator" in values["model"]:
            del values["model"]["attention"]  # these settings are not an aggregator's
        job = make_job(values, source="test")
        assert isinstance(job, FinetuneJob)
        path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
        torch.manual_seed(1)
        save_checkpoint(path, build_net(job.model), job.pipeline)
        return path

    return made


@pytest.fixture(scope="module")
def slides(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for slide in sorted(small_data.slides.glob("*.tif"))[:2]:
        (folder / slide.name).symlink_to(slide)
    return folder


@pytest.fixture
def predicted(console: Console, slides: Path, tmp_path: Path) -> Predicted:
    """Predicts and gives the run's folder."""

    def run(checkpoint: Path, *flags: str, name: str = "run") -> Path:
        out = tmp_path / name
        said = console("predict", slides, "--checkpoint", checkpoint, "--out", out, "--no-overlays", *flags)
        assert said.code == 0, said.err
        return out

    return run


def results(run: Path) -> list[SlideResult]:
    return [read_result(path) for path in sorted((run / "attention").glob("*.h5"))]


def test_every_aggregator_s_gradients_are_stored_beside_what_else_it_tells(
    checkpoints: Callable[..., Path], predicted: Predicted
) -> None:
    """The stored numbers are the network's own, recomputed from the stored embeddings."""
    for number, model in enumerate([ABMIL, PAPER]):
        checkpoint = checkpoints(model)
        run = predicted(checkpoint, "--explain", "gradient", "--embeddings", name=f"run{number}")
        net, _ = load_checkpoint(checkpoint)
        assert isinstance(net, IPSNet)
        for result in results(run):
            assert result.kept_gradients_MK is not None
            assert result.kept_emb_MD is not None
            assert (result.kept_contributions_MK is not None) == (model is ABMIL)
            places = torch.from_numpy(result.kept_ids_M)
            if net.place_kind == "um":
                places = torch.from_numpy(result.coords.um_centres(result.kept_ids_M))
            told = net.eval().gradients(torch.from_numpy(result.kept_emb_MD), places)["label"].numpy()
            told = told - told.mean(axis=1, keepdims=True)
            np.testing.assert_allclose(result.kept_gradients_MK, told, atol=1e-5)
            assert np.abs(told).max() > 1e-4
            tumor_N = result.gradient("label", "tumor")
            assert np.count_nonzero(tumor_N) == len(result.kept_ids_M)
            np.testing.assert_array_equal(tumor_N[result.kept_rows()], result.kept_gradients_MK[:, 1])


def test_asked_for_later_it_is_added_and_asked_for_no_more_it_stays(
    checkpoints: Callable[..., Path], predicted: Predicted
) -> None:
    checkpoint = checkpoints(ABMIL)
    run = predicted(checkpoint)
    before = results(run)
    assert all(result.kept_gradients_MK is None for result in before)
    predicted(checkpoint, "--explain", "gradient")
    after = results(run)
    for old, new in zip(before, after, strict=True):
        assert new.kept_gradients_MK is not None
        np.testing.assert_array_equal(old.attention_NHT, new.attention_NHT)
        np.testing.assert_array_equal(old.kept_ids_M, new.kept_ids_M)
        assert old.probabilities == new.probabilities
    stamps = [path.stat().st_mtime_ns for path in sorted((run / "attention").glob("*.h5"))]
    predicted(checkpoint, "--explain", "gradient")
    predicted(checkpoint)
    assert stamps == [path.stat().st_mtime_ns for path in sorted((run / "attention").glob("*.h5"))]


def test_transmil_which_reads_all_patches(checkpoints: Callable[..., Path], predicted: Predicted) -> None:
    checkpoint = checkpoints(TRANSMIL, selection={"selector": "all"})
    for result in results(predicted(checkpoint, "--explain", "gradient")):
        assert result.kept_gradients_MK is not None
        assert len(result.kept_gradients_MK) == len(result.coords)
        assert np.isfinite(result.kept_gradients_MK).all()


def test_it_is_drawn_exported_and_reported(
    checkpoints: Callable[..., Path], predicted: Predicted, console: Console
) -> None:
    run = predicted(checkpoints(ABMIL), "--explain", "gradient")
    assert console("overlay", run, "--map", "gradient", "--class", "tumor").code == 0
    result = results(run)[0]
    slide_id = result.coords.slide_id
    with Image.open(run / "overlays" / "gradient-tumor" / f"{slide_id}.png") as picture:
        assert picture.info["map"] == "gradient"
        assert picture.info["shown"] == "Gradient times input for tumor, task label"
        assert picture.info["scale"] == "signed -1.0 1.0"
    assert console("export", run, "--format", "geojson", "--map", "gradient").code == 0
    told = json.loads((run / "exports" / "geojson" / "gradient-tumor" / f"{slide_id}.geojson").read_text())
    measured = [patch["properties"]["measurements"] for patch in told["features"]]
    values = [one["Gradient times input for tumor, task label"] for one in measured]
    np.testing.assert_array_equal(np.float32(values), result.gradient("label", "tumor"))
    assert {
        "Gradient percentile",
        "Gradient times input for normal, task label",
        "Contribution to tumor, task label",
        "Contribution to normal, task label",
    } < set(measured[0])
    for form in ("sheet", "asap", "ome-tiff"):
        assert console("export", run, "--format", form, "--map", "gradient").code == 0
    assert console("report", run, "--map", "gradient").code == 0
    page = (run / "report_gradient.html").read_text()
    assert "Gradient times input for tumor, task label; Flat attention: 4 patches of" in page
    assert "do not add up to the logit" in page
    assert console("report", run).code == 0
    assert "Gradient times input" not in (run / "report.html").read_text()


@pytest.mark.parametrize("command", [("overlay",), ("export", "--format", "geojson"), ("report",)])
def test_a_run_without_it_says_so_in_one_line(
    checkpoints: Callable[..., Path], predicted: Predicted, console: Console, command: tuple[str, ...]
) -> None:
    run = predicted(checkpoints(ABMIL))
    before = sorted(run.rglob("*"))
    said = console(command[0], run, *command[1:], "--map", "gradient")
    assert said.code == 2
    assert (
        "this run holds no map of gradients; predict into the same folder again with --explain gradient"
        in (said.complaint)
    )
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--map", "gradient", "--query", "0"), "query goes with map attention: gradients have none"),
        (("--map", "gradient", "--scale", "rank"), "scale goes with map attention: gradients have none"),
        (("--map", "gradient", "--colormap", "blue_yellow"), "gradients have a sign"),
        (("--map", "gradient", "--class", "fat"), "class 'fat' is not there"),
        (
            (
                "--map",
                "saliency",
            ),
            "map",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    checkpoints: Callable[..., Path], predicted: Predicted, console: Console, flags: tuple[str, ...], why: str
) -> None:
    said = console("overlay", predicted(checkpoints(ABMIL), "--explain", "gradient"), *flags)
    assert said.code == 2
    assert why in said.complaint


def test_attention_sampling_has_no_aggregator_to_take_gradients_through(
    checkpoints: Callable[..., Path], console: Console, slides: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoints(selection={"selector": "attention_sampling"})
    said = console(
        "predict", slides, "--checkpoint", checkpoint, "--out", tmp_path / "run", "--explain", "gradient"
    )
    assert said.code == 2
    assert "attention sampling has none" in said.complaint
    assert not (tmp_path / "run").exists()


def test_an_unknown_explanation_is_refused(
    checkpoints: Callable[..., Path], console: Console, slides: Path, tmp_path: Path
) -> None:
    said = console(
        "predict", slides, "--checkpoint", checkpoints(ABMIL), "--out", tmp_path / "r", "--explain", "lime"
    )
    assert said.code == 2
    assert "explain" in said.complaint


def test_the_viewer_shows_it(checkpoints: Callable[..., Path], predicted: Predicted) -> None:
    from starlette.testclient import TestClient

    from wsi_ips.viewer.app import create_app

    run = predicted(checkpoints(ABMIL), "--explain", "gradient")
    result = results(run)[0]
    with TestClient(create_app(run), base_url="http://127.0.0.1:8080") as client:
        at = f"/api/runs/0/slides/{result.coords.slide_id}"
        assert client.get(at).json()["maps"]["gradients"] == [["label", "normal"], ["label", "tumor"]]
        asked = {"map": "gradient", "task": "label", "class": "tumor"}
        legend = client.get(f"{at}/legend", params=asked).json()
        patches = client.get(f"{at}/patches", params=asked).json()
    assert (legend["map"], legend["scale"]) == ("gradient", "signed")
    assert legend["shown"] == "Gradient times input for tumor, task label"
    values = result.gradient("label", "tumor")
    assert [patch["value"] for patch in patches["patches"]] == sorted(
        values[values > 0].tolist(), reverse=True
    )
    assert DisplayScale(values, scale="signed")(np.zeros(1, np.float32)) == 0.5
