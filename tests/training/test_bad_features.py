"""Damaged files of features: left out and reported up to training.max_bad_slides; and numbers as labels."""

from pathlib import Path

import pytest
import torch

from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import TrainingError
from wsi_ips.training.feature_bags import finetune_features


def job(cases: Path, out: Path, manifest: str, classes: list[object], max_bad: float) -> FinetuneJob:
    made = make_job(
        {
            "command": "finetune",
            "manifest": cases / "features" / "manifests" / manifest,
            "features": cases / "features" / "one_nan",
            "out": out,
            "selection": {"m": 4, "i": 8},
            "model": {
                "encoder": {"name": "features", "features": 16},
                "attention": {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16},
                "tasks": [{"classes": classes}],
            },
            "training": {"epochs": 2, "warmup_epochs": 0, "max_bad_slides": max_bad},
        },
        source="test",
    )
    assert isinstance(made, FinetuneJob)
    return made


@pytest.mark.parametrize(
    ("manifest", "classes"), [("ok.csv", ["normal", "tumor"]), ("label_int.csv", [0, 1])]
)
def test_one_damaged_file_of_many_is_reported(
    cases_folder: Path, tmp_path: Path, manifest: str, classes: list[object]
) -> None:
    config = job(cases_folder, tmp_path, manifest, classes, 0.5)
    held = read_manifest(config.manifest, tasks=config.model.tasks, need_slides=False)
    assert config.features is not None
    report = finetune_features(held, config, config.features, tmp_path, device=torch.device("cpu"))
    assert len(report.bad) == 1
    assert "not finite" in next(iter(report.bad.values()))
    assert len(report.history) == 2


def test_none_is_allowed_where_none_is_asked_for(cases_folder: Path, tmp_path: Path) -> None:
    config = job(cases_folder, tmp_path, "ok.csv", ["normal", "tumor"], 0.0)
    held = read_manifest(config.manifest, tasks=config.model.tasks, need_slides=False)
    assert config.features is not None
    with pytest.raises(TrainingError, match=r"more than training\.max_bad_slides allows"):
        finetune_features(held, config, config.features, tmp_path, device=torch.device("cpu"))
