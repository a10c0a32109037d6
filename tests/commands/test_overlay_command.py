"""``wsi-ips overlay``: every choice reaches the picture, the recipe says the same, what cannot be is one line."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips import cli
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import Job, make_job
from wsi_ips.inference.results import read_result, write_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint

CHOICES: dict[str, object] = {
    "task": "grade",
    "head": 1,
    "side_px": 300,
    "alpha": 0.7,
    "colormap": "blue_red",
    "scale": "absolute",
    "low": 0.0,
    "high": 0.25,
}


@pytest.fixture(scope="module")
def run(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    folder = tmp_path_factory.mktemp("overlays")
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
    return folder / "run"


@pytest.fixture(scope="module")
def telling(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by a head that tells: a third of the patches contribute to either task."""
    folder = tmp_path_factory.mktemp("telling") / "run"
    shutil.copytree(run, folder)
    for path in (folder / "attention").glob("*.h5"):
        result = read_result(path)
        kept_ids = result.coords.ids_N[::3]
        added = np.linspace(-1, 2, len(kept_ids), dtype=np.float32)
        told = np.stack([-added, added, -2 * added, 2 * added], axis=1)
        scores = np.zeros(len(kept_ids), np.float32)
        write_result(
            path, replace(result, kept_ids_M=kept_ids, kept_scores_M=scores, kept_contributions_MK=told)
        )
    return folder


def flags(choices: dict[str, object]) -> list[str]:
    return [part for name, value in choices.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def facts(picture: Path) -> dict[str, str]:
    with Image.open(picture) as image:
        return dict(image.text)  # type: ignore[attr-defined]


def test_every_choice_reaches_the_picture(console: Console, run: Path, tmp_path: Path) -> None:
    said = console("overlay", run, "--out", tmp_path / "drawn", *flags(CHOICES))
    assert said.code == 0, said.err
    pictures = sorted((tmp_path / "drawn" / "attention-grade-head1").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        told = facts(picture)
        assert told["shown"] == "Attention, task grade, head 1"
        assert told["scale"] == "absolute 0.0 0.25"
        assert told["colormap"] == "blue_red"
        assert max(map(int, told["picture_px"].split("x"))) == 300


def test_a_task_is_drawn_by_the_query_that_it_reads(console: Console, run: Path, tmp_path: Path) -> None:
    """``grade`` is the second task and reads the first query."""
    for name, choice in (("task", {"task": "grade"}), ("query", {"query": 0}), ("other", {"query": 1})):
        assert console("overlay", run, "--out", tmp_path / name, "--side-px", "200", *flags(choice)).code == 0
    pictures = {name: sorted((tmp_path / name).rglob("*.png"))[0] for name in ("task", "query", "other")}
    assert pictures["task"].read_bytes() == pictures["query"].read_bytes()
    assert pictures["task"].read_bytes() != pictures["other"].read_bytes()
    assert facts(pictures["other"])["shown"].startswith("Attention, task label")


def test_flags_and_a_recipe_make_the_same_job(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    for module in ("options", "application"):  # flags by one, recipes by the other
        monkeypatch.setattr(f"wsi_ips.commands.{module}.start_job", jobs.append)
    with_paths = {**CHOICES, "slides": "s", "out": "o"}
    (tmp_path / "full.yaml").write_text(yaml.safe_dump({"command": "overlay", "run": "r", **with_paths}))
    (tmp_path / "bare.yaml").write_text("command: overlay\nrun: r\n")
    for arguments in (
        ["overlay", "r", *flags(with_paths)], ["run", tmp_path / "full.yaml"],
        ["overlay", "r"], ["run", tmp_path / "bare.yaml"],
    ):  # fmt: skip
        console(*arguments)
    assert jobs[0] == jobs[1]
    assert jobs[2] == jobs[3]
    assert jobs[0].model_dump().items() >= CHOICES.items()


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"colormap": "jet"}, "colormap"),
        ({"scale": "log"}, "scale"),
        ({"head": 2}, "head 2 is not there"),
        ({"head": -1}, "head"),
        ({"query": 2}, "query 2 is not there"),
        ({"task": "stage"}, "task 'stage' is not there: "),
        ({"task": "label", "query": 1}, "give one of them"),
        ({"low": 90, "high": 10}, "low 90 must be below high 10"),
        ({"scale": "absolute", "low": 1, "high": 1}, "low 1 must be below high 1"),
        ({"side_px": 1000000}, "side_px"),
    ],
)
def test_what_cannot_be_is_one_line_and_draws_nothing(
    console: Console, run: Path, tmp_path: Path, choice: dict[str, object], problem: str
) -> None:
    said = console("overlay", run, "--out", tmp_path / "drawn", *flags(choice))
    assert said.code == 2
    assert problem in said.complaint
    assert not (tmp_path / "drawn").exists()


def test_a_scale_that_one_slide_lacks_costs_that_slide_only(
    console: Console, run: Path, tmp_path: Path
) -> None:
    """An absolute low end above all of a slide's values is known only when that slide is read."""
    said = console("overlay", run, "--out", tmp_path / "drawn", "--scale", "absolute", "--low", "2")
    assert said.code == 3
    stems = sorted(path.stem for path in (run / "attention").glob("*.h5"))
    assert [line for line in said.out.splitlines() if line.startswith("failed: ")] == [
        line for stem in stems for line in said.out.splitlines() if line.startswith(f"failed: {stem}: ")
    ]
    assert "cannot go from 2" in said.out


@pytest.mark.parametrize(
    ("choice", "folder", "shown", "scale"),
    [
        ({}, "", "Contribution to tumor, task label", "signed -1.0 1.0"),
        ({"map": "contribution", "high": 2}, "", "Contribution to tumor, task label", "signed -2.0 2.0"),
        ({"class": "low"}, "contribution-grade-low", "Contribution to low, task grade", "signed -1.0 1.0"),
        ({"task": "grade"}, "contribution-grade-high", "Contribution to high, task grade", "signed -1.0 1.0"),
        (
            {"map": "attention"},
            "attention",
            "Attention, mean over queries, mean over 2 heads",
            "even 0.25 64.0",
        ),
        ({"head": 1}, "attention-head1", "Attention, mean over queries, head 1", "even 0.25 64.0"),
        ({"scale": "rank"}, "attention", "Attention, mean over queries, mean over 2 heads", "rank 0.0 100.0"),
        (
            {"colormap": "blue_red"},
            "attention",
            "Attention, mean over queries, mean over 2 heads",
            "even 0.25 64.0",
        ),
    ],
)
def test_contributions_are_drawn_unless_what_attention_has_is_asked_for(
    console: Console,
    telling: Path,
    tmp_path: Path,
    choice: dict[str, object],
    folder: str,
    shown: str,
    scale: str,
) -> None:
    """And no other picture is written: those of the other maps stay as they are."""
    said = console("overlay", telling, "--out", tmp_path / "drawn", "--side-px", "200", *flags(choice))
    assert said.code == 0, said.err
    pictures = sorted((tmp_path / "drawn").rglob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.parent == tmp_path / "drawn" / folder
        assert (facts(picture)["shown"], facts(picture)["scale"]) == (shown, scale)


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"map": "heat"}, "map"),
        ({"class": "lung"}, "class 'lung' is not there: "),
        ({"class": "tumor", "task": "grade"}, "class 'tumor' is not there: "),
        ({"map": "attention", "class": "tumor"}, "class_name goes with map contribution"),
        ({"map": "contribution", "head": 0}, "head goes with map attention"),
        ({"map": "contribution", "scale": "even"}, "scale goes with map attention"),
        ({"map": "contribution", "low": -1}, "low goes with map attention"),
        ({"map": "contribution", "high": 0}, "high 0 must be above 0"),
        ({"map": "contribution", "colormap": "blue_yellow"}, "blue_red, which has a middle"),
    ],
)
def test_contributions_that_cannot_be_are_one_line_and_draw_nothing(
    console: Console, telling: Path, tmp_path: Path, choice: dict[str, object], problem: str
) -> None:
    said = console("overlay", telling, "--out", tmp_path / "drawn", *flags(choice))
    assert said.code == 2
    assert problem in said.complaint
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("choice", [{"map": "contribution"}, {"class": "tumor"}])
@pytest.mark.parametrize("command", [("overlay",), ("export", "--format", "ome-tiff")])
def test_a_head_that_does_not_tell_is_named(
    console: Console, run: Path, tmp_path: Path, command: tuple[str, ...], choice: dict[str, object]
) -> None:
    name, *rest = command
    said = console(name, run, *rest, "--out", tmp_path / "drawn", *flags(choice))
    assert said.code == 2
    assert "this model's head does not tell what a patch contributes" in said.complaint
    assert said.complaint.endswith("use --map attention")
    assert not (tmp_path / "drawn").exists()


def test_numbers_are_exported_as_attention_unless_contributions_are_asked_for(
    console: Console, telling: Path, tmp_path: Path
) -> None:
    stem = sorted(path.stem for path in (telling / "attention").glob("*.h5"))[0]
    result = read_result(telling / "attention" / f"{stem}.h5")
    maps = (
        ("", {}, result.attention_NHT.mean(axis=(1, 2))),
        ("contribution-label-tumor", {"map": "contribution"}, result.contribution("label", "tumor")),
        ("contribution-grade-high", {"class": "high"}, result.contribution("grade", "high")),
    )
    for _, choice, _ in maps:  # all into one folder
        said = console("export", telling, "--format", "ome-tiff", "--out", tmp_path, *flags(choice))
        assert said.code == 0, said.err
    for folder, _, values in maps:
        found = tifffile.imread(tmp_path / folder / f"{stem}.ome.tif")
        assert np.nanmax(found) == pytest.approx(float(values.max()), rel=1e-6)
        assert np.nanmin(found) == pytest.approx(float(values.min()), rel=1e-6)


def test_drawing_loads_no_torch() -> None:
    """Half a gigabyte of memory, and seconds, for pictures that need no model."""
    code = "import sys, wsi_ips.commands.overlay, wsi_ips.commands.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
