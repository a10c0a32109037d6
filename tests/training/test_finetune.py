"""Fine-tuning on six small drawn slides: what it keeps, that it repeats, that scoring and learning agree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import ConfigError, ManifestError, TrainingError
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.models.ips_net import scoring
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.tiling.patches import PatchesInTissue
from wsi_ips.training.bags import tile_bag
from wsi_ips.training.fit import finetune
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.run_state import FinetuneReport


def config_of(**training: Any) -> FinetuneConfig:
    training = {"epochs": 2, "warmup_epochs": 0, "slides_per_step": 2, **training}
    return FinetuneConfig.model_validate({**SMALL_MODEL, "training": training})


@pytest.fixture
def manifest(small_data: SmallData) -> Manifest:
    return read_manifest(small_data.manifest, tasks=[TaskConfig()])


def run(manifest: Manifest, config: FinetuneConfig, out: Path) -> FinetuneReport:
    return finetune(manifest, config, out, device=torch.device("cpu"), slide_mpp=SlideMpp())


def weights(report: FinetuneReport) -> dict[str, torch.Tensor]:
    return load_checkpoint(report.checkpoint)[0].state_dict()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    manifest: Manifest, tmp_path: Path
) -> None:
    first, again, other = (
        weights(run(manifest, config_of(seed=seed), tmp_path / name))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["attention.query.weight"], other["attention.query.weight"])


def test_the_epoch_with_the_lowest_validation_loss_is_kept(manifest: Manifest, tmp_path: Path) -> None:
    report = run(manifest, config_of(epochs=4, lr=0.05, monitor="loss"), tmp_path)
    losses = [row["val_loss"] for row in report.history]
    assert len(losses) == 4
    assert report.best_epoch == losses.index(min(losses))


def test_a_frozen_encoder_keeps_its_weights(manifest: Manifest, tmp_path: Path) -> None:
    encoder = {**SMALL_MODEL["model"]["encoder"], "trainable": False}  # type: ignore[index]
    model = {**SMALL_MODEL["model"], "encoder": encoder}  # type: ignore[dict-item]
    frozen = FinetuneConfig.model_validate(
        {**SMALL_MODEL, "model": model, "training": {"epochs": 1, "warmup_epochs": 0, "slides_per_step": 1}}
    )
    torch.manual_seed(frozen.training.seed)
    before = build_net(frozen.model).state_dict()
    after = weights(run(manifest, frozen, tmp_path))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"attention", "heads"}


@pytest.mark.parametrize("flips", [False, True])
def test_the_pixels_that_are_learned_from_are_those_that_were_scored(
    manifest: Manifest, *, flips: bool
) -> None:
    """Kept patches are read again: turned and flipped as they were when they were scored."""
    config = config_of(flips=flips)
    net, cpu = build_net(config.model), torch.device("cpu")
    bag = tile_bag(
        manifest.split("train")[0],
        tasks=[TaskConfig()],
        find_patches=PatchesInTissue(config.tiling),
        slide_mpp=SlideMpp(),
    )
    keeper = PatchKeeper(net, config)
    kept = keeper.keep(bag, epoch=0, device=cpu)
    parts = list(keeper.pixels([kept], epoch=0, device=cpu, most=3))
    assert [len(part) for part in parts] == [3, 1]
    with scoring(net), torch.no_grad():
        assert torch.allclose(net.encoder(torch.cat(parts)), kept.features_MC, atol=1e-5)
    later = torch.cat(list(keeper.pixels([kept], epoch=1, device=cpu, most=9)))
    assert torch.equal(later, torch.cat(parts)) != flips


def test_training_without_two_labels_or_without_tissue_is_refused_before_it_starts(
    manifest: Manifest, tmp_path: Path
) -> None:
    normal = tuple(record for record in manifest.records if record.labels["label"] == "normal")
    with pytest.raises(ManifestError, match="nothing to tell apart"):
        run(Manifest(manifest.path, normal), config_of(), tmp_path / "out")
    none = Manifest(manifest.path, tuple(manifest.split("test")))
    with pytest.raises(ManifestError, match="no slides in split 'train'"):
        run(none, config_of(), tmp_path / "out")
    blind = {**SMALL_MODEL["tiling"], "tissue": {"min_object_um2": 1e12}}  # type: ignore[dict-item]
    strict = FinetuneConfig.model_validate({**SMALL_MODEL, "tiling": blind})
    with pytest.raises(TrainingError, match=r"2 slides cannot be used.*no tissue"):
        run(manifest, strict, tmp_path / "out")
    assert not (tmp_path / "out").exists()


RANDOM = {"name": "resnet10t", "weights": "none", "stage": 2}


def of_encoder(encoder: dict[str, object], **training: object) -> FinetuneConfig:
    model = {**SMALL_MODEL["model"], "encoder": encoder}  # type: ignore[dict-item]
    return FinetuneConfig.model_validate(
        {**SMALL_MODEL, "model": model, "training": {"epochs": 1, "warmup_epochs": 0, **training}}
    )


@pytest.mark.parametrize(
    "encoder", [RANDOM, {**RANDOM, "batch_norm": "frozen"}, {**RANDOM, "trainable": False}], ids=str
)
def test_random_weights_are_not_trained_without_normalisation(
    manifest: Manifest, tmp_path: Path, encoder: dict[str, object]
) -> None:
    """BatchNorm of mean 0 and variance 1 that never changes: said before any slide is read."""
    records = tuple(replace(record, path=tmp_path / "none.tif") for record in manifest.records)
    with pytest.raises(
        ConfigError, match=r"batch_norm=batch and training\.micro_batch=null, or give weights"
    ):
        run(Manifest(manifest.path, records), of_encoder(encoder), tmp_path / "run")


def test_random_weights_are_trained_with_the_statistics_of_a_step(manifest: Manifest, tmp_path: Path) -> None:
    report = run(manifest, of_encoder({**RANDOM, "batch_norm": "batch"}, micro_batch=None), tmp_path / "run")
    means = [value for name, value in weights(report).items() if name.endswith("bn1.running_mean")]
    assert means
    assert all(mean.abs().max() > 0 for mean in means)
    # Statistics that a checkpoint brings along may be frozen.
    go_on = of_encoder({**RANDOM, "batch_norm": "frozen"}, start=report.checkpoint)
    assert len(run(manifest, go_on, tmp_path / "on").history) == 1
