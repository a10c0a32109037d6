"""``wsi-ips plan`` of a table or a comparison, as a user runs it."""

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from tests.planning.small_table import JOB, RATES, ROWS, draw_data, table
from wsi_ips.commands.recipe import make_job
from wsi_ips.planning.series import series_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("tcga"))


def test_a_row_that_no_plan_knows_is_named(console: Console, tmp_path: Path) -> None:
    rows = {"coarse": {"settings": {"selection.selector": "cascade"}}}
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table(Path("none"), rows=rows)))
    said = console("plan", path, "--device", "h200", "--slides", "100", "--patches", "1000")
    assert said.code == 2
    assert "row coarse: a plan knows selection.selector ips" in said.complaint


def test_rates_of_an_earlier_plan_of_a_table_are_those_of_its_rows(console: Console, tmp_path: Path) -> None:
    path, earlier = tmp_path / "table.yaml", tmp_path / "earlier.json"
    path.write_text(yaml.safe_dump(table(Path("none"))))
    with series_of(make_job(table(Path("none")), source="test"), imagined=20) as series:
        (stored,) = series.stored
    rates, job = RATES.model_dump(mode="json"), JOB.model_dump(mode="json")
    rows = [
        {"name": name, "rates": None if row.get("frozen") else rates, "job": job}
        for name, row in ROWS.items()
    ]
    earlier.write_text(json.dumps({"features": [{"name": stored.name, "rates": rates}], "rows": rows}))
    imagined = ("--slides", "20", "--patches", "100")
    said = console("plan", path, "--rates", earlier, *imagined, "--json")
    told = json.loads(said.out)
    assert {row["name"]: row["not_known"] for row in told["rows"]}["frozen + IPS"] == []
    assert told["rows"][0]["stages"][-1] == {
        "name": "figures",
        "seconds": 5.3,
        "each_epoch": 0.0,
        "does": "other",
    }
    earlier.write_text(json.dumps({"features": [], "rows": rows}))
    assert "has no rates of test_convnext" in console("plan", path, "--rates", earlier, *imagined).complaint
    one = tmp_path / "recipe.yaml"
    one.write_text(yaml.safe_dump({**SMALL_MODEL, "command": "finetune", "manifest": "m.csv", "out": "o"}))
    said = console("plan", one, "--rates", earlier, *imagined)
    assert "is the plan of a table" in said.complaint


def test_options_that_find_the_data_go_with_tables_only(
    console: Console, tmp_path: Path, small_data: SmallData
) -> None:
    one = tmp_path / "recipe.yaml"
    values = {**SMALL_MODEL, "command": "finetune", "manifest": str(small_data.manifest), "out": "o"}
    one.write_text(yaml.safe_dump(values))
    said = console("plan", one, "--data", tmp_path)
    assert said.code == 2
    assert "--data goes with recipes of table" in said.complaint
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table(tmp_path)))
    assert (
        "--for predict: a table is planned as a whole" in console("plan", path, "--for", "predict").complaint
    )


@pytest.mark.parametrize(
    ("broken", "message"), [("none", "no such folder"), ("empty", "holds no slide of tcga_brca")]
)
def test_a_broken_layout_is_one_line(console: Console, tmp_path: Path, broken: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table(Path("elsewhere"))))
    said = console("plan", path, "--data", tmp_path / broken)
    assert said.code == 2
    assert message in said.complaint
    assert str(tmp_path / broken) in said.complaint


@pytest.mark.slow
def test_a_table_is_planned_as_its_rows_are_alone(console: Console, tmp_path: Path, data: Path) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text(
        "device: mine\ncores: 2\nforward_s: 0.01\nlearn_s: 0.04\nmegapixel_s: 0.01\nbase_mb: 400\n"
    )
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table(Path("elsewhere"), out=str(tmp_path / "out"))))
    said = console("plan", path, "--data", data, "--rates", rates, "--out", tmp_path / "plan.json")
    assert said.code == 0, said.err
    for part in ("plan of table", "train, ", " test); all looked at", "features, once: test_convnext",
                 "4 rows, 3 seeds each", "the whole table", "most time goes into"):  # fmt: skip
        assert part in said.out
    assert not (tmp_path / "out").exists(), "nothing but the plan is written"
    told = json.loads((tmp_path / "plan.json").read_text())
    (row,) = [row for row in told["rows"] if row["name"] == "end to end"]
    manifest = tmp_path / "manifest.csv"
    assert console("data", "manifest", data, "--name", "tcga_brca", "--out", manifest).code == 0
    held = table(data)
    shared = {name: held[name] for name in ("tiling", "selection", "model", "training", "device")}
    one = tmp_path / "recipe.yaml"
    one.write_text(
        yaml.safe_dump(
            {**shared, "command": "finetune", "manifest": str(manifest), "out": str(tmp_path / "run")}
        )
    )
    alone = json.loads(console("plan", one, "--rates", rates, "--json").out)
    names = [stage["name"] for stage in alone["stages"]]
    assert names[:2] == ["finding tissue", "selecting"]
    for mine, theirs in zip(row["stages"][: len(names)], alone["stages"], strict=True):
        assert mine["name"] == theirs["name"]
        if mine["name"] != "finding tissue":  # which took another time
            assert mine["seconds"] == pytest.approx(theirs["seconds"], rel=1e-6)
    assert alone["slides"] < told["slides"], "the table reads test slides too"


@pytest.mark.slow
def test_a_table_is_measured_here(console: Console, tmp_path: Path, data: Path) -> None:
    rows = {name: ROWS[name] for name in ("frozen + ABMIL", "end to end")}
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table(data, rows=rows)))
    said = console("plan", path, "--clock", "cpu", "--device", "cpu", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["not_known"] == []
    frozen, pixels = (next(row for row in told["rows"] if row["name"] == name) for name in rows)
    for stage in (*frozen["stages"], *pixels["stages"]):
        assert stage["seconds"] > 0, stage
    assert frozen["job"]["head"]["bag_s"] > 0
    assert frozen["job"]["score_s"] > 0
    assert told["ram_mb"] > 300
    assert told["seconds"] > 3 * pixels["seconds_once"]


def test_a_comparison_finds_tissue_once_and_is_not_scored_job_by_job(
    console: Console, tmp_path: Path, small_data: SmallData
) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text(
        "device: mine\ncores: 2\nforward_s: 0.01\nlearn_s: 0.04\nmegapixel_s: 0.01\nbase_mb: 400\n"
    )
    recipe = {
        **SMALL_MODEL, "command": "compare", "manifest": str(small_data.manifest), "out": str(tmp_path / "out"),
        "seeds": [0, 1], "entries": {"ips": None, "random": {"selection.selector": "random"}},
        "training": {"epochs": 1, "head_start": {"epochs": 0}},
    }  # fmt: skip
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(recipe))
    said = console("plan", path, "--rates", rates, "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert [stage["name"] for stage in told["before"]] == [
        "starting", "finding tissue", "figures of all",
    ]  # fmt: skip
    assert told["not_known"][:2] == ["starting", "figures of all"]
    assert [row["times"] for row in told["rows"]] == [2, 2]
    names = {stage["name"] for row in told["rows"] for stage in row["stages"]}
    assert "labelling test slides" in names
    assert not any("tissue" in name for name in names)
    assert "figures" not in names
    path.write_text(yaml.safe_dump({**recipe, "features": str(tmp_path), "model": {
        **SMALL_MODEL["model"], "encoder": {"name": "features", "features": 8}}}))  # fmt: skip
    said = console("plan", path, "--rates", rates)
    assert said.code == 2
    assert "compares on stored features" in said.complaint
