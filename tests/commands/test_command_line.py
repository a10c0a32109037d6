"""Mistyped options, keys and names are answered with what was meant; help shows examples; the shell completes."""

import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._completion_classes import BashComplete

from tests.commands.console import Console
from tests.test_docs_examples import parse
from wsi_ips import __version__
from wsi_ips.commands.application import _COMMANDS, _DATA_COMMANDS, app
from wsi_ips.commands.command_line import AGGREGATORS, EXAMPLES
from wsi_ips.models.aggregators import registry
from wsi_ips.models.encoders.registry import ENCODERS

FINETUNE = ("finetune", "labels.csv", "--out", "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*FINETUNE, "--restrat"), "No such option: --restrat. Did you mean --restart or --restarts?"),
        ((*FINETUNE, "--memroy-size", "3"), "It is a setting: --set selection.memory_size=VALUE"),
        ((*FINETUNE, "--epochs", "3"), "It is a setting: --set training.epochs=VALUE"),
        (("merge", "a", "--out", "b", "--wieghts", "c"), "Did you mean --weights?"),
        (("predict", "s", "--checkpiont", "m", "--out", "p"), "Did you mean --checkpoint"),
        (("--verbos",), "Did you mean --verbose"),
        (("fintune",), "No such command 'fintune'. Did you mean 'finetune'?"),
        (("data", "manifst"), "No such command 'manifst'. Did you mean 'manifest'?"),
    ],
    ids=lambda given: str(given)[-30:],
)
def test_a_mistyped_option_or_command_is_answered_with_what_was_meant(
    console: Console, arguments: tuple[str, ...], said: str
) -> None:
    ended = console(*arguments)
    assert ended.code == 2
    assert said in ended.err


def test_an_option_that_is_like_nothing_is_only_refused(console: Console) -> None:
    ended = console("merge", "a", "--out", "b", "--qqqq")
    assert ended.err.splitlines()[-1] == "Error: No such option: --qqqq"


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        (
            "selection: {memroy_size: 3}",
            (),
            "recipe.yaml: unknown key 'selection.memroy_size'; did you mean selection.memory_size?",
        ),
        (
            "model: {tasks: [{name: a}, {name: b, clases: [x, y]}]}",
            (),
            "recipe.yaml: unknown key 'model.tasks.1.clases'; did you mean model.tasks.1.classes?",
        ),
        ("clases: 3", (), "recipe.yaml: unknown key 'clases'; did you mean model.tasks.0.classes?"),
        ("memory_size: 3", (), "recipe.yaml: unknown key 'memory_size'; did you mean selection.memory_size?"),
        ("training: {monitor: acu}", (), "or 'last'; did you mean auc?"),
        ("selection: {selector: Cascad}", (), "all, random; did you mean cascade?"),
        (
            "training: {epochs: 3}",
            ("--set", "training.epcohs=4"),
            "--set training.epcohs=4: unknown key 'training.epcohs'; did you mean training.epochs?",
        ),
        ("training: {epochs: x}", ("--set", "training.seed=4"), "recipe.yaml: training.epochs: Input should"),
        ("device: 3", (), "recipe.yaml: device: Input should be a valid string"),
    ],
)
def test_a_wrong_key_or_value_of_a_recipe_is_named_with_its_place(
    console: Console, tmp_path: Path, recipe: str, arguments: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe + "\n")
    ended = console(*FINETUNE, "--recipe", path, *arguments)
    assert ended.code == 2
    assert said in ended.complaint
    assert str(path) in ended.complaint or arguments or "did you mean" in said


def test_a_value_of_a_flag_is_not_blamed_on_the_recipe(console: Console, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: predictions\nbatch: {workers: 2}\n")
    ended = console("predict", "s", "--checkpoint", "m", "--out", "p", "-c", path, "--on-error", "stop")
    assert ended.code == 2
    assert ended.complaint.startswith(f"wsi-ips: {path}: unknown key 'run'")
    path.write_text("batch: {workers: 2, on_error: report}\n")
    ended = console("predict", "s", "--checkpoint", "m", "--out", "p", "-c", path, "--on-error", "stp")
    assert ended.complaint.startswith("wsi-ips: wsi-ips predict: batch.on_error: ")
    assert ended.complaint.endswith("did you mean stop?")


def test_run_says_which_command_a_recipe_may_mean(console: Console, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("command: finetun\n")
    assert console("run", path).complaint.endswith("; did you mean finetune?")


def test_a_mistyped_column_split_and_class_of_a_manifest_are_answered(
    console: Console, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    for line, said in [
        ("slide_id,case_id,split,path,Labels\n", "lacks the column label; .*did you mean Labels"),
        ("slide_id,case_id,split,path,label\na,a,tain,a.svs,tumor\n", "did you mean train"),
        ("slide_id,case_id,split,path,label\na,a,train,a.svs,tumour\n", "did you mean tumor"),
    ]:
        path.write_text(line)
        ended = console("finetune", path, "--out", tmp_path / "run")
        assert ended.code == 2
        assert [part for part in said.split(".*") if part not in ended.complaint] == []


def test_a_mistyped_aggregator_is_answered() -> None:
    with pytest.raises(Exception, match="abmilx; did you mean transmil"):
        registry.aggregator_kind("TransMill")


COMMANDS = [name for name in (*_COMMANDS, *_DATA_COMMANDS) if name != "data"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_parse(console: Console, name: str) -> None:
    asked = (name,) if name in _COMMANDS else ("data", name)
    shown = console(*asked, "--help").out.partition("\nExamples:\n")[2].split("\n")
    lines = [line.strip() for line in shown if line.strip()]
    assert lines == list(EXAMPLES[name])
    assert any(line.startswith(f"wsi-ips {' '.join(asked)}") for line in lines)
    for line in lines:
        parse(line)


def test_no_examples_of_commands_that_are_gone() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


def completed(line: str) -> list[str]:
    """What the shell is offered for the last word of a line."""
    words = line.split(" ")
    group: Any = typer.main.get_command(app)
    shell = BashComplete(group, {}, "wsi-ips", "_WSI_IPS_COMPLETE")
    return [item.value for item in shell.get_completions(words[1:-1], words[-1])]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("wsi-ips fin", ["finetune"]),
        ("wsi-ips data ver", ["verify"]),
        ("wsi-ips finetune --fol", ["--folds"]),
        ("wsi-ips finetune m.csv --encoder uni", ["uni", "uni2-h"]),
        ("wsi-ips encoders virchow2", ["virchow2"]),
        ("wsi-ips finetune --set training.epo", ["training.epochs="]),
        ("wsi-ips finetune --set selection.memory", ["selection.memory_size="]),
        ("wsi-ips finetune --set training.monitor=l", ["training.monitor=loss", "training.monitor=last"]),
        ("wsi-ips finetune --set model.aggregator=clam", ["model.aggregator=clam_sb", "model.aggregator=clam_mb"]),
        ("wsi-ips finetune --set selection.selector=i", ["selection.selector=ips"]),
        ("wsi-ips finetune --set model.encoder.name=virchow2", ["model.encoder.name=virchow2"]),
        ("wsi-ips finetune --set training.flips=", ["training.flips=true", "training.flips=false"]),
        ("wsi-ips export run --format ome", ["ome-tiff", "ome-zarr"]),
        ("wsi-ips predict s --on-error ", ["report", "stop"]),
        ("wsi-ips tile s --layout t", ["trident"]),
    ],
)  # fmt: skip
def test_the_shell_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_what_completion_knows_by_heart_is_what_there_is() -> None:
    assert ("direct", "paper", *registry.AGGREGATORS.members) == AGGREGATORS
    assert completed("wsi-ips finetune --encoder ") == list(ENCODERS)


def test_a_completion_imports_neither_torch_nor_numpy() -> None:
    """It is answered while somebody waits: importing torch alone takes seconds."""
    asked = "; ".join(
        f"assert shell.get_completions({words[:-1]!r}, {words[-1]!r}), {words!r}"
        for words in (["fin"], ["finetune", "--encoder", "u"], ["predict", "--set", "str"])
    )
    program = (
        "import sys, typer; from typer._completion_classes import BashComplete; "
        "from wsi_ips.commands.application import app; "
        "shell = BashComplete(typer.main.get_command(app), {}, 'wsi-ips', 'X'); "
        f"{asked}; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        ("bash", ".bash_completions/wsi-ips.sh"),
        ("zsh", ".zfunc/_wsi-ips"),
        ("fish", ".config/fish/completions/wsi-ips.fish"),
    ],
)
def test_completion_is_installed(tmp_path: Path, shell: str, script: str) -> None:
    # The variable is Typer's, for tests: the shell is then named instead of found among the parent processes.
    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "wsi_ips.cli", "--install-completion", shell]
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60)
    assert "completion installed" in said.stdout
    assert "_WSI_IPS_COMPLETE" in (tmp_path / script).read_text()


def test_bash_completes_with_what_was_installed(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "wsi-ips"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wsi_ips.cli "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    typed = (
        "wsi-ips --install-completion >&2; source ~/.bash_completions/wsi-ips.sh; "
        "set -- $(complete -p wsi-ips); while [ $1 != -F ]; do shift; done; "
        "COMP_WORDS=(wsi-ips finetune --encoder uni); COMP_CWORD=3; $2 wsi-ips; echo ${COMPREPLY[@]}"
    )
    said = subprocess.run(
        ["bash", "-c", typed], env=env, check=True, capture_output=True, text=True, timeout=60
    )
    assert said.stdout.split() == ["uni", "uni2-h"]


def test_the_package_is_a_program_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["wsi-ips", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("wsi_ips", run_name="__main__")
    assert not ended.value.code
    assert __version__ in capsys.readouterr().out
