"""The committed tables say what the data sets' papers and pages say, and are what the generator makes."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import (
    NODE_CLASSES,
    STAGES,
    camelyon16_rows,
    camelyon17_rows,
    read_stages,
    shipped_rows,
    write_rows,
)
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.errors import DatasetError

FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"


def test_camelyon16_has_the_published_counts() -> None:
    rows = shipped_rows("camelyon16")
    assert Counter((row["split"], row["label"]) for row in rows) == {
        ("train", "normal"): 127,
        ("train", "tumor"): 89,
        ("val", "normal"): 32,
        ("val", "tumor"): 22,
        ("test", "normal"): 80,
        ("test", "tumor"): 49,
    }
    ids = [row["slide_id"] for row in rows]
    assert len(set(ids)) == 399
    assert {"normal_086", "test_049"}.isdisjoint(ids)
    assert {"tumor_111", "normal_160", "test_130"} <= set(ids)


def test_training_labels_follow_the_name_and_test_114_is_a_tumour_slide_out_of_froc() -> None:
    rows = {row["slide_id"]: row for row in shipped_rows("camelyon16")}
    assert all(row["label"] == name.split("_")[0] for name, row in rows.items() if row["split"] != "test")
    assert rows["test_114"]["label"] == "tumor"
    assert "out of FROC" in rows["test_114"]["notes"]
    assert "normal_086" in rows["tumor_111"]["notes"]
    partly = [name for name, row in rows.items() if row["notes"].startswith("not exhaustively")]
    assert len(partly) == 21
    assert "blurred" in rows["tumor_079"]["notes"]
    assert rows["normal_001"] == {
        "slide_id": "normal_001",
        "case_id": "normal_001",
        "label": "normal",
        "split": "train",
        "path": "images/normal_001.tif",
        "notes": "",
    }


def test_camelyon17_keeps_patients_together_and_every_centre_and_stage_in_both_splits() -> None:
    rows = shipped_rows("camelyon17")
    assert Counter(row["label"] for row in rows) == {"negative": 318, "macro": 87, "micro": 59, "itc": 36}
    patients = {(row["case_id"], row["split"], row["center"], row["stage"]) for row in rows}
    assert len(patients) == 100
    assert Counter(center for _, split, center, _ in patients if split == "val") == dict.fromkeys("01234", 4)
    for split in ("train", "val"):
        assert {stage for _, of, _, stage in patients if of == split} == set(STAGES)
    row = next(row for row in rows if row["slide_id"] == "patient_061_node_2")
    assert (row["center"], row["path"]) == ("3", "images/patient_061_node_2.tif")


def test_the_committed_tables_are_what_the_generator_makes(real_data: Path, tmp_path: Path) -> None:
    stages = read_stages(real_data / "camelyon" / "camelyon17_stages.csv")
    for name, rows in (("camelyon16", camelyon16_rows()), ("camelyon17", camelyon17_rows(stages))):
        write_rows(tmp_path / f"{name}.csv", rows)
        assert (tmp_path / f"{name}.csv").read_bytes() == (FOLDER / f"{name}.csv").read_bytes()


def test_two_published_label_tables_agree_but_for_test_114(real_data: Path) -> None:
    ours = {row["slide_id"]: row["label"] == "tumor" for row in shipped_rows("camelyon16")}
    theirs: list[dict[str, bool]] = [{}, {}]
    with (real_data / "camelyon" / "camelyon16_labels_flamby.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            theirs[0][row["filenames"].removesuffix(".tif.npy")] = row["tumor"] == "True"
    with (real_data / "camelyon" / "camelyon16_labels_transmil.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for split in ("train", "val", "test"):
                if row[split]:
                    theirs[1][row[split]] = float(row[f"{split}_label"]) == 1
    assert theirs[1] == ours
    assert theirs[0] == ours | {"test_114": False}


def test_a_manifest_that_is_not_shipped_is_named() -> None:
    with pytest.raises(DatasetError, match="known manifests: camelyon16, camelyon17"):
        shipped_rows("camelyon18")


def test_the_tables_are_manifests_to_learn_from(tmp_path: Path) -> None:
    """Each cell is believed by the reader that fine-tuning uses, whatever the layout."""
    for name, folder, classes in (
        ("camelyon16", "testing/images", ("normal", "tumor")),
        ("camelyon17", "training/center_3", NODE_CLASSES),
    ):
        (tmp_path / name / folder).mkdir(parents=True)
        for row in shipped_rows(name):
            (tmp_path / name / folder / f"{row['slide_id']}.tif").touch()
        tasks = [TaskConfig(classes=classes)]
        manifest = read_manifest(FOLDER / f"{name}.csv", tasks=tasks, root=tmp_path / name)
        assert len(manifest.records) == len(shipped_rows(name))
        assert manifest.split("val")
