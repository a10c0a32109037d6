"""The start of a training: all patches first, a head start on frozen features, several beginnings."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.training.fit import train_bags
from wsi_ips.training.head_start import encoded
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.run_state import FinetuneReport

CPU = torch.device("cpu")
WIDTH, PATCHES = 8, 30
Json = dict[str, Any]


def on_features(**training: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "selection": {"m": 4, "i": 4},
            "model": {"encoder": {"name": "features", "features": WIDTH, "project": 16}},
            "training": {"epochs": 5, "lr": 3e-3, **training},
        }
    )


def on_pixels(*, selection: Json | None = None, **training: Any) -> FinetuneConfig:
    model = {**SMALL_MODEL["model"], "attention": {"heads": 2, "key_dim": 4}}  # type: ignore[dict-item]
    training = {"epochs": 2, "lr": 1e-3, "head_start": {"epochs": 3}, **training}
    return FinetuneConfig.model_validate(
        {"selection": selection or {"m": 3, "i": 3}, "model": model, "training": training}
    )


def features_bag(number: int) -> MemoryBag:
    """One patch of 30 says what an odd bag is."""
    generator = torch.Generator().manual_seed(number)
    x_NC = torch.randn(PATCHES, WIDTH, generator=generator)
    if number % 2:
        x_NC[int(torch.randint(PATCHES, (), generator=generator)), 0] += 8
    return MemoryBag(f"bag{number}", x_NC, {"label": number % 2})


def pixels_bag(number: int) -> MemoryBag:
    generator = torch.Generator().manual_seed(number)
    pixels = 0.2 + 0.6 * (number % 2) + 0.1 * torch.rand(5, 3, 32, 32, generator=generator)
    return MemoryBag(f"slide{number}", pixels, {"label": number % 2})


def fit(
    bags: list[MemoryBag], config: FinetuneConfig, out: Path, *, val: int = 4, **options: Any
) -> FinetuneReport:
    return train_bags(bags[val:], bags[:val], config, out, device=CPU, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_epochs_read_all_patches_and_the_others_m_of_them() -> None:
    config = on_features(all_patches_first=0.4)
    keeper = PatchKeeper(build_net(config.model), config)
    counts = [len(keeper.keep(features_bag(1), epoch=epoch, device=CPU).ids_M) for epoch in range(5)]
    assert counts == [PATCHES, PATCHES, 4, 4, 4]


def test_of_a_large_bag_so_many_are_drawn_anew_each_time() -> None:
    config = on_features(all_patches_first=1.0, most_patches=7)
    keeper = PatchKeeper(build_net(config.model), config)
    first, again, second = (
        keeper.keep(features_bag(1), epoch=epoch, device=CPU).ids_M.tolist() for epoch in (0, 0, 1)
    )
    assert len(set(first)) == 7
    assert first == sorted(first) == again
    assert first != second


def test_all_patches_first_is_the_default_where_no_encoder_learns() -> None:
    assert on_features().all_patches_epochs == 2
    assert on_features(all_patches_first=0).all_patches_epochs == 0
    assert on_pixels().all_patches_epochs == 0
    paper = {"encoder": {"name": "features", "features": WIDTH}, "attention": "paper"}
    assert FinetuneConfig.model_validate({"model": paper}).all_patches_epochs == 0


def test_the_encoder_stays_as_it_is_while_all_patches_are_read(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(8)]
    first = fit(bags, on_pixels(all_patches_first=0.5, head_start={"epochs": 0}), tmp_path / "two")
    whole = on_pixels(all_patches_first=1.0, head_start={"epochs": 0})
    frozen = fit(bags, whole, tmp_path / "all")
    begun = on_pixels(all_patches_first=1.0, head_start={"epochs": 0}, lr=1e-30)
    untouched = fit(bags, begun, tmp_path / "none")
    weights = [
        load_checkpoint(report.checkpoint.with_name("last.safetensors"))[0].state_dict()
        for report in (first, frozen, untouched)
    ]
    encoder = [name for name in weights[0] if name.startswith("encoder.")]
    # AdamW's decay alone (1e-2 of a rate of 1e-30) changes nothing; that of frozen weights is not asked for
    # either.
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in encoder)
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in encoder)


def test_a_head_start_learns_on_features_made_once_and_what_follows_begins_there(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(10)]
    config = on_pixels(lr=1e-30)  # end to end learns nothing: what is seen afterwards is the head start
    report = fit(bags, config, tmp_path)
    started = load_checkpoint(tmp_path / "head_start" / "model.safetensors")[0].state_dict()
    ended = load_checkpoint(report.checkpoint)[0].state_dict()
    assert {name.split(".")[0] for name in started} == {"projector", "attention", "heads"}
    assert all(torch.allclose(tensor, ended[name]) for name, tensor in started.items())
    # Once for the head start, and for each epoch once to select and once to learn; validation once.
    assert [len(bag.opened) for bag in bags] == [1 + 2] * 4 + [1 + 2 * 2] * 6
    assert not (tmp_path / "head_start" / "features").exists()
    assert len(rows_of(tmp_path / "head_start" / "history.csv")) == 3


def test_a_run_that_was_killed_behind_its_head_start_does_not_make_it_again(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(8)]
    whole = fit(bags, on_pixels(), tmp_path / "whole")
    (tmp_path / "whole" / "training_state.pt").rename(tmp_path / "state.pt")
    opened = [len(bag.opened) for bag in bags]
    (tmp_path / "state.pt").rename(tmp_path / "whole" / "training_state.pt")
    again = fit(bags, on_pixels(), tmp_path / "whole")
    assert [len(bag.opened) for bag in bags] == opened
    assert again.history == whole.history


def test_an_unreadable_bag_is_left_out_from_the_head_start_on(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(8)]
    bags[5] = MemoryBag("slide5", bags[5].pixels_N, bags[5].targets, broken=True)
    report = fit(bags, on_pixels(), tmp_path, max_bad=1)
    assert set(report.bad) == {"slide5"}
    assert len(bags[5].opened) == 1


def test_the_beginning_that_validation_prefers_goes_on(tmp_path: Path) -> None:
    bags = [features_bag(number) for number in range(16)]
    report = fit(bags, on_features(restarts=3), tmp_path)
    rows = rows_of(tmp_path / "starts.csv")
    losses = [float(row["val_loss"]) for row in rows]
    assert len(set(losses)) == 3
    assert [row["chosen"] for row in rows] == ["yes" if loss == min(losses) else "no" for loss in losses]
    assert report.history[report.best_epoch]["val_loss"] == pytest.approx(min(losses), rel=1e-5)
    chosen = load_checkpoint(tmp_path / "starts" / str(losses.index(min(losses))) / "model.safetensors")[0]
    kept = load_checkpoint(tmp_path / "model.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in chosen.state_dict().items())
    alone = fit(bags, on_features(), tmp_path / "alone")
    assert alone.history[alone.best_epoch]["val_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_restarts_begin_in_the_head_start(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(8)]
    fit(bags, on_pixels(restarts=2), tmp_path)
    assert len(rows_of(tmp_path / "head_start" / "starts.csv")) == 2
    assert not (tmp_path / "starts.csv").exists()


def test_restarts_without_a_head_start_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"set training\.head_start\.epochs"):
        on_pixels(restarts=2, head_start={"epochs": 0})


def test_there_is_a_head_start_where_the_encoder_brings_weights() -> None:
    def epochs(encoder: Json, **more: Any) -> int:
        return FinetuneConfig.model_validate({"model": {"encoder": encoder, **more}}).head_start_epochs

    assert epochs({"name": "resnet18"}) == 40
    assert epochs({"name": "resnet18", "weights": "none"}) == 0
    assert epochs({"name": "resnet18"}, attention="paper") == 0
    assert epochs({"name": "features", "features": 8}) == 0


def test_history_says_how_selection_goes(tmp_path: Path) -> None:
    bags = [features_bag(number) for number in range(12)]
    fit(bags, on_features(epochs=6), tmp_path)
    rows = rows_of(tmp_path / "history.csv")
    assert [bool(row["kept_attention"]) for row in rows] == [False] * 3 + [True] * 3
    assert [bool(row["kept_overlap"]) for row in rows] == [False] * 4 + [True] * 2
    for row in rows[4:]:
        assert 0 <= float(row["kept_overlap"]) <= 1
        assert 4 / PATCHES < float(row["kept_attention"]) <= 1
        assert 1 / PATCHES <= float(row["attention_spread"]) <= 1


def test_each_device_has_a_slide_of_a_step() -> None:
    assert FinetuneConfig().training.slides_per_step == 1
    assert FinetuneConfig.model_validate({"training": {"devices": 4}}).training.slides_per_step == 4
    uneven = {"devices": 4, "slides_per_step": 2}
    assert FinetuneConfig.model_validate({"training": uneven}).training.slides_per_step == 2


def test_what_a_run_doubts_is_kept_with_it(tmp_path: Path) -> None:
    blank = [MemoryBag(f"bag{n}", torch.zeros(PATCHES, WIDTH), {"label": n % 2}) for n in range(12)]
    report = fit(blank, on_features(), tmp_path)
    assert any("has not found what decides them" in doubt for doubt in report.doubts)
    assert json.loads((tmp_path / "run.json").read_text())["doubts"] == list(report.doubts)


def test_features_of_another_number_of_patches_are_made_again(tmp_path: Path) -> None:
    """A run that was killed in its head start, started again with another resolution of the slide."""
    config = on_pixels()
    net = build_net(config.model)
    few, many = pixels_bag(1), MemoryBag("slide1", torch.rand(7, 3, 32, 32), {"label": 1})
    for bag, opened in ((few, 1), (many, 1)):
        for _ in range(2):
            (encoded_bag,) = encoded([bag], net, config, tmp_path, device=CPU)
            with encoded_bag.open(config.streaming, CPU) as source:
                assert len(source.ids()) == len(bag)
        assert len(bag.opened) == opened
