"""``predict --turns``: the kept patches of any checkpoint in several orientations, and who has to know of it."""

import csv
import json
from pathlib import Path

import pytest

import wsi_ips
from tests.commands.console import Console
from tests.commands.test_doubt import World, make_world
from tests.conftest import SmallData
from wsi_ips.commands.predict import PredictJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import TaskConfig, TurnsConfig
from wsi_ips.errors import CalibrationError, ConfigError
from wsi_ips.evaluation.conformal import Calibration, check_belongs
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.planning.work import work_of


@pytest.fixture
def world(console: Console, tmp_path: Path) -> World:
    return make_world(console, tmp_path / "world", [TaskConfig()])


@pytest.fixture
def slide(small_data: SmallData) -> Path:
    return sorted(small_data.slides.iterdir())[0]


def with_selection(checkpoint: Path, changed: Path, **selection: object) -> Path:
    """The same network, stored with other settings of its selection."""
    net, pipeline = load_checkpoint(checkpoint)
    section = pipeline.selection.model_copy(update=selection)
    save_checkpoint(changed, net, pipeline.model_copy(update={"selection": section}))
    return changed


def tumor(run: Path) -> float:
    with (run / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return float(row["prob_tumor"])


def option(turns: int) -> tuple[str, str]:
    return "--turns", str(turns)


@pytest.mark.parametrize("how", [(), ("--workers", "1")])
def test_turns_are_those_that_a_checkpoint_may_hold(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    four = with_selection(small_checkpoint, tmp_path / "four.safetensors", turns=4)
    words = ("predict", slide, "--no-overlays", "--device", "cpu", *how)

    def told(name: str, checkpoint: Path, *more: str) -> float:
        said = console(*words, "--checkpoint", checkpoint, "--out", tmp_path / name, *more)
        assert said.code == 0, said.err
        return tumor(tmp_path / name)

    plain = told("plain", small_checkpoint)
    asked = told("asked", small_checkpoint, *option(4))
    assert asked == told("held", four)
    assert asked != plain
    assert told("back", four, *option(1)) == plain
    described = json.loads((tmp_path / "asked" / "run.json").read_text())["config"]
    assert described["selection"]["turns"] == 4
    assert json.loads((tmp_path / "back" / "run.json").read_text())["config"]["selection"]["turns"] == 1
    assert "and read in 4 orientations" in (tmp_path / "asked" / "summary.md").read_text()
    assert "orientations" not in (tmp_path / "back" / "summary.md").read_text()


def test_a_recipe_and_python_name_it_too(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"command: predict\nslides: {slide}\ncheckpoint: {small_checkpoint}\nout: {tmp_path / 'a'}\n"
        "overlays: false\nselection: {turns: 8}\n"
    )
    assert console("run", recipe).code == 0
    run = wsi_ips.predict(slide, small_checkpoint, tmp_path / "b", turns=8, overlays=False, device="cpu")
    assert tumor(tmp_path / "a") == tumor(run.folder)
    model = wsi_ips.load(small_checkpoint, device="cpu")
    in_memory = [model.predict(slide, turns=turns).probabilities["label"]["tumor"] for turns in (8, None)]
    assert in_memory[0] == pytest.approx(tumor(run.folder), abs=1e-12)
    assert in_memory[0] != in_memory[1]
    with pytest.raises(ConfigError, match=r"Model\.predict: turns: Input should be 1, 4 or 8"):
        model.predict(slide, turns=3)  # type: ignore[arg-type]


def test_a_run_has_one_number_of_turns(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("predict", slide, "--checkpoint", small_checkpoint, "--out", run, "--no-overlays")
    assert console(*words).code == 0
    before = (run / "predictions.csv").read_bytes()
    said = console(*words, *option(4))
    assert said.code == 2
    assert "other settings (selection.turns 1 there, 4 here)" in said.complaint
    assert (run / "predictions.csv").read_bytes() == before
    assert console(*words, *option(1)).code == 0
    assert console(*words, *option(4), "--force").code == 0
    assert (run / "predictions.csv").read_bytes() != before
    assert console(*words, "--force").code == 0
    assert (run / "predictions.csv").read_bytes() == before


def test_models_that_were_trained_with_other_turns_are_averaged_at_those_asked_for(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    four = with_selection(small_checkpoint, tmp_path / "four.safetensors", turns=4)
    words = ("predict", slide, "--no-overlays", "--checkpoint", small_checkpoint, four)
    said = console(*words, "--out", tmp_path / "both")
    assert said.code == 2
    assert "its selection.turns is 4, not 1" in said.complaint
    for turns in (1, 4):
        assert console(*words, "--out", tmp_path / f"{turns}", *option(turns)).code == 0
        alone = ("predict", slide, "--no-overlays", "--checkpoint", four, *option(turns))
        assert console(*alone, "--out", tmp_path / f"alone_{turns}").code == 0
        # The two files hold the same network.
        assert tumor(tmp_path / f"{turns}") == pytest.approx(tumor(tmp_path / f"alone_{turns}"), abs=1e-12)


def test_turns_that_cannot_be_are_one_line_and_nothing_is_written(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    all_of_them = with_selection(small_checkpoint, tmp_path / "all.safetensors", selector="all")
    out = ("--out", tmp_path / "out")
    for words, said in (
        (
            ("predict", slide, "--checkpoint", small_checkpoint, *option(3)),
            "Input should be 1, 4 or 8",
        ),
        (
            ("predict", slide, "--checkpoint", all_of_them, *option(4)),
            "selection.turns: turns goes with selector: ips or cascade, which keep some patches, not all",
        ),
        (
            ("predict", "--features", tmp_path, "--checkpoint", small_checkpoint, *option(4)),
            "features have no pixels to turn: turns goes with slides",
        ),
    ):
        told = console(*words, *out)
        assert told.code == 2
        assert said in told.complaint
        assert not (tmp_path / "out").exists()
    assert console("predict", slide, "--checkpoint", all_of_them, *option(1), *out).code == 0


def test_results_say_their_turns_themselves(
    console: Console, small_data: SmallData, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Where run.json is lost, results of other turns are made again and not mixed."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for path in sorted(small_data.slides.iterdir())[:2]:
        (slides / path.name).symlink_to(path)
    words = ("predict", slides, "--checkpoint", small_checkpoint, "--no-overlays")
    assert console(*words, "--out", tmp_path / "plain").code == 0
    mixed = tmp_path / "mixed"
    assert console(*words, "--out", mixed, *option(4)).code == 0
    (mixed / "run.json").unlink()
    sorted((mixed / "attention").iterdir())[0].unlink()
    assert console(*words, "--out", mixed).code == 0
    assert (mixed / "predictions.csv").read_bytes() == (tmp_path / "plain" / "predictions.csv").read_bytes()


@pytest.mark.parametrize("selection", [{"turns": "4"}, {"turns": True}, {"turns": 2}, [4]])
def test_a_run_json_that_does_not_say_its_turns_is_not_believed(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, selection: object
) -> None:
    words = ("predict", slide, "--checkpoint", small_checkpoint, "--no-overlays", "--out", tmp_path / "run")
    assert console(*words, *option(4)).code == 0
    described = tmp_path / "run" / "run.json"
    told = json.loads(described.read_text())
    told["config"]["selection"] = selection
    described.write_text(json.dumps(told))
    said = console(*words)
    assert said.code == 2
    assert "its run.json cannot be read" in said.complaint


@pytest.mark.parametrize("setting", ["selection.turns=true", "batch.workers=true", "streaming.batch=false"])
def test_a_truth_value_is_no_number(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path, setting: str
) -> None:
    said = console(
        "predict", slide, "--checkpoint", small_checkpoint, "--out", tmp_path / "out", "--set", setting
    )
    assert said.code == 2
    assert "is not a number" in said.complaint
    assert not (tmp_path / "out").exists()


def test_a_flag_and_a_setting_that_say_the_same_thing_are_refused(
    console: Console, slide: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    words = (
        "predict",
        slide,
        "--checkpoint",
        small_checkpoint,
        "--out",
        tmp_path / "out",
        *option(1),
    )
    for setting in ("selection.turns=4", "selection={turns: 4}"):
        said = console(*words, "--set", setting)
        assert said.code == 2
        assert "an option of the command gives selection.turns too: leave one out" in said.complaint
    assert console(*words, "--set", "streaming.batch=8").code == 0


def test_survival_is_told_at_the_turns_that_its_baseline_is_of(small_checkpoint: Path) -> None:
    _, pipeline = load_checkpoint(small_checkpoint)
    survival = {"time": "days", "event": "dead", "unit": "days", "at": [1, 2]}
    task = TaskConfig.model_validate({"name": "death", "kind": "survival", "survival": survival})
    assert task.survival is not None
    for baseline, refused in ((None, False), ((0.1, 0.2), True)):
        its = task.model_copy(update={"survival": task.survival.model_copy(update={"baseline": baseline})})
        model = pipeline.model.model_copy(update={"tasks": (its,)})
        config = pipeline.model_copy(update={"model": model})
        assert config.with_turns(TurnsConfig(turns=1)) == config
        if refused:
            with pytest.raises(ConfigError, match="its baseline hazard was estimated with turns 1"):
                config.with_turns(TurnsConfig(turns=4))
        else:
            assert config.with_turns(TurnsConfig(turns=4)).selection.turns == 4


def test_a_calibration_of_an_earlier_version_is_for_the_turns_of_its_checkpoint(world: World) -> None:
    assert world.calibrate().code == 0
    held = {**json.loads(world.json.read_text()), "turns": None}
    calibration = Calibration.model_validate(held)
    tasks = [TaskConfig()]
    check_belongs(world.json, calibration, sha256=calibration.checkpoint, turns=4, own_turns=4, tasks=tasks)
    with pytest.raises(
        CalibrationError, match="was made of patches in 4 orientations, and they are read in 1"
    ):
        check_belongs(
            world.json, calibration, sha256=calibration.checkpoint, turns=1, own_turns=4, tasks=tasks
        )


def test_a_calibration_is_for_its_turns(world: World) -> None:
    """What slides read in one orientation have taught is not said of slides that are read in four."""
    described = world.folder / "run" / "run.json"
    told = json.loads(described.read_text())
    told["config"]["selection"]["turns"] = 4  # as if that run had read slides so
    described.write_text(json.dumps(told))
    assert world.calibrate().code == 0
    assert json.loads(world.json.read_text())["turns"] == 4
    said = world.predict("other", "--calibration", world.json)
    assert said.code == 2
    assert "was made of patches in 4 orientations, and they are read in 1" in said.complaint
    assert not (world.folder / "other").exists()


def test_a_plan_counts_them(console: Console, slide: Path, tmp_path: Path, small_checkpoint: Path) -> None:
    values = {"command": "predict", "slides": slide, "checkpoint": small_checkpoint, "out": tmp_path}
    job = make_job({**values, "selection": {"turns": 4}}, source="test")
    assert isinstance(job, PredictJob)
    with work_of(job, None) as work:
        assert work.config.selection.turns == 4
