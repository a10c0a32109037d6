"""Learning with attention sampling and with the cascade: exact gradients, the same Lightning module, recall."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import SMALL_MODEL
from wsi_ips.config import FinetuneConfig, StreamingConfig
from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.images.bags import ImageBag, ImageGrid, ImagePatches
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.coarse import Coarse, ConvScorer
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.models.sampling import entropy_regulariser, sample_softmax
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.coarse_to_fine import let_through, look, read_sampled
from wsi_ips.selection.slide_reading import score_part
from wsi_ips.training.cascade import CascadeLearner, recall_curve
from wsi_ips.training.fit import train_bags
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.learning import make_optimizer, step_loss
from wsi_ips.training.module import make_method
from wsi_ips.training.sampling import SlideLearner

CPU = torch.device("cpu")
SIDE = 256


def config_of(selector: str, *, selection: dict[str, Any] | None = None, **training: Any) -> FinetuneConfig:
    given = {"selector": selector, "m": 4, "i": 8, "coarse": {"mpp": 4.0, "channels": (4, 8)}}
    given |= selection or {}
    training = {"epochs": 2, "warmup_epochs": 0, "slides_per_step": 2, "lr": 0.003, "flips": False} | training
    return FinetuneConfig.model_validate({**SMALL_MODEL, "selection": given, "training": training})


def bag(number: int, *, side: int = SIDE) -> ImageBag:
    """Dark noise; in bags of odd number, one bright patch out of 64."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 90, (side, side, 3)).astype(np.uint8)
    if number % 2:
        row, column = rng.integers(0, side // 32, 2) * 32
        image[row : row + 32, column : column + 32] = rng.integers(170, 256, (32, 32, 3))
    grid = ImageGrid(32, 32, side // 32, side // 32)
    return ImageBag(f"bag{number}", {"label": number % 2}, grid, lambda _: image)


def method_of(config: FinetuneConfig) -> Any:
    torch.manual_seed(0)
    net = build_selecting_net(config.model, config.selection)
    torch.nn.init.normal_(net.looks_from_afar.scorer.last.weight)
    return net, make_method(net, config, {})


def gradients(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("micro_batch", [2, None])
@pytest.mark.parametrize("gradient", ["unbiased", "reference"])
def test_gradients_of_slides_in_parts_are_those_of_one_graph(gradient: str, micro_batch: int | None) -> None:
    """Scorer over every window, encoder over the samples, in micro-batches; against everything in one graph."""
    config = config_of(
        "attention_sampling",
        selection={"sampling": {"samples": 5, "gradient": gradient, "entropy": 0.01}},
        micro_batch=micro_batch,
    )
    net, method = method_of(config)
    assert isinstance(net, SamplingNet)
    assert isinstance(method, SlideLearner)
    bags = [bag(0), bag(1, side=64)]
    kept = [method.keep(each, epoch=0, device=CPU) for each in bags]
    assert [len(each.patches.ids_M) for each in kept] == [5, 4]  # the smaller one has only four
    net.zero_grad()
    found = method.learn(kept, epoch=0, device=CPU, share=0.5)
    ours = gradients(net)

    net.zero_grad()
    features, drawn, spread = [], [], []
    for each, its in zip(bags, kept, strict=True):
        with each.open(StreamingConfig(), CPU) as source:
            windows = torch.cat([c.pixels_n3PP for c in source.windows(config.selection.coarse).source])
            attention_1N = sample_softmax(net.coarse_logits(windows)[None], smoothing=net.sampling.smoothing)
            features.append(net.encoder(source.read(its.patches.ids_M).pixels_n3PP))
        drawn.append(attention_1N[0, its.index_M])
        spread.append(entropy_regulariser(attention_1N, strength=0.01))
    reading = net.read_samples(torch.cat(features), drawn)
    loss = step_loss(reading, [each.targets for each in bags], config.model.tasks, weights={})
    (0.5 * (loss + torch.stack(spread).mean())).backward()
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    whole = gradients(net)
    assert ours.keys() == whole.keys()
    assert any(name.startswith("coarse.") for name in ours)
    for name, wanted in whole.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-3, atol=1e-6, msg=name)


def test_the_scorer_learns_ips_s_attention_over_what_was_read_closely() -> None:
    """Its gradient is that of a cross entropy between both, over the windows let through."""
    config = config_of("cascade", selection={"coarse": {"mpp": 4.0, "channels": (4, 8), "share": 0.3}})
    config = config.model_copy(
        update={
            "selection": config.selection.model_copy(
                update={"coarse": config.selection.coarse.model_copy(update={"full_epochs": 0})}
            )
        }
    )
    net, method = method_of(config)
    assert isinstance(net, IPSNet)
    assert isinstance(method, CascadeLearner)
    one = bag(1)
    kept = method.keep(one, epoch=0, device=CPU)
    assert len(kept.window_w) == 20  # ceil(0.3 * 64)
    assert set(kept.patches.ids_M.tolist()) <= set(kept.window_w.tolist())
    net.zero_grad()
    method.learn([kept], epoch=0, device=CPU, share=0.5)
    ours = gradients(net)

    net.zero_grad()
    with one.open(StreamingConfig(), CPU) as source:
        windows = torch.cat([c.pixels_n3PP for c in source.windows(config.selection.coarse).source])
        target_w = score_part(net, source.only(kept.window_w)).store.attention().mean(dim=(1, 2))
    logits_w = net.coarse_logits(windows)[kept.window_w]
    loss = -(target_w * logits_w.log_softmax(dim=0)).sum()
    assert kept.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    (0.5 * loss).backward()
    for name, wanted in gradients(net).items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-3, atol=1e-6, msg=name)


def test_a_part_of_the_share_is_drawn_at_random_in_training_anew_in_every_epoch() -> None:
    selection = {"coarse": {"mpp": 4.0, "channels": (4, 8), "share": 0.25, "explore": 0.5, "full_epochs": 1}}
    _, method = method_of(config_of("cascade", selection=selection))
    windows = [method.keep(bag(1), epoch=epoch, device=CPU).window_w for epoch in (0, 1, 1, 2)]
    assert [len(each) for each in windows] == [64, 16, 16, 16]
    assert torch.equal(windows[1], windows[2])
    assert not torch.equal(windows[1], windows[3])
    assert len(np.intersect1d(windows[1], windows[3])) >= 8


@pytest.mark.parametrize("scorer", ["conv", "encoder"])
def test_the_cascade_is_trained_calibrated_and_loaded(tmp_path: Path, scorer: str) -> None:
    """On slides, whose windows may be the shared encoder's; drawn ones of one colour or another."""
    selection = {"coarse": {"mpp": 4.0, "channels": (4, 8), "recall": 0.8, "scorer": scorer}}
    config = config_of("cascade", selection=selection, epochs=2)
    bags: Any = [bag(n, side=128) for n in range(4)]
    if scorer == "encoder":
        bags = [_CoarseEncoderBag(each) for each in bags]
    report = train_bags(bags, bags, config, tmp_path, device=CPU)
    net, _ = load_checkpoint(report.checkpoint)
    assert isinstance(net, IPSNet)
    curve = net.looks_from_afar.recall_S
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(1)
    assert (curve.diff() >= 0).all()
    share = float(net.looks_from_afar.share)
    assert net.looks_from_afar.recall_at(share) >= 0.8 - 1e-6  # type: ignore[operator]
    assert net.looks_from_afar.recall_at(share - 0.01) < 0.8  # type: ignore[operator]
    # The curve is the mean over the bags of the full pass's attention that the share holds.
    with bags[1].open(StreamingConfig(), CPU) as source:
        seen = look(net, source, config.selection.coarse)
        attention_N = score_part(net, source).store.attention().mean(dim=(1, 2))
        rows = let_through(seen.patch_logits(), 0.3)
    one = recall_curve(net, bags[1], config, device=CPU)
    assert float(one[30]) == pytest.approx(float(attention_N[rows].sum() / attention_N.sum()), abs=1e-5)
    # What was measured is not measured again.
    before = report.checkpoint.read_bytes()
    train_bags(bags, bags, config, tmp_path, device=CPU)
    assert report.checkpoint.read_bytes() == before


@dataclass(frozen=True)
class _CoarseEncoderBag:
    """An image bag whose coarse patches are 2 x 2 of its patches, made half as large."""

    inner: ImageBag

    @property
    def bag_id(self) -> str:
        return self.inner.bag_id

    @property
    def targets(self) -> Any:
        return self.inner.targets

    def __len__(self) -> int:
        return len(self.inner)

    @contextmanager
    def open(self, streaming: StreamingConfig, device: torch.device) -> Iterator[Any]:
        from wsi_ips.streaming.patch_source import Windows

        with self.inner.open(streaming, device) as source:
            half = source.image.float().unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(-1, -2)).to(torch.uint8)
            sides = half.shape[-1] // 32
            coarse = ImagePatches(half, ImageGrid(32, 32, sides, sides), batch=streaming.batch)
            ids = source.ids()
            window_N = (ids // (2 * sides) // 2) * sides + ids % (2 * sides) // 2
            source.windows = lambda _: Windows(coarse, window_N)
            yield source


def test_a_recall_target_needs_validation_bags(tmp_path: Path) -> None:
    config = config_of("cascade", selection={"coarse": {"mpp": 4.0, "recall": 0.9}})
    with pytest.raises(ConfigError, match="measured on the validation split, which is empty"):
        train_bags([bag(0), bag(1)], [], config, tmp_path, device=CPU)


def test_selectors_select_in_every_epoch() -> None:
    with pytest.raises(ValueError, match="select_every=1"):
        config_of("cascade", select_every=2)


class _Brightness(torch.nn.Module):
    """An encoder that tells bright patches from dark ones, and cannot learn."""

    def forward(self, pixels: Tensor) -> Tensor:
        bright_n = pixels.float().mean(dim=(1, 2, 3)) / 255
        return torch.stack([bright_n > 0.5, bright_n <= 0.5], dim=1).float()


def test_attention_sampling_learns_where_to_look() -> None:
    """One patch of 16 tells a bag's label, four are drawn, and nothing but labels is learned from."""
    selection = {
        "sampling": {"samples": 4, "smoothing": 1e-3},
        "coarse": {"mpp": 4.0, "channels": (4, 8)},
    }
    config = config_of("attention_sampling", selection=selection)
    torch.manual_seed(0)
    scorer = Coarse(ConvScorer((4, 8)), share=0.1)
    net = SamplingNet(_Brightness(), scorer, Heads(2, config.model.tasks), sampling=config.selection.sampling)
    method, optimizer = (
        SlideLearner(net, config, PatchKeeper(net, config)),
        torch.optim.Adam(net.parameters(), lr=0.02),
    )
    train, held_out = [bag(n, side=128) for n in range(8)], [bag(n, side=128) for n in (21, 23, 25)]

    def mass_where_it_counts(each: ImageBag) -> float:
        with each.open(StreamingConfig(), CPU) as source:
            means_N = torch.cat([c.pixels_n3PP.float().mean(dim=(1, 2, 3)) for c in source])
            attention_N = read_sampled(net, source, config.selection).store.attention()[:, 0, 0]
        return float(attention_N[means_N.argmax()])

    assert max(map(mass_where_it_counts, held_out)) < 0.1
    for step in range(80):
        kept = [method.keep(each, epoch=step, device=CPU) for each in train]
        optimizer.zero_grad()
        method.learn(kept, epoch=step, device=CPU, share=1.0)
        optimizer.step()
    assert min(map(mass_where_it_counts, held_out)) > 0.5


def test_a_killed_run_goes_on_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("attention_sampling", selection={"sampling": {"samples": 3}}, epochs=2, save_minutes=0)
    bags = [bag(n) for n in range(4)]
    whole = train_bags(bags, bags, config, tmp_path / "whole", device=CPU)
    learn = SlideLearner.learn
    left = [3]

    def killed(self: SlideLearner, *args: Any, **options: Any) -> Tensor:
        if not left[0]:
            raise TrainingError("killed")
        left[0] -= 1
        return learn(self, *args, **options)

    monkeypatch.setattr(SlideLearner, "learn", killed)
    with pytest.raises(TrainingError, match="killed"):
        train_bags(bags, bags, config, tmp_path / "killed", device=CPU)
    monkeypatch.setattr(SlideLearner, "learn", learn)
    resumed = train_bags(bags, bags, config, tmp_path / "killed", device=CPU)
    assert resumed.history == whole.history
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_what_looks_from_afar_has_a_learning_rate_of_its_own() -> None:
    config = config_of("cascade", lr=1e-4, encoder_lr=1e-5, coarse_lr=1e-3)
    net = build_selecting_net(config.model, config.selection)
    rate_of = {
        id(weight): group["lr"]
        for group in make_optimizer(net, config.training).param_groups
        for weight in group["params"]
    }
    assert len(rate_of) == len(list(net.parameters()))
    assert net.coarse is not None
    parts = {"coarse": net.coarse, "encoder": net.encoder, "heads": net.heads}
    rates = {name: {rate_of[id(weight)] for weight in part.parameters()} for name, part in parts.items()}
    assert rates == {"coarse": {1e-3}, "encoder": {1e-5}, "heads": {1e-4}}
