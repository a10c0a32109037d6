"""Slides labelled from stored features: what is left in the folder when a file goes bad between two runs."""

from pathlib import Path

import h5py
import numpy as np
import torch

from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.config import ModelConfig, PipelineConfig, StreamingConfig
from wsi_ips.inference.feature_predict import FeaturePredictor, predict_features
from wsi_ips.inference.results import read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.models.build import build_net

MODEL = ModelConfig.model_validate(
    {
        "encoder": {"name": "features", "features": 12},
        "attention": {"heads": 2, "key_dim": 4, "value_dim": 4, "inner_dim": 16},
    }
)


def test_a_file_that_went_bad_leaves_nothing_of_the_earlier_run(tmp_path: Path) -> None:
    predictor = FeaturePredictor(
        build_net(MODEL), PipelineConfig(model=MODEL), streaming=StreamingConfig(), device=torch.device("cpu")
    )
    paths = {name: tmp_path / f"{name}.h5" for name in ("bad", "good")}
    for path in paths.values():
        write_features(path, features_of(9, 12), trident=True)
    run = RunFolder(tmp_path / "run")
    predict_features(paths, predictor, run)
    assert run.attention("bad").exists()
    run.overlay("bad").parent.mkdir()
    run.overlay("bad").touch()
    write_features(paths["bad"], features_of(9, 13), trident=True)
    tables, _ = predict_features(paths, predictor, run)
    assert [(row.slide_id, row.status) for row in tables.rows] == [("bad", "failed"), ("good", "ok")]
    assert not run.attention("bad").exists()
    assert not run.overlay("bad").exists()
    assert run.attention("good").exists()


def test_patches_that_are_there_twice_are_told_of(tmp_path: Path) -> None:
    """Each row counts, so the slide's note says that some patches count twice."""
    predictor = FeaturePredictor(
        build_net(MODEL), PipelineConfig(model=MODEL), streaming=StreamingConfig(), device=torch.device("cpu")
    )
    corners = np.array([[0, 0], [512, 0], [0, 512], [512, 0], [512, 0]])
    paths = {name: tmp_path / f"{name}.h5" for name in ("clam", "trident", "whole")}
    for name, path in paths.items():
        coords = None if name == "whole" else corners
        write_features(path, features_of(5, 12), coords=coords, trident=name == "trident")
    tables, _ = predict_features(paths, predictor, RunFolder(tmp_path / "run"))
    note = "2 rows of the features file repeat the patch of an earlier row: it is counted again"
    assert {name: row.note for name, row in tables.slides.items()} == {
        "clam": note,
        "trident": note,
        "whole": "",
    }


def test_random_patches_are_stored_beside_where_they_lie(tmp_path: Path) -> None:
    """Of 9 patches 4 are read: attention and corners of these 4, and the slide still has 9."""
    pipeline = PipelineConfig.model_validate(
        {"model": MODEL.model_dump(), "selection": {"selector": "random", "m": 4}}
    )
    predictor = FeaturePredictor(
        build_net(MODEL), pipeline, streaming=StreamingConfig(), device=torch.device("cpu")
    )
    paths = {name: tmp_path / f"{name}.h5" for name in ("clam", "trident")}
    for name, path in paths.items():
        write_features(path, features_of(9, 12), trident=name == "trident")
    run = RunFolder(tmp_path / "run")
    tables, unplaced = predict_features(paths, predictor, run)
    assert unplaced == ["clam"]
    assert [(row.status, row.n_patches) for row in tables.rows] == [("ok", 9), ("ok", 9)]
    placed = read_result(run.attention("trident"))
    assert placed.coords.ids_N.tolist() == placed.kept_ids_M.tolist()
    assert len(placed.attention_NHT) == 4
    with h5py.File(run.attention("clam")) as corners, h5py.File(paths["clam"]) as whole:
        assert corners["attention"].shape[0] == 4
        assert np.array_equal(corners["coords"][:], whole["coords"][:][corners["kept_ids"][:]])
