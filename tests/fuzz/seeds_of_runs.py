"""Seeds that the program itself leaves behind, or others of its kind: HDF5, a run's folder, weights, states."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.conftest import SMALL_MODEL
from tests.datasets.feature_folders import features_of, write_features, write_stamp
from tests.fuzz.seeds_of_text import FOUND
from tests.report.reported_run import L0_SIZE, SLIDE_MPP, Slide, make_run, result_of
from tests.slides.tiff_files import tissue_like, write_pyramid
from tests.tiling.foreign_files import write_atlaspatch, write_clam, write_trident
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.inference.results import write_result
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import save_checkpoint
from wsi_ips.slides.base import Level, SlideInfo
from wsi_ips.tiling.coords import write_coords
from wsi_ips.timeline import TIMELINE_NAME
from wsi_ips.training.run_state import STATE_NAME, save_state

CORNERS = np.array([[0, 0], [64, 0], [0, 64], [640, 128], [900, 600]])
RUN_NAME = "what is trained\non what"


def slide_info() -> SlideInfo:
    """The slide of all coordinates here: 1000x700 px at 0.25 µm, two levels."""
    levels = (Level(L0_SIZE, 1.0), Level((L0_SIZE[0] // 2, L0_SIZE[1] // 2), 2.0))
    return SlideInfo(
        path=Path("s.tif"), reader="tiff", vendor="", levels=levels, mpp_xy=(SLIDE_MPP, SLIDE_MPP)
    )


def _clam(folder: Path) -> None:
    write_clam(folder / "s.h5", CORNERS, patch_size=32, level=1, downsample=2.0, level_size=(500, 350))


def _trident(folder: Path) -> None:
    write_trident(folder / "s_patches.h5", CORNERS, patch_size=32, target=20, level0=40, size=L0_SIZE)


def _atlaspatch(folder: Path) -> None:
    write_atlaspatch(folder / "s.h5", CORNERS, patch_size=32, target=20, level0=40, size=L0_SIZE)


def _ours(folder: Path) -> None:
    coords = result_of(Slide("s"), "s.tif").coords
    write_coords(folder / "s.h5", coords, layout="clam", info=slide_info(), made_from=None)


def _features(folder: Path, *, trident: bool) -> None:
    write_features(folder / "s.h5", features_of(5, 4), coords=CORNERS, trident=trident)


def _result(folder: Path) -> None:
    write_result(folder / "s.h5", result_of(Slide("s"), "slides/s.tif"))


def _run(folder: Path) -> None:
    """A run of three slides, one of which failed; the slides and the found objects beside it."""
    made = make_run(
        Path("run"),
        [Slide("a"), Slide("b", None, "failed", "b.tif: no tissue"), Slide("c", 0.3)],
        files=False,
    )
    made.rename(folder / "made")
    Path("run").rmdir()
    (folder / "made").rename(folder / "run")
    (folder / "run" / "objects").mkdir()
    (folder / "run" / "objects" / "a.csv").write_text(FOUND, encoding="utf-8")
    about = {"program": "wsi_ips", "slides": 3, "left_out": 0, "stages": [["main", "encode", 3, 1.5]]}
    timeline = json.dumps({"otherData": about})[:-1] + ',\n"traceEvents": [\n]}\n'
    (folder / "run" / TIMELINE_NAME).write_text(timeline)
    (folder / "labels.csv").write_text(
        "slide_id,case_id,label,split,path\na,1,tumor,test,slides/a.tif\nb,2,normal,test,slides/b.tif\n"
        "c,3,normal,test,slides/c.tif\n"
    )
    (folder / "slides").mkdir()
    for name in "ac":
        write_pyramid(
            folder / "slides" / f"{name}.tif", tissue_like(*L0_SIZE, seed=1), mpp=float(SLIDE_MPP), levels=2
        )


@lru_cache(maxsize=1)
def _small() -> tuple[FinetuneJob, nn.Module]:
    job = make_job({"command": "finetune", "manifest": "m", "out": "o", **SMALL_MODEL}, source="test")
    assert isinstance(job, FinetuneJob)
    torch.manual_seed(0)
    return job, build_net(job.model)


def _checkpoint(folder: Path) -> None:
    job, net = _small()
    save_checkpoint(folder / "model.safetensors", net, job.pipeline)


def _state(folder: Path) -> None:
    net = nn.Linear(3, 2)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(
        folder / STATE_NAME,
        net,
        optimizer,
        run=RUN_NAME,
        state={"history": [{"epoch": 0, "train_loss": 1.0}]},
    )


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}


def _shards(folder: Path) -> None:
    save_file(_tensors(), folder / "w-1.safetensors")
    places = dict.fromkeys(_tensors(), "w-1.safetensors")
    (folder / "a.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


RUN_SEEDS: Mapping[str, Callable[[Path], Any]] = {
    "coords/clam": _clam,
    "coords/trident": _trident,
    "coords/atlaspatch": _atlaspatch,
    "coords/ours": _ours,
    "features/clam": lambda folder: _features(folder, trident=False),
    "features/stamp": lambda folder: write_stamp(folder / "s.h5", features_of(5, 4), CORNERS * 0.5),
    "features/trident": lambda folder: _features(folder, trident=True),
    "result/small": _result,
    "run/small": _run,
    "weights/pth": lambda folder: torch.save({"model": _tensors(), "epoch": 3}, folder / "w.pth"),
    "weights/safetensors": lambda folder: save_file(_tensors(), folder / "w.safetensors"),
    "weights/shards": _shards,
    "checkpoint/small": _checkpoint,
    "state/small": _state,
}
