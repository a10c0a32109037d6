"""What ``wsi-ips features`` costs beside its encoder alone, and what half precision and compiling gain.

    python benchmarks/features.py SLIDE.tif [--json] [--encoder vit_small_patch16_224] [--precision 32]
        [--patches 256] [--px 224] [--repeats 3] [--threads 2] [--torch-threads 2] [--batch 32] [--speedups]

``features`` reads patches from disk, decodes, encodes and stores them (``FeatureExport.write``, CLAM's layout);
the encoder alone takes the same patches, in memory and in the same batches. Both run in turn, a ratio compares
runs of one round, and ``features_over_encoder`` is the median over the rounds of the rate of ``features`` over
that of the encoder: 1 is free.

--speedups: the encoder alone on one batch, in float32, bf16, both compiled, and ONNX Runtime (where the package
``onnx`` is there to write its file), in turn; the best of several times each. ``bf16_speedup``,
``compile_speedup``, ``bf16_compile_speedup`` and ``onnx_speedup`` are over float32, and ``_cpu`` compares CPU
seconds.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wsi_ips.config import EncoderConfig, StreamingConfig, TilingConfig
from wsi_ips.inference.feature_export import FeatureExport, FeaturesFolder
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.models.encoders.identity import EncoderIdentity
from wsi_ips.models.encoders.network import Compute
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import tile_slide

SPEEDUP_ROUNDS = 7
"""Rounds of ``--speedups``, of which the best time counts."""


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    torch.set_num_threads(arguments.torch_threads)
    encoder = random_encoder(arguments.encoder)
    streaming = StreamingConfig(threads=arguments.threads, batch=arguments.batch)
    encoder.compute_as(Compute(arguments.precision))
    figures = measure(arguments.slide, encoder, streaming, arguments)
    if arguments.speedups:
        figures |= speedups(encoder, batch=arguments.batch, px=arguments.px)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:28} {value:10.3f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--encoder", default="vit_small_patch16_224", help="timm model, untrained")
    parser.add_argument("--precision", default="32", choices=("32", "bf16", "fp16"))
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--speedups", action="store_true")
    arguments = parser.parse_args()
    if not arguments.slide.is_file():
        parser.error(f"{arguments.slide}: no such file; benchmarks/make_gigapixel.py draws one")
    return arguments


def random_encoder(name: str) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(EncoderConfig(name=name, weights="none")).eval()


def measure(
    path: Path, encoder: TimmEncoder, streaming: StreamingConfig, arguments: argparse.Namespace
) -> dict[str, float]:
    """The ratio of both rates, and their size."""
    coords = tissue(path, arguments.px, arguments.patches)
    chunks = in_memory(path, coords, streaming)
    export = lambda: stored(path, coords, encoder, streaming)  # noqa: E731 - the work of one run
    alone = lambda: encode_all(encoder, chunks)  # noqa: E731
    alone()
    rounds = [(timed(export), timed(alone)) for _ in range(arguments.repeats)]
    ratios = [encoder_s / whole_s for whole_s, encoder_s in rounds]
    encoder_s = statistics.median(turn[1] for turn in rounds)
    return {
        "features_over_encoder": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "encoder_patches_per_s": len(coords) / encoder_s,
        "patches": float(len(coords)),
    }


def tissue(path: Path, px: int, most: int) -> PatchCoords:
    """At most so many patches of a slide at its own resolution that are nearly all tissue."""
    with open_slide(path) as slide:
        tiling = TilingConfig(patch_px=px, patch_mpp=slide.info.known_mpp(), min_tissue=0.9)
        coords = tile_slide(slide, tiling, slide_id="benchmark")[0]
    return replace(
        coords,
        ids_N=coords.ids_N[:most],
        l0_xy_N2=coords.l0_xy_N2[:most],
        tissue_N=coords.tissue_N[:most],
    )


def in_memory(path: Path, coords: PatchCoords, streaming: StreamingConfig) -> list[Tensor]:
    with open_slide(path) as slide:
        return [chunk.pixels_n3PP.clone() for chunk in PatchStream(slide, coords, config=streaming)]


def stored(path: Path, coords: PatchCoords, encoder: TimmEncoder, streaming: StreamingConfig) -> None:
    """Store the features of these patches, as the command does once it has found them."""
    with tempfile.TemporaryDirectory() as folder, open_slide(path) as slide:
        export = FeatureExport(
            encoder=encoder, width=encoder.dim, name="benchmark",
            identity=EncoderIdentity.of_settings("benchmark", {}),
            folder=FeaturesFolder(Path(folder), "clam", "benchmark"),
        )  # fmt: skip
        made_from = MadeFrom.now(path, slide_id="benchmark", mpp=None, streaming=streaming)
        export.write(PatchStream(slide, coords, config=streaming), coords, slide.info, made_from=made_from)


@torch.no_grad()
def encode_all(encoder: Callable[[Tensor], object], chunks: list[Tensor]) -> None:
    for pixels in chunks:
        encoder(pixels)


def speedups(encoder: TimmEncoder, *, batch: int, px: int) -> dict[str, float]:
    """How many times faster than in float32 the encoder is. Ways that cannot be compiled here are left out."""
    pixels = torch.randint(0, 256, (batch, 3, px, px), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    ways = {"": Compute(), "bf16": Compute("bf16")}
    ways |= {"compile": Compute(compiled_batch=batch), "bf16_compile": Compute("bf16", compiled_batch=batch)}
    runs: dict[str, Callable[[Tensor], object]] = {}
    for name, way in ways.items():
        run = random_encoder(encoder._name)
        run.compute_as(way)
        try:
            encode_all(run, [pixels])
        except Exception as error:  # noqa: BLE001 - without a compiler the other figures stand
            print(f"{name}: {error}", file=sys.stderr)
            continue
        runs[name] = run
    if onnx := onnx_runtime(random_encoder(encoder._name), pixels):
        runs["onnx"] = onnx
    best = {name: (float("inf"), float("inf")) for name in runs}
    for _ in range(SPEEDUP_ROUNDS):
        for name, run in runs.items():
            cpu = time.process_time()
            wall = timed(lambda run=run: encode_all(run, [pixels]))
            best[name] = min(best[name][0], wall), min(best[name][1], time.process_time() - cpu)
    figures = {}
    for name, (wall, cpu) in best.items():
        if name:
            figures |= {f"{name}_speedup": best[""][0] / wall, f"{name}_speedup_cpu": best[""][1] / cpu}
    return figures


def onnx_runtime(encoder: TimmEncoder, pixels: Tensor) -> Callable[[Tensor], object] | None:
    """The same network in ONNX Runtime, with as many threads as PyTorch; None where it cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        print(f"onnx: {error}", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/encoder.onnx"
        example = encoder._normalised(pixels)
        torch.onnx.export(encoder.backbone, (example,), path, dynamo=False, input_names=["pixels"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"pixels": encoder._normalised(batch).contiguous().numpy()})


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
