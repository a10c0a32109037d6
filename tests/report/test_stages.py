"""Where the time of a run went, stage by stage, as a report shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.console import Console, make_console
from tests.report.reported_run import Slide, make_run, stored
from wsi_ips.inference.run_folder import RunFolder, tasks_of_run
from wsi_ips.report.stages import StageTable, stage_shares
from wsi_ips.report.stored_run import read_run
from wsi_ips.timeline import TIMELINE_NAME


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


def write_timeline(run: Path, *stages: tuple[str, str, int, float]) -> None:
    about: dict[str, Any] = {"program": "wsi_ips", "slides": 2, "left_out": 0, "stages": stages}
    (run / TIMELINE_NAME).write_text(json.dumps({"otherData": about})[:-1] + ',\n"traceEvents": [\n]}\n')


def shown(table: StageTable) -> dict[str, tuple[str, str, float]]:
    return {row.part.name: (row.times, row.part.shown, round(row.part.share, 4)) for row in table.rows}


def test_without_a_timeline_the_stages_are_those_of_the_table(tmp_path: Path) -> None:
    shares = stage_shares(stored(tmp_path, [Slide("a", seconds=8), Slide("b", seconds=72)]))
    assert shares is not None
    main, threads = shares.tables
    assert main.of == "1 min 20 s"
    assert not main.knows_times
    assert {name: share for name, (_, _, share) in shown(main).items()} == {
        "encoding": 0.5, "opening and tissue": 0.25, "the rest": 0.25,
    }  # fmt: skip
    # Two threads had 160 s, and decoded for 1.5 s of each slide.
    assert shown(threads) == {"decode": ("", "3.0 s", 0.0187), "idle": ("", "2 min 37 s", 0.9812)}
    assert "slides.csv, of 2 slides" in shares.source


def test_a_timeline_tells_more_stages_and_how_often_they_came(tmp_path: Path) -> None:
    root = make_run(tmp_path, [Slide("a", seconds=8), Slide("b", seconds=72)], files=False)
    write_timeline(
        root, ("main", "encode", 1200, 60.0), ("main", "draw overlay", 2, 20.0), ("main", "head", 2, 0.001),
        ("threads", "decode", 1200, 40.0), ("threads", "the rest", 1200, 8.0), ("ahead", "tissue", 2, 3.0),
    )  # fmt: skip
    folder = RunFolder(root)
    shares = stage_shares(read_run(folder, tasks_of_run(folder)))
    assert shares is not None
    main, ahead, threads = shares.tables
    assert shown(main) == {
        "encode": ("1,200", "1 min", 0.75), "draw overlay": ("2", "20 s", 0.25), "others": ("", "0.001 s", 0.0),
    }  # fmt: skip
    assert shown(ahead) == {"tissue": ("2", "3.0 s", 1.0)}
    assert {name: share for name, (_, _, share) in shown(threads).items()} == {
        "decode": 0.25, "planning, waiting for each other": 0.05, "idle": 0.7,
    }  # fmt: skip
    assert "timeline.json, of 2 slides" in shares.source


def test_a_run_whose_times_are_not_known_has_no_stages(tmp_path: Path) -> None:
    assert stage_shares(stored(tmp_path, [Slide("bad", status="failed", error="why")])) is None


def test_the_page_shows_them_and_what_a_file_says_is_only_text(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, [Slide("a")])
    write_timeline(run, ("main", "<script>x</script>", 3, 4.0), ("main", "encode", 3, 12.0))
    assert console("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "Time, stage by stage" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<script>x" not in page
    assert "75.0 %" in page


def test_a_timeline_that_cannot_be_read_costs_only_itself(console: Console, tmp_path: Path) -> None:
    run = make_run(tmp_path, [Slide("a")])
    (run / TIMELINE_NAME).write_text("{}")
    assert console("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "The timeline is left out: " in page
    assert "From slides.csv" in page
