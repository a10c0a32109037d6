"""Which slides of a large run a report shows, and what it says of the others."""

import json
import re
from pathlib import Path

import pytest

from wsi_ips.commands.report import ReportJob, report
from wsi_ips.config import TaskConfig
from wsi_ips.inference.predictions import PredictionRow, write_predictions
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, SlideTelemetry, write_slide_table
from wsi_ips.progress import silent
from wsi_ips.report.shown import MOST_CARDS, MOST_ROWS, shown_slides
from wsi_ips.report.stored_run import Judged, StoredSlide

FAILED = "slide_4999"


def run_of(folder: Path, slides: int) -> Path:
    """A run whose last slide failed and took longest. There are no slides and no attention."""
    run = RunFolder(folder)
    names = [f"slide_{number:04d}" for number in range(5000 - slides, 5000)]
    probabilities = {"label": {"normal": 0.25, "tumor": 0.75}}
    rows = [
        PredictionRow(slide_id=name, status="ok", probabilities=probabilities, n_patches=2)
        for name in names[:-1]
    ]
    rows.append(PredictionRow.failed(names[-1], "no tissue was found"))
    write_predictions(run.predictions, rows, tasks=[TaskConfig()])
    table = [
        SlideRow(
            slide_id=row.slide_id,
            path="",
            status=row.status,
            telemetry=SlideTelemetry(seconds=float(number + 1), patches=2),
        )
        for number, row in enumerate(rows)
    ]
    write_slide_table(run.slides, table)
    told = {"config": {"model": {"tasks": [TaskConfig().model_dump()]}}}
    run.description.write_text(json.dumps(told))
    return folder


def page_of(folder: Path, slides: int) -> tuple[str, list[str], list[str]]:
    """The text of the report, the slides of its table and those of its cards, by their numbers."""
    report(ReportJob(run=run_of(folder, slides)), silent)
    text = (folder / "report.html").read_text()
    return text, re.findall(r'<tr data-number="(\d+)"', text), re.findall(r'class="card" id="s(\d+)"', text)


def test_a_report_of_many_slides_stays_small_and_says_how_many_it_shows(tmp_path: Path) -> None:
    text, rows, cards = page_of(tmp_path, 3000)
    assert (len(rows), len(cards)) == (MOST_ROWS, MOST_CARDS)
    assert len(text) < 3_000_000
    assert "The table shows 1,000 of 3,000 slides, and pictures of 400" in text
    assert "predictions.csv" in text
    assert "<dt>Slides</dt><dd>3,000</dd>" in text
    assert "<dt>Labelled</dt><dd>2,999</dd>" in text
    assert rows[-1] == cards[-1] == "3000", "the slide that failed"
    assert rows[:-1] == [str(number) for number in range(1, MOST_ROWS)]
    assert cards[:-1] == [str(number) for number in range(1, MOST_CARDS)]


def test_no_link_of_the_page_leads_nowhere(tmp_path: Path) -> None:
    text, _, cards = page_of(tmp_path, 3000)
    assert "50 min, 2 patches" in text or "49 min 59 s, 2 patches" in text, "the slowest slide has no card"
    assert set(re.findall(r'href="#s(\d+)"', text)) <= set(cards)


def test_a_report_of_few_slides_shows_all_and_says_nothing(tmp_path: Path) -> None:
    text, rows, cards = page_of(tmp_path, 30)
    assert len(rows) == len(cards) == 30
    assert "The table shows" not in text
    assert "There is room" not in text


def test_all_rows_and_some_pictures(tmp_path: Path) -> None:
    text, rows, cards = page_of(tmp_path, 950)
    assert (len(rows), len(cards)) == (950, MOST_CARDS)
    assert "There is room for pictures of 400 of 950 slides" in text


@pytest.mark.parametrize("slides", [MOST_ROWS, 5 * MOST_ROWS])
def test_what_failed_comes_first_and_then_what_was_called_wrong(slides: int) -> None:
    stored = [
        StoredSlide(number=number, slide_id=str(number), status="failed" if number == slides else "ok")
        for number in range(1, slides + 1)
    ]
    judged = {str(slides - 1): {"label": Judged("tumor", False)}, "1": {"label": Judged("tumor", True)}}
    shown = [slide.number for slide in shown_slides(stored, judged)]
    assert shown[-2:] == [slides - 1, slides]
    assert shown[:-2] == list(range(1, MOST_ROWS - 1))
