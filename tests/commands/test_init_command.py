"""``init`` writes a recipe that says what the settings say, loads as it stands, and fits the labels."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.commands.console import Console
from tests.conftest import SmallData
from tests.test_docs_examples import commands, parse
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.init import KEYS
from wsi_ips.commands.recipe import load_recipe, make_job
from wsi_ips.config.commented import commented_yaml, meanings
from wsi_ips.config.section import load_yaml

SETTING = re.compile(r"^( *)#(\w+: .*)$", re.MULTILINE)


def job_of(recipe: Path) -> FinetuneJob:
    job = make_job(load_recipe(recipe), source=str(recipe))
    assert isinstance(job, FinetuneJob)
    return job


def table(folder: Path, rows: list[str], columns: str = "label", *, slides: bool = True) -> Path:
    """A manifest of slides s0, s1, ... with these cells and splits, and files that stand for the slides."""
    path = folder / "labels.csv"
    lines = [f"slide_id,case_id,{columns},split,path"]
    for number, row in enumerate(rows):
        lines.append(f"s{number},p{number},{row},s{number}.svs")
        if slides:
            (folder / f"s{number}.svs").write_text(f"slide {number}")
    path.write_text("\n".join(lines) + "\n")
    return path


ROWS = ["normal,train", "tumor,train", "normal,val", "tumor,val", "tumor,test"]


def test_the_recipe_is_a_job_of_the_given_slides_with_the_default_settings(
    console: Console, tmp_path: Path
) -> None:
    labels = table(tmp_path, ROWS)
    ended = console("init", tmp_path / "study", "--labels", labels, "--slides", tmp_path)
    assert ended.code == 0, ended.err
    assert "5 slides of 5 patients (train 2, val 2, test 1)" in ended.out
    assert "label: 2 classes, normal (2), tumor (3)" in ended.out
    job = job_of(tmp_path / "study" / "recipe.yaml")
    plain = FinetuneJob(
        manifest=labels.absolute(), slides_root=tmp_path.absolute(), out=(tmp_path / "study/run").absolute()
    )
    assert job.model_dump(exclude={"model"}) == plain.model_dump(exclude={"model"})
    assert job.model.encoder == plain.model.encoder
    assert [(task.name, task.classes) for task in job.model.tasks] == [("label", ("normal", "tumor"))]


def test_every_setting_of_the_recipe_can_be_uncommented_and_is_the_default(
    console: Console, tmp_path: Path
) -> None:
    labels = table(tmp_path, ROWS)
    console("init", tmp_path / "study", "--labels", labels)
    recipe = tmp_path / "study" / "recipe.yaml"
    text, before = recipe.read_text(), job_of(recipe)
    settings = list(SETTING.finditer(text))
    assert len(settings) > 20
    for found in settings:
        recipe.write_text(text[: found.start()] + found[1] + found[2] + text[found.end() :])
        assert job_of(recipe) == before, found[2]
    recipe.write_text(SETTING.sub(r"\1\2", text))
    assert job_of(recipe) == before


def test_the_recipe_says_what_the_settings_say(console: Console, tmp_path: Path) -> None:
    console("init", tmp_path / "study")
    text = (tmp_path / "study" / "recipe.yaml").read_text()
    flat = re.sub(r"\n *# ", " ", text)
    assert "M, how many patches are kept. m is the same setting. Default: 64." in flat
    assert "Share of a patch that has to be tissue. Default: 0.25." in flat
    assert "null: never." in flat
    assert "``" not in text
    assert not re.search(r"[^.] Default: ", flat)
    assert meanings(FinetuneJob)["bag"].startswith("What is one bag")


def test_every_setting_that_is_shown_has_a_meaning() -> None:
    for key in KEYS:
        kind: Any = FinetuneJob
        *sections, name = key.split(".")
        for section in sections:
            kind = kind.model_fields[section].annotation
        assert meanings(kind)[name], key


def test_a_given_value_that_would_be_lost_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"training\.epochs"):
        commented_yaml(FinetuneJob, {"training": {"epochs": 3}}, ["training.lr"])


def test_an_empty_section_is_one_with_its_defaults() -> None:
    values = {"command": "finetune", "manifest": "m", "out": "o", "tiling": None, "model": {"encoder": None}}
    assert make_job(values, source="") == FinetuneJob(manifest=Path("m"), out=Path("o"))
    with pytest.raises(Exception, match="manifest"):
        make_job({**values, "manifest": None}, source="")


@pytest.mark.parametrize(
    ("kind", "columns", "rows", "task"),
    [
        (
            "ordinal", "grade", ["10,train", "2,train", "1,val"],
            {"name": "grade", "kind": "ordinal", "classes": ("1", "2", "10")},
        ),
        (
            "multilabel", "found", ["a;b,train", "none,train", "b,val"],
            {"name": "found", "classes": ("a", "b"), "activation": "sigmoid"},
        ),
        (
            "regression", "age", ["33.5,train", "60,train", "7,val"],
            {"name": "age", "classes": ("age",), "activation": "linear"},
        ),
        (
            "survival", "time,event", ["10,1,train", "20,0,train", "31.4,1,train", "5,1,val"],
            {"name": "survival", "kind": "survival"},
        ),
    ],
)  # fmt: skip
def test_the_task_is_read_from_the_table(
    console: Console, tmp_path: Path, kind: str, columns: str, rows: list[str], task: dict[str, object]
) -> None:
    labels = table(tmp_path, rows, columns)
    ended = console("init", tmp_path / "study", "--labels", labels, "--task", kind)
    assert ended.code == 0, ended.err
    made = job_of(tmp_path / "study" / "recipe.yaml").model.tasks[0]
    assert {name: getattr(made, name) for name in task} == task
    if made.survival is not None:
        assert (made.survival.time, made.survival.event, made.survival.at) == ("time", "event", (10.0, 20.0))


@pytest.mark.parametrize("kind", ["classification", "ordinal", "multilabel", "regression", "survival"])
def test_without_a_table_there_is_one_to_fill_in(console: Console, tmp_path: Path, kind: str) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("b", "a"):
        (tmp_path / "slides" / f"{name}.svs").write_text(name)
    ended = console("init", tmp_path / "study", "--task", kind, "--slides", tmp_path / "slides")
    assert ended.code == 0, ended.err
    lines = (tmp_path / "study" / "labels.csv").read_text().splitlines()
    task = job_of(tmp_path / "study" / "recipe.yaml").model.tasks[0]
    assert set(task.columns) < set(lines[0].split(","))
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "b"]
    # An unfilled table is refused by training, not learned from.
    refused = console("run", tmp_path / "study" / "recipe.yaml")
    assert refused.code == 2
    assert "labels.csv: line 2: " in refused.complaint


def test_stored_features_are_measured_and_slides_settings_left_out(console: Console, tmp_path: Path) -> None:
    labels = table(tmp_path, ROWS, slides=False)
    (tmp_path / "features").mkdir()
    for number in range(5):
        with h5py.File(tmp_path / "features" / f"s{number}.h5", "w") as file:
            file["features"] = np.zeros((3, 24), np.float32)
            file["coords"] = np.zeros((3, 2), np.int64)
    arguments = ("init", tmp_path / "study", "--labels", labels, "--features", tmp_path / "features")
    assert console(*arguments).code == 0
    job = job_of(tmp_path / "study" / "recipe.yaml")
    assert (job.model.encoder.name, job.model.encoder.features) == ("features", 24)
    assert "patch_px" not in (tmp_path / "study" / "recipe.yaml").read_text()
    (tmp_path / "features" / "s4.h5").unlink()
    assert "has no features of 1 of 5 slides (s4)" in console(*arguments, "--force").complaint


@pytest.mark.parametrize(
    ("columns", "rows", "arguments", "said"),
    [
        ("label", ["normal,train", "normal,val"], (), "label holds only 'normal'; 2 classes or more are needed"),
        ("label", ["a,train", "b,val"], ("--task", "ordinal"), "3 classes or more are needed"),
        ("grade,stage", ["a,b,train"], (), "has the columns grade, stage; say with --column"),
        ("grade,stage", ["a,b,train"], ("--column", "Grad"), "has no column 'Grad'; it has grade, stage; did you"),
        ("label", ["a;b,train", "b,val"], (), "names several classes; learn them with --task multilabel"),
        ("label", [f"{n}.5,train" for n in range(60)], (), "60 different numbers; learn numbers with --task"),
        ("label", ["x,train"], ("--task", "regression"), "line 2: label 'x' is not 1 finite number(s)"),
        ("Time,dead", ["1,1,train"], ("--task", "survival"), "has no column 'time'; say with --time which it is"),
        ("time,event", ["1,yes,train"], ("--task", "survival"), "line 2: patient 'p0' has the event 'yes'"),
        ("label", ["a,trian", "b,val"], (), "line 2: unknown split 'trian'; known: train, val, test; did you"),
        ("label", ROWS, ("--task", "surival"), "did you mean survival?"),
        ("label", ROWS, ("--slides", "here", "--features", "there"), "give one"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_and_nothing_written(
    console: Console, tmp_path: Path, columns: str, rows: list[str], arguments: tuple[str, ...], said: str
) -> None:
    labels = table(tmp_path, rows, columns)
    ended = console("init", tmp_path / "study", "--labels", labels, *arguments)
    assert ended.code == 2
    assert said in ended.complaint
    assert not (tmp_path / "study").exists()


def test_a_missing_slide_is_found_before_anything_is_written(console: Console, tmp_path: Path) -> None:
    labels = table(tmp_path, ROWS)
    (tmp_path / "s3.svs").unlink()
    assert "no slide at" in console("init", tmp_path / "study", "--labels", labels).complaint
    assert not (tmp_path / "study").exists()


def test_nothing_is_overwritten_unasked(console: Console, tmp_path: Path) -> None:
    study = tmp_path / "study"
    assert console("init", study).code == 0
    recipe = study / "recipe.yaml"
    recipe.write_text("mine")
    (study / "labels.csv").write_text("filled in")
    # A table that may have been filled in is not replaced even by --force.
    assert "labels.csv: is there already; go on with it" in console("init", study, "--force").complaint
    labels = table(tmp_path, ROWS)
    assert "recipe.yaml: is there already" in console("init", study, "--labels", labels).complaint
    assert recipe.read_text() == "mine"
    assert console("init", study, "--labels", labels, "--force").code == 0
    assert load_yaml(recipe.read_text())["command"] == "finetune"
    assert (study / "labels.csv").read_text() == "filled in"
    assert "is a file; name a folder" in console("init", recipe).complaint


def test_the_next_steps_are_commands_that_parse(console: Console, tmp_path: Path) -> None:
    """Also in a folder whose name has a blank in it."""
    study = tmp_path / "my study"
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_text("a")
    assert console("init", study, "--slides", tmp_path / "slides").code == 0
    shown = commands((study / "README.md").read_text())
    assert [line.split()[1] for line in shown] == [
        "tile",
        "plan",
        "run",
        "predict",
        "evaluate",
        "view",
        "report",
        "run",
    ]
    for line in shown:
        parse(line)
    assert job_of(study / "recipe.yaml").out == study / "run"


def test_what_init_wrote_is_run_as_it_stands(console: Console, tmp_path: Path, small_data: SmallData) -> None:
    study = tmp_path / "study"
    assert console("init", study, "--labels", small_data.manifest).code == 0
    small = {
        "tiling": "{patch_px: 32, patch_mpp: 2.0, min_tissue: 0.2}",
        "selection": "{m: 4, i: 8}",
        "model.encoder": "{name: test_convnext, weights: none, stage: 2}",
        "training": "{epochs: 1, slides_per_step: 2}",
        "device": "cpu",
    }
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    ended = console("run", study / "recipe.yaml", *settings)
    assert ended.code == 0, ended.err
    assert {"model.safetensors", "MODEL_CARD.md", "history.csv"} <= {
        path.name for path in (study / "run").iterdir()
    }
    predicted = console(
        "predict", small_data.slides, "--checkpoint", study / "run" / "model.safetensors", "--out",
        study / "predictions", "--device", "cpu", "--no-overlays",
    )  # fmt: skip
    assert predicted.code == 0, predicted.err
