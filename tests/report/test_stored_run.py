"""A run is put together from its tables, whatever state it was left in."""

from pathlib import Path

import pytest

from tests.report.reported_run import Slide, make_run, stored
from wsi_ips.config import TaskConfig
from wsi_ips.errors import ResultsError
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.report.stored_run import attention_file, read_run

TASKS = (TaskConfig(),)


def test_slides_have_the_status_that_both_tables_say(tmp_path: Path) -> None:
    run = stored(
        tmp_path,
        [
            Slide("a", 0.9), Slide("b", status="failed", error="it is cut"), Slide("c", status="running"),
            Slide("d", status="waiting"), Slide("e", 0.1, error="overlay not drawn"),
        ],
    )  # fmt: skip
    assert [(slide.slide_id, slide.status, slide.number) for slide in run.slides] == [
        ("a", "ok", 1), ("b", "failed", 2), ("c", "unfinished", 3), ("d", "unfinished", 4), ("e", "ok", 5),
    ]  # fmt: skip
    assert run.slides[1].error == "it is cut"
    assert run.slides[4].error == "overlay not drawn"
    assert run.slides[0].telemetry is not None
    assert run.slides[0].telemetry.seconds == 2
    assert run.slides[2].telemetry is None
    assert run.slides[0].n_patches == 176
    assert run.slides[1].probabilities is None


def test_without_slides_csv_only_the_times_are_missing(tmp_path: Path) -> None:
    """Runs of earlier versions have none; a broken one costs no more."""
    root = make_run(tmp_path, [Slide("a"), Slide("b", status="failed", error="why")], files=False)
    for content in (None, "slide_id,path\nnonsense"):
        (root / "slides.csv").unlink(missing_ok=True)
        if content:
            (root / "slides.csv").write_text(content)
        run = read_run(RunFolder(root), TASKS)
        assert [slide.status for slide in run.slides] == ["ok", "failed"]
        assert run.slides[0].telemetry is None
        assert len(run.notes) == 1


def test_a_run_without_a_slide_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no slides"):
        stored(tmp_path, [])


@pytest.mark.parametrize("slide_id", ["../run", "a/b", "..", ".", "", "a\\b"])
def test_an_id_that_is_no_file_name_leads_nowhere(tmp_path: Path, slide_id: str) -> None:
    run = stored(tmp_path, [Slide("a")])
    assert attention_file(run, slide_id) is None
    assert attention_file(run, "a") == run.folder.root / "attention" / "a.h5"
