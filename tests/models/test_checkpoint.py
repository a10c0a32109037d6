import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi_ips.config import EncoderConfig, PipelineConfig
from wsi_ips.errors import CheckpointError
from wsi_ips.models.build import build_net, build_selecting_net
from wsi_ips.models.checkpoint import begin_from, checkpoint_sha256, load_checkpoint, save_checkpoint


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
    refuse(small_checkpoint, tmp_path, json.dumps({**metadata_of(small_checkpoint), **change}), message)


def refuse(checkpoint: Path, tmp_path: Path, metadata: str, message: str) -> None:
    """The checkpoint's tensors with other metadata: one line that names the file."""
    path = tmp_path / "changed.safetensors"
    save_file(load_file(checkpoint), path, metadata={"wsi_ips": metadata})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", ["[" * 100_000, "[]", "NaN", "{", "7", '"format"'])
def test_a_garbled_config_is_refused(small_checkpoint: Path, tmp_path: Path, metadata: str) -> None:
    refuse(small_checkpoint, tmp_path, metadata, "cannot be read")


def test_a_config_without_end_is_not_parsed(small_checkpoint: Path, tmp_path: Path) -> None:
    held = {**metadata_of(small_checkpoint), "notes": {"story": "x" * 1_000_000}}
    refuse(small_checkpoint, tmp_path, json.dumps(held), "more than 1,000,000 characters")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        # Widths that are allowed are refused by shape, before memory is asked for. 10**12 of anything would be
        # terabytes.
        ("attention", {"inner_dim": 65_536}, "another architecture"),
        ("attention", {"heads": 65_536}, "another architecture"),
        ("encoder", {"project": 65_536}, "another architecture"),
        ("encoder", {"name": "resnet18"}, "another architecture"),
        ("attention", {"inner_dim": 10**12}, "inner_dim Input should be less than or equal to 65536"),
        ("attention", {"heads": 10**30}, "heads Input should be less than or equal to 65536"),
        ("encoder", {"name": "resnet19"}, "cannot be built.*resnet18"),
        ("encoder", {"stage": 99}, "cannot be built"),
    ],
)
def test_a_config_of_another_network_is_refused(
    small_checkpoint: Path, tmp_path: Path, part: str, change: dict[str, object], message: str
) -> None:
    held: Any = metadata_of(small_checkpoint)
    held["config"]["model"][part].update(change)
    refuse(small_checkpoint, tmp_path, json.dumps(held), message)


def test_weights_are_never_looked_for_where_the_config_says(small_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint holds its weights; the path that training started from may be gone, or a trap."""
    held: Any = metadata_of(small_checkpoint)
    held["config"]["model"]["encoder"]["weights"] = "/nowhere/weights.pth"
    path = tmp_path / "moved.safetensors"
    save_file(load_file(small_checkpoint), path, metadata={"wsi_ips": json.dumps(held)})
    net, _ = load_checkpoint(path)
    original, _ = load_checkpoint(small_checkpoint)
    assert torch.equal(net.attention.query.weight, original.attention.query.weight)


def test_another_program_s_file_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(load_file(small_checkpoint), path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="another program"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"<html>" * 100, b"PK\x03\x04" + bytes(500)])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "strange.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_weights_of_another_kind_are_refused(
    small_checkpoint: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    tensors = load_file(small_checkpoint)
    tensors["attention.query.weight"] = tensors["attention.query.weight"].to(kind)
    path = tmp_path / "kind.safetensors"
    save_file(tensors, path, metadata={"wsi_ips": json.dumps(metadata_of(small_checkpoint))})
    with pytest.raises(CheckpointError, match=f"{kind} for attention.query.weight"):
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


def test_a_run_begins_from_all_weights_or_from_all_but_the_encoder_s(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    start, config = load_checkpoint(small_checkpoint)
    torch.manual_seed(5)
    net = build_net(config.model)
    begin_from(net, small_checkpoint)
    assert all(torch.equal(tensor, start.state_dict()[name]) for name, tensor in net.state_dict().items())
    # A model that learned the same head on stored features of that encoder.
    width = int(start.attention.query.in_features)
    features = config.model.model_copy(update={"encoder": EncoderConfig(name="features", features=width)})
    on_features = build_net(features)
    save_checkpoint(tmp_path / "f.safetensors", on_features, config.model_copy(update={"model": features}))
    fresh = build_net(config.model)
    encoder = {name: tensor.clone() for name, tensor in fresh.encoder.state_dict().items()}
    begin_from(fresh, tmp_path / "f.safetensors")
    assert torch.equal(fresh.attention.query.weight, on_features.attention.query.weight)
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in fresh.encoder.state_dict().items())


def test_a_start_that_does_not_fit_is_refused(small_checkpoint: Path) -> None:
    _, config = load_checkpoint(small_checkpoint)
    attention = config.model.attention.model_copy(update={"key_dim": 16})
    net = build_net(config.model.model_copy(update={"attention": attention}))
    before = net.attention.query.weight.clone()
    with pytest.raises(
        CheckpointError, match=r"does not fit this model: 2 weights differ, e\.g\. attention\.key"
    ):
        begin_from(net, small_checkpoint)
    assert torch.equal(net.attention.query.weight, before)


def test_a_network_that_is_not_filled_first_has_the_same_weights_and_buffers(tmp_path: Path) -> None:
    config = PipelineConfig.model_validate(
        {"model": {"encoder": {"name": "resnet10t", "weights": "none"}}, "tiling": {"patch_px": 64}}
    )
    save_checkpoint(
        tmp_path / "model.safetensors", build_selecting_net(config.model, config.selection), config
    )
    expected, _ = load_checkpoint(tmp_path / "model.safetensors")
    found, _ = load_checkpoint(tmp_path / "model.safetensors", advance_rng=False)
    for (name, value), (_, wanted) in zip(
        [*found.state_dict().items(), *found.named_buffers()],
        [*expected.state_dict().items(), *expected.named_buffers()],
        strict=True,
    ):
        assert torch.equal(value, wanted), name


def test_a_file_that_changed_has_another_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = checkpoint_sha256(path)
    assert first == checkpoint_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    assert checkpoint_sha256(path) == hashlib.sha256(b"two").hexdigest()
