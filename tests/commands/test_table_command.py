"""``table``: rows and seeds on a drawn twin; what is complete stays, and what fails stops no other."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.commands.console import Console
from tests.planning.small_table import draw_data, table
from wsi_ips.commands.evaluate import EvaluateJob
from wsi_ips.commands.recipe import load_recipe, make_job
from wsi_ips.commands.table import (
    TableJob,
    _is_scored,
    _outlines_of,
    _Task,
    asked_of,
    shipped_published,
    storing_of,
)
from wsi_ips.datasets.known_sets import KNOWN_SETS, look
from wsi_ips.errors import DatasetError
from wsi_ips.evaluation.run.result_table import (
    NOT_RUN,
    JobResult,
    Published,
    Score,
    TableLine,
    read_published,
    read_scores,
    write_tables,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "pipelines" / "tables").glob("*.yaml"))
ROWS: dict[str, Any] = {
    "frozen + ABMIL": {
        "frozen": True,
        "settings": {"model.aggregator": "abmil", "selection.selector": "all"},
    },
    "end to end": {"settings": {"training.epochs": 1}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("tcga"))


def recipe(folder: Path, data: Path, **more: Any) -> Path:
    usual = {"out": str(folder / "out"), "seeds": [0, 1], "isolate": False, "rows": ROWS}
    settings = table(data, **{**usual, "figures": ["auc", "balanced_accuracy"], **more})
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_rows_and_seeds_in_one_table_that_is_gone_on_with(
    console: Console, tmp_path: Path, data: Path
) -> None:
    path = recipe(tmp_path, data)
    said = console("table", path)
    assert said.code == 0, said.err + said.out
    assert "4 of 4 jobs are complete, 0 were before" in said.out
    assert "published: ABMILX, end to end auc 0.9517" in said.out
    out = tmp_path / "out"
    rows = rows_of(out)
    ours = {
        (row["row"], row["figure"]): row for row in rows if row["kind"] == "ours" and row["of"] == "slides"
    }
    for name in ROWS:
        row = ours[name, "auc"]
        metrics = [
            json.loads((out / name / f"seed_{seed}" / "predictions/evaluation/metrics.json").read_text())
            for seed in (0, 1)
        ]
        values = [one["tasks"]["label"]["metrics"]["auc"]["value"] for one in metrics]
        assert [float(value) for value in row["per_seed"].split(";")] == values
        assert float(row["mean"]) == pytest.approx(sum(values) / 2)
        assert float(row["train_seconds"]) > 0
        assert int(row["seeds"]) == 2
    frozen, pixels = ours["frozen + ABMIL", "auc"], ours["end to end", "auc"]
    assert float(frozen["feature_seconds"]) > 0
    assert float(frozen["feature_bytes"]) > 1000
    assert (pixels["feature_seconds"], frozen["encoder"]) == ("", "test_convnext")
    theirs = [row for row in rows if row["kind"] == "published"]
    assert theirs
    assert all(row["source"] and row["protocol"] for row in theirs)
    words = (out / "table.md").read_text()
    assert f"| frozen + ABMIL | test_convnext | {float(frozen['mean']):.3f} ± " in words
    page = (out / "table.html").read_text()
    assert page.count("<table>") == 2
    assert "<script" not in page
    trained = (out / "end to end" / "seed_0" / "model.safetensors").stat().st_mtime_ns
    again = console("table", path)
    assert "4 of 4 jobs are complete, 4 were before" in again.out
    assert (out / "end to end" / "seed_0" / "model.safetensors").stat().st_mtime_ns == trained
    more = {**ROWS, "random": {"settings": {"selection.selector": "random"}}}
    added = console("table", recipe(tmp_path, data, rows=more))
    assert "6 of 6 jobs are complete, 4 were before" in added.out
    changed = console(
        "table", recipe(tmp_path, data, training={"epochs": 1, "lr": 0.01, "head_start": {"epochs": 0}})
    )
    assert changed.code == 2
    assert "holds a training with other settings" in changed.complaint
    listed = look("tcga_brca", data)
    slide = next(Path(row["path"]) for row in listed.rows if row["split"] == "train")
    before = slide.read_bytes()
    slide.write_bytes(before + b"scanned again")
    path = recipe(tmp_path, data)
    changed = console("table", path)
    assert changed.code == 2
    assert "learned from other files (the file of" in changed.complaint
    shutil.rmtree(out / "end to end")
    shutil.rmtree(out / "frozen + ABMIL")
    features = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.h5")}
    assert "4 of 4 jobs are complete, 0 were before" in console("table", path).out
    again = {path for path, made in features.items() if path.stat().st_mtime_ns != made}
    assert len(again) == 1, "only the features of the slide that has changed are made again"
    slide.write_bytes(before)  # other tests read it


def test_a_row_on_features_keeps_what_stands_behind_its_encoder(tmp_path: Path, data: Path) -> None:
    settings = {"model.encoder.project": 24, "model.encoder.standardise": True}
    path = recipe(tmp_path, data, rows={"frozen": {"frozen": True, "settings": settings}})
    job = make_job(load_recipe(path), source=str(path))
    assert isinstance(job, TableJob)
    on_pixels = asked_of(job, "frozen")
    storing, _ = storing_of(job, on_pixels)
    assert storing.encoder is not None
    assert (storing.encoder.project, storing.encoder.standardise) == (None, None)
    on_features = asked_of(job, "frozen", features=tmp_path, width=16).model.encoder
    assert (on_features.features, on_features.project, on_features.standardise) == (16, 24, True)


def test_figures_are_of_the_outlines_that_are_there(tmp_path: Path) -> None:
    scored = EvaluateJob(run=tmp_path / "run", manifest=tmp_path / "m.csv", annotations=tmp_path / "outlines")
    task = _Task("row", SimpleNamespace(out=tmp_path), scored)  # type: ignore[arg-type]
    (tmp_path / "outlines").mkdir()
    (tmp_path / "outlines" / "a.xml").write_text("<a/>")
    metrics = {"job": {"command": "evaluate", **scored.model_dump(mode="json")}}
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    assert not _is_scored(task), "an earlier version did not say which"
    (tmp_path / "scored.json").write_text(json.dumps({"outlines": _outlines_of(scored)}))
    assert _is_scored(task)
    (tmp_path / "outlines" / "a.xml").write_text("<b/>")
    assert not _is_scored(task)


def test_a_job_that_fails_is_told_and_stops_no_other(
    console: Console, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_ips.evaluation.run import compare

    do_planned = compare.do_planned

    def planned(task: Any, **how: Any) -> None:
        if task.seed == 0 and task.entry == "end to end":
            raise MemoryError("no room")
        do_planned(task, **how)

    monkeypatch.setattr(compare, "do_planned", planned)
    path = recipe(tmp_path, data, rows={"end to end": ROWS["end to end"]})
    said = console("table", path)
    assert said.code == 3
    assert "1 of 2 jobs are complete" in said.out
    assert "failed: end to end, seed 0: MemoryError: no room" in said.out
    assert "1 of 2" in (tmp_path / "out" / "table.md").read_text()
    assert "<h2>Failed</h2>" in (tmp_path / "out" / "table.html").read_text()
    monkeypatch.setattr(compare, "do_planned", do_planned)
    again = console("table", path)
    assert (again.code, "2 of 2 jobs are complete, 1 were before" in again.out) == (0, True)


@pytest.mark.slow
def test_a_slide_that_cannot_be_read_is_told_of_every_row(
    console: Console, tmp_path: Path, data: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    listed = look("tcga_brca", tmp_path / "data")
    train, test = (next(row for row in listed.rows if row["split"] == split) for split in ("train", "test"))
    for row in (train, test):
        Path(row["path"]).write_bytes(b"II*\0 cut off " + row["split"].encode())
    training = {"epochs": 1, "slides_per_step": 4, "head_start": {"epochs": 0}, "max_bad_slides": 0.3}
    said = console("table", recipe(tmp_path, tmp_path / "data", seeds=[0], training=training))
    assert said.code == 3
    assert "2 of 2 jobs are complete" in said.out
    for name in ROWS:
        warning = f"{name}, seed 0: 2 slides could not be used: "
        assert f"failed: {warning}" in said.out
        assert warning in (tmp_path / "out" / "table.md").read_text()
        assert warning in (tmp_path / "out" / "table.html").read_text()
    assert train["slide_id"] in said.out
    assert test["slide_id"] in said.out


@pytest.mark.slow
def test_an_own_process_tells_its_memory(console: Console, tmp_path: Path, data: Path) -> None:
    path = recipe(tmp_path, data, rows={"end to end": ROWS["end to end"]}, seeds=[0], isolate=True)
    said = console("table", path)
    assert said.code == 0, said.err + said.out
    row = next(row for row in rows_of(tmp_path / "out") if row["figure"] == "auc")
    assert 1e8 < float(row["peak_ram"]) < 4e9
    assert row["peak_vram"] == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rows": {"a": {"settings": {"model.tasks": []}}}}, "is the same for all rows"),
        ({"rows": {"a": {"settings": {"bag": "case"}}}}, "'bag' is no setting of a row"),
        ({"rows": {"a/b": {}}}, "also names a folder"),
        ({"rows": {"a": {}, "A": {}}}, "two names are the same"),
        ({"rows": {"a": {"settings": {"model.aggregator": "transmil"}}}}, "row a: "),
        (
            {"rows": {"f": {"frozen": True, "settings": {"model.aggregator": "transmil"}}}},
            "row f: ",
        ),
        ({"seeds": [1, 1]}, "one occurs twice"),
        ({"data_set": "panda"}, "holds no slide of panda; expected train_images/"),
        ({"froc": True}, "has no outlines of lesions"),
        ({"data": None}, "no such folder"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(
    console: Console, tmp_path: Path, data: Path, change: dict[str, Any], complaint: str
) -> None:
    if "data" in change:
        data, change = tmp_path / "absent", {}
    said = console("table", recipe(tmp_path, data, **change))
    assert said.code == 2, said.out
    assert complaint in said.complaint
    assert not (tmp_path / "out" / "table.csv").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_held_out_validation_chooses_its_epoch_elsewhere(
    console: Console, tmp_path: Path, data: Path
) -> None:
    path = recipe(tmp_path, data, held_out="val", rows={"end to end": ROWS["end to end"]}, seeds=[0])
    said = console("table", path)
    assert said.code == 0, said.err + said.out
    with (tmp_path / "out" / "manifest.csv").open(newline="") as file:
        splits = {row["case_id"]: row["split"] for row in csv.DictReader(file)}
    assert list(splits.values()).count("test") == 4, "two of the test patients, two of the validation"
    assert list(splits.values()).count("val") == 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_jobs_with_the_four_rows(path: Path) -> None:
    job = make_job(load_recipe(path), source=str(path))
    assert isinstance(job, TableJob)
    assert (job.data_set, len(job.seeds)) == (path.stem, 5)
    assert list(job.rows) == ["frozen + ABMIL", "frozen + IPS", "end to end", "LoRA"]
    assert [row.frozen for row in job.rows.values()] == [True, True, False, False]


def test_every_published_number_has_a_protocol_and_a_source(tmp_path: Path) -> None:
    published = read_published(shipped_published())
    assert any(one.value == 0.9757 and one.data_set == "camelyon16" for one in published)
    assert {one.data_set for one in published} <= set(KNOWN_SETS)
    assert all(0 < one.value < 1 for one in published)
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for one in published:
        assert f"| {one.method} | {one.encoder} | {one.figure} | {one.value:g} |" in page, one
    for path in RECIPES:
        for row in make_job(load_recipe(path), source="r").rows:  # type: ignore[attr-defined]
            assert f"| {row} | kaiko-vits16 | {NOT_RUN} |" in page
    head = "data_set,method,encoder,figure,value,protocol,source\n"
    for line, complaint in (
        ("panda,a,b,auc,high,c,d", "is no number"),
        ("panda,a,b,auc,0.5,c,", "lacks a data set"),
    ):
        (tmp_path / "p.csv").write_text(f"{head}{line}\n")
        with pytest.raises(DatasetError, match=complaint):
            read_published(tmp_path / "p.csv")


def test_what_has_not_been_run_says_so_and_words_of_others_are_escaped(tmp_path: Path) -> None:
    job = make_job(
        {
            "command": "table",
            "data_set": "panda",
            "data": "d",
            "out": str(tmp_path),
            "rows": {"a": {}, "b": {}},
        },
        source="test",
    )
    assert isinstance(job, TableJob)
    score = Score("label", "slides", "auc", math.nan)
    theirs = [Published("panda", "<b>x|y</b>", "e", "auc", 0.5, "p", "s")]
    write_tables(job, [JobResult("a", 0, [score])], theirs, {"a": "e", "b": "e"})
    words = (tmp_path / "table.md").read_text()
    assert "| a | e | not defined | 1 of 5 |" in words
    assert f"| b | e | {NOT_RUN} | 0 of 5 |" in words
    assert "&lt;b&gt;" in (tmp_path / "table.html").read_text()
    assert [row["protocol"] for row in rows_of(tmp_path) if row["row"] == "b"] == [NOT_RUN]
    (tmp_path / "metrics.json").write_text('{"tasks": []}')
    with pytest.raises(Exception, match="is not of wsi-ips evaluate"):
        read_scores(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("figure", "values", "worst"),
    [("auc", (0.9, 0.7), 0.7), ("ibs", (0.1, 0.3), 0.3), ("auc", (0.5, math.nan), math.nan),
     ("auc", (math.nan, 0.5), math.nan)],
)  # fmt: skip
def test_the_worst_seed_is_the_worst_by_what_the_figure_means(
    figure: str, values: tuple[float, ...], worst: float
) -> None:
    assert TableLine("row", "task", "slides", figure, values).worst == pytest.approx(worst, nan_ok=True)
