"""``wsi-ips plan`` as a user runs it: what it says, that it writes nothing, and what it says of what is wrong."""

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData

RATES = "device: mine\ncores: 2\nforward_s: 0.01\nlearn_s: 0.04\nmegapixel_s: 0.01\nhidden: 1\nbase_mb: 400\n"


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    (tmp_path / "rates.yaml").write_text(RATES)
    return tmp_path / "rates.yaml"


@pytest.fixture
def recipe(tmp_path: Path, small_data: SmallData) -> Path:
    values = {
        **SMALL_MODEL, "command": "finetune", "manifest": str(small_data.manifest), "out": str(tmp_path / "run"),
        "training": {"epochs": 3, "micro_batch": 4, "slides_per_step": 2, "head_start": {"epochs": 0}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


@pytest.mark.slow
def test_a_training_is_planned_as_words_and_as_data(
    console: Console, recipe: Path, rates: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    said = console("plan", recipe, "--rates", rates, "--out", tmp_path / "plan.json")
    assert said.code == 0, said.err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "plan.json"]), "nothing else is written"
    for part in ("plan of finetune", "with the rates given for mine", "4 (2 train, 2 val); all looked at",
                 "tiles to decode", "an epoch", "peak memory", "most time goes into"):  # fmt: skip
        assert part in said.out
    told = json.loads((tmp_path / "plan.json").read_text())
    patches = told["survey"]["patches"]["value"]
    assert told["passes"] == 3 * told["passes_per_epoch"] > 3 * patches
    assert told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]))
    assert told["failed"] == {}
    settings = {halving["setting"] for halving in told["halvings"]}
    assert {"training.micro_batch=2", "selection.memory_size=2", "tiling.patch_mpp=4"} <= settings


@pytest.mark.slow
def test_settings_over_the_recipe_change_the_plan(console: Console, recipe: Path, rates: Path) -> None:
    said = console("plan", recipe, "--rates", rates, "--json", "--set", "training.epochs=6")
    six = json.loads(said.out)
    assert six["passes"] == 6 * six["passes_per_epoch"]


def test_labels_with_the_settings_of_a_training(
    console: Console, recipe: Path, rates: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    told = json.loads(
        console("plan", recipe, "--for", "predict", "--rates", rates, "--json", "--out", out).out
    )
    assert (told["kind"], told["slides"]) == ("predict", 2)
    assert json.loads(out.read_text()) == told
    everything = json.loads(console("plan", recipe, "--for", "features", "--rates", rates, "--json").out)
    assert everything["slides"] == 6


@pytest.mark.slow
def test_slides_that_nobody_has_on_a_card_that_is_not_here(console: Console, recipe: Path) -> None:
    said = console("plan", recipe, "--device", "h200", "--slides", "100", "--patches", "20000",
                   "--set", "manifest=none.csv")  # fmt: skip
    assert said.code == 0, said.err
    for part in ("estimated for NVIDIA H200", "none of them looked at", "not known", "simulated",
                 "note: estimated, not measured"):  # fmt: skip
        assert part in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "training.epoch=3"), "unknown key 'training.epoch'; did you mean training.epochs?"),
        (("--device", "h300"), "--device h300"),
        (("--slides", "3"), "--slides and --patches go together"),
        (("--rates", "none.yaml"), "--rates none.yaml: no such file"),
        (("--set", "manifest=none.csv"), "none.csv"),
        (("--set", "selection.selector=cascade"), "plan with --set selection.selector=ips"),
        (("--clock", "cpu", "--device", "cuda"), "--clock cpu"),
        (("--for", "training"), "kind"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    console: Console, recipe: Path, arguments: tuple[str, ...], message: str
) -> None:
    said = console("plan", recipe, *arguments)
    assert said.code == 2
    assert message in said.complaint


def test_a_recipe_of_another_command_and_no_recipe(console: Console, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("command: evaluate\nrun: r\nmanifest: m.csv\nout: o\n")
    assert "not of evaluate" in console("plan", other).complaint
    assert "no such recipe" in console("plan", tmp_path / "none.yaml").complaint
