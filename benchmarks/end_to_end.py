"""The whole commands against their encoder alone, two workers against one, and TRIDENT on the same patches.

    python benchmarks/end_to_end.py [--json] [--only features predict ...] [--rounds 2] [--precision bf16]
        [--torch-threads 2] [--threads 2] [--side 16384] [--mag 10] [--quick]
        [--trident FOLDER --trident-python EXE]

Slides: two of the demo's, and one of ``--side`` px as a plain tiled TIFF and as a Philips TIFF (the same drawing,
512-px tiles at 0.243 µm). Patches of 224 px at ``--mag`` (10x, 1 µm per pixel, so that a slide of 16,384 px has
some 150 and a round does not take minutes on two cores); a ResNet-50 whose random weights every way shares.

``features`` and ``predict`` run as the command does, in this process and without its imports: they load the
model, open the slide, search its tissue, read, encode, store, and (predict) draw the overlay. The encoder alone
takes the same patches out of memory, in the same batches. The ways take turns (A B C A B C ...); a ratio compares
runs of one round, and a figure is the median over the rounds. ``_lowest`` and ``_highest`` are those of single
rounds. ``_cpu`` compares CPU seconds of the process, all threads added up, which says more on a machine that is
busy with other work. Ways that take less than a second (``tile`` beside TRIDENT's) take ``CHEAP`` times as many
turns, and the slides of the demo one more, which is not counted and warms up for the others.

``tile`` and ``features`` with ``--workers`` run as processes, start included, over a folder of slides. What two
plain processes with half of the slides each gain is told beside what two workers of ``tile`` gain. ``features``
takes one turn, for it takes longer than everything else, and what makes turns differ shows in those of ``tile``.

On two cores that nothing else uses, all parts together take some twelve minutes, with TRIDENT.

TRIDENT runs in an environment of its own (``--trident FOLDER`` is its checkout, ``--trident-python`` a Python that
has what it requires), one process that answers tasks, so that its imports are not counted. It segments with its
Otsu at 8 µm per pixel, where ours works too, and both then encode the patches that TRIDENT found.

``finetune_epoch_over_encoder`` and ``list_100k_...`` come from ``finetune_epoch.py`` and ``listing.py``. What is
left out, and why, is told under ``left_out``.
"""

import argparse
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from wsi_ips.storage.system import keep_freed_memory, let_waiting_threads_sleep  # noqa: E402

AS_STARTED = dict(os.environ)
"""The environment before ours is set, for the peer."""
let_waiting_threads_sleep()  # as the program does, before PyTorch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.make_gigapixel import make_gigapixel  # noqa: E402
from benchmarks.steps import with_root  # noqa: E402
from wsi_ips.commands import features as features_command  # noqa: E402
from wsi_ips.commands.features import FeaturesJob, store_features  # noqa: E402
from wsi_ips.commands.options import Outcome  # noqa: E402
from wsi_ips.commands.predict import PredictJob, predict  # noqa: E402
from wsi_ips.commands.tile import TileJob, tile  # noqa: E402
from wsi_ips.config import EncoderConfig, PipelineConfig, StreamingConfig, TilingConfig  # noqa: E402
from wsi_ips.drawn.config import SyntheticConfig  # noqa: E402
from wsi_ips.drawn.synthetic import make_camelyon_like  # noqa: E402
from wsi_ips.models.build import build_net  # noqa: E402
from wsi_ips.models.checkpoint import save_checkpoint  # noqa: E402
from wsi_ips.models.encoders.network import Compute  # noqa: E402
from wsi_ips.models.encoders.timm_encoder import TimmEncoder  # noqa: E402
from wsi_ips.progress import silent  # noqa: E402
from wsi_ips.slides.folder import find_slides  # noqa: E402
from wsi_ips.slides.registry import open_slide  # noqa: E402
from wsi_ips.storage.hdf5 import opened_hdf5  # noqa: E402
from wsi_ips.streaming.stream import PatchStream  # noqa: E402
from wsi_ips.tiling.patches import tile_slide  # noqa: E402
from wsi_ips.units import mpp_of_magnification  # noqa: E402

Figures = dict[str, Any]

PARTS = ("features", "predict", "workers", "trident", "finetune", "listing")
ELSEWHERE = {"finetune": "finetune_epoch", "listing": "listing"}
"""Parts that are programs of their own beside this one."""
ARGUMENTS = {"finetune": ["--epochs", "3"], "listing": ["--slides", "100000", "--only", "resume"]}
"""What these are told, to measure no more than is asked for here."""
CHEAP = 3
"""How many times as many turns ways take that take less than a second."""
PX, MIN_TISSUE = 224, 0.25
DEMO_SLIDES = 2
ENCODED = 8
"""Slides whose features are stored with one and with two workers."""
ALIKE = 1e-3
"""Features of the same pixels differ by less, as a share of the largest, whatever order the sums were added in."""
TRIDENT_BATCH = 64
"""What TRIDENT's command takes by default; ours too."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds on the clock, and of the CPU in all threads."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part measures with."""

    folder: Path
    slides: dict[str, Path]
    weights: Path
    checkpoint: Path
    tiling: TilingConfig
    streaming: StreamingConfig
    arguments: argparse.Namespace

    @classmethod
    def made(cls, folder: Path, arguments: argparse.Namespace) -> "Bench":
        """Draw the slides, unless they lie there already, and write the weights."""
        slides = drawn(folder / "slides", side_px=arguments.side, block=arguments.block)
        tiling = TilingConfig(
            patch_px=PX, patch_mpp=mpp_of_magnification(arguments.mag), min_tissue=MIN_TISSUE
        )
        weights, checkpoint = folder / "weights.safetensors", folder / "model.safetensors"
        torch.manual_seed(0)
        pipeline = PipelineConfig.model_validate(
            {"model": {"encoder": {"name": arguments.encoder, "weights": "none"}}, "tiling": tiling}
        )
        net = build_net(pipeline.model)
        backbone: Any = net.encoder.backbone  # type: ignore[union-attr]
        save_file({key: value.contiguous() for key, value in backbone.state_dict().items()}, weights)
        save_checkpoint(checkpoint, net, pipeline)
        streaming = StreamingConfig(threads=arguments.threads)
        return cls(folder, slides, weights, checkpoint, tiling, streaming, arguments)

    def encoder_config(self) -> EncoderConfig:
        return EncoderConfig(name=self.arguments.encoder, weights=str(self.weights))

    def new(self, name: str) -> Path:
        """A folder of this name that does not exist yet."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    keep_freed_memory()  # as the program does, for the encoder alone too
    torch.set_num_threads(arguments.torch_threads)
    with tempfile.TemporaryDirectory(prefix="wsi_ips_end_to_end_") as temporary:
        folder = arguments.folder or Path(temporary)
        figures = measured(folder, arguments)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:44} {value:10.3f}" if isinstance(value, float) else f"{name:44} {value}")


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", nargs="+", choices=("demo", "plain", "philips"),
                        default=["demo", "plain", "philips"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--side", type=int, default=16_384, help="pixels: a power of two from 2048")
    parser.add_argument("--mag", type=float, default=10)
    parser.add_argument("--encoder", default="resnet50", help="timm model; TRIDENT runs resnet50 only")
    parser.add_argument("--copies", type=int, default=256, help="slides of the folder that workers share")
    parser.add_argument("--trident", type=Path, help="checkout of TRIDENT")
    parser.add_argument("--trident-python", default=sys.executable, help="a Python that has its requirements")
    parser.add_argument("--folder", type=Path, help="keep slides and results here")
    parser.add_argument(
        "--quick", action="store_true", help="tiny slides and encoder, one round: does it run?"
    )
    arguments = parser.parse_args(given)
    arguments.block = 4
    if arguments.quick:
        arguments.side, arguments.block, arguments.rounds, arguments.copies = 4096, 2, 1, 2
        arguments.encoder, arguments.mag = "resnet10t", 20.0
    return arguments


def measured(folder: Path, arguments: argparse.Namespace) -> Figures:
    """Every figure that was asked for, and what is left out."""
    bench = Bench.made(folder, arguments)
    figures: Figures = {
        "torch_threads": arguments.torch_threads, "decode_threads": arguments.threads,
        "precision": arguments.precision, "encoder": arguments.encoder, "rounds": arguments.rounds,
        "left_out": {},
    }  # fmt: skip
    left_out: dict[str, str] = figures["left_out"]
    asked = set(arguments.only)
    if asked & {"features", "predict"}:
        figures |= over_encoder(bench, features="features" in asked, predicts="predict" in asked)
    if "workers" in asked:
        figures |= two_workers(bench, left_out)
    if "trident" in asked:
        if arguments.trident is None:
            left_out["trident"] = "--trident FOLDER was not given"
        elif arguments.encoder != "resnet50":
            left_out["trident"] = "it is compared with resnet50 only"
        else:
            figures |= against_trident(bench)
    for part, program in ELSEWHERE.items():
        if part not in asked:
            continue
        if arguments.quick:
            left_out[part] = f"not part of a quick run: see benchmarks/{program}.py"
        elif not (ROOT / "benchmarks" / f"{program}.py").exists():
            left_out[part] = f"there is no benchmarks/{program}.py"
        else:
            figures |= answered(program, ARGUMENTS[part])
    for unit in ("s", "mb"):
        if f"resume_{unit}_100000" in figures:
            figures[f"list_100k_{unit}"] = figures.pop(f"resume_{unit}_100000")
    return figures


def drawn(folder: Path, *, side_px: int, block: int) -> dict[str, Path]:
    """{case: a slide, or a folder of them}. Slides that lie there already are used."""
    plain, philips = folder / "plain" / "plain.tif", folder / "philips" / "philips.tiff"
    for path, container in ((plain, "tiff"), (philips, "philips")):
        if not path.exists():
            print(f"drawing {path.name} ...", file=sys.stderr, flush=True)
            make_gigapixel(path, side_px=side_px, container=container, block=block)
    demo = folder / "demo"
    if not demo.exists():
        make_camelyon_like(folder / "drawn", SyntheticConfig(train=1, val=1, test=1))
        (folder / "drawn" / "images").rename(demo)
        for spare in sorted(demo.iterdir())[DEMO_SLIDES:]:
            spare.unlink()
    return {"demo": demo, "plain": plain, "philips": philips}


def over_encoder(bench: Bench, *, features: bool, predicts: bool) -> Figures:
    """``features`` and ``predict`` against the encoder alone, case by case."""
    encoder = TimmEncoder(bench.encoder_config()).eval()
    encoder.compute_as(Compute(bench.arguments.precision))
    figures: Figures = {}
    for number, case in enumerate(bench.arguments.cases):
        chunks = in_memory(bench, bench.slides[case])
        n_patches = sum(map(len, chunks))
        ways: dict[str, Callable[[], object]] = {"encoder": lambda chunks=chunks: encode_all(encoder, chunks)}
        if features:
            ways["features"] = lambda case=case: run_features(bench, bench.slides[case])
        if predicts:
            ways["predict"] = lambda case=case: run_predict(bench, bench.slides[case])
        encode_all(encoder, chunks[:1])
        rounds = in_turn(ways, bench.arguments.rounds, f"{case}, {n_patches} patches", warm=number > 0)
        figures[f"{case}_patches"] = n_patches
        figures[f"{case}_encoder_patches_per_s"] = n_patches / median(turn["encoder"].wall for turn in rounds)
        for name in [way for way in ways if way != "encoder"]:
            figures |= ratios(f"{name}_over_encoder_{case}", rounds, "encoder", name)
            figures[f"{name}_beside_encoder_cpu_s_{case}"] = median(
                turn[name].cpu - turn["encoder"].cpu for turn in rounds
            )
    for name in ("features", "predict"):
        large = [f"{name}_over_encoder_{case}" for case in bench.arguments.cases if case != "demo"]
        if found := [figures[key] for key in large if key in figures]:
            figures[f"{name}_over_encoder"] = min(found)
    return figures


def in_memory(bench: Bench, slides: Path) -> list[Tensor]:
    """The chunks of every slide as the stream gives them, copied."""
    chunks = []
    for path in find_slides(slides) if slides.is_dir() else [slides]:
        with open_slide(path) as slide:
            coords = tile_slide(slide, bench.tiling, slide_id="benchmark")[0]
            stream = PatchStream(slide, coords, config=bench.streaming)
            chunks += [chunk.pixels_n3PP.clone(memory_format=torch.preserve_format) for chunk in stream]
    return chunks


@torch.no_grad()
def encode_all(encoder: TimmEncoder, chunks: list[Tensor]) -> None:
    for pixels in chunks:
        encoder(pixels)


def run_features(bench: Bench, slides: Path, *, from_coords: Path | None = None) -> Path:
    """Store the features of these slides; the folder that they are in."""
    out = bench.new("features")
    job = FeaturesJob(
        slides=slides, out=out, encoder=bench.encoder_config(), tiling=bench.tiling, device="cpu",
        streaming=bench.streaming, precision=bench.arguments.precision, from_coords=from_coords,
    )  # fmt: skip
    succeed(store_features(job, silent))
    return out


def run_predict(bench: Bench, slides: Path) -> None:
    job = PredictJob(
        slides=slides, out=bench.new("predicted"), checkpoint=bench.checkpoint, device="cpu",
        streaming=bench.streaming, precision=bench.arguments.precision,
    )  # fmt: skip
    succeed(predict(job, silent))


def succeed(outcome: Outcome) -> None:
    if outcome.exit_code:
        sys.exit("\n".join(outcome.lines))


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, what: str, *, warm: bool
) -> list[dict[str, Spent]]:
    """What every way spent in every round. The first round comes after one that is not counted, unless there is
    one only, or this process has done the like before (``warm``)."""
    kept = []
    for number in range(rounds if rounds == 1 or warm else rounds + 1):
        print(f"{what}: round {number} ...", file=sys.stderr, flush=True)
        kept.append({name: spent(way) for name, way in ways.items()})
    return kept[-rounds:]


def spent(way: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def ratios(key: str, rounds: list[dict[str, Spent]], above: str, below: str) -> Figures:
    """The median, lowest and highest of ``above / below`` within a round, and the median in CPU seconds."""
    wall = [turn[above].wall / turn[below].wall for turn in rounds]
    cpu = median(turn[above].cpu / turn[below].cpu for turn in rounds)
    return {key: median(wall), f"{key}_lowest": min(wall), f"{key}_highest": max(wall), f"{key}_cpu": cpu}


def two_workers(bench: Bench, left_out: dict[str, str]) -> Figures:
    """``tile`` and ``features`` on two workers, of one thread each, against one."""
    folder = bench.new("copies")
    folder.mkdir()
    kinds = [bench.slides["plain"], bench.slides["philips"]]
    for number in range(bench.arguments.copies):
        kind = kinds[number % 2]
        (folder / f"slide_{number:03}{kind.suffix}").symlink_to(kind)
    options = ["--patch-px", str(PX), "--mag", str(bench.arguments.mag)]
    figures = shared_out(bench, "tile", folder, options, rounds=bench.arguments.rounds)
    if "workers" not in inspect.signature(features_command.command).parameters:
        left_out["two_workers_over_one_features"] = "features has no --workers"
        return figures
    few = bench.new("few")
    few.mkdir()
    for slide in sorted(folder.iterdir())[:ENCODED]:
        (few / slide.name).symlink_to(slide)
    config = bench.encoder_config()
    encoder = [
        "--encoder",
        config.name,
        "--weights",
        config.weights,
        "--precision",
        bench.arguments.precision,
    ]
    options = [*options, *encoder, "--device", "cpu", "--threads", "1"]
    return figures | shared_out(bench, "features", few, options, rounds=1, halves_too=False)


def shared_out(
    bench: Bench, command: str, slides: Path, options: list[str], *, rounds: int, halves_too: bool = True
) -> Figures:
    """Seconds of one worker over those of two, and over those of two plain processes with half of the slides."""
    halves = []
    for half in (0, 1):
        halves.append(bench.new(f"half_{half}"))
        halves[-1].mkdir()
        for slide in sorted(slides.iterdir())[half::2]:
            (halves[-1] / slide.name).symlink_to(slide.resolve())

    def run(work: Sequence[tuple[Path, str]]) -> None:
        started = []
        for number, (folder, workers) in enumerate(work):
            line = [
                sys.executable,
                "-m",
                "wsi_ips.cli",
                command,
                str(folder),
                "--out",
                str(bench.new(f"out_{number}")),
            ]
            started.append(
                subprocess.Popen(
                    [*line, *options, "--workers", workers],
                    env={**with_root(), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        codes = [process.wait() for process in started]
        if any(codes):
            sys.exit(f"{command} failed on {slides}")

    ways: dict[str, Callable[[], object]] = {
        "one": lambda: run([(slides, "1")]),
        "two": lambda: run([(slides, "2")]),
    }
    if halves_too:
        ways["halves"] = lambda: run([(half, "1") for half in halves])
    turns = in_turn(ways, rounds, f"{command} --workers", warm=True)  # each is a process of its own
    wall = {name: [turn[name].wall for turn in turns] for name in ways}
    gain = [one / two for one, two in zip(wall["one"], wall["two"], strict=True)]
    figures = {
        f"two_workers_over_one_{command}": median(gain),
        f"two_workers_over_one_{command}_lowest": min(gain),
        f"two_workers_over_one_{command}_highest": max(gain),
        f"one_worker_{command}_s": median(wall["one"]),
    }
    if halves_too:
        figures[f"two_processes_over_one_{command}"] = median(
            one / two for one, two in zip(wall["one"], wall["halves"], strict=True)
        )
    return figures


class Trident:
    """The peer's process. A task that fails ends this one."""

    def __init__(self, bench: Bench) -> None:
        arguments = bench.arguments
        self._process = subprocess.Popen(
            [arguments.trident_python, str(ROOT / "benchmarks" / "trident_peer.py"),
             str(arguments.trident.absolute()), str(bench.weights),
             "--torch-threads", str(arguments.torch_threads), "--precision", arguments.precision],
            env=AS_STARTED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=None if os.environ.get("WSI_IPS_TRIDENT_LOG") else subprocess.DEVNULL,
        )  # fmt: skip
        if not self._answer().get("ready"):
            sys.exit(f"{arguments.trident_python} cannot run TRIDENT of {arguments.trident}: start "
                     "benchmarks/trident_peer.py with it and read what it says")  # fmt: skip

    def do(self, task: str, **what: Any) -> dict[str, Any]:
        """Its answer, with ``seconds`` and ``cpu_seconds``."""
        assert self._process.stdin is not None
        told = {key: str(value) if isinstance(value, Path) else value for key, value in what.items()}
        print(json.dumps({"do": task, **told}), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer or "seconds" not in answer:
            sys.exit(f"TRIDENT could not {task}: {answer.get('error', 'it died')}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}


def against_trident(bench: Bench) -> Figures:
    """Tiling and features of both, in turn, on the two large slides."""
    figures: Figures = {}
    with closing(Trident(bench)) as peer:
        for number, case in enumerate([case for case in bench.arguments.cases if case != "demo"]):
            figures |= one_against_trident(bench, peer, case, warm=number > 0)
    for name in ("tile_vs_trident", "features_vs_trident"):
        figures[name] = min(figures[f"{name}_{case}"] for case in bench.arguments.cases if case != "demo")
    return figures


def one_against_trident(bench: Bench, peer: Trident, case: str, *, warm: bool) -> Figures:
    """One slide. Each round: our tiling and theirs in turn, our features and theirs of the patches they found.

    Unless both programs are ``warm``, the first round is not counted: libraries are imported in it.
    """
    slide, theirs = bench.slides[case], bench.folder / "trident"
    tilings: list[dict[str, Spent]] = []
    rounds: list[dict[str, Spent]] = []
    for number in range(bench.arguments.rounds + (not warm)):
        print(f"TRIDENT, {case}: round {number} ...", file=sys.stderr, flush=True)
        for _ in range(CHEAP):
            turn = {"our_tile": spent(lambda: run_tile(bench, slide))}
            shutil.rmtree(theirs, ignore_errors=True)
            tiled = peer.do(
                "tile", slide=slide, out=theirs, mag=bench.arguments.mag, px=PX, min_tissue=MIN_TISSUE
            )
            turn["their_tile"] = Spent(tiled["seconds"], tiled["cpu_seconds"])
            tilings.append(turn)
        coords = Path(tiled["coords"])
        turn = {"our_features": spent(lambda: run_features(bench, slide, from_coords=coords.parent))}  # noqa: B023
        encoded = peer.do(
            "features", slide=slide, out=theirs / "features", coords=coords, batch=TRIDENT_BATCH
        )
        turn["their_features"] = Spent(encoded["seconds"], encoded["cpu_seconds"])
        rounds.append(turn)
    n_patches, other, difference = compared(
        bench.folder / "features" / "h5_files" / f"{slide.stem}.h5", encoded["features"]
    )
    rounds, tilings = rounds[-bench.arguments.rounds :], tilings[-CHEAP * bench.arguments.rounds :]
    figures = ratios(f"tile_vs_trident_{case}", tilings, "their_tile", "our_tile")
    figures |= ratios(f"features_vs_trident_{case}", rounds, "their_features", "our_features")
    for turns in (tilings, rounds):
        for name in turns[0]:
            figures[f"{case}_{name}_s"] = median(turn[name].wall for turn in turns)
    return {
        **figures,
        f"{case}_trident_patches": n_patches,
        f"{case}_patches_with_other_features": other,
        f"{case}_largest_difference": difference,
    }


def run_tile(bench: Bench, slide: Path) -> None:
    succeed(
        tile(TileJob(slides=slide, out=bench.new("tiled"), layout="trident", tiling=bench.tiling), silent)
    )


def compared(ours: Path, theirs: str) -> tuple[int, int, float]:
    """How many patches both have, how many of them have other features by more than ``ALIKE``, and the largest
    difference of a feature; differences are shares of the largest feature.

    Ends this process where the patches are not the same: then the times would not compare.
    """
    with opened_hdf5(ours) as our_file, opened_hdf5(Path(theirs)) as their_file:
        our_xy, their_xy = our_file["coords"][:], their_file["coords"][:]
        our_NC, their_NC = our_file["features"][:], their_file["features"][:]
    if not np.array_equal(our_xy, their_xy):
        sys.exit(f"{ours} and {theirs} hold other patches: {our_xy.shape}, {their_xy.shape}")
    difference_N = np.abs(our_NC - their_NC).max(axis=1) / np.abs(their_NC).max()
    return len(our_xy), int((difference_N > ALIKE).sum()), float(difference_N.max())


def answered(program: str, arguments: Sequence[str]) -> Figures:
    """The figures of another benchmark, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), "--json", *arguments]
    done = subprocess.run(command, env=with_root(), stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"benchmarks/{program}.py failed")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def median(values: Any) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
