"""Image data sets from the command line: learn, score, and the recipes of the paper's other domains."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.commands.console import Console
from tests.images.small_mnist import write_small_mnist
from wsi_ips.commands.recipe import load_recipe, make_job, shipped_recipe
from wsi_ips.config import EncoderConfig, ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.images.command import ImagesJob
from wsi_ips.images.image_sets import image_splits
from wsi_ips.images.traffic_signs import CLASSES, make_signs
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.training.kept_patches import PatchKeeper

SMALL = [
    "model.encoder={name: resnet10t, weights: none, stage: 0, in_channels: 1, batch_norm: batch}",
    "model.attention={heads: 2, key_dim: 4, value_dim: 4, inner_dim: 8, positions: raster}",
    "training.epochs=1",
    "training.warmup_epochs=0",
    "training.slides_per_step=4",
    "device=cpu",
]


def settings(*given: str) -> list[str]:
    return [word for each in given for word in ("--set", each)]


def job_of(name: str, *overrides: str) -> ImagesJob:
    job = make_job(load_recipe(shipped_recipe(name), overrides), source=name)
    assert isinstance(job, ImagesJob)
    return job


@pytest.mark.parametrize(
    ("recipe", "parameters", "patches"),
    [("megapixel_mnist", 880_232, 900), ("traffic_signs", 14_329_412, 192)],
)
def test_the_recipes_build_the_networks_of_the_paper(recipe: str, parameters: int, patches: int) -> None:
    """The numbers of weights of the reference's own models."""
    job = job_of(recipe, "model.encoder.weights=none")
    net = build_net(job.model)
    assert sum(weight.numel() for weight in net.parameters()) == parameters
    step = job.tiling.patch_px - job.tiling.overlap_px
    sides = (1500, 1500) if recipe == "megapixel_mnist" else (1200, 1600)
    assert patches == (sides[0] // step) * (sides[1] // step) == job.streaming.batch
    assert job.training.epochs == 150
    assert (job.training.lr, job.training.weight_decay) == (
        (1e-3, 0.1) if recipe == "megapixel_mnist" else (3e-4, 0.1)
    )


def test_camelyon_s_network_of_stored_features_has_the_paper_s_size() -> None:
    encoder = EncoderConfig(name="features", features=2048, project=512)
    model = job_of("traffic_signs").model
    task = model.tasks[0].model_copy(update={"classes": ("metastases",), "activation": "sigmoid"})
    net = build_net(ModelConfig(encoder=encoder, attention=model.attention, tasks=(task,)))
    assert sum(weight.numel() for weight in net.parameters()) == 4_201_473


def test_megapixel_mnist_is_drawn_learned_and_scored(console: Console, tmp_path: Path) -> None:
    mnist = write_small_mnist(tmp_path / "digits", train=300, test=100)
    out = tmp_path / "run"
    data = (
        f"data={{kind: megapixel_mnist, mnist: {mnist}, side_px: 140, train: 8, val: 4, test: 6, noise: 2}}"
    )
    given = settings(data, f"out={out}", "tiling.patch_px=28", "selection.m=5", "selection.i=5", *SMALL)
    said = console("run", str(shipped_recipe("megapixel_mnist")), *given)
    assert said.code == 0, said.err
    assert "6 test images: " in said.out
    figures = json.loads((out / "test.json").read_text())
    assert figures.keys() >= {"loss", "majority_accuracy", "max_accuracy", "top_accuracy", "multi_accuracy"}
    with (out / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4
    hits = [
        int(row["target"]) == max(range(10), key=lambda c, row=row: float(row["probabilities"].split(";")[c]))
        for row in rows
        if row["task"] == "majority"
    ]
    assert figures["majority_accuracy"] == pytest.approx(sum(hits) / 6)
    again = console("run", str(shipped_recipe("megapixel_mnist")), *given)
    assert again.out == said.out  # resumed: nothing is learned twice


def test_traffic_signs_are_learned_and_scored_and_a_broken_image_is_reported(
    console: Console, tmp_path: Path
) -> None:
    make_signs(tmp_path / "sts", train=10, test=5)
    (tmp_path / "sts" / "Set1" / "0000000002.jpg").write_bytes(b"cut short")
    data = f"data={{kind: traffic_signs, root: {tmp_path / 'sts'}, verify: false, height_px: 120, width_px: 160}}"
    small = [each for each in SMALL if "encoder" not in each]
    encoder = "model.encoder={name: resnet10t, weights: none, stage: 0, batch_norm: batch}"
    given = settings(data, f"out={tmp_path / 'run'}", "tiling.patch_px=40", "selection.m=3", encoder, *small)
    said = console("run", str(shipped_recipe("traffic_signs")), *given)
    assert said.code == 3, said.err
    assert "4 test images: " in said.out
    assert "failed: Set1_0000000002: " in said.out
    refused = console("run", str(shipped_recipe("traffic_signs")), *settings(f"data.root={tmp_path}"))
    assert refused.code == 2
    assert "no such annotations" in refused.err


def test_attention_sampling_s_published_models_are_learned_by_recipe(
    console: Console, tmp_path: Path
) -> None:
    """Everything as published but the size of images and sets."""
    mnist = write_small_mnist(tmp_path / "digits", train=300, test=100)
    make_signs(tmp_path / "sts", train=10, test=5)
    recipes = (
        (
            "ats_megapixel_mnist",
            30_411,
            f"{{kind: megapixel_mnist, mnist: {mnist}, side_px: 200, train: 8, val: 0, "
            "test: 6, noise: 2, small_scale: 0.12}",
        ),
        (
            "ats_speed_limits",
            66_133,
            f"{{kind: traffic_signs, root: {tmp_path / 'sts'}, verify: false, height_px: 240, "
            "width_px: 320, small_scale: 0.3, augment: true}",
        ),
    )
    for recipe, weights, size in recipes:
        out = tmp_path / recipe
        given = settings(f"data={size}", f"out={out}", "training.epochs=2", "device=cpu")
        said = console("run", str(shipped_recipe(recipe)), *given)
        assert said.code == 0, said.err
        with (out / "history.csv").open(newline="") as file:
            losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
        assert len(losses) == 2
        net, pipeline = load_checkpoint(out / "model.safetensors")
        assert pipeline.selection.selector == "attention_sampling"
        assert sum(weight.numel() for weight in net.parameters()) == weights
        assert 0 <= json.loads((out / "test.json").read_text())["accuracy"] <= 1


def test_the_photograph_that_is_learned_from_is_the_one_that_was_scored(tmp_path: Path) -> None:
    make_signs(tmp_path, train=5, test=2)
    data = {"kind": "traffic_signs", "root": tmp_path, "verify": False, "height_px": 80, "width_px": 120}
    job = ImagesJob.model_validate(
        {
            "data": data,
            "out": tmp_path,
            "tiling": {"patch_px": 40},
            "selection": {"m": 6},
            "model": {
                "encoder": {"name": "resnet10t", "weights": "none", "stage": 0},
                "attention": {"heads": 2, "key_dim": 4, "value_dim": 4, "inner_dim": 8},
                "tasks": [{"name": "sign", "classes": CLASSES}],
            },
            "training": {"flips": False},
        }
    )
    bag = image_splits(job.data, tmp_path, tasks=job.model.tasks, tiling=job.tiling)["train"][1]
    net, cpu = build_net(job.model).eval(), torch.device("cpu")
    keeper = PatchKeeper(net, job)
    for epoch in (0, 1):
        kept = keeper.keep(bag, epoch=epoch, device=cpu)
        (pixels,) = keeper.pixels([kept], epoch=epoch, device=cpu, most=64)
        assert kept.features_MC is not None
        with torch.no_grad():
            assert torch.allclose(net.encoder(pixels), kept.features_MC, atol=1e-5)
        with bag.as_seen(f"0/{epoch}/{bag.bag_id}").open(job.streaming, cpu) as source:
            assert torch.equal(pixels, source.read(kept.ids_M).pixels_n3PP)
        with bag.open(job.streaming, cpu) as source:
            assert not torch.equal(pixels, source.read(kept.ids_M).pixels_n3PP)


def test_a_training_set_with_one_label_is_refused_before_it_starts(tmp_path: Path) -> None:
    make_signs(tmp_path, train=1, test=1)
    job = job_of("traffic_signs", f"data.root={tmp_path}", "data.verify=false")
    with pytest.raises(ConfigError, match="all 1 images of split 'train' have the same sign"):
        image_splits(job.data, tmp_path, tasks=job.model.tasks, tiling=job.tiling)
