"""How a large encoder learns: adapters, drop path, recomputed blocks, rates by layer, averaged weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from tests.conftest import SMALL_MODEL, SmallData
from tests.models.encoders.look_alikes import PX, as_file, plain_network, tiny_entry
from wsi_ips.config import EncoderConfig, FinetuneConfig, ModelConfig, TaskConfig, TrainingConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.network import Compute, compute_in, float32_behind
from wsi_ips.models.encoders.registry import ENCODERS
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.training.fit import finetune
from wsi_ips.training.kept_patches import KeptPatches, PatchKeeper
from wsi_ips.training.learning import backward_in_one_graph, backward_in_parts, make_optimizer
from wsi_ips.training.optimizer import WeightAverage, layer_rates
from wsi_ips.training.run_state import LAST_NAME, STATE_NAME, FinetuneReport

NAME = "uni2-h"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network in the place of UNI2-h, and the file of its weights."""
    entry = tiny_entry(NAME)
    path = tmp_path / "base.safetensors"
    as_file(plain_network(entry).state_dict())(path)
    monkeypatch.setattr(registry, "ENCODERS", {**ENCODERS, NAME: entry})
    return path


def encoder(weights: Path, **more: Any) -> TimmEncoder:
    torch.manual_seed(0)
    found = TimmEncoder(EncoderConfig.model_validate({"name": NAME, "weights": str(weights), **more}))
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if name.endswith("lora_b"):  # at zero, no gradient reaches A
                nn.init.normal_(weight, std=0.2)
    return found.train()


def gradients(module: nn.Module) -> Tensor:
    found = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
    learning = sum(weight.requires_grad for weight in module.parameters())
    assert len(found) == learning > 0
    module.zero_grad()
    return torch.cat(found)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"rank": 3, "targets": ["qkv", "proj", "fc1", "fc2"]}},
        {"lora": {"rank": 3, "dropout": 0.3, "norms": True}, "drop_path": 0.5},
        {"drop_path": 0.5},
    ],
    ids=["adapters", "adapters, dropout and drop path", "drop path"],
)
def test_the_gradient_cache_gives_the_gradients_of_one_graph(
    settings: dict[str, Any], recompute: bool, weights: Path
) -> None:
    """``lora_gradient_error``: the relative error over all gradients. The reference is one graph over all patches,
    whose random layers draw for the same portions."""
    pixels = torch.rand(11, 3, PX, PX, generator=torch.Generator().manual_seed(3))
    head = nn.Sequential(nn.Linear(32, 4), nn.Softmax(dim=0))

    def loss_of(features_KC: Tensor) -> Tensor:
        return (head(features_KC) * features_KC[:, :4]).std()  # every patch looks at all others

    reference = encoder(weights, **settings)
    torch.manual_seed(5)
    plain_loss = backward_in_one_graph(
        lambda all_pixels: torch.cat([reference(part) for part in all_pixels.split(4)]),
        lambda: [pixels],
        loss_of,
    )
    theirs = gradients(reference)
    ours = encoder(weights, **settings)
    if recompute:
        ours.save_memory()
    torch.manual_seed(5)
    loss = backward_in_parts(ours, lambda: pixels.split(4), loss_of)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-6)
    error = relative_error(gradients(ours), theirs)
    assert error <= 1e-5
    if "drop_path" in settings:  # and other draws would have shown
        torch.manual_seed(6)
        backward_in_parts(ours, lambda: pixels.split(4), loss_of)
        assert relative_error(gradients(ours), theirs) > 0.01


def test_in_half_precision_too(weights: Path) -> None:
    """Within the autocast of the training engine, whose cache of weights must not outlive the first pass."""
    pixels = torch.rand(6, 3, PX, PX, generator=torch.Generator().manual_seed(3))
    found = []
    for in_parts in (False, True):
        learning = encoder(weights, lora={"rank": 3, "norms": True}, drop_path=0.5)
        compute_in(learning, Compute("bf16"))
        torch.manual_seed(5)
        if not in_parts:
            features = torch.cat([learning(part) for part in pixels.split(3)])
            features.softmax(dim=0).std().backward()
        else:
            learning.save_memory()
            with torch.autocast("cpu", dtype=torch.bfloat16), float32_behind("cpu"):
                backward_in_parts(learning, lambda: pixels.split(3), lambda x: x.softmax(dim=0).std())
        found.append(gradients(learning))
    assert relative_error(found[1], found[0]) <= 1e-5


def test_an_encoder_that_cannot_recompute_says_so() -> None:
    with pytest.raises(ConfigError, match="encoder_checkpointing: dla46_c cannot recompute its blocks"):
        TimmEncoder(EncoderConfig(name="dla46_c", weights="none")).save_memory()


def test_recomputing_keeps_less(weights: Path) -> None:
    def kept(found: TimmEncoder) -> int:
        held: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found(torch.rand(2, 3, PX, PX))
        return sum(held)

    plain, saving = encoder(weights, lora={"rank": 2}), encoder(weights, lora={"rank": 2})
    saving.save_memory()
    assert kept(saving) < kept(plain) / 3


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet10t", "test_efficientnet"])
def test_rates_by_layer_are_those_that_timm_scales_by(name: str) -> None:
    found = TimmEncoder(EncoderConfig(name=name, weights="none"))
    rates = layer_rates(found, 0.01, decay=0.6)
    theirs = param_groups_layer_decay(found.backbone, layer_decay=0.6)
    expected = {id(weight): 0.01 * group["lr_scale"] for group in theirs for weight in group["params"]}
    assert rates == pytest.approx(expected)
    assert len(set(expected.values())) > 2


def test_the_optimizer_has_them_for_adapters_and_the_head_has_its_own(weights: Path) -> None:
    model = ModelConfig.model_validate(
        {"encoder": {"name": NAME, "weights": str(weights), "lora": {"rank": 2}}}
    )
    net = build_net(model)
    groups = make_optimizer(
        net, TrainingConfig(lr=0.1, encoder_lr=0.01, layer_decay=0.5, warmup_epochs=0)
    ).param_groups
    rate_of = {id(weight): group["peak_lr"] for group in groups for weight in group["params"]}
    named = {name: rate_of[id(weight)] for name, weight in net.named_parameters() if id(weight) in rate_of}
    assert named["encoder.backbone.blocks.1.attn.qkv.lora_a"] == 0.01
    assert named["encoder.backbone.blocks.0.attn.proj.lora_b"] == 0.005
    assert {rate for name, rate in named.items() if not name.startswith("encoder.")} == {0.1}
    assert "encoder.backbone.blocks.0.attn.qkv.weight" not in named


def test_rates_by_layer_need_layers() -> None:
    class Mine(nn.Module):
        backbone = nn.Linear(2, 2)

    with pytest.raises(ConfigError, match="does not say what its layers are"):
        layer_rates(Mine(), 0.1, decay=0.5)


@pytest.mark.parametrize("setting", [{"layer_decay": 0.7}, {"encoder_checkpointing": True}])
def test_settings_of_an_encoder_that_learns_are_refused_where_none_does(setting: dict[str, Any]) -> None:
    model = {"encoder": {"name": "resnet18", "trainable": False}}
    with pytest.raises(ValueError, match="is for an encoder that learns"):
        FinetuneConfig.model_validate({"model": model, "training": setting})


def test_stored_settings_without_them_are_as_before_and_adapters_learn_faster() -> None:
    assert not {"ema", "layer_decay", "encoder_checkpointing"} & TrainingConfig().model_dump().keys()
    plain = FinetuneConfig.model_validate({"model": {"encoder": "resnet18"}})
    adapted = FinetuneConfig.model_validate({"model": {"encoder": {"name": "resnet18", "lora": {}}}})
    assert plain.encoder_lr == 3e-5
    assert adapted.encoder_lr == 1e-4


def test_an_average_follows_by_its_formula_and_leaves_the_weights_to_the_bit() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net[2].requires_grad_(False)
    average = WeightAverage(net, 0.15)
    expected = net[0].weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(2, 3))
        net[1].running_mean.add_(1)  # type: ignore[operator, union-attr]
        average.stepped()
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with average.in_place():
        assert torch.allclose(net[0].weight, expected, atol=1e-6)
        assert 4 < float(net[1].running_mean[0]) < 5  # type: ignore[index, union-attr]
        assert torch.equal(net[2].weight, own["2.weight"])  # type: ignore[arg-type]
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())


class Killed(Exception):
    pass


def config_of(**training: Any) -> FinetuneConfig:
    training = {"epochs": 3, "warmup_epochs": 1, "slides_per_step": 1, "save_minutes": 0, "lr": 0.01,
                "ema": 0.5, **training}  # fmt: skip
    return FinetuneConfig.model_validate({**SMALL_MODEL, "training": training})


def run(manifest: Manifest, config: FinetuneConfig, out: Path) -> FinetuneReport:
    return finetune(manifest, config, out, device=torch.device("cpu"), slide_mpp=SlideMpp())


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_ends_with_the_same_averages(
    step: int, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(small_data.manifest, tasks=[TaskConfig()])
    whole = run(manifest, config_of(), tmp_path / "whole")
    calls = 0
    keep = PatchKeeper.keep

    def dies(self: PatchKeeper, *arguments: Any, **options: Any) -> KeptPatches:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return keep(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(PatchKeeper, "keep", dies)
        with pytest.raises(Killed):
            run(manifest, config_of(), tmp_path / "killed")
    again = run(manifest, config_of(), tmp_path / "killed")
    assert again.history == whole.history
    ours, theirs = (
        load_checkpoint(tmp_path / folder / LAST_NAME)[0].state_dict() for folder in ("killed", "whole")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    state = torch.load(tmp_path / "killed" / STATE_NAME, weights_only=True)
    differing = [name for name, tensor in state["net"].items() if not torch.equal(tensor, ours[name])]
    assert differing, "the checkpoint holds the averages, the state the weights"
    averages = state["state"]["ema"]["averages"]
    assert all(torch.equal(ours[name], tensor) for name, tensor in averages.items())
    del state["state"]["ema"]
    torch.save(state, tmp_path / "killed" / STATE_NAME)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run(manifest, config_of(), tmp_path / "killed")


def test_validation_measures_the_averages(small_data: SmallData, tmp_path: Path) -> None:
    """The training itself is the same with an average and without one, and what is measured is not."""
    manifest = read_manifest(small_data.manifest, tasks=[TaskConfig()])
    slow = run(manifest, config_of(ema=0.999), tmp_path / "slow").history
    plain = run(manifest, config_of(ema=None), tmp_path / "plain").history
    assert [row["train_loss"] for row in slow] == [row["train_loss"] for row in plain]
    assert all(one["val_loss"] != other["val_loss"] for one, other in zip(slow, plain, strict=True))
    states = [torch.load(tmp_path / name / STATE_NAME, weights_only=True) for name in ("slow", "plain")]
    nets = [state["net"] for state in states]
    assert all(torch.equal(tensor, nets[1][name]) for name, tensor in nets[0].items())


def test_timm_s_checkpointing_needs_no_gradient_of_the_pixels() -> None:
    """Otherwise frozen first blocks would stop the gradient, with a warning at most."""
    network = timm.create_model("test_vit", num_classes=0)
    network.requires_grad_(False)
    network.blocks[1].requires_grad_(True)
    network.set_grad_checkpointing(True)
    network(torch.rand(1, 3, 160, 160)).sum().backward()
    assert network.blocks[1].mlp.fc1.weight.grad is not None
