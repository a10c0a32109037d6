"""What an epoch of ``finetune`` costs beside its encoder passes alone, and where the rest of the time goes.

    python benchmarks/finetune_epoch.py [--json] [--encoder resnet18] [--slides 6] [--side 4096] [--epochs 4]
        [--m 16] [--rule buffer] [--slides-per-step 2] [--threads 2] [--torch-threads 1] [--work FOLDER]

A few slides are drawn, and ``finetune`` trains on them in this process: it opens, reads, decodes, augments,
selects, learns, validates, and writes checkpoints. All calls of the encoder are noted. After each epoch the same
calls are made again on pixels that lie in memory: no gradients where there were none, forward and backward
where it learned. A ratio compares an epoch with the calls that follow it, and the first epoch, which warms up,
is left out. ``finetune_epoch_over_encoder`` is the median over the epochs of the seconds of the encoder alone
over the seconds of the epoch: 1 is free. ``cpu_over_encoder`` is the same in CPU seconds of the process.

``share_...`` are parts of the seconds of the epochs: ``waiting`` for pixels, ``opening`` slides,
``augmentation``, ``optimizer``, ``checkpoints`` (with history), and ``selection_and_rest``, what is left. In
threads beside the encoder run ``reading_threads`` and ``decoding_threads``, in seconds of these threads over
those of the epochs. ``validation`` is the share of the epochs that validates, encoder included.
``tissue_s_per_slide`` comes once, before the first epoch.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.make_gigapixel import make_gigapixel
from wsi_ips.config import FinetuneConfig
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.training import bags, fit, kept_patches, run_state
from wsi_ips.training.fit import finetune
from wsi_ips.training.module import IPSModule

BLOCK = 2
"""Tiles along a side of each kind of drawn tissue."""


@dataclass(frozen=True, slots=True)
class EpochSettings:
    """What is trained on what; the options of the command line say what each of them is."""

    encoder: str = "resnet18"
    slides: int = 6
    side: int = 4096
    epochs: int = 4
    m: int = 16
    rule: str = "buffer"
    slides_per_step: int = 2
    threads: int = 2
    torch_threads: int = 1
    patch_px: int = 256
    augment: float = 0.1

    @property
    def val(self) -> int:
        """How many of the slides validate: a third, and one of each label at least."""
        return max(2, self.slides // 3)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the encoder: the shape of its pixels, and whether it learned."""

    shape: tuple[int, ...]
    learns: bool


def main() -> None:
    """Measure, and print a table or one JSON object."""
    settings, arguments = parsed()
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = measure(settings, work)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:10.3f}")


def parsed() -> tuple[EpochSettings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    plain = EpochSettings()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--encoder", default=plain.encoder, help="timm model, untrained")
    parser.add_argument("--slides", type=int, default=plain.slides, help="a third of them validates")
    parser.add_argument("--side", type=int, default=plain.side, help="pixels along a side of a slide")
    parser.add_argument("--epochs", type=int, default=plain.epochs, help="the first one is left out")
    parser.add_argument("--m", type=int, default=plain.m, help="patches that are learned from")
    parser.add_argument("--rule", default=plain.rule, choices=("buffer", "global"))
    parser.add_argument("--slides-per-step", type=int, default=plain.slides_per_step)
    parser.add_argument("--threads", type=int, default=plain.threads, help="threads that decode")
    parser.add_argument("--torch-threads", type=int, default=plain.torch_threads)
    parser.add_argument("--patch-px", type=int, default=plain.patch_px)
    parser.add_argument("--augment", type=float, default=plain.augment, help="stain augmentation; 0: none")
    parser.add_argument("--work", type=Path, help="folder for the slides and the run")
    arguments = parser.parse_args()
    if arguments.epochs < 2 or arguments.slides < 4:
        parser.error("needs 2 epochs or more, and 4 slides or more")
    names = EpochSettings.__dataclass_fields__
    return EpochSettings(**{name: getattr(arguments, name) for name in names}), arguments


def measure(settings: EpochSettings, work: Path) -> dict[str, float]:
    """The figures of the module's docstring.

    Args:
        settings: What is trained on what.
        work: A folder for the drawn slides and the run. Slides of the same settings are not drawn twice.
    """
    torch.set_num_threads(settings.torch_threads)
    manifest_path = drawn_slides(settings, work / "data")
    config = config_of(settings)
    manifest = read_manifest(manifest_path, tasks=config.model.tasks)
    watch = _Watch(_Replay(config), per_epoch=_advances(settings))
    with tempfile.TemporaryDirectory(dir=work) as out, _watched(watch):
        finetune(
            manifest,
            config,
            Path(out) / "run",
            device=torch.device("cpu"),
            slide_mpp=SlideMpp(),
            progress=watch.progress,
        )
    return watch.figures(settings)


def drawn_slides(settings: EpochSettings, folder: Path) -> Path:
    """Draw the slides, and return their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["slide_id,case_id,split,path,label"]
    for number in range(settings.slides):
        name = f"slide_{settings.side}_{number}"
        path = folder / f"{name}.tif"
        if not path.exists():
            make_gigapixel(path, side_px=settings.side, block=BLOCK, seed=number)
        split = "val" if number < settings.val else "train"
        lines.append(f"{name},{name},{split},{path},{'tumor' if number % 2 else 'normal'}")
    manifest = folder / f"manifest_{settings.slides}_{settings.side}.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def config_of(settings: EpochSettings) -> FinetuneConfig:
    """The settings of the run: end to end from the first epoch on, without a head start."""
    return FinetuneConfig.model_validate(
        {
            "tiling": {"patch_px": settings.patch_px, "patch_mpp": 0.25},
            "selection": {"m": settings.m, "i": settings.m, "rule": settings.rule},
            "streaming": {"threads": settings.threads},
            "model": {"encoder": {"name": settings.encoder, "weights": "none"}},
            "training": {
                "epochs": settings.epochs,
                "slides_per_step": settings.slides_per_step,
                "head_start": {"epochs": 0},
                "augment": {"stain": settings.augment},
            },
        }
    )


def _advances(settings: EpochSettings) -> int:
    """How often an epoch reports progress: once a step, and once a validation slide."""
    return -(-(settings.slides - settings.val) // settings.slides_per_step) + settings.val


class _Replay:
    """Makes calls of the encoder again, on a network of its own."""

    def __init__(self, config: FinetuneConfig) -> None:
        torch.manual_seed(0)
        net = build_net(config.model)
        compute_in(net, Compute(config.training.precision))
        self._encoder: nn.Module = net.encoder
        self._pixels: dict[tuple[int, ...], Tensor] = {}

    def run(self, calls: list[Call]) -> tuple[float, float]:
        """Make the calls. Returns seconds, and CPU seconds of the process."""
        pixels = [self._of_shape(call.shape) for call in calls]
        started, cpu = time.perf_counter(), time.process_time()
        for call, pixels_n3PP in zip(calls, pixels, strict=True):
            self._encoder.train(call.learns)
            with torch.set_grad_enabled(call.learns):
                features = self._encoder(pixels_n3PP)
            if call.learns:
                features.backward(torch.ones_like(features))
                for weight in self._encoder.parameters():
                    weight.grad = None
        return time.perf_counter() - started, time.process_time() - cpu

    def _of_shape(self, shape: tuple[int, ...]) -> Tensor:
        if shape not in self._pixels:
            drawn = torch.randint(0, 256, shape, dtype=torch.uint8)
            self._pixels[shape] = drawn.contiguous(memory_format=torch.channels_last)
        return self._pixels[shape]


class _Watch:
    """Notes the calls of the encoder and the seconds of the parts, and has the calls made again after each
    epoch.
    """

    def __init__(self, replay: _Replay, *, per_epoch: int) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: list[Call] = []
        self._replay = replay
        self._per_epoch = per_epoch
        self._advanced = 0
        self._began = (0.0, 0.0)
        self._epochs: list[tuple[float, float, float, float]] = []
        self._parts: list[Counter[str]] = []

    @contextmanager
    def progress(self, what: str, *, total: int) -> Iterator[Callable[[str], None]]:
        """Times "Finding tissue" and the epochs of "Fine-tuning"."""
        started = time.perf_counter()
        epochs = what == "Fine-tuning"
        self._start()
        yield self._advance if epochs else lambda note="": None
        if not epochs:
            self._tissue_s = (time.perf_counter() - started) / total

    def _start(self) -> None:
        self.calls, self.spent = [], Counter()
        self._began = time.perf_counter(), time.process_time()

    def _advance(self, note: str = "") -> None:
        self._advanced += 1
        if self._advanced % self._per_epoch:
            return
        # What comes between this and the next start (history, checkpoints) counts to the next epoch.
        whole = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._parts.append(self.spent)
        calls, self.calls = self.calls, []  # the replay is noted too, and forgotten
        self._epochs.append((*whole, *self._replay.run(calls)))
        self._start()

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the seconds of the block to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] += time.perf_counter() - started

    def figures(self, settings: EpochSettings) -> dict[str, float]:
        """The figures, without the first epoch."""
        epochs = self._epochs[1:]
        seconds = sum(epoch[0] for epoch in epochs)
        parts = sum(self._parts[1:], Counter())
        ratios = [encoder / whole for whole, _, encoder, _ in epochs]
        beside = ("waiting", "opening", "augmentation", "optimizer", "checkpoints")
        shares = {f"share_{name}": parts[name] / seconds for name in beside}
        encoder = sum(epoch[2] for epoch in epochs) / seconds
        threads = {f"{name}_threads": parts[f"{name}_threads"] / seconds for name in ("reading", "decoding")}
        return {
            "finetune_epoch_over_encoder": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "cpu_over_encoder": statistics.median(encoder / whole for _, whole, _, encoder in epochs),
            **shares,
            "share_selection_and_rest": 1 - encoder - sum(shares.values()),
            **threads,
            "validation": parts["validation"] / seconds,
            "tissue_s_per_slide": self._tissue_s,
            "epoch_s": seconds / len(epochs),
            "slides_opened_per_epoch": parts["opened"] / len(epochs),
            "slides": float(settings.slides),
        }


@contextmanager
def _watched(watch: _Watch) -> Iterator[None]:
    """Every part of the training that is timed is replaced by itself with a clock around it."""
    encode, chunks, opened = TimmEncoder.forward, PatchStream._pass, bags.open_slide

    def encoding(encoder: TimmEncoder, pixels: Tensor) -> Tensor:
        watch.calls.append(Call(tuple(pixels.shape), torch.is_grad_enabled()))
        return encode(encoder, pixels)

    def streaming(stream: PatchStream, *arguments: Any, **options: Any) -> Iterator[Any]:
        before = _threads_of(stream)
        yield from chunks(stream, *arguments, **options)
        for name, value in _threads_of(stream).items():
            watch.spent[name] += value - before[name]

    def opening(*arguments: Any, **options: Any) -> Any:
        watch.spent["opened"] += 1
        with watch.timing("opening"):
            return opened(*arguments, **options)

    with ExitStack() as stack:
        patched = (
            (TimmEncoder, "forward", encoding),
            (PatchStream, "_pass", streaming),
            (bags, "open_slide", opening),
            (kept_patches, "augment", _clocked(watch, "augmentation", kept_patches.augment)),
            (torch.optim.AdamW, "step", _clocked(watch, "optimizer", torch.optim.AdamW.step)),
            (run_state, "save_checkpoint", _clocked(watch, "checkpoints", run_state.save_checkpoint)),
            (IPSModule, "validation_step", _clocked(watch, "validation", IPSModule.validation_step)),
            (fit, "_check_normalised", _nothing),  # random weights with frozen statistics take as long
            (fit, "_complete", _nothing),
        )
        for where, name, by in patched:
            stack.enter_context(mock.patch.object(where, name, by))
        yield


def _threads_of(stream: PatchStream) -> dict[str, float]:
    work = stream.telemetry
    return {
        "waiting": work.waited_s,
        "reading_threads": work.read_s,
        "decoding_threads": work.decode_s + work.assemble_s + work.resample_s,
    }


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for what is left out."""


def _clocked(watch: _Watch, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def clocked(*arguments: Any, **options: Any) -> Any:
        with watch.timing(part):
            return work(*arguments, **options)

    return clocked


if __name__ == "__main__":
    main()
