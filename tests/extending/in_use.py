"""What commands make of members from outside.

Run by test_extending.py with the package of ``docs/extending.md`` on the path; the suite itself must not know it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.training.memory_bags import MemoryBag
from wsi_ips.commands.info import describe_slides
from wsi_ips.commands.recipe import make_job, run_job
from wsi_ips.config import FinetuneConfig, TissueConfig, settings_fingerprint
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.heatmaps.export import export_options
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.progress import silent
from wsi_ips.selection.reading import read_bag
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.readers import contract_image
from wsi_ips.testing.segmenters import stained
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.training.module import make_method
from wsi_ips.units import Mpp

CPU = torch.device("cpu")


def config() -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "tiling": {"patch_px": 16, "patch_mpp": 2.0},
            "selection": {"selector": "darkest", "m": 4, "i": 8},
            "model": {"encoder": {"name": "mean_colour", "weights": "none"}, "aggregator": "focus"},
            "training": {"micro_batch": 4},
        }
    )


def bag() -> MemoryBag:
    """Thirty patches, of which 7, 11, 20 and 28 are the darkest."""
    pixels_N = torch.randint(
        120, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels_N[[7, 11, 20, 28]] //= 3
    return MemoryBag("drawn", pixels_N, {})


def test_encoder_aggregator_and_selector_are_learned_from_and_come_back_from_a_checkpoint(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    settings = config()
    net = build_selecting_net(settings.model, settings.selection)
    method = make_method(net, settings, {"label": None})
    kept = method.keep(bag(), epoch=0, device=CPU)
    assert sorted(kept.ids_M.tolist()) == [7, 11, 20, 28]
    assert kept.features_MC is None

    save_checkpoint(tmp_path / "model.safetensors", net, settings.pipeline)
    again, pipeline = load_checkpoint(tmp_path / "model.safetensors")
    assert pipeline == settings.pipeline
    with bag().open(settings.streaming, CPU) as source:
        first, second = (read_bag(each, source, pipeline.selection) for each in (net, again))
    assert sorted(first.kept.ids_M.tolist()) == [7, 11, 20, 28]
    assert torch.equal(first.bag.probabilities["label"], second.bag.probabilities["label"])


def test_a_checkpoint_says_which_package_and_version_its_members_are_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, path = config(), tmp_path / "model.safetensors"
    save_checkpoint(path, build_selecting_net(settings.model, settings.selection), settings.pipeline)
    with safe_open(path, framework="pt") as file:
        held = json.loads(file.metadata()["wsi_ips"])
    of = {"package": "outside", "version": "1.0"}
    assert held["made_by"] == {"encoder": of, "aggregator": of, "selector": of}
    load_checkpoint(path)
    assert not caplog.records
    monkeypatch.setattr("importlib.metadata.PathDistribution.version", "2.0")
    load_checkpoint(path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert said[0].endswith(
        "its encoder mean_colour is of the package outside 1.0, and here it is of the package outside 2.0; "
        "its results may differ"
    )
    monkeypatch.setattr("outside_encoder.MeanColour.dim", 20)
    with pytest.raises(
        CheckpointError,
        match=r"tensors differ, .*its encoder mean_colour is of the package outside 1\.0, and here",
    ):
        load_checkpoint(path)
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: [])
    with pytest.raises(CheckpointError, match=r"of the package outside 1\.0, which does not offer it here"):
        load_checkpoint(path)


def test_an_exporter_s_fields_are_its_options() -> None:
    job = make_job(
        {"command": "export", "run": "r", "format": "csv", "options": {"decimals": 2}}, source="test"
    )
    assert job.format == "csv"  # type: ignore[union-attr]
    assert export_options("csv") == ["decimals"]
    for wrong, said in (
        ({"format": "csv", "top": 3}, "top is no option of csv, which has its own: give them under options"),
        ({"format": "asap", "options": {"top": 3}}, "options are another package's export's"),
        ({"format": "table"}, "there is no export 'table'; known are ome-tiff, .*, csv"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_job({"command": "export", "run": "r", **wrong}, source="test")


def test_a_segmenter_has_settings_of_its_own() -> None:
    slide = MemoryReader(stained(), mpp=Mpp(2.0))
    dark = find_tissue(slide, TissueConfig(method="shadow", options={"level": 10}))
    assert not dark.mask_HW.any()
    assert dark.why_empty is not None
    assert "the segmenter shadow (tiling.tissue.method) sees none" in dark.why_empty[0]
    with pytest.raises(ConfigError, match="level is a grey level, not 'dark'"):
        find_tissue(slide, TissueConfig(method="shadow", options={"level": "dark"}))
    assert settings_fingerprint(TissueConfig(method="shadow")) != settings_fingerprint(TissueConfig())


def test_a_folder_of_another_package_s_reader_is_a_slide_of_the_commands(tmp_path: Path) -> None:
    from test_outside_tiles import write_tiles

    (tmp_path / "slides").mkdir()
    write_tiles(tmp_path / "slides" / "a.tiles", contract_image())
    np.save(tmp_path / "slides" / "b.npy", contract_image())
    for place, ids, readers in (
        (tmp_path / "slides", ["a", "b"], ["tiles", "npy"]),
        (tmp_path / "slides" / "a.tiles", ["a"], ["tiles"]),
    ):
        described = [json.loads(line) for line in describe_slides(place, as_json=True).lines]
        assert [slide["reader"] for slide in described] == readers
        job = {"command": "tile", "slides": place, "out": tmp_path / f"coords{len(ids)}"}
        job["tiling"] = {"patch_px": 32, "patch_mpp": 1.0}
        ended = run_job(make_job(job, source="test"), silent)
        assert ended.exit_code == 0, ended.lines
        assert sorted(path.stem for path in job["out"].rglob("*.h5")) == ids
