import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, SlideRecord
from wsi_ips.errors import ConfigError, TrainingError
from wsi_ips.timeline import TIMELINE_NAME
from wsi_ips.training.cross_validation import (
    cross_validate,
    forget_folds,
    mean_and_sd,
    strata_column,
    write_figures,
)
from wsi_ips.training.run_state import FinetuneReport

SPLITS = ["train"] * 14 + ["val"] * 6 + ["test"] * 4


def manifest_of(path: Path) -> Manifest:
    """24 slides of 12 cases, half of them tumours."""
    labels = ("normal", "tumor")
    records = [
        SlideRecord(f"s{n}", f"c{n // 2}", {"label": labels[n // 2 % 2]}, split, path / f"s{n}.tif")
        for n, split in enumerate(SPLITS)
    ]
    return Manifest(path / "m.csv", tuple(records))


class Trainer:
    """Trains nothing: remembers what it was given, and reports a known loss per fold."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.given: list[Manifest] = []
        self._fails_at = fails_at

    def __call__(self, manifest: Manifest, out: Path) -> FinetuneReport:
        number = int(out.name.removeprefix("fold_"))
        if number == self._fails_at:
            raise TrainingError("killed")
        self.given.append(manifest)
        out.mkdir(parents=True, exist_ok=True)
        history = ({"epoch": 0, "val_loss": 9.0}, {"epoch": 1, "val_loss": float(number)})
        bad = {manifest.split("train")[0].slide_id: "torn"} if number == 0 else {}
        return FinetuneReport(out / "model.safetensors", 1, history, bad)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_is_held_out_once_from_a_model_that_saw_nothing_of_it(tmp_path: Path) -> None:
    """Neither to learn from nor to choose the epoch on."""
    trainer, manifest = Trainer(), manifest_of(tmp_path)
    folds = cross_validate(manifest, FinetuneConfig(), tmp_path / "out", k=5, inner_val=0.2, train=trainer)
    held_out = [record.slide_id for given in trainer.given for record in given.split("test")]
    assert sorted(held_out) == sorted(r.slide_id for r in manifest.records if r.split != "test")
    for given in trainer.given:
        cases = [{record.case_id for record in given.split(split)} for split in ("train", "val", "test")]
        assert not cases[0] & cases[1]
        assert not (cases[0] | cases[1]) & cases[2]
        for split in ("train", "val", "test"):
            assert {record.labels["label"] for record in given.split(split)} == {"normal", "tumor"}
        assert 1 <= len(cases[1]) <= 2
    table = rows(tmp_path / "out" / "folds.csv")
    written = {row["slide_id"]: int(row["fold"]) for row in table}
    assert written == {r.slide_id: n for n, given in enumerate(trainer.given) for r in given.split("test")}
    for number, given in enumerate(trainer.given):
        validates = {row["slide_id"] for row in table if str(number) in row["validates_folds"].split(";")}
        assert validates == {record.slide_id for record in given.split("val")}
    assert len({row["validates_folds"] for row in table}) > 1
    assert [len(fold.bad) for fold in folds] == [1, 0, 0, 0, 0]
    assert folds[0].train_slides + folds[0].val_slides + len(folds[0].held_out) == 19
    assert {fold.chosen_on for fold in folds} == {"inner validation cases"}


def test_without_inner_validation_the_training_loss_chooses(tmp_path: Path) -> None:
    trainer = Trainer()
    folds = cross_validate(
        manifest_of(tmp_path), FinetuneConfig(), tmp_path / "out", k=5, inner_val=0, train=trainer
    )
    assert all(not given.split("val") for given in trainer.given)
    assert {row["epoch_chosen_on"] for row in rows(tmp_path / "out" / "cv.csv")} == {"training loss", ""}
    assert {fold.val_slides for fold in folds} == {0}


def test_too_few_cases_to_choose_the_epoch_on_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    few = manifest_of(tmp_path)
    few = replace(few, records=tuple(r for r in few.records if r.case_id in ("c0", "c1", "c2", "c3")))
    with pytest.raises(ConfigError, match=r"set aside is no slides.*take more folds, or set inner_val=0"):
        cross_validate(few, FinetuneConfig(), tmp_path / "out", k=2, inner_val=0.2, train=Trainer())
    assert not (tmp_path / "out").exists()


def test_the_table_has_the_kept_epoch_s_figures_their_mean_and_deviation(tmp_path: Path) -> None:
    folds = cross_validate(
        manifest_of(tmp_path), FinetuneConfig(), tmp_path / "out", k=3, inner_val=0.2, train=Trainer()
    )
    assert mean_and_sd([fold.figures for fold in folds]) == {"val_loss": (1.0, 1.0)}
    measured = [replace(fold, measured={"auc": 0.5 + fold.number / 10}) for fold in folds]
    write_figures(tmp_path / "out" / "cv.csv", measured)
    table = rows(tmp_path / "out" / "cv.csv")
    assert [float(row["held_out_auc"]) for row in table] == pytest.approx([0.5, 0.6, 0.7, 0.6, 0.1])
    assert [row["held_out_slides"] for row in table] == ["8", "6", "6", "", ""]
    assert [row["fold"] for row in table] == ["0", "1", "2", "mean", "sd"]
    assert [float(row["val_loss"]) for row in table] == [0, 1, 2, 1, 1]
    assert [row["epoch"] for row in table] == ["1.0", "1.0", "1.0", "", ""]


def test_a_killed_run_goes_on_where_it_was_and_does_no_fold_twice(tmp_path: Path) -> None:
    manifest, out = manifest_of(tmp_path), tmp_path / "out"
    with pytest.raises(TrainingError):
        cross_validate(manifest, FinetuneConfig(), out, k=4, inner_val=0.2, train=Trainer(fails_at=2))
    assert [row["fold"] for row in rows(out / "cv.csv")] == ["0", "1", "mean", "sd"]
    again = Trainer()
    folds = cross_validate(manifest, FinetuneConfig(), out, k=4, inner_val=0.2, train=again)
    assert len(again.given) == 2
    assert [fold.skipped for fold in folds] == [True, True, False, False]
    whole = cross_validate(
        manifest, FinetuneConfig(), tmp_path / "whole", k=4, inner_val=0.2, train=Trainer()
    )
    assert [fold.figures for fold in folds] == [fold.figures for fold in whole]
    assert (out / "cv.csv").read_text() == (tmp_path / "whole" / "cv.csv").read_text()


def test_a_folder_of_another_cross_validation_is_refused(tmp_path: Path) -> None:
    manifest, out = manifest_of(tmp_path), tmp_path / "out"
    cross_validate(manifest, FinetuneConfig(), out, k=4, inner_val=0.2, train=Trainer())
    with pytest.raises(ConfigError, match="divides the slides into other folds"):
        cross_validate(manifest, FinetuneConfig(), out, k=3, inner_val=0.2, train=Trainer())
    other = FinetuneConfig.model_validate({"training": {"lr": 0.1}})
    with pytest.raises(ConfigError, match="fold_0: holds a fold of another cross-validation"):
        cross_validate(manifest, other, out, k=4, inner_val=0.2, train=Trainer())
    patient = FinetuneConfig.model_validate({"training": {"save_minutes": 1}, "streaming": {"batch": 9}})
    assert all(
        fold.skipped for fold in cross_validate(manifest, patient, out, k=4, inner_val=0.2, train=Trainer())
    )
    (out / "fold_1" / "fold.json").write_text("{")
    with pytest.raises(ConfigError, match=r"fold\.json: cannot be read"):
        cross_validate(manifest, FinetuneConfig(), out, k=4, inner_val=0.2, train=Trainer())


def test_a_forgotten_cross_validation_begins_anew(tmp_path: Path) -> None:
    manifest, out = manifest_of(tmp_path), tmp_path / "out"
    cross_validate(manifest, FinetuneConfig(), out, k=4, inner_val=0.2, train=Trainer())
    (out / TIMELINE_NAME).touch()
    forget_folds(out)
    assert not (out / TIMELINE_NAME).exists(), "it is of the training before"
    again = Trainer()
    cross_validate(manifest, FinetuneConfig(), out, k=3, inner_val=0.2, train=again)
    assert len(again.given) == 3


def test_too_many_folds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 folds need 6 cases with label 'normal', found 5; take 5"):
        cross_validate(
            manifest_of(tmp_path), FinetuneConfig(), tmp_path / "out", k=6, inner_val=0.2, train=Trainer()
        )
    assert not (tmp_path / "out").exists()


def test_folds_are_stratified_by_the_first_task_with_classes() -> None:
    age = TaskConfig(name="age", classes=("years",), activation="linear")
    many = TaskConfig(name="found", classes=("a", "b"), activation="sigmoid")
    one = TaskConfig(name="tumor", column="truth", classes=("tumor",), activation="sigmoid")
    assert strata_column([age, many, one, TaskConfig()]) == "truth"
    assert strata_column([age, many]) is None


def test_a_figure_that_a_fold_does_not_give_has_no_mean() -> None:
    """Precision, where nothing is called positive."""
    summary = mean_and_sd([{"auc": 0.5, "precision": math.nan}, {"auc": 0.7, "precision": 1.0}])
    assert summary["auc"] == (pytest.approx(0.6), pytest.approx(0.1414, abs=1e-4))
    assert all(math.isnan(value) for value in summary["precision"])
