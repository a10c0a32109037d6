"""Every table that is read: a cell longer than csv takes, or what is no text, is one line that names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import read_rows
from wsi_ips.datasets.label_table import read_label_table
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.drawn.textures import read_textures
from wsi_ips.errors import ConfigError, FileError, WsiIpsError
from wsi_ips.evaluation.froc import read_detections
from wsi_ips.evaluation.plots import read_history
from wsi_ips.evaluation.staging import read_submission
from wsi_ips.inference.predictions import PredictionRow, read_case_table, read_predictions, write_predictions
from wsi_ips.inference.telemetry import SlideRow, read_slide_table, write_slide_table
from wsi_ips.nuclei.found_table import FoundTable
from wsi_ips.slides.resolution import read_mpp_table
from wsi_ips.training.cross_validation import _write_folds

TASKS = (TaskConfig(name="label", classes=("a", "b")),)

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "mpp": ("wsi,mpp", read_mpp_table),
    "manifest": (
        "slide_id,case_id,label,split,path",
        lambda path: read_manifest(path, tasks=TASKS, need_slides=False),
    ),
    "any manifest": ("slide_id,path", read_rows),
    "textures": ("path,class,source_group", lambda path: read_textures(path.parent, classes=["a"])),
    "history": ("epoch,train_loss", read_history),
    "labels": ("slide,label", read_label_table),
    "stages": ("patient,stage", read_submission),
    "detections": ("0.5,1,2", read_detections),
    "cases": ("slide_id,case_id", lambda path: read_case_table(path, ["a"])),
    "predictions": (
        "slide_id,prob_a,prob_b,pred,n_patches,status,error",
        lambda path: read_predictions(path, tasks=TASKS),
    ),
    "slides": ("slide_id,path,status,attempts,seconds,worker,error", read_slide_table),
    "found": ("x,y", FoundTable.read),
    "folds": ("slide_id,case_id,fold,validates_folds", lambda path: _write_folds(path, [])),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("second", [b'"' + b"x" * 131_073 + b'",1', b"caf\xe9,1"], ids=["long", "Latin-1"])
def test_a_cell_that_cannot_be(tmp_path: Path, name: str, second: bytes) -> None:
    header, read = READERS[name]
    path = tmp_path / "manifest.csv"
    path.write_bytes(header.encode() + b"\n" + second + b"\n")
    with pytest.raises((FileError, ConfigError)) as caught:
        read(path)
    assert isinstance(caught.value, WsiIpsError)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


def test_an_endless_reason_is_cut_so_that_the_table_can_be_read_again(tmp_path: Path) -> None:
    why = "no such key: " + "x" * 200_000
    write_predictions(tmp_path / "p.csv", [PredictionRow.failed("s", why)], tasks=TASKS)
    (row,) = read_predictions(tmp_path / "p.csv", tasks=TASKS)
    assert row.error.startswith("no such key: xxx")
    write_slide_table(
        tmp_path / "s.csv", [SlideRow(slide_id="s", path="a.svs", status="failed", error=why, note=why)]
    )
    assert read_slide_table(tmp_path / "s.csv")["s"].error.startswith("no such key: xxx")
