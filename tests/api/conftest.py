"""The folder that every example runs in: a slide, a folder of two, labels, a small model, a small recipe."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import read_manifest, write_manifest
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint

# With the default block, which tells what each patch contributes.
MODEL = {
    "encoder": {"name": "test_convnext", "weights": "none", "stage": 2},
    "attention": {"heads": 2, "key_dim": 8},
}
NAMES = {"test_000_normal": "slides/a", "test_001_tumor": "slides/b"}


@pytest.fixture(scope="session")
def example_files(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``slide.svs``, ``slides/a.tif`` and ``b.tif`` (test), ``learn/*.tif`` (train, val), ``labels.csv``,
    ``model.safetensors`` (untrained) and ``small.yaml``, the settings that it was built with."""
    folder = tmp_path_factory.mktemp("examples")
    records = []
    for record in read_manifest(small_data.manifest, tasks=(TaskConfig(),)).records:
        place = Path(f"{NAMES.get(record.slide_id, f'learn/{record.slide_id}')}.tif")
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(record.path, folder / place)
        records.append(replace(record, slide_id=place.stem, path=place))
    shutil.copy(folder / "slides" / "b.tif", folder / "slide.svs")
    write_manifest(folder / "labels.csv", records)
    recipe = {"command": "finetune", **SMALL_MODEL, "model": MODEL, "training": {"epochs": 2}}
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    job = make_job({**recipe, "manifest": "m", "out": "o"}, source="test")
    assert isinstance(job, FinetuneJob)
    torch.manual_seed(0)
    save_checkpoint(folder / "model.safetensors", build_net(job.model), job.pipeline)
    return folder


@pytest.fixture
def here(example_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of :func:`example_files`, and the folder that the test runs in."""
    folder = tmp_path / "here"
    shutil.copytree(example_files, folder)
    monkeypatch.chdir(folder)
    return folder
