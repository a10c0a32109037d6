"""A training that torchrun has started on two machines (here: twice on this one) against the same one in one
process.
"""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.errors import ConfigError
from wsi_ips.training.processes import check_nodes, is_first_process

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_process_of_a_second_machine_is_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "2")
    assert is_first_process(), "a RANK of somebody else's means nothing"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()


def test_several_nodes_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    check_nodes(1)
    with pytest.raises(ConfigError, match="torchrun"):
        check_nodes(2)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def recipe(folder: Path, data: SmallData) -> Path:
    model = {**SMALL_MODEL["model"]}  # type: ignore[dict-item]
    model["attention"] = {**model["attention"], "dropout": 0.0, "attention_dropout": 0.0}
    values = {
        **SMALL_MODEL, "command": "finetune", "manifest": str(data.manifest), "model": model, "device": "cpu",
        "training": {"epochs": 2, "slides_per_step": 2, "flips": False, "head_start": {"epochs": 0}},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def history(run: Path) -> list[float]:
    with (run / "history.csv").open(newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_nodes_learn_what_one_process_learns(small_data: SmallData, tmp_path: Path) -> None:
    path, port = recipe(tmp_path, small_data), free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from wsi_ips.cli import main; main()", "run", str(path), "--set"]
    subprocess.run([*command, f"out={tmp_path / 'one'}"], check=True, env=environment)
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                "--nproc-per-node=1", "--rdzv-backend=static", "--master-addr=127.0.0.1", f"--master-port={port}",
                "--no-python", *command, f"out={tmp_path / 'two'}", "--set", "training.nodes=2",
            ],
            env=environment,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        assert [node.wait(timeout=400) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    assert history(tmp_path / "two") == pytest.approx(history(tmp_path / "one"), rel=1e-3)
    assert (tmp_path / "two" / "model.safetensors").is_file()
    stored = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "coords" / "patches").iterdir()}
        for run in ("one", "two")
    ]
    assert len(stored[0]) == 4
    assert stored[1] == stored[0], "each process made a share of them"
