"""Memory while a slide's patches are streamed: does it grow with the slide?

    python benchmarks/memory.py SLIDE.tif [--json] [--plot MEMORY.png] [--select] [--patches N]
    python benchmarks/memory.py --container philips [--side 131072] ...

The slide is any file that can be opened, or one that make_gigapixel.py draws in the named container for this run.
Streams the patches of the whole level-0 grid (256 px at the slide's own resolution, glass too) through
PatchStream, in a fresh process each: first 16,384 in the slide's middle, where there is tissue, then all. With
--select they go through the whole pass of iterative patch selection, with a small untrained encoder. The peak is
the process's ru_maxrss, torch and all other imports included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

BAND_PATCHES = 16_384
SAMPLES = 500
"""Points of the curve over a whole slide."""
SMALL_ENCODER = "mobilenetv3_small_050"


@dataclass(slots=True)
class Run:
    """What one process measured. curve: pairs of patches so far and MB of memory in use then."""

    reader: str = ""
    patches: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table or one JSON object; or, as a child, measure once."""
    arguments = parsed()
    if arguments.child:
        print(json.dumps(asdict(stream_once(arguments))))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = arguments.slide or drawn(Path(folder) / "slide.tif", arguments)
        first, whole = (
            in_fresh_process(slide, arguments, limit) for limit in (BAND_PATCHES, arguments.patches)
        )
    figures: dict[str, float | str] = {
        "rss_growth": whole.peak_mb / first.peak_mb,
        "rss_mb": whole.peak_mb,
        "rss_first_mb": first.peak_mb,
        "patches": whole.patches,
        "patches_per_s": whole.patches / whole.seconds,
        "reader": whole.reader,
    }
    if arguments.plot:
        plot(arguments.plot, whole, select=arguments.select)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:>10}" if isinstance(value, str) else f"{name:32} {value:10.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--container", help="without SLIDE: draw one (make_gigapixel.py), tiff or philips")
    parser.add_argument("--side", type=int, default=131_072, help="its side in pixels")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw memory over patches as PNG (needs matplotlib)")
    parser.add_argument(
        "--select", action="store_true", help="the whole selection pass, not the stream alone"
    )
    parser.add_argument("--encoder", default=SMALL_ENCODER, help="timm model for --select")
    parser.add_argument("--m", type=int, default=256, help="patches kept by --select")
    parser.add_argument(
        "--patches", type=int, default=0, help="only so many in the slide's middle; 0: all of the slide"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if (arguments.slide is None) == (arguments.container is None):
        parser.error("give either a slide or --container")
    if arguments.slide and not arguments.slide.exists():
        parser.error(f"{arguments.slide}: no such file; benchmarks/make_gigapixel.py draws one")
    return arguments


def drawn(path: Path, arguments: argparse.Namespace) -> Path:
    """A slide in the wanted container. Drawn by another process, whose memory is not this one's."""
    script = Path(__file__).with_name("make_gigapixel.py")
    options = [f"--{name}={getattr(arguments, name)}" for name in ("container", "side", "threads")]
    done = subprocess.run([sys.executable, str(script), str(path), *options], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return path


def in_fresh_process(slide: Path, arguments: argparse.Namespace, patches: int) -> Run:
    """Measure ``patches`` (0: all) in a process of their own. Ends this one where that fails."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("encoder", "m", "threads")]
    command = [sys.executable, __file__, str(slide), "--child", f"--patches={patches}", *options]
    command += ["--select"] if arguments.select else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return Run(**json.loads(done.stdout))


def stream_once(arguments: argparse.Namespace) -> Run:
    """Stream the patches in this process, and say what it took."""
    from wsi_ips.config import StreamingConfig
    from wsi_ips.slides.registry import open_slide
    from wsi_ips.streaming.stream import PatchStream

    run = Run()
    with open_slide(arguments.slide) as slide:
        run.reader = f"{slide.info.reader} ({slide.info.vendor})"
        coords = every_cell(slide, patches=arguments.patches)
        stream = PatchStream(slide, coords, config=StreamingConfig(threads=arguments.threads))
        every = max(1, len(coords) // SAMPLES)
        consume = selection(arguments.encoder, m=arguments.m) if arguments.select else exhaust
        started = time.perf_counter()
        consume(stream, lambda chunks: watched(chunks, run, every=every))
        run.seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.peak_mb = peak / (1024**2 if sys.platform == "darwin" else 1024)
    return run


def every_cell(slide: Any, *, patches: int) -> Any:
    """PatchCoords of ``patches`` cells of the grid from one of its middle rows on (0: all), tissue or not."""
    import numpy as np

    from wsi_ips.config import TilingConfig
    from wsi_ips.tiling.grid import PatchCoords, PatchGrid

    mpp = slide.info.known_mpp()
    tiling = TilingConfig(patch_px=256, patch_mpp=mpp)
    grid = PatchGrid.cover(slide.info.l0_size, slide_mpp=mpp, tiling=tiling)
    cells = grid.g_cols * grid.g_rows
    count = min(patches, cells) if patches else cells
    ids_N = (cells - count) // 2 // grid.g_cols * grid.g_cols + np.arange(count, dtype=np.int64)
    return PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id="benchmark",
        l0_size=slide.info.l0_size,
        slide_mpp=mpp,
        tiling=tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )


def selection(encoder: str, *, m: int) -> Any:
    """A consumer of a stream: the whole pass, with an untrained encoder."""
    from wsi_ips.config import EncoderConfig, ModelConfig, SelectionConfig
    from wsi_ips.models.build import build_net
    from wsi_ips.selection.slide_reading import read_slide

    net = build_net(ModelConfig(encoder=EncoderConfig(name=encoder, weights="none")))
    return lambda stream, through: read_slide(
        net, stream, SelectionConfig(memory_size=m, iteration_size=m), through=through
    )


def exhaust(stream: Iterable[Any], through: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
    for _ in through(stream):
        pass


def watched(chunks: Iterable[Any], run: Run, *, every: int) -> Iterator[Any]:
    """The same chunks, while ``run`` gathers how many patches went by and the memory in use."""
    due = 0
    for chunk in chunks:
        run.patches += len(chunk)
        if run.patches >= due:
            run.curve.append((run.patches, resident_mb()))
            due = run.patches + every
        yield chunk


def resident_mb() -> float:
    """Memory in use now, in MB of 2**20 bytes. Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def plot(path: Path, run: Run, *, select: bool) -> None:
    """Memory over patches, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from wsi_ips.storage.files import whole_file

    patches, megabytes = zip(*run.curve, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot([count / 1000 for count in patches], megabytes, color="#4c72b0", linewidth=1.5)
    axes.axvline(BAND_PATCHES / 1000, color="0.6", linewidth=1, linestyle=":")
    axes.annotate(
        f" {BAND_PATCHES:,} patches",
        (BAND_PATCHES / 1000, 0.04),
        xycoords=("data", "axes fraction"),
        color="0.4",
    )
    axes.set(
        title=f"{'Selection pass' if select else 'Patch stream'} over {run.patches:,} patches of 256 px",
        xlabel="patches read (thousands)",
        ylabel="resident memory (MB)",
        xlim=(0, None),
        ylim=(0, 1.25 * max(megabytes)),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)


if __name__ == "__main__":
    main()
