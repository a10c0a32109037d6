"""The start of a training: all patches first, a head start on frozen features, several beginnings."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, StreamingConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.ips_net import scoring
from wsi_ips.selection.reading import read_bag
from wsi_ips.training.fit import train_bags
from wsi_ips.training.head_start import EncodedBag, encoded, head_start_config, views_of
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.learning import Steps
from wsi_ips.training.module import IPSModule
from wsi_ips.training.run_state import FinetuneReport, forget_run

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
    # Once for the head start, and once for each of two epochs, whether it is learned from or validated on.
    assert [len(bag.opened) for bag in bags] == [1 + 2] * 10
    assert not (tmp_path / "head_start" / "features").exists()
    assert len(rows_of(tmp_path / "head_start" / "history.csv")) == 3


def test_validation_reads_kept_patches_in_the_orientations_of_the_setting(tmp_path: Path) -> None:
    """The head start learns on features, which cannot be turned."""
    bags = [pixels_bag(number) for number in range(10)]
    report = fit(bags, on_pixels(selection={"m": 3, "i": 3, "turns": 4}), tmp_path)
    _, of_start = load_checkpoint(tmp_path / "head_start" / "model.safetensors")
    net, config = load_checkpoint(report.checkpoint)
    assert (of_start.selection.turns, config.selection.turns) == (1, 4)
    losses = {}
    for turns in (1, 4):
        selection, said = config.selection.model_copy(update={"turns": turns}), []
        for bag in bags[:4]:
            with bag.open(StreamingConfig(), CPU) as source:
                p_C = read_bag(net, source, selection).bag.probabilities["label"][0]
            said.append(-math.log(p_C[int(bag.targets["label"])] + 1e-6))  # as the paper's loss has it
        losses[turns] = sum(said) / len(said)
    assert report.history[report.best_epoch]["val_loss"] == pytest.approx(losses[4], rel=1e-5)
    assert losses[1] != pytest.approx(losses[4], rel=1e-5)


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
    losses = [float(row["val_refined_loss"]) for row in rows]
    assert len(set(losses)) == 3
    assert [row["chosen"] for row in rows] == ["yes" if loss == min(losses) else "no" for loss in losses]
    assert report.history[report.best_epoch]["val_refined_loss"] == pytest.approx(min(losses), rel=1e-5)
    chosen = load_checkpoint(tmp_path / "starts" / str(losses.index(min(losses))) / "model.safetensors")[0]
    kept = load_checkpoint(tmp_path / "model.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in chosen.state_dict().items())
    alone = fit(bags, on_features(), tmp_path / "alone")
    assert alone.history[alone.best_epoch]["val_refined_loss"] == pytest.approx(losses[0], rel=1e-5)


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


def test_features_of_other_content_are_made_again(tmp_path: Path) -> None:
    """A run that was killed in its head start, started again once a slide had been replaced by another one."""
    config = on_pixels()
    net, one = build_net(config.model), pixels_bag(1)
    other = replace(pixels_bag(3), bag_id=one.bag_id, opened=[])
    for content, bag in (("before", one), ("before", one), ("now", other)):
        (encoded_bag,) = encoded([bag], net, config, tmp_path, device=CPU, content=content)
        with encoded_bag.open(config.streaming, CPU) as source:
            source.read(source.ids())
    assert (len(one.opened), len(other.opened)) == (1, 1)


def bag_of_features(config: FinetuneConfig, bag: MemoryBag, out: Path) -> EncodedBag:
    (bag_of_features,) = encoded(
        [bag], build_net(config.model), config, out, device=CPU, views=views_of(config)
    )
    return bag_of_features


def shown(bag: EncodedBag, config: FinetuneConfig, key: str | None) -> torch.Tensor:
    """(N, C) what a key shows of all patches."""
    with (bag if key is None else bag.as_seen(key)).open(config.streaming, CPU) as source:
        return source.read(source.ids()).pixels_n3PP


def test_a_key_draws_a_view_for_every_patch(tmp_path: Path) -> None:
    config, pixels = on_pixels(), pixels_bag(1)
    bag = bag_of_features(config, pixels, tmp_path)
    untouched = shown(bag, config, None)
    first, again, other = (shown(bag, config, key) for key in ("0/1/slide1", "0/1/slide1", "0/2/slide1"))
    assert len(pixels.opened) == 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Some patches are shown as they are, some are not; each as the encoder sees a turned or mirrored patch.
    same_N = (first == untouched).all(dim=1)
    assert 0 < same_N.sum() < len(same_N)
    with torch.no_grad(), scoring(bag.encoder):
        looks = [
            bag.encoder(turned if side == 0 else turned.flip(-1))
            for quarter in range(4)
            for turned in [torch.rot90(pixels.pixels_N, quarter, dims=(-2, -1))]
            for side in range(2)
        ]
    nearest_N = torch.stack([(first - look).abs().amax(dim=1) for look in looks]).amin(dim=0)
    assert float(nearest_N.max()) < 2e-3  # float16


def test_selection_and_learning_see_the_same_view(tmp_path: Path) -> None:
    config = on_pixels()
    bag = bag_of_features(config, pixels_bag(1), tmp_path)
    with bag.as_seen("key").open(config.streaming, CPU) as source:
        chunks = torch.cat([chunk.pixels_n3PP for chunk in source])
        ids = source.ids()[[3, 1]]
        assert torch.equal(source.read(ids).pixels_n3PP, chunks[[3, 1]])


def test_validation_patches_are_shown_as_they_are(tmp_path: Path) -> None:
    config = on_pixels()
    (bag,) = encoded([pixels_bag(1)], build_net(config.model), config, tmp_path, device=CPU)
    assert torch.equal(shown(bag, config, "0/1/slide1"), shown(bag, config, None))


def test_views_that_would_all_be_the_same_are_not_made() -> None:
    assert views_of(on_pixels()) is not None
    assert views_of(on_pixels(flips=False)) is None
    assert views_of(on_pixels(flips=False, augment={"per": "patch"})) is None
    coloured = views_of(on_pixels(flips=False, augment={"stain": 0.1}, head_start={"views": 3}))
    assert coloured is not None
    assert coloured.count == 3
    assert views_of(on_pixels(head_start={"views": 1})) is None


def test_a_head_start_learns_from_views(tmp_path: Path) -> None:
    bags = [pixels_bag(number) for number in range(8)]
    ended = [
        fit(bags, on_pixels(head_start={"epochs": 3, "views": views}), tmp_path / str(views))
        and load_checkpoint(tmp_path / str(views) / "head_start" / "model.safetensors")[0].state_dict()
        for views in (1, 4)
    ]
    assert any(not torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


def test_an_encoder_behind_a_head_that_knows_something_learns_gently() -> None:
    def rate(encoder: Json, **training: Any) -> float:
        config = {"model": {"encoder": encoder}, "training": {"lr": 3e-4, **training}}
        return FinetuneConfig.model_validate(config).encoder_lr

    pretrained, random = {"name": "resnet18"}, {"name": "resnet18", "weights": "none"}
    assert rate(pretrained) == 3e-5
    assert rate(pretrained, lr=1e-6) == 1e-6
    assert rate(pretrained, encoder_lr=1e-3) == 1e-3
    assert rate(pretrained, head_start={"epochs": 0}) == 3e-4
    assert rate(random) == 3e-4
    assert rate(random, start="a.safetensors") == 3e-5


def test_the_optimiser_has_the_gentle_rate(tmp_path: Path) -> None:
    config = on_pixels(lr=1e-3)
    net = build_net(config.model)
    steps = Steps(1, per_step=1, order=lambda _: [0])
    optimizer = IPSModule(net, config, bags=[pixels_bag(0)], steps=steps).configure_optimizers()
    peak_of = {id(weight): group["peak_lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {peak_of[id(weight)] for weight in net.encoder.parameters()} == {3e-5}
    assert {peak_of[id(weight)] for weight in net.heads.parameters()} == {1e-3}


def test_a_head_start_keeps_its_last_epoch(tmp_path: Path) -> None:
    assert head_start_config(on_pixels(), width=WIDTH).training.monitor == "last"
    noise = torch.randn(12, PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))
    bags = [MemoryBag(f"slide{n}", x_NC, {"label": n % 2}) for n, x_NC in enumerate(noise)]
    report = fit(bags, on_features(monitor="last"), tmp_path)
    assert report.best_epoch == len(report.history) - 1 == 4
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()


def test_of_several_last_epochs_the_one_that_tells_slides_apart_best_goes_on(tmp_path: Path) -> None:
    fit([features_bag(number) for number in range(16)], on_features(restarts=3, monitor="last"), tmp_path)
    rows = rows_of(tmp_path / "starts.csv")
    losses = [float(row["val_refined_loss"]) for row in rows]
    assert [row["epoch"] for row in rows] == ["4"] * 3
    assert [row["chosen"] for row in rows] == ["yes" if loss == min(losses) else "no" for loss in losses]


def test_a_head_start_that_validation_prefers_is_kept_beside_the_run(tmp_path: Path) -> None:
    """End to end at a rate that spoils the network: the one before it can be used, and the run says so."""
    bags = [pixels_bag(number) for number in range(10)]
    config = on_pixels(lr=3.0, encoder_lr=1.0)
    report = fit(bags, config, tmp_path)
    (said,) = [doubt for doubt in report.doubts if "has not improved on its head start" in doubt]
    kept = tmp_path / "head_start.safetensors"
    assert said.endswith(f"{kept} is the network as it was then, to be compared on other slides")
    assert json.loads((tmp_path / "run.json").read_text())["doubts"] == list(report.doubts)
    net, pipeline = load_checkpoint(kept)
    assert pipeline.model.encoder.features is None
    losses = []
    for bag in bags[:4]:
        with bag.open(StreamingConfig(), CPU) as source, scoring(net), torch.no_grad():
            p_C = read_bag(net, source, config.selection).bag.probabilities["label"][0]
        losses.append(-math.log(float(p_C[bag.targets["label"]])))
    started = rows_of(tmp_path / "head_start" / "history.csv")[-1]
    assert math.fsum(losses) / 4 == pytest.approx(float(started["val_loss"]), rel=0.01)
    again = fit(bags, config, tmp_path)  # nothing is left to do
    assert again.doubts == report.doubts
    assert kept.exists()
    forget_run(tmp_path)  # with --restart
    assert not kept.exists()


def test_a_head_start_that_was_improved_on_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "head_start.safetensors").touch()  # of an earlier run in this folder
    report = fit(
        [pixels_bag(number) for number in range(10)],
        on_pixels(head_start={"epochs": 1, "lr": 1e-30}),
        tmp_path,
    )
    assert not [doubt for doubt in report.doubts if "head start" in doubt]
    assert not (tmp_path / "head_start.safetensors").exists()
