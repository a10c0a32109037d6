"""Whole training runs in two processes (gloo, on the CPU) against the same runs in one.

The two processes are started once and go through all of the scenarios; each test looks at what one of them left.
"""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import distributed, multiprocessing, nn

from tests.conftest import SMALL_MODEL
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import TrainingError
from wsi_ips.models.checkpoint import load_checkpoint
from wsi_ips.training import fit, kept_patches
from wsi_ips.training.fit import train_bags
from wsi_ips.training.kept_patches import PatchKeeper
from wsi_ips.training.run_state import LAST_NAME

# Each worker of the fast tests would start the two processes for itself: 20 s each.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KILLED_AT = 5
"""The call of ``PatchKeeper.keep``, in the second process, that never ends."""


def config_of(**training: Any) -> FinetuneConfig:
    training = {
        "epochs": 2,
        "warmup_epochs": 0,
        "slides_per_step": 2,
        "lr": 0.003,
        "flips": False,
        **training,
    }
    model: dict[str, Any] = dict(SMALL_MODEL["model"])
    # Each process draws its own numbers for random layers.
    model["attention"] = {**model["attention"], "dropout": 0.0, "attention_dropout": 0.0}
    model["encoder"] = {**model["encoder"], "standardise": True}  # each process takes the scales for itself
    return FinetuneConfig.model_validate({**SMALL_MODEL, "model": model, "training": training})


def bag(number: int, *, broken: bool | int = False) -> MemoryBag:
    generator = torch.Generator().manual_seed(number)
    pixels = 0.2 + 0.6 * (number % 2) + 0.1 * torch.rand(9, 3, 32, 32, generator=generator)
    return MemoryBag(f"slide{number}", pixels, {"label": number % 2}, broken)


def bags(*numbers: int, broken: tuple[int, ...] = ()) -> list[MemoryBag]:
    return [bag(number, broken=number in broken) for number in numbers]


def unreadable_validation(out: Path, devices: int) -> Any:
    """The second process's share of the validation slides, 22 and 24, cannot be read."""
    val = bags(20, 22, 21, 24, 26, broken=(22, 24))
    report = train_bags(bags(0, 1, 2, 3), val, config_of(devices=devices), out, device=CPU, max_bad=2)
    return report.history, dict(report.bad)


def nothing_to_validate_on(out: Path, devices: int) -> Any:
    val = bags(20, 21, broken=(20, 21))
    report = train_bags(bags(0, 1), val, config_of(devices=devices, epochs=1), out, device=CPU, max_bad=2)
    return report.history, dict(report.bad)


def bad_training_slides(out: Path, devices: int, *, most: int) -> Any:
    """Six slides; two of them, which different processes come upon, cannot be read."""
    train = bags(0, 1, 2, 3, 4, 5, broken=(1, 2))
    try:
        report = train_bags(train, [], config_of(devices=devices, epochs=1), out, device=CPU, max_bad=most)
    except TrainingError as error:
        return str(error)
    return dict(report.bad)


def fewer_slides_than_processes(out: Path, devices: int) -> Any:
    """fp16: the scaler of a process that never has a slide."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))

    def trainer(*, precision: str, **options: Any) -> Trainer:
        return Trainer(plugins=[scaled], **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "Trainer", trainer)
        # A CPU has no fp16 of Lightning's; its autocast is bf16's, the scaler is fp16's own.
        patched.setattr(scaled, "autocast_context_manager", lambda: torch.autocast("cpu", torch.bfloat16))
        report = train_bags(bags(0), [], config_of(devices=devices), out, device=CPU)
    return report.history


def remembering(out: Path, devices: int, *, killed: bool = False) -> Any:
    """Selection in the first of three epochs only. How often this process selected."""
    config = config_of(devices=devices, epochs=3, select_every=3, save_minutes=0)
    selections = 0
    select, keep, calls = kept_patches.select, PatchKeeper.keep, 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal selections
        selections += 1
        return select(*arguments, **options)

    def dying(self: PatchKeeper, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == KILLED_AT and os.environ["LOCAL_RANK"] == "1":
            raise RuntimeError("killed")
        return keep(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_patches, "select", counting)
        if killed:
            patched.setattr(PatchKeeper, "keep", dying)
            try:
                train_bags(bags(0, 1, 2, 3, 4), [], config, out, device=CPU)
            except (RuntimeError, TrainingError) as error:
                patched.setattr(PatchKeeper, "keep", keep)
                report = train_bags(bags(0, 1, 2, 3, 4), [], config, out, device=CPU)
                return report.history, selections, str(error)
        report = train_bags(bags(0, 1, 2, 3, 4), [], config, out, device=CPU)
    return report.history, selections, ""


def with_head_start(out: Path, devices: int) -> Any:
    """A head start from two beginnings on features that either process may have made, then end to end."""
    config = config_of(devices=devices, head_start={"epochs": 2, "slides_per_step": 2}, restarts=2)
    report = train_bags(bags(0, 1, 2, 3), bags(20, 21), config, out, device=CPU)
    return report.history


def other_slides(out: Path, rank: int) -> Any:
    """One process could not read a slide that the other could."""
    train = bags(0, 1, 2) if rank else bags(0, 1, 2, 3)
    try:
        train_bags(train, [], config_of(devices=2), out, device=CPU)
    except TrainingError as error:
        return str(error)
    return "no error"


def statistics(rank: int) -> Any:
    """BatchNorm's after a step in which the first process had one slide, the second one three."""
    from wsi_ips.training.processes import average_statistics

    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval())
    for layer in net[1:]:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        layer.running_mean.fill_(1 + rank)
    average_statistics(net, 3 if rank else 1)
    return [float(layer.running_mean[0]) for layer in net[1:]]  # type: ignore[index, union-attr]


def one_of_two(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    out = Path(folder)
    found = {
        "unreadable": unreadable_validation(out / "unreadable", 2),
        "nothing": nothing_to_validate_on(out / "nothing", 2),
        "bad": bad_training_slides(out / "bad", 2, most=2),
        "too bad": bad_training_slides(out / "too bad", 2, most=1),
        "whole": remembering(out / "whole", 2),
        "killed": remembering(out / "killed", 2, killed=True),
        "head start": with_head_start(out / "head start", 2),
        "other": other_slides(out / "other", rank),
        "statistics": statistics(rank),
        "fp16": fewer_slides_than_processes(out / "fp16", 2),
    }
    torch.save(found, out / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all runs, and what each of the two processes found."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(one_of_two, (str(folder), port), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


Both = tuple[Path, list[dict[str, Any]]]


def same(ours: Any, theirs: Any) -> bool:
    return all(
        mine.keys() == its.keys() and all(mine[name] == pytest.approx(its[name], rel=1e-3) for name in mine)
        for mine, its in zip(ours, theirs, strict=True)
    )


def test_a_process_without_readable_validation_slides_measures_with_the_others(
    both: Both, tmp_path: Path
) -> None:
    history, bad = unreadable_validation(tmp_path, 1)
    assert set(bad) == {"slide22", "slide24"}
    for found in both[1]:
        assert same(found["unreadable"][0], history)
        assert found["unreadable"][1] == bad
        assert "val_auc" in found["unreadable"][0][0]


def test_where_no_process_can_read_one_nothing_is_measured(both: Both) -> None:
    for found in both[1]:
        history, bad = found["nothing"]
        assert set(history[0]) == {"epoch", "train_loss", "kept_attention", "attention_spread"}
        assert set(bad) == {"slide20", "slide21"}


def test_bad_slides_are_counted_and_reported_over_all_processes(both: Both) -> None:
    for found in both[1]:
        assert set(found["bad"]) == {"slide1", "slide2"}
        assert "2 slides could not be read" in found["too bad"]


def test_a_process_that_never_has_a_slide_steps_under_fp16(both: Both) -> None:
    histories = [found["fp16"] for found in both[1]]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 2
    assert histories[0][1]["train_loss"] < histories[0][0]["train_loss"]


def test_what_one_process_selected_the_others_remember(both: Both, tmp_path: Path) -> None:
    """Slides change processes with every epoch; none of them is selected from again before its time."""
    history, selections, _ = remembering(tmp_path, 1)
    assert selections == 5
    assert sum(found["whole"][1] for found in both[1]) == 5
    assert same(both[1][0]["whole"][0], history)


def test_a_head_start_of_two_processes_is_that_of_one(both: Both, tmp_path: Path) -> None:
    history = with_head_start(tmp_path, 1)
    starts = [
        (folder / "head_start" / "starts.csv").read_text() for folder in (both[0] / "head start", tmp_path)
    ]
    assert len(starts[0].splitlines()) == 3
    assert starts[0].splitlines()[0] == starts[1].splitlines()[0]
    for found in both[1]:
        assert same(found["head start"], history)


def test_a_killed_run_of_two_processes_ends_bit_for_bit_as_it_would_have(both: Both) -> None:
    folder, (first, second) = both
    assert second["killed"][2] == "killed"
    assert first["killed"][2] == "process 1 of 2 failed: killed"
    assert first["killed"][0] == second["killed"][0] == first["whole"][0]
    ours, theirs = (load_checkpoint(folder / run / LAST_NAME)[0].state_dict() for run in ("killed", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_processes_with_different_slides_are_refused(both: Both) -> None:
    for found in both[1]:
        assert found["other"].startswith("the processes found different slides")


def test_processes_share_batch_norm_s_statistics(both: Both) -> None:
    """Weighted by slides; of a frozen layer nothing is changed."""
    assert [found["statistics"] for found in both[1]] == [[1.75, 1.0], [1.75, 2.0]]
