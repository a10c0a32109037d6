"""Everything that only a card can tell, in one command of at most eight minutes that leaves a JSON file.

    python benchmarks/gpu.py OUT.json [--dry] [--only PART ...]

Each part runs in a process of its own with a time limit. A part that fails, or takes too long, is recorded with
its error, and the others go on; OUT.json is written anew after each part. --dry does the same with small numbers
on the CPU, so that the script is known to run before a card is borrowed.

encode_resnet18, encode_vit_l: patches a second that are decoded, copied, and encoded in bf16, each alone; the
    whole of it (``read_slide`` from a drawn slide on disk), and the share of that time in which the card encodes.
precision: cosines of half-precision features against float32 ones, and of the device's against the CPU's.
vram: peak memory of selection and a training step, measured beside the simulated one (``benchmarks/vram.py``).
nvjpeg: JPEG tiles a second that the device and one CPU thread decode, by the side of a tile.
training: steps a second of one slide, from pixels that are on the device already, through the gradient cache.
tests: the tests that a card is of interest to.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TOTAL_S = 8 * 60
"""Seconds for everything."""
LIMITS_S = {
    "encode_resnet18": 70,
    "encode_vit_l": 80,
    "precision": 50,
    "vram": 100,
    "nvjpeg": 45,
    "training": 60,
    "tests": 70,
}
"""Seconds for each part; they sum up to less than :data:`TOTAL_S`."""
TESTS = (
    "tests/streaming/test_device.py",
    "tests/streaming/test_device_decoder.py",
    "tests/streaming/test_copies.py",
    "tests/streaming/test_numerics.py",
    "tests/models/encoders/test_precision.py",
)
"""What a card is of interest to."""


def main() -> None:
    """Run every part in turn; or, as a child, one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--dry", action="store_true", help="small numbers on the CPU")
    parser.add_argument("--only", nargs="+", choices=[*LIMITS_S], default=[*LIMITS_S], metavar="PART")
    parser.add_argument("--child", choices=[*PARTS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.out.write_text(json.dumps(PARTS[arguments.child](arguments.dry)))
        return
    began = time.perf_counter()
    told: dict[str, Any] = {"dry": arguments.dry, "machine": machine(arguments.dry), "parts": {}}
    for name in arguments.only:
        left = TOTAL_S - (time.perf_counter() - began)
        told["parts"][name] = run(name, limit_s=min(LIMITS_S[name], left), dry=arguments.dry)
        told["seconds"] = round(time.perf_counter() - began, 1)
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
        part = told["parts"][name]
        print(f"{name}: {part.get('error') or part['figures']}", flush=True)


def machine(dry: bool) -> dict[str, Any]:
    import torch

    card = not dry and torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "card": torch.cuda.get_device_name() if card else None,
        "card_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if card else None,
    }


def run(name: str, *, limit_s: float, dry: bool) -> dict[str, Any]:
    """What a part finds: its ``figures``, or its ``error``; and its ``seconds``."""
    began = time.perf_counter()
    if limit_s < 1:
        return {"error": "no time is left for it", "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, str(answer), "--child", name, *(["--dry"] if dry else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
            found = told_by(done, answer)
        except subprocess.TimeoutExpired:
            found = {"error": f"took longer than {limit_s:.0f} s"}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def told_by(done: subprocess.CompletedProcess[str], answer: Path) -> dict[str, Any]:
    if done.returncode == 0 and answer.is_file():
        return {"figures": json.loads(answer.read_text())}
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    return {"error": last[0] if last else f"ended with {done.returncode}"}


def device_of(dry: bool) -> Any:
    """The card; the CPU in a dry run. Raises ``RuntimeError`` without a card."""
    import torch

    if not dry and not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device; --dry runs on the CPU")
    return torch.device("cpu" if dry else "cuda")


def encoding(name: str, dry: bool) -> dict[str, Any]:
    """Rates of an encoder in bf16, and the share of the time that the device encodes in."""
    import torch

    from benchmarks.make_gigapixel import make_gigapixel
    from wsi_ips.config import EncoderConfig, ModelConfig, SelectionConfig, StreamingConfig, TilingConfig
    from wsi_ips.models.build import build_net
    from wsi_ips.models.encoders.network import Compute, compute_in
    from wsi_ips.selection.slide_reading import read_slide
    from wsi_ips.slides.registry import open_slide
    from wsi_ips.streaming.stream import PatchStream
    from wsi_ips.tiling.patches import tile_slide

    device, px = device_of(dry), 64 if dry else 224
    size = {"img_size": px, "args": {"depth": 2}} if dry and name.startswith("vit") else {}
    encoder = EncoderConfig.model_validate({"name": name, "weights": "none", **size})
    net = build_net(ModelConfig(encoder=encoder)).to(device).eval()
    compute_in(net, Compute("bf16"))
    config = StreamingConfig(batch=8 if dry else 128, threads=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        make_gigapixel(path, side_px=2048 if dry else 16_384, block=2 if dry else 8)
        with open_slide(path) as slide:
            tiling = TilingConfig(patch_px=px, patch_mpp=slide.info.known_mpp(), min_tissue=0.5)
            coords = tile_slide(slide, tiling, slide_id="drawn")[0]
            decode_s, n = counted(PatchStream(slide, coords, config=config, device=torch.device("cpu")))
            stream = PatchStream(slide, coords, config=config, device=device)
            read_slide(net, stream, SelectionConfig())  # warms up
            began = time.perf_counter()
            reading = read_slide(net, stream, SelectionConfig())
            whole_s = time.perf_counter() - began
            pixels = next(iter(stream)).pixels_n3PP.clone()
    host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=not dry)
    with torch.no_grad():
        encode_s = seconds_of(lambda: net.encode(pixels), device)
    copy_s = seconds_of(lambda: host.to(device, non_blocking=True, copy=True), device)
    return {
        "patches": n,
        "decode_per_s": n / decode_s,
        "copy_per_s": len(pixels) / copy_s,
        "encode_per_s": len(pixels) / encode_s,
        "whole_per_s": n / whole_s,
        "busy_share": reading.encode_s / whole_s,
    }


def counted(chunks: Any) -> tuple[float, int]:
    """Seconds until all chunks have come, and how many patches they are."""
    began = time.perf_counter()
    n = sum(map(len, chunks))
    return time.perf_counter() - began, n


def seconds_of(work: Callable[[], Any], device: Any, *, rounds: int = 5) -> float:
    """The best of several rounds after one to warm up, until the device has done the work."""
    import torch

    best = float("inf")
    for number in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - began
        best = min(best, taken) if number else best
    return best


def precision(dry: bool) -> dict[str, Any]:
    """Lowest cosines of features."""
    import torch

    from wsi_ips.config import EncoderConfig
    from wsi_ips.models.encoders.network import Compute
    from wsi_ips.models.encoders.timm_encoder import TimmEncoder

    device, told = device_of(dry), {}
    pixels = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)
    for name in ("resnet10t",) if dry else ("resnet18", "vit_small_patch16_224"):
        torch.manual_seed(0)
        encoder = TimmEncoder(EncoderConfig(name=name, weights="none")).eval()
        with torch.no_grad():
            on_cpu = encoder(pixels)
            encoder.to(device)
            exact = encoder(pixels.to(device))
            told[f"{name}_device_over_cpu"] = cosine(exact, on_cpu)
            for half in ("bf16", "fp16"):
                encoder.compute_as(Compute(half))
                told[f"{name}_{half}"] = cosine(encoder(pixels.to(device)), exact)
            if not dry:
                encoder.compute_as(Compute("bf16", compiled_batch=8))
                told[f"{name}_bf16_compiled"] = cosine(encoder(pixels.to(device)), exact)
    return told


def cosine(one: Any, other: Any) -> float:
    import torch

    return float(torch.cosine_similarity(one.cpu().float(), other.cpu().float()).min())


def vram(dry: bool) -> dict[str, Any]:
    """Measured and simulated peaks in GiB. Dry: only simulated."""
    from benchmarks.vram import Case, peak_of

    told: dict[str, Any] = {}
    for model in ("resnet18",) if dry else ("resnet18", "vit_l", "vit_l_lora"):
        case = Case(model, "bf16", 8, 2, 64, 4) if dry else Case(model, "bf16", 256, 16, 224, 32)
        for how in ("simulated",) if dry else ("simulated", "cuda"):
            peak = peak_of(case, device=how)
            told[f"{model}_{how}"] = peak and {"selection": peak.selection_gb, "step": peak.step_gb}
    return told


def nvjpeg(dry: bool) -> dict[str, Any]:
    """Tiles a second by the device and by one CPU thread, by the side of a tile."""
    import numpy as np
    from PIL import Image

    from wsi_ips.streaming.device_decoder import DeviceDecoder

    device, rng, told = device_of(dry), np.random.default_rng(0), {}
    for side in (64,) if dry else (256, 512, 1024):
        small = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        held = BytesIO()
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(held, "JPEG", quality=80)
        jpegs = [held.getvalue()] * max(4, (4 if dry else 2**24) // side**2)
        insides = [(side, side)] * len(jpegs)
        theirs_s = min(DeviceDecoder(device, side).seconds(jpegs, insides)[0] for _ in range(4))
        ours_s = seconds_of(lambda jpegs=jpegs: [np.asarray(Image.open(BytesIO(j))) for j in jpegs], device)
        told[str(side)] = {"device_per_s": len(jpegs) / theirs_s, "cpu_thread_per_s": len(jpegs) / ours_s}
    return told


def training(dry: bool) -> dict[str, Any]:
    """Steps a second of one bag of M = 256 patches in bf16."""
    from benchmarks.vram import Case, Counted, config_of, step_of
    from wsi_ips.models.build import build_net
    from wsi_ips.models.encoders.network import Compute, compute_in
    from wsi_ips.training.learning import make_optimizer

    device, told = device_of(dry), {}
    for model in ("resnet18",) if dry else ("resnet18", "vit_l", "vit_l_lora"):
        case = Case(model, "bf16", 4, 1, 64, 4) if dry else Case(model, "bf16", 256, 1, 224, 64)
        config = config_of(case)
        if config is None:
            told[model] = "not available"
            continue
        counted_on = Counted(device)
        net = build_net(config.model).to(device)
        compute_in(net, Compute("bf16"))
        optimizer = make_optimizer(net, config.training)
        work = lambda: step_of(net, case, config, counted_on, optimizer)  # noqa: B023, E731 - used at once
        told[model] = {"steps_per_s": 1 / seconds_of(work, device, rounds=3)}
    return told


def tests(dry: bool) -> dict[str, Any]:
    """How the tests end. Raises ``RuntimeError`` where one fails."""
    device_of(dry)
    files = TESTS[:1] if dry else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    last = next(islice(reversed(done.stdout.strip().splitlines()), 1), "")
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {last}")
    return {"pytest": last or "passed"}


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "encode_resnet18": lambda dry: encoding("resnet10t" if dry else "resnet18", dry),
    "encode_vit_l": lambda dry: encoding("vit_tiny_patch16_224" if dry else "vit_large_patch16_224", dry),
    "precision": precision,
    "vram": vram,
    "nvjpeg": nvjpeg,
    "training": training,
    "tests": tests,
}

if __name__ == "__main__":
    main()
