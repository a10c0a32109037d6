"""What a command does not import: what it has no need of costs its user seconds and memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.console import uncaptured
from tests.conftest import SmallData

TRAINING = {"lightning", "torchmetrics", "matplotlib", "sklearn", "pandas", "dask", "distributed", "zarr"}
NETWORKS = {"torch", "torchvision", "timm", "safetensors", "huggingface_hub"}
STATISTICS = {"scipy.stats", "scipy.optimize"}
ASK = """
import json, sys
from wsi_ips.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


def imported_by(*arguments: object) -> set[str]:
    """The modules that a command has imported when it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


@pytest.fixture(scope="module")
def slide(small_data: SmallData) -> Path:
    return sorted(small_data.slides.glob("*.tif"))[0]


@pytest.fixture(scope="module")
def predicted(slide: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide and the run of it, which this process makes: it has imported all already."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "slides").mkdir()
    (folder / "slides" / slide.name).symlink_to(slide)
    # A slide that was written just now is opened again by the next start.
    time.sleep(max(0.0, 2.1 - (time.time() - slide.stat().st_ctime)))
    assert uncaptured(*prediction(folder, small_checkpoint)).code == 0
    return folder


def prediction(folder: Path, checkpoint: Path) -> tuple[str | Path, ...]:
    out = ("--out", folder / "run", "--device", "cpu")
    return ("predict", folder / "slides", "--checkpoint", checkpoint, *out)


@pytest.mark.slow
def test_predict_imports_nothing_of_training_and_statistics(
    slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / slide.name).symlink_to(slide)
    imported = imported_by(*prediction(tmp_path, small_checkpoint))
    assert "torch" in imported
    assert not imported & (TRAINING | STATISTICS)


def test_a_finished_run_imports_no_network(predicted: Path, small_checkpoint: Path) -> None:
    imported = imported_by(*prediction(predicted, small_checkpoint))
    assert not imported & (TRAINING | STATISTICS | NETWORKS - {"safetensors"})
    assert len((predicted / "run" / "known.jsonl").read_text().splitlines()) == 1


def test_a_report_imports_no_network(predicted: Path) -> None:
    assert not imported_by("report", predicted / "run") & (TRAINING | STATISTICS | NETWORKS)


def test_an_evaluation_of_classes_imports_no_network(predicted: Path, slide: Path) -> None:
    manifest = predicted / "manifest.csv"
    others = [f"slide_{number}" for number in range(2)]
    rows = [
        f"{name},{name},{label},test,x.tif" for name, label in zip((slide.stem, *others), "abc", strict=True)
    ]
    rows = [
        row.replace(",a,", ",normal,").replace(",b,", ",tumor,").replace(",c,", ",tumor,") for row in rows
    ]
    manifest.write_text("\n".join(["slide_id,case_id,label,split,path", *rows]) + "\n")
    table = predicted / "run" / "predictions.csv"
    header, first = table.read_text().splitlines()
    table.write_text("\n".join([header, first, *(first.replace(slide.stem, name) for name in others)]) + "\n")
    imported = imported_by("evaluate", predicted / "run", manifest, "--no-plots", "--bootstrap", "10")
    assert not imported & (NETWORKS | TRAINING - {"matplotlib"})


def test_looking_at_a_slide_imports_neither_networks_nor_segmentation(slide: Path, tmp_path: Path) -> None:
    assert not imported_by("info", slide) & (NETWORKS | TRAINING | STATISTICS | {"scipy", "skimage", "h5py"})


def test_tiling_imports_no_network(slide: Path, tmp_path: Path) -> None:
    asked = ("--patch-px", 32, "--patch-mpp", 2, "--out", tmp_path / "tiles")
    assert not imported_by("tile", slide, *asked) & (NETWORKS | TRAINING | STATISTICS)
