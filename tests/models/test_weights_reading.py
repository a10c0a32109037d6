"""Weights as others' training leaves them: which are loaded, and what is said of the others."""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError
from wsi_ips.models.encoders.weights import load_weights, read_state_dict


def small() -> nn.Module:
    return timm.create_model("test_vit", pretrained=False, num_classes=0)


def assert_loaded(weights: Path, expected: dict[str, Tensor]) -> None:
    model = small()
    load_weights(model, str(weights))
    held = model.state_dict()
    assert all(torch.equal(held[name], expected[name]) for name in held)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: torch.randn_like(tensor) for name, tensor in small().state_dict().items()}


@pytest.mark.parametrize("name", ["dino.pth", "lightning.ckpt", "dino_args.pth"])
def test_the_cases_are_loaded(cases_folder: Path, name: str) -> None:
    path = cases_folder / "weights" / name
    state = read_state_dict(path)
    prefix = "model." if name == "lightning.ckpt" else "backbone."
    try:
        assert_loaded(path, {k.removeprefix(prefix): v for k, v in state.items()})
    except CheckpointError as error:  # a timm model of another name than the one that was saved
        pytest.fail(str(error))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "teacher.backbone.", "module.model.encoder.",
                                    "_orig_mod.module."])  # fmt: skip
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
def test_prefixes_and_wrappers_are_taken_off(
    tmp_path: Path, trained: dict[str, Tensor], prefix: str, wrapper: str | None
) -> None:
    state = {prefix + name: tensor for name, tensor in trained.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", trained)


def test_what_stands_beside_the_network_is_left_out_and_said(
    tmp_path: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"criterion.weight": torch.ones(3), **{f"model.{k}": v for k, v in trained.items()}},
               tmp_path / "w.pth")  # fmt: skip
    assert_loaded(tmp_path / "w.pth", trained)
    assert "1 tensors beside 'model.*' are left out, e.g. criterion.weight" in caplog.text


def test_two_networks_that_fit_are_not_guessed_between(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    both = {f"model.{k}": v for k, v in trained.items()} | {f"teacher.{k}": v + 1 for k, v in trained.items()}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds two such networks, under 'model\.' and 'teacher\.'"):
        load_weights(small(), str(tmp_path / "w.pth"))


def test_a_prefix_does_not_make_another_architecture_fit(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    del trained["norm.weight"]
    torch.save({f"model.{k}": v for k, v in trained.items()}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"1 tensors missing, 0 unknown, 0 of another shape, e\.g\. norm"
    ):
        load_weights(small(), str(tmp_path / "w.pth"))


def test_settings_and_numbers_beside_the_weights_do_no_harm(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    beside = argparse.Namespace(lr=np.float64(0.1), out=Path("x"), nested=argparse.Namespace(n=np.int64(3)))
    torch.save({"model": trained, "args": beside, "best": np.float32(0.5), "flag": np.bool_(True)},
               tmp_path / "w.pth")  # fmt: skip
    assert_loaded(tmp_path / "w.pth", trained)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("whole", ["module", "scripted", "trap"])
def test_what_cannot_be_read_safely_is_named(tmp_path: Path, whole: str) -> None:
    path, model = tmp_path / "w.pth", nn.Linear(2, 2)
    if whole == "module":
        torch.save(model, path)
    elif whole == "scripted":
        torch.jit.trace(model, torch.zeros(1, 2)).save(str(path))
    else:
        torch.save({"model": model.state_dict(), "x": Trap(tmp_path / "ran")}, path)
    words = {"module": r"holds a torch\.nn\.modules\.linear\.Linear", "scripted": "a whole TorchScript model",
             "trap": r"holds a [\w.]+touch"}[whole]  # fmt: skip
    with pytest.raises(CheckpointError, match=f"read safely: it (is )?{words}") as caught:
        read_state_dict(path)
    assert "state_dict()" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "ran").exists()


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return touch, (str(self.path),)


def touch(path: str) -> None:
    Path(path).touch()


def sharded(folder: Path, trained: dict[str, Tensor]) -> Path:
    names = list(trained)
    halves = {
        "model-1.safetensors": names[: len(names) // 2],
        "model-2.safetensors": names[len(names) // 2 :],
    }
    for file, held in halves.items():
        save_file({name: trained[name].contiguous() for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: file for file, held in halves.items() for name in held}})
    )
    return index


def test_shards_are_read_by_their_index(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    assert_loaded(sharded(tmp_path, trained), trained)


@pytest.mark.parametrize("fault", ["missing", "elsewhere", "not json", "not held", "empty"])
def test_an_index_that_is_wrong(tmp_path: Path, trained: dict[str, Tensor], fault: str) -> None:
    index = sharded(tmp_path, trained)
    if fault == "missing":
        (tmp_path / "model-2.safetensors").unlink()
    else:
        index.write_text({"elsewhere": '{"weight_map": {"a": "../x.pth"}}', "not json": "{", "empty": "{}",
                          "not held": '{"weight_map": {"a": "model-1.safetensors"}}'}[fault])  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(index)
    assert str(index) in str(caught.value)


def test_a_plain_pickle(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_state_dict(tmp_path / "w.pth")
