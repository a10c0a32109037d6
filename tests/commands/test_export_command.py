"""``wsi-ips export``: every format from a run, choices reach the files, what cannot be is one line."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips import cli
from wsi_ips.commands.export import EXPORT_OPTIONS, ExportJob
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import HeatOptions
from wsi_ips.heatmaps.export import EXPORTS, make_exporter
from wsi_ips.inference.results import read_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def predicted(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides predicted by an untrained network of two tasks, each of which reads the other's query."""
    tasks = [
        {"name": "label", "classes": ["normal", "tumor"], "token": 1},
        {"name": "grade", "classes": ["low", "high"], "token": 0},
    ]
    model = {**SMALL_MODEL["model"], "tasks": tasks}
    job = make_job(
        {**SMALL_MODEL, "command": "finetune", "manifest": "m", "out": "o", "model": model}, source=""
    )
    assert isinstance(job, FinetuneJob)
    folder = tmp_path_factory.mktemp("exports")
    save_checkpoint(folder / "model.safetensors", build_net(job.model), job.pipeline)
    (folder / "slides").mkdir()
    for slide in sorted(small_data.slides.glob("*.tif"))[:2]:
        (folder / "slides" / slide.name).symlink_to(slide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["wsi-ips", "predict", str(folder / "slides"), "--no-overlays", "--checkpoint",
                                   str(folder / "model.safetensors"), "--out", str(folder / "run")])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return folder


@pytest.fixture
def run(predicted: Path, tmp_path: Path) -> Path:
    shutil.copytree(predicted / "run", tmp_path / "run")
    return tmp_path / "run"


def stems(run: Path) -> list[str]:
    return sorted(path.stem for path in (run / "attention").glob("*.h5"))


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_of_every_slide(console: Console, run: Path, name: str) -> None:
    said = console("export", run, "--format", name)
    assert said.code == 0, said.err
    assert said.out.strip().endswith(f"2 {name} exports in {run / 'exports' / name}")
    suffix = make_exporter(name, {}).suffix
    for stem in stems(run):
        assert (run / "exports" / name / f"{stem}{suffix}").exists()


def test_a_task_s_attention_reaches_the_file(console: Console, run: Path, tmp_path: Path) -> None:
    """``grade`` is the second task and reads the first query."""
    said = console(
        "export", run, "-f", "geojson", "--task", "grade", "--head", "1", "--top", "3", "-o", tmp_path
    )
    assert said.code == 0, said.err
    stem = stems(run)[0]
    features = json.loads((tmp_path / "attention-grade-head1" / f"{stem}.geojson").read_text())["features"]
    best = np.sort(read_result(run / "attention" / f"{stem}.h5").attention_NHT[:, 1, 0])[-3:]
    found = [feature["properties"]["measurements"]["Attention, task grade, head 1"] for feature in features]
    assert sorted(found) == pytest.approx(best.tolist())
    assert {feature["properties"]["classification"]["name"] for feature in features} <= {"low", "high"}


@pytest.mark.parametrize("name", EXPORTS)
def test_two_maps_of_a_run_are_two_files_and_the_first_stays(
    console: Console, run: Path, tmp_path: Path, name: str
) -> None:
    """In the run's folder, and in one that was named: there the map can be written again, too."""
    suffix = make_exporter(name, {}).suffix
    for out, words in ((run / "exports" / name, ()), (tmp_path / "out", ("--out", tmp_path / "out"))):
        assert console("export", run, "--format", name, *words).code == 0
        first = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        said = console("export", run, "--format", name, "--task", "grade", *words)
        assert said.code == 0, said.err
        assert said.out.strip().endswith(f"2 {name} exports in {out / 'attention-grade'}")
        for stem in stems(run):
            assert (out / f"{stem}{suffix}").exists()
            assert (out / "attention-grade" / f"{stem}{suffix}").exists()
        assert {path: path.read_bytes() for path in first} == first
        for task in ((), ("--task", "grade")):
            assert console("export", run, "--format", name, *task, *words).code == 0


def test_a_run_does_not_replace_the_export_of_another_one(
    console: Console, run: Path, tmp_path: Path
) -> None:
    """Nor a file of an annotator: nothing of a command that would is written."""
    shutil.copytree(run, tmp_path / "other")
    out = tmp_path / "regions"
    first, second = stems(run)
    out.mkdir()
    (out / f"{second}.xml").write_text("outlines by hand")
    said = console("export", run, "--format", "asap", "--out", out)
    assert said.code == 2
    assert f"{out / second}.xml is there already, and was not written as asap of {run}" in said.complaint
    assert [path.name for path in out.iterdir()] == [f"{second}.xml"]
    (out / f"{second}.xml").unlink()
    assert console("export", run, "--format", "asap", "--out", out).code == 0
    before = (out / f"{first}.xml").read_bytes()
    said = console("export", tmp_path / "other", "--format", "asap", "--out", out)
    assert said.code == 2
    assert f"{out / first}.xml is there already, and 1 more, and was not written as" in said.complaint
    assert (out / f"{first}.xml").read_bytes() == before


def test_pictures_of_patches_and_overlays_do_not_replace_each_other(
    console: Console, run: Path, tmp_path: Path
) -> None:
    """Both are ``SLIDE.png``."""
    assert console("overlay", run, "--out", tmp_path / "out", "--side-px", "200").code == 0
    said = console("export", run, "--format", "sheet", "--out", tmp_path / "out")
    assert said.code == 2
    assert "is there already, and 1 more, and was not written as sheet of" in said.complaint


def test_a_slide_with_values_that_are_not_finite_names_no_map(console: Console, run: Path) -> None:
    """The next one does, and the first costs itself only."""
    first, second = stems(run)
    with h5py.File(run / "attention" / f"{first}.h5", "r+") as file:
        file["attention"][:] = np.nan
    said = console("export", run, "--format", "asap", "--head", "1")
    assert said.code == 3, said.err
    assert [path.name for path in (run / "exports" / "asap" / "attention-head1").iterdir()] == [
        f"{second}.xml"
    ]


def test_formats_of_numbers_need_no_slide(console: Console, run: Path, predicted: Path) -> None:
    """Those that do name it, and the other slide is written."""
    gone = predicted / "slides" / f"{stems(run)[0]}.tif"
    target = gone.resolve()
    gone.unlink()
    try:
        for name in ("ome-tiff", "ome-zarr", "asap"):
            assert console("export", run, "--format", name).code == 0
        for name in ("geojson", "deepzoom", "sheet"):
            said = console("export", run, "--format", name)
            assert said.code == 3
            failed = [line for line in said.out.splitlines() if line.startswith("failed: ")]
            assert len(failed) == 1
            assert str(gone) in failed[0]
            assert f"1 {name} export in" in said.out
        said = console("export", run, "--format", "deepzoom", "--heat-only", "--side-px", "300")
        assert said.code == 0, said.out
    finally:
        gone.symlink_to(target)


def test_slides_of_another_size_are_refused_even_where_none_is_needed(
    console: Console, run: Path, predicted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    first, second = stems(run)
    tifffile.imwrite(folder / f"{first}.tif", np.full((512, 768, 3), 99, np.uint8), tile=(256, 256),
                     resolution=(5000, 5000), resolutionunit="CENTIMETER", photometric="rgb")  # fmt: skip
    (folder / f"{second}.tif").symlink_to((predicted / "slides" / f"{second}.tif").resolve())
    said = console("export", run, "--format", "ome-tiff", "--slides", folder)
    assert said.code == 3
    assert "is 768x512 pixels, but" in said.out
    assert [path.name for path in (run / "exports" / "ome-tiff").iterdir()] == [f"{second}.ome.tif"]
    (folder / f"{first}.tif").unlink()
    said = console("export", run, "--format", "asap", "--slides", folder)
    assert said.code == 3
    assert "is of a slide that is not in" in said.out
    assert "1 asap export in" in said.out


def test_a_broken_result_costs_itself(console: Console, run: Path) -> None:
    (run / "attention" / "zz.h5").write_text("nonsense")
    said = console("export", run, "--format", "asap")
    assert said.code == 3
    assert "zz.h5: is not an HDF5 file" in said.out
    assert "2 asap exports" in said.out


def test_a_full_disk_is_that_slide_s_failure(
    console: Console, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stems(run)
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == f"{first}.xml":
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    said = console("export", run, "--format", "asap")
    assert said.code == 3
    assert "No space left on device" in said.out
    assert [path.name for path in (run / "exports" / "asap").iterdir()] == [f"{second}.xml"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--format", "jpeg"], "format"),
        (["--format", "ome-tiff", "--top", "3"], "top is no option of ome-tiff, which has um_per_px"),
        (["--format", "geojson", "--low", "3"], "low is no option of geojson, which has top"),
        (["--format", "geojson", "--top", "0"], "top"),
        (["--format", "sheet", "--top", "501"], "top must be 1 to 500 for a sheet, not 501"),
        (["--format", "asap", "--percentile", "101"], "percentile"),
        (["--format", "asap", "--percentile", "5", "--threshold", "0.1"], "give one of them"),
        (["--format", "asap", "--threshold", "nan"], "threshold"),
        (["--format", "ome-zarr", "--um-per-px", "0"], "um_per_px"),
        (["--format", "sheet", "--task", "stage"], "task 'stage' is not there"),
        (["--format", "sheet", "--query", "2"], "query 2 is not there"),
    ],
)
def test_what_cannot_be_is_one_line(console: Console, run: Path, arguments: list[str], problem: str) -> None:
    said = console("export", run, *arguments)
    assert said.code == 2
    assert problem in said.complaint
    assert not (run / "exports").exists()


def test_a_folder_without_results_is_one_line(console: Console, tmp_path: Path) -> None:
    said = console("export", tmp_path, "--format", "asap")
    assert said.code == 2
    assert "holds no attention/*.h5" in said.complaint


def test_the_recipe_and_the_exports_know_the_same_options() -> None:
    """Of every format; what HeatOptions has is one option there and several settings here."""
    assert set(EXPORT_OPTIONS) == set(EXPORTS)
    for name, options in EXPORT_OPTIONS.items():
        of_job = set(options)
        if "colormap" in of_job:
            of_job = (of_job - set(HeatOptions.model_fields)) | {"options"}
        assert of_job == set(type(make_exporter(name, {})).__dataclass_fields__)
        assert set(options) <= set(ExportJob.model_fields)
