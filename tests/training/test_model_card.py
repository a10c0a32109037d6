"""The model card says what a run was made from, what it measured, and what it is not for."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.commands.console import Console, make_console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.config.slides import file_sha256
from wsi_ips.datasets.manifest import Manifest, SlideRecord, read_manifest
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.training.fit import finetune
from wsi_ips.training.model_card import (
    CARD_NAME,
    SlideFacts,
    card_beside,
    write_card,
    write_merged_card,
)
from wsi_ips.training.run_state import FinetuneReport


def rows(card: str) -> dict[str, list[str]]:
    """``{first cell: the others}`` of all tables."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def report_of(folder: Path, **changes: object) -> FinetuneReport:
    history = ({"epoch": 0, "train_loss": 0.9}, {"epoch": 1, "train_loss": 0.5, "val_loss": 0.61})
    return replace(FinetuneReport(folder / "model.safetensors", 1, history), **changes)  # type: ignore[arg-type]


def manifest_of(
    folder: Path, rows_of: list[tuple[str, str, dict[str, str]]], name: str = "labels.csv"
) -> Manifest:
    records = [
        SlideRecord(f"s{number}", case, labels, split, folder / f"s{number}.svs")
        for number, (case, split, labels) in enumerate(rows_of)
    ]
    return Manifest(folder / name, tuple(records))


def test_a_training_leaves_its_card(small_data: SmallData, tmp_path: Path) -> None:
    config = FinetuneConfig.model_validate({**SMALL_MODEL, "training": {"epochs": 1, "slides_per_step": 2}})
    manifest = read_manifest(small_data.manifest, tasks=[TaskConfig()])
    cards = []
    for name in ("one", "two"):
        out = tmp_path / name
        report = finetune(manifest, config, out, device=torch.device("cpu"), slide_mpp=SlideMpp())
        cards.append((out / CARD_NAME).read_text())
        assert card_beside(report.checkpoint) == out / CARD_NAME
    assert cards[0] == cards[1]  # nothing of the time or the place
    card = cards[0]
    assert str(tmp_path) not in card
    assert file_sha256(small_data.manifest) in card
    assert "It is no medical device" in card
    assert rows(card)["slides"] == ["2", "2", "2"]
    assert rows(card)["patients"] == ["1", "1", "1"]
    assert rows(card)["label: tumor"] == ["1", "1", "1"]
    best = report.history[report.best_epoch]
    assert rows(card)["val_loss"] == [f"{best['val_loss']:.4f}"]
    assert "Resolution of the slides at level 0: 0.5 µm per pixel." in card
    assert "Few training slides: 1 of label tumor." in card
    assert "Few validation slides, 2: their figures are rough." in card
    assert "All slides are of one scanner or format" in card
    assert rows(card)["tiling.patch_px"] == ["32"]
    assert rows(card)["weights"] == ["random at the start: no licence but that of the slides"]
    assert "not calibrated" in card
    # A run that is finished is not trained again, and has the same card.
    (out / CARD_NAME).unlink()
    finetune(manifest, config, out, device=torch.device("cpu"), slide_mpp=SlideMpp())
    assert (out / CARD_NAME).read_text() == card


def test_what_was_left_out_and_doubted_is_said(tmp_path: Path) -> None:
    normal, tumor = {"label": "normal"}, {"label": "tumor"}
    split_rows = [
        ("p0", "train", normal),
        ("p0", "train", tumor),
        ("p1", "val", normal),
        ("p2", "test", tumor),
    ]
    report = report_of(
        tmp_path, bad={"s1": "s1.svs: torn | <b>\nlike this"}, doubts=["attention is flat: 97 % of ..."]
    )
    facts = {"s0": SlideFacts(10, 0.25, "aperio"), "s2": SlideFacts(30, 0.5, "hamamatsu")}
    path = write_card(tmp_path, manifest_of(tmp_path, split_rows), FinetuneConfig(), report, facts)
    card = path.read_text()
    assert rows(card)["slides left out"] == ["1", "0", "0"]
    assert rows(card)["patients"] == ["1", "1", "1"]
    assert "- Left out: s1, s1.svs: torn \\| \\<b\\> like this" in card
    assert "- The run itself doubts its result: attention is flat" in card
    assert "- No validation slide is label tumor: no figure speaks of it." in card
    assert "- Few training slides: 0 of label tumor." in card
    assert "- Several training slides are of one patient" in card
    assert "0.25 to 0.5 µm per pixel" in card
    assert "aperio (1), hamamatsu (1)" in card
    assert "per slide 10 to 30, median 20" in card
    assert "All slides are of one scanner" not in card


def test_without_validation_slides_no_figure_is_called_one(tmp_path: Path) -> None:
    manifest = manifest_of(
        tmp_path, [("p0", "train", {"label": "normal"}), ("p1", "train", {"label": "tumor"})]
    )
    card = write_card(tmp_path, manifest, FinetuneConfig(), report_of(tmp_path), {}).read_text()
    assert "nothing here was measured on slides that were not learned from" in card
    assert "which also chose the epoch" not in card


@pytest.mark.parametrize(
    ("task", "cells", "counted"),
    [
        (
            {"name": "found", "classes": ["a", "b"], "activation": "sigmoid"},
            [{"found": "a;b"}, {"found": "none"}, {"found": "b"}],
            {"found: a": ["1", "0"], "found: b": ["1", "1"]},
        ),
        (
            {"name": "t", "kind": "survival", "survival": {"time": "time", "event": "dead", "at": [12]}},
            [{"time": "3", "dead": "1"}, {"time": "9", "dead": "0"}, {"time": "5", "dead": "1"}],
            {"t: events": ["1", "1"], "t: censored": ["1", "0"]},
        ),
        (
            {"name": "tumor", "classes": ["tumor"], "activation": "sigmoid"},
            [{"tumor": "1"}, {"tumor": "0"}, {"tumor": "tumor"}],
            {"tumor: tumor": ["1", "1"]},
        ),
    ],
    ids=["multilabel", "survival", "yes or no"],
)
def test_every_kind_of_task_is_counted(
    tmp_path: Path, task: dict[str, object], cells: list[dict[str, str]], counted: dict[str, list[str]]
) -> None:
    config = FinetuneConfig.model_validate({"model": {"tasks": [task]}})
    splits = ("train", "train", "val")
    manifest = manifest_of(tmp_path, [(f"p{n}", splits[n], cell) for n, cell in enumerate(cells)])
    shown = rows(write_card(tmp_path, manifest, config, report_of(tmp_path), {}).read_text())
    assert {name: shown[name] for name in counted} == counted


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ({"name": "uni2-h"}, {"gated (its owners ask for consent)": "yes", "licence of the weights": "cc-by"}),
        ({"name": "resnet18"}, {"licence of the weights": "apache-2.0", "learned": "all of its weights"}),
        ({"name": "uni2-h", "lora": {"rank": 4}}, {"learned": "adapters of rank 4"}),
        ({"name": "resnet18", "trainable": False}, {"learned": "nothing"}),
        ({"name": "features", "features": 8}, {"licence": "that of the encoder which made the features"}),
        ({"name": "resnet18", "weights": "mine.pth"}, {"licence of the weights": "not known here"}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_the_encoder_comes_with_its_licence(
    tmp_path: Path, encoder: dict[str, object], said: dict[str, str]
) -> None:
    config = FinetuneConfig.model_validate({"model": {"encoder": encoder}})
    manifest = manifest_of(tmp_path, [("p0", "train", {"label": "normal"})])
    card = write_card(tmp_path, manifest, config, report_of(tmp_path), {}).read_text()
    shown = rows(card)
    assert shown["name"] == [encoder["name"]]
    for name, begins in said.items():
        assert shown[name][0].lower().startswith(begins.lower())


def test_a_merged_checkpoint_has_a_card_of_its_own(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "run" / "model.safetensors", tmp_path / "run" / "whole.safetensors"
    checkpoint.parent.mkdir()
    assert write_merged_card(checkpoint, out) is None
    (checkpoint.parent / CARD_NAME).write_text("# Model card\n")
    path = write_merged_card(checkpoint, out)
    assert path == card_beside(out) == out.with_name("whole.MODEL_CARD.md")
    assert path is not None
    assert path.read_text().endswith("# Model card\n")
    assert (checkpoint.parent / CARD_NAME).read_text() == "# Model card\n"
    assert card_beside(checkpoint) == checkpoint.parent / CARD_NAME


def test_a_cross_validation_has_a_card_that_leads_to_those_of_its_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console: Console = make_console(monkeypatch, capsys)
    rng = np.random.default_rng(0)
    lines = ["slide_id,case_id,label,split,path"]
    (tmp_path / "features").mkdir()
    for number in range(12):
        label = ("normal", "tumor")[number % 2]
        lines.append(f"s{number},p{number},{label},train,s{number}.svs")
        with h5py.File(tmp_path / "features" / f"s{number}.h5", "w") as file:
            file["features"] = rng.normal(number % 2, 1, (6, 4)).astype(np.float32)
            file["coords"] = np.zeros((6, 2), np.int64)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    settings = [
        "training.epochs=1",
        "model.encoder.name=features",
        "model.encoder.features=4",
        "selection.m=4",
    ]
    ended = console(
        "finetune", tmp_path / "labels.csv", "--features", tmp_path / "features", "--out", tmp_path / "cv",
        "--folds", "2", *(part for one in settings for part in ("--set", one)),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    card = (tmp_path / "cv" / CARD_NAME).read_text()
    links = re.findall(r"\]\((.*?)\)", card)
    assert links == [f"fold_0/{CARD_NAME}", f"fold_1/{CARD_NAME}"]
    for link in links:
        fold = rows((tmp_path / "cv" / link).read_text())
        assert sum(map(int, fold["slides"])) == 12
        assert fold["slides"][-1] == "6"  # held out
    said = dict(re.findall(r"held_out_(\w+) ([\d.]+) ±", ended.out))
    assert said
    assert {name: rows(card)[name][0] for name in said} == said
    assert "12 slides of 12 patients" in card
