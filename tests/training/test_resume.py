"""A run that was killed and started again, against one that was left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import Manifest, read_manifest
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.training.fit import finetune
from wsi_ips.training.kept_patches import KeptPatches, PatchKeeper
from wsi_ips.training.run_state import LAST_NAME, STATE_NAME, FinetuneReport, load_state, save_state


class Killed(Exception):
    pass


@pytest.fixture
def manifest(small_data: SmallData) -> Manifest:
    return read_manifest(small_data.manifest, tasks=[TaskConfig()])


def config_of(**training: Any) -> FinetuneConfig:
    # One slide a step: two steps an epoch; dropout, flips and selection every second epoch take part.
    training = {"epochs": 4, "warmup_epochs": 1, "slides_per_step": 1, "save_minutes": 0, "select_every": 2,
                "lr": 0.01, **training}  # fmt: skip
    return FinetuneConfig.model_validate({**SMALL_MODEL, "training": training})


def run(manifest: Manifest, config: FinetuneConfig, out: Path) -> FinetuneReport:
    return finetune(manifest, config, out, device=torch.device("cpu"), slide_mpp=SlideMpp())


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)[0].state_dict()


@pytest.fixture(scope="module")
def undisturbed(
    small_data: SmallData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinetuneReport, Path]:
    out = tmp_path_factory.mktemp("undisturbed")
    return run(read_manifest(small_data.manifest, tasks=[TaskConfig()]), config_of(), out), out


@pytest.mark.parametrize("step", [1, 2, 3, 6])
@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_it_would_have_had(
    step: int,
    manifest: Manifest,
    undisturbed: tuple[FinetuneReport, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the middle of an epoch and at its end; bit for bit."""
    calls = 0
    keep = PatchKeeper.keep

    def dies(self: PatchKeeper, *arguments: Any, **options: Any) -> KeptPatches:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return keep(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(PatchKeeper, "keep", dies)
        with pytest.raises(Killed):
            run(manifest, config_of(), tmp_path)
    report, (whole, folder) = run(manifest, config_of(), tmp_path), undisturbed
    assert report.history == whole.history
    for name in ("model.safetensors", LAST_NAME):
        ours, theirs = weights(tmp_path / name), weights(folder / name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


def test_a_finished_run_is_not_run_again(
    manifest: Manifest, undisturbed: tuple[FinetuneReport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, out = undisturbed
    monkeypatch.delattr(PatchKeeper, "keep")
    assert run(manifest, config_of(), out).history == report.history


def test_another_run_s_folder_is_refused_with_what_differs(
    manifest: Manifest, undisturbed: tuple[FinetuneReport, Path], tmp_path: Path
) -> None:
    _, out = undisturbed
    with pytest.raises(ConfigError, match=r"training\.lr 0\.01 there, 0\.02 here.*--restart"):
        run(manifest, config_of(lr=0.02), out)
    fewer = Manifest(manifest.path, tuple(r for r in manifest.records if r.split != "val"))
    with pytest.raises(ConfigError, match="another number of slides"):
        run(fewer, config_of(), out)
    (tmp_path / STATE_NAME).write_bytes(b"PK no state")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(manifest, config_of(), tmp_path)


def test_a_state_with_code_in_it_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (open, (str(tmp_path / "written"),))

    torch.save({"format": 1, "state": Evil()}, tmp_path / STATE_NAME)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(manifest, config_of(), tmp_path)


def test_training_stops_when_epochs_get_no_better(manifest: Manifest, tmp_path: Path) -> None:
    report = run(manifest, config_of(epochs=9, lr=1e-12, patience=2), tmp_path)
    assert len(report.history) < 9
    assert len(report.history) - 1 - report.best_epoch == 2


@pytest.mark.parametrize("lacking", ["run", "net", "optimizer", "state"])
def test_a_state_without_one_of_its_parts_is_one_line(tmp_path: Path, lacking: str) -> None:
    net = torch.nn.Linear(2, 2)
    path = tmp_path / "training_state.pt"
    save_state(path, net, torch.optim.SGD(net.parameters()), run="r", state={})
    held = torch.load(path, weights_only=True)
    for spoilt in ({key: value for key, value in held.items() if key != lacking}, {**held, lacking: 3}):
        torch.save(spoilt, path)
        with pytest.raises(
            CheckpointError, match=f"no whole training state: it has no '{lacking}'"
        ) as caught:
            load_state(path, run="r")
        assert str(path) in str(caught.value)
