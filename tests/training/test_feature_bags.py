from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets.feature_folders import features_of, write_features
from wsi_ips.config import FinetuneConfig, StreamingConfig, TaskConfig
from wsi_ips.datasets.manifest import SlideRecord, read_manifest
from wsi_ips.errors import FeaturesError
from wsi_ips.training.feature_bags import FeatureBag, feature_bag, finetune_features

CPU = torch.device("cpu")


def bag_of(path: Path, *, n: int = 70, trident: bool = False) -> FeatureBag:
    write_features(path, features_of(n, 6), trident=trident)
    record = SlideRecord("s", "c", {"label": "tumor"}, "train", Path("s.svs"))
    return feature_bag(record, path, tasks=[TaskConfig()], width=6)


@pytest.mark.parametrize("batch", [1, 32, 70, 100])
def test_all_features_come_once_in_chunks(tmp_path: Path, batch: int) -> None:
    bag = bag_of(tmp_path / "s.h5")
    assert (len(bag), bag.bag_id, bag.targets) == (70, "s", {"label": 1})
    with bag.open(StreamingConfig(batch=batch), CPU) as source:
        chunks = list(source)
    assert all(len(chunk) <= batch for chunk in chunks)
    assert torch.cat([chunk.ids_n for chunk in chunks]).tolist() == list(range(70))
    assert np.array_equal(torch.cat([chunk.pixels_n3PP for chunk in chunks]), features_of(70, 6))
    assert torch.cat([chunk.l0_xy_n2 for chunk in chunks])[31].tolist() == [512, 512]


def test_some_come_again_in_the_order_asked_for(tmp_path: Path) -> None:
    with bag_of(tmp_path / "s.h5").open(StreamingConfig(), CPU) as source:
        chunk = source.read(torch.tensor([50, 3, 3]))
        assert chunk.ids_n.tolist() == [50, 3, 3]
        assert np.array_equal(chunk.pixels_n3PP, features_of(70, 6)[[50, 3, 3]])
        with pytest.raises(KeyError, match="70"):
            source.read(torch.tensor([70]))


def test_places_are_told_where_they_are_known(tmp_path: Path) -> None:
    ids = torch.tensor([31, 0])
    with bag_of(tmp_path / "t.h5", trident=True).open(StreamingConfig(), CPU) as source:
        assert source.places(ids, "um").tolist() == [[192, 192], [64, 64]]
        with pytest.raises(FeaturesError, match="positions: raster"):
            source.places(ids, "ids")
    clam = bag_of(tmp_path / "c.h5").open(StreamingConfig(), CPU)
    with clam as source, pytest.raises(FeaturesError, match="positions: slide"):
        source.places(ids, "um")


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "s.h5", features_of(5, 7))
    record = SlideRecord("s", "c", {"label": "tumor"}, "train", Path("s.svs"))
    with pytest.raises(FeaturesError, match=r"width 7, not 6; set model.encoder.features"):
        feature_bag(record, tmp_path / "s.h5", tasks=[TaskConfig()], width=6)


def test_patches_that_are_there_twice_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["slide_id,case_id,split,path,label"]
    for number, split in enumerate(["train", "train", "val", "val"]):
        corners = np.array([[0, 0], [512, 0], [0, 0]]) if number == 1 else None
        write_features(tmp_path / "feats" / f"s{number}.h5", features_of(3, 6), coords=corners)
        rows.append(f"s{number},s{number},{split},s{number}.svs,{('normal', 'tumor')[number % 2]}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    config = FinetuneConfig.model_validate(
        {"model": {"encoder": {"name": "features", "features": 6}}, "training": {"epochs": 1}}
    )
    manifest = read_manifest(tmp_path / "slides.csv", tasks=config.model.tasks, need_slides=False)
    finetune_features(manifest, config, tmp_path / "feats", tmp_path / "run", device=CPU)
    assert [record.getMessage() for record in caplog.records if "more than once" in record.getMessage()] == [
        "1 slide has patches whose features are stored more than once, such as s1: 1 row of the features file "
        "repeats the patch of an earlier row: it is counted again"
    ]
