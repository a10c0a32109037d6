import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi_ips.errors import CheckpointError
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_comes_back(small_checkpoint: Path, tmp_path: Path) -> None:
    net, config = load_checkpoint(small_checkpoint)
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, net, config, notes={"epoch": "3"})
    second, second_config = load_checkpoint(again)
    assert second_config == config
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert not second.training


def metadata_of(path: Path) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        held: dict[str, object] = json.loads(file.metadata()["wsi_ips"])
    return held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"config": {"model": {"encoder": {"nmae": "x"}}}}, "cannot be read"),
        ({"config": None}, "cannot be read"),
    ],
)
def test_a_config_from_elsewhere_is_refused(
    small_checkpoint: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    held = {**metadata_of(small_checkpoint), **change}
    path = tmp_path / "changed.safetensors"
    save_file(load_file(small_checkpoint), path, metadata={"wsi_ips": json.dumps(held)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(small_checkpoint)
    tensors["attention.query.weight"][0, 0] = torch.nan
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path, metadata={"wsi_ips": json.dumps(metadata_of(small_checkpoint))})
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(path)


def test_a_file_cut_short_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)
