"""What the whole selection pass over a slide costs beside its encoder alone.

    python benchmarks/ips_pass.py SLIDE.tif [--json] [--repeats 5] [--seconds 10] [--threads 2]
                                  [--torch-threads 2]

The pass reads patches from disk, decodes, encodes and selects them (``read_slide`` over a ``PatchStream``); the
encoder alone takes the same patches, already in memory and in the same batches, in the same mode. Both run in
turn (A B A B ...) and a ratio compares runs of one round; ``overlap_cost`` is the median of the rounds. Tissue
patches of 256 px at the slide's own resolution, as many as the encoder alone takes about ``--seconds`` for.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wsi_ips.config import EncoderConfig, ModelConfig, SelectionConfig, StreamingConfig, TilingConfig
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.slide_reading import read_slide
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.stream import Chunk, PatchStream
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import tile_slide

ENCODERS = {"resnet18": "resnet18", "mobilenet": "mobilenetv3_small_100"}
"""Short name in the flat keys, and timm's name."""
CALIBRATION_CHUNKS = 8


@dataclass(slots=True)
class Round:
    """Seconds of one round. waited: the pass stood still for its next chunk; decoding: the stream alone."""

    whole_pass: float
    encoder: float
    decoding: float
    waited: float


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the encoder alone in a round, about")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.slide.is_file():
        parser.error(f"{arguments.slide}: no such file; benchmarks/make_gigapixel.py draws one")
    torch.set_num_threads(arguments.torch_threads)
    streaming = StreamingConfig(threads=arguments.threads)
    costs: dict[str, float] = {}
    figures: dict[str, float] = {}
    for short, name in ENCODERS.items():
        found = measure(
            arguments.slide, name, streaming, seconds=arguments.seconds, repeats=arguments.repeats
        )
        costs[name] = found.pop("overlap_cost")
        figures |= {f"overlap_cost_{short}": costs[name]}
        figures |= {f"{key}_{short}": value for key, value in found.items()}
    if arguments.json:
        print(json.dumps({"overlap_cost": costs, **figures}))
    else:
        for key, value in figures.items():
            print(f"{key:40} {value:10.3f}")


def measure(
    path: Path, name: str, streaming: StreamingConfig, *, seconds: float, repeats: int
) -> dict[str, float]:
    """The ratio, and where the pass's time goes, as shares of the encoder's. Medians over the rounds."""
    torch.manual_seed(0)
    net = build_net(ModelConfig(encoder=EncoderConfig(name=name, weights="none")))
    coords = tissue_coords(path)
    few = first(coords, CALIBRATION_CHUNKS * streaming.batch)
    chunks = in_memory(path, few, streaming)
    encode_all(net, chunks)
    per_patch = timed(lambda: encode_all(net, chunks)) / len(few)
    coords = first(coords, max(streaming.batch, int(seconds / per_patch)))
    chunks = in_memory(path, coords, streaming)
    rounds = [one_round(net, path, coords, chunks, streaming) for _ in range(repeats + 1)][1:]
    return {
        "overlap_cost": median(turn.whole_pass / turn.encoder for turn in rounds),
        "lowest_cost": min(turn.whole_pass / turn.encoder for turn in rounds),
        "highest_cost": max(turn.whole_pass / turn.encoder for turn in rounds),
        "decoding_over_encoder": median(turn.decoding / turn.encoder for turn in rounds),
        "waited_over_encoder": median(turn.waited / turn.encoder for turn in rounds),
        "encoder_s": median(turn.encoder for turn in rounds),
        "encoder_patches_per_s": len(coords) / median(turn.encoder for turn in rounds),
        "patches": float(len(coords)),
    }


def one_round(
    net: IPSNet, path: Path, coords: PatchCoords, chunks: list[Chunk], streaming: StreamingConfig
) -> Round:
    """The pass, the encoder alone, and the stream alone, once each."""
    waits: list[float] = []
    with open_slide(path) as slide:
        stream = PatchStream(slide, coords, config=streaming)
        whole_pass = timed(
            lambda: read_slide(
                net, stream, SelectionConfig(), through=lambda passing: waited_for(passing, waits)
            )
        )
        encoder = timed(lambda: encode_all(net, chunks))
        decoding = timed(lambda: list(map(len, stream)))
    return Round(whole_pass, encoder, decoding, sum(waits))


@torch.no_grad()
def encode_all(net: IPSNet, chunks: Iterable[Chunk]) -> None:
    with scoring(net):
        for chunk in chunks:
            net.encode(chunk.pixels_n3PP)


def waited_for(stream: Iterable[Chunk], waits: list[float]) -> Iterator[Chunk]:
    """The same chunks; ``waits`` gathers how long each was waited for."""
    chunks = iter(stream)
    while True:
        started = time.perf_counter()
        chunk = next(chunks, None)
        waits.append(time.perf_counter() - started)
        if chunk is None:
            return
        yield chunk


def tissue_coords(path: Path) -> PatchCoords:
    """Patches of 256 px at the slide's own resolution that are nearly all tissue."""
    with open_slide(path) as slide:
        tiling = TilingConfig(patch_px=256, patch_mpp=slide.info.known_mpp(), min_tissue=0.9)
        return tile_slide(slide, tiling, slide_id="benchmark")[0]


def first(coords: PatchCoords, count: int) -> PatchCoords:
    return replace(
        coords,
        ids_N=coords.ids_N[:count],
        l0_xy_N2=coords.l0_xy_N2[:count],
        tissue_N=coords.tissue_N[:count],
    )


def in_memory(path: Path, coords: PatchCoords, streaming: StreamingConfig) -> list[Chunk]:
    """The stream's chunks, copied: whatever becomes of the stream's own memory, these stay."""
    with open_slide(path) as slide:
        return [
            replace(chunk, pixels_n3PP=chunk.pixels_n3PP.clone())
            for chunk in PatchStream(slide, coords, config=streaming)
        ]


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
