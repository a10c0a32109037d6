"""The SLURM scripts are bash, and the commands in them are commands with options that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_docs_examples import parse

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "pipelines" / "slurm").glob("*.sbatch"))
VALUES = {"NODES": "2", "GPUS": "4", "OMP_NUM_THREADS": "8", "THREADS": "8", "SLURM_CPUS_PER_TASK": "8"}


def commands(script: Path) -> list[str]:
    """The lines that call ``wsi-ips``, continued lines joined, each variable in place of a value."""
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    calls = [line[line.index("wsi-ips ") :] for line in lines if re.match(r"(torchrun .*)?wsi-ips ", line)]
    return [
        re.sub(r"\$\{?(\w+)\}?", lambda found: VALUES.get(found[1], found[1].lower()), call) for call in calls
    ]


def test_there_are_scripts_for_training_labels_and_features() -> None:
    assert [script.stem for script in SCRIPTS] == ["features", "finetune", "predict"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_bash_and_its_commands_parse(script: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (call,) = commands(script)
    assert call.startswith(f"wsi-ips {script.stem}")
    parse(call)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_without_arguments_says_how_it_is_used(script: Path, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run([bash, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


def test_features_deals_the_slides_out_without_losing_one(tmp_path: Path) -> None:
    """The script itself, with a ``wsi-ips`` that lists what it was given."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    slides, tools, out = tmp_path / "my slides", tmp_path / "bin", tmp_path / "out"
    slides.mkdir()
    tools.mkdir()
    for number in range(7):
        (slides / f"slide {number}.tif").write_bytes(bytes(100 * number))
    (tools / "wsi-ips").write_text('#!/bin/bash\nls "$2" >> "$LISTED"\n')
    (tools / "wsi-ips").chmod(0o755)
    script = next(script for script in SCRIPTS if script.stem == "features")
    for task in (1, 2, 3):
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin", "LISTED": str(tmp_path / "listed"), "SLURM_CPUS_PER_TASK": "2",
            "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3",
        }  # fmt: skip
        subprocess.run([bash, str(script), str(slides), "uni", str(out)], check=True, env=environment)
    assert sorted((tmp_path / "listed").read_text().splitlines()) == [f"slide {n}.tif" for n in range(7)]
    assert "slide 6.tif" in {path.name for path in (out / "slides_1").iterdir()}, "the largest is dealt first"
