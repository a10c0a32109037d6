"""``wsi-ips search``, from a recipe to a network that loads by the name of its file."""

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.commands.console import Console, make_console
from tests.drawn.drawn_textures import draw_textures
from tests.search.small import SMALL
from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.checkpoint import METADATA_KEY, load_checkpoint
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.spinenet.specification import load_specification, write_specification
from wsi_ips.nuclei.config import DetectorConfig
from wsi_ips.nuclei.models import build_retinanet, load_detector, save_detector
from wsi_ips.search.run import Candidate, draw_search
from wsi_ips.search.space import decode

RECIPE = Path(__file__).resolve().parents[2] / "pipelines" / "spinenet_search_small.yaml"
FAST = ("proxy.side_px=32", "proxy.steps=2", "proxy.batch=4", "proxy.width=0.1", "proxy.endpoint_channels=8")


def drawn(folder: Path) -> Path:
    folder.mkdir()
    return draw_textures(folder)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


def search(console: Console, out: Path, data: Path, *more: str) -> Any:
    settings = [word for setting in (*FAST, f"proxy.folder={data}", *more) for word in ("--set", setting)]
    return console("search", RECIPE, "--out", out, "--candidates", "2", "--device", "cpu", *settings)


def test_a_search_leaves_candidates_history_plot_and_a_network(console: Console, tmp_path: Path) -> None:
    data = drawn(tmp_path / "data")
    said = search(console, tmp_path / "out", data)
    assert said.code == 0, said.err
    assert "evolution: best of 2 candidates" in said.out
    assert len(list((tmp_path / "out").glob("*/00000?.json"))) == 6
    with Image.open(tmp_path / "out" / "history.png") as picture:
        assert picture.width > 500
    best = str(tmp_path / "out" / "best.yaml")
    config = EncoderConfig.model_validate({"name": "spinenet", "weights": "none", "specification": best})
    assert TimmEncoder(config)(torch.zeros(2, 3, 64, 64)).shape == (2, 256)
    refused = search(console, tmp_path / "out", data, "proxy.lr=0.1")
    assert refused.code == 2
    assert "proxy.lr 0.003 there, 0.1 here" in refused.complaint


def test_missing_data_is_one_line(console: Console, tmp_path: Path) -> None:
    said = search(console, tmp_path / "out", tmp_path / "nowhere")
    assert said.code == 2
    assert "no such folder" in said.complaint
    assert not (tmp_path / "out").exists()


def test_a_space_without_networks_is_one_line(console: Console, tmp_path: Path) -> None:
    said = search(console, tmp_path / "out", tmp_path, "space.stem=[2]")
    assert said.code == 2
    assert "space.stem" in said.complaint


def test_without_optuna_the_extra_is_named(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = drawn(tmp_path / "data")
    monkeypatch.delitem(sys.modules, "wsi_ips.search.strategy", raising=False)
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError(name)
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    said = search(console, tmp_path / "out", data)
    assert said.code == 2
    assert "pip install 'wsi_ips[search]'" in said.complaint


@pytest.fixture
def found(tmp_path: Path) -> Path:
    write_specification(tmp_path / "best.yaml", decode(SMALL, lambda name, choices: 0, name="mine"))
    return tmp_path / "best.yaml"


def test_a_config_holds_the_blocks_not_the_name_of_their_file(found: Path) -> None:
    config = EncoderConfig.model_validate(
        {"name": "spinenet49s", "weights": "none", "specification": str(found)}
    )
    found.unlink()
    again = EncoderConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert TimmEncoder(again).dim == 128  # spinenet49s' endpoint channels


def test_a_network_without_its_file_or_of_another_family_is_refused(found: Path) -> None:
    for given, message in (
        ({"name": "spinenet"}, "needs specification"),
        ({"name": "resnet18", "specification": str(found)}, "goes with name: spinenet"),
        ({"name": "spinenet", "specification": "nowhere.yaml"}, "nowhere.yaml: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderConfig.model_validate(given)
    config = EncoderConfig.model_validate({"name": "spinenet", "specification": str(found)})
    with pytest.raises(ConfigError, match="weights: none"):
        TimmEncoder(config)  # "timm", whose weights nobody publishes


def test_a_detector_stands_on_it_and_its_checkpoint_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "five.yaml"
    space = SMALL.model_copy(update={"outputs": (3, 4, 5, 6, 7)})
    write_specification(path, decode(space, lambda name, choices: 0))
    config = DetectorConfig.model_validate(
        {"backbone": "spinenet49s", "specification": str(path), "head_channels": 8, "head_convs": 1}
    )
    save_detector(tmp_path / "d.safetensors", build_retinanet(config), config)
    blocks = load_specification(path).blocks
    path.unlink()
    detector, _ = load_detector(tmp_path / "d.safetensors")
    assert detector.backbone.features.model.specification.blocks == blocks  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="goes with a SpineNet"):
        build_retinanet(config.model_copy(update={"backbone": "resnet18"}))


def test_a_checkpoint_names_no_file_to_be_read(found: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    """A stranger's checkpoint could have any file read, and shown in the complaint."""
    with safe_open(small_checkpoint, framework="pt") as file:
        held = json.loads(file.metadata()[METADATA_KEY])
    held["config"]["model"]["encoder"] |= {"name": "spinenet", "stage": None, "specification": str(found)}
    forged = tmp_path / "forged.safetensors"
    save_file({"a": torch.zeros(1)}, forged, metadata={METADATA_KEY: json.dumps(held)})
    with pytest.raises(CheckpointError, match="not the name of their file"):
        load_checkpoint(forged)


def test_failed_candidates_and_a_single_score_can_be_drawn(tmp_path: Path) -> None:
    specification = decode(SMALL, lambda name, choices: 0)
    scores: dict[str, list[float | None]] = {"a": [None, 0.5, None], "b": [None], "c": []}
    its = {
        name: [Candidate(n, score, "", 0.0, {}, specification) for n, score in enumerate(values)]
        for name, values in scores.items()
    }
    draw_search(tmp_path / "h.png", its, title="t")
    with Image.open(tmp_path / "h.png") as picture:
        assert picture.width > 500
