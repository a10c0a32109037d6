"""Time and memory of drawing a slide's attention: the default overlay, and an OME-TIFF of its raw values.

    python benchmarks/overlay.py SLIDE.tif [--json] [--side-px N]

Makes up an attention value for every cell of the slide's grid (256 px at the slide's own resolution, glass too),
stores them as `predict` does, and writes each picture from that file in a process of its own. Seconds run from
the first import to the whole file; the peak is the process's ru_maxrss, all imports included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

KINDS = {"overlay": "png", "ome_tiff": "ome.tif"}


def main() -> None:
    """Measure, and print a table or one JSON object; or, as a child, write one picture."""
    arguments = parsed()
    if arguments.child:
        print(json.dumps(drawn_once(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "attention.h5"
        script = Path(__file__).with_name("made_up_result.py")
        subprocess.run([sys.executable, str(script), str(arguments.slide), str(result)], check=True)
        figures: dict[str, float] = {}
        for kind in KINDS:
            figures |= json.loads(in_fresh_process(arguments, kind, result))
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side-px", type=int, default=2048, help="longest side of the overlay")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.slide.is_file():
        parser.error(f"{arguments.slide}: no such file; benchmarks/make_gigapixel.py draws one")
    return arguments


def in_fresh_process(arguments: argparse.Namespace, child: str, result: Path) -> str:
    """What a child prints. Ends this process where the child fails."""
    command = [sys.executable, __file__, str(arguments.slide), f"--child={child}", f"--result={result}"]
    command.append(f"--side-px={arguments.side_px}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def drawn_once(arguments: argparse.Namespace) -> dict[str, float]:
    """Write one kind of picture in this process, and say what it took."""
    kind = arguments.child
    started = time.perf_counter()
    draw(kind, arguments, arguments.result.with_suffix(f".{KINDS[kind]}"))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1024**2 if sys.platform == "darwin" else 1024)
    return {f"{kind}_rss_mb": peak_mb, f"{kind}_seconds": seconds}


def draw(kind: str, arguments: argparse.Namespace, path: Path) -> None:
    from wsi_ips.inference.results import read_result

    result: Any = read_result(arguments.result)
    if kind == "overlay":
        from wsi_ips.config import HeatOptions
        from wsi_ips.heatmaps.overlay import write_overlay
        from wsi_ips.slides.registry import open_slide

        with open_slide(result.slide_path) as slide:
            write_overlay(path, slide, result, HeatOptions(side_px=arguments.side_px))
    else:
        from wsi_ips.heatmaps.export import make_exporter
        from wsi_ips.heatmaps.maps import choose_heat

        make_exporter("ome-tiff", {}).write(path, choose_heat(result), None)


if __name__ == "__main__":
    main()
