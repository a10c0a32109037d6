"""A run of 100,000 slides: how long it takes to list, resume, report, view and evaluate, in how much memory.

    python benchmarks/listing.py --json [--slides N ...] [--only STEP ...] [--out DIR] [--earlier]

Draws the folder of a run: one slide is drawn and labelled by ``wsi-ips predict`` for real, with an untrained
network; the others are hard links to it, and copies of its result in which the slide's name and the probabilities
differ. Drawing is not timed. Then the commands of a user, each in a process of its own: seconds by the clock from
its start to its end (``_s``), seconds of the processor (``_cpu_s``) and the peak of its memory in MB, 2^20 bytes
(``_mb``), Python and all libraries included.

list: finding the slides and their ids. resume: ``predict`` again, with nothing left to do. view: until the page
and what it asks for first are there (``view_s``), then the first page of the list of slides (``view_list_s``) and
another one of a search (``view_search_s``). ``--earlier`` also resumes a run as earlier versions left it, without
``known.jsonl``: each result is read then.

:func:`list_100k` is for other benchmarks.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root
# Nothing heavy here: a child's ru_maxrss starts from its parent's size (Linux carries it over exec).

from benchmarks.steps import with_root  # noqa: E402

SLIDES = (10_000, 100_000)
STEPS = ("list", "resume", "report", "view", "evaluate")
WSI_IPS = "from wsi_ips.cli import main; main()"
LISTING = (
    "import sys; from wsi_ips.commands.slides import slides_by_id; from wsi_ips.storage.location import locate;"
    "assert len(slides_by_id(locate(sys.argv[1]))) == int(sys.argv[2])"
)
LINKS = 30_000
"""Hard links to one file; file systems have a limit (ext4: 65,000)."""
PATIENCE_S = 3600
NETWORK = """
tiling: {patch_px: 32, patch_mpp: 2.0, min_tissue: 0.2}
selection: {m: 4, i: 8}
model:
  encoder: {name: test_convnext, weights: none, stage: 2}
  attention: {heads: 2, key_dim: 8, value_dim: 8, inner_dim: 16}
"""


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = parsed()
    figures: dict[str, float] = {}
    for slides in arguments.slides:
        folder = (
            arguments.out / str(slides) if arguments.out else Path(tempfile.mkdtemp(prefix="wsi_ips_list_"))
        )
        try:
            figures |= measured(folder, slides, arguments.only, earlier=arguments.earlier)
        finally:
            if arguments.out is None:
                shutil.rmtree(folder)
    figures |= growth(figures, sorted(arguments.slides))
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:36} {value:12.2f}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--slides", type=int, nargs="+", default=list(SLIDES))
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--earlier", action="store_true", help="resume without known.jsonl, too")
    parser.add_argument("--out", type=Path, help="draw here, and keep it; what is drawn already is used")
    return parser.parse_args()


def list_100k() -> dict[str, float]:
    """``{"list_100k_s": ..., "list_100k_mb": ...}``: resuming a run of 100,000 drawn slides that is finished.

    The seconds are those of the command by the clock, the memory is its peak in MB (2^20 bytes). The run is drawn
    in a temporary folder (about 3 GB) and removed.
    """
    folder = Path(tempfile.mkdtemp(prefix="wsi_ips_list_"))
    try:
        figures = measured(folder, 100_000, ["resume"])
    finally:
        shutil.rmtree(folder)
    return {"list_100k_s": figures["resume_s_100000"], "list_100k_mb": figures["resume_mb_100000"]}


def measured(folder: Path, slides: int, steps: Sequence[str], *, earlier: bool = False) -> dict[str, float]:
    """The figures of a run of so many slides, each named ``<step>_<unit>_<slides>``."""
    if not (folder / "drawn").exists():
        command = [sys.executable, "-m", "benchmarks.listing_run", str(folder), str(slides)]
        subprocess.run(command, check=True, stdout=sys.stderr, env=with_root(), cwd=ROOT)
        (folder / "drawn").touch()
    run, images, manifest = folder / "run", folder / "slides", folder / "manifest.csv"
    predict = ["predict", str(images), "--checkpoint", str(folder / "model.safetensors"), "--out", str(run),
               "--device", "cpu"]  # fmt: skip
    commands = {
        "list": [sys.executable, "-c", LISTING, str(images), str(slides)],
        "resume": [sys.executable, "-c", WSI_IPS, *predict],
        "report": [sys.executable, "-c", WSI_IPS, "report", str(run)],
        "evaluate": [sys.executable, "-c", WSI_IPS, "evaluate", str(run), str(manifest), "--no-plots"],
    }
    figures: dict[str, float] = {}
    if earlier:
        (run / "known.jsonl").unlink(missing_ok=True)
        figures |= timed("earlier", commands["resume"])
    for step in steps:
        print(f"{slides} slides: {step} ...", file=sys.stderr, flush=True)
        figures |= viewed(run) if step == "view" else timed(step, commands[step])
        if step == "report":
            figures["report_html_mb"] = (run / "report.html").stat().st_size / 2**20
    return {f"{name}_{slides}": value for name, value in figures.items()}


def timed(step: str, command: Sequence[str]) -> dict[str, float]:
    """Seconds and peak memory of a command. Ends this process where it fails."""
    environment = {**with_root(), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it is gone, and Popen need not wait for it
    if status:
        sys.exit(f"{step} failed")
    return {
        f"{step}_s": seconds,
        f"{step}_cpu_s": usage.ru_utime + usage.ru_stime,
        f"{step}_mb": usage.ru_maxrss / 1024,
    }


def viewed(run: Path) -> dict[str, float]:
    """Seconds until the viewer's page is there, and of two pages of its list; the memory of its server."""
    started = time.perf_counter()
    command = [sys.executable, "-c", WSI_IPS, "view", str(run), "--port", "0", "--no-token"]
    environment = {**with_root(), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "wsi-ips view did not start"
        address = urlsplit(found[0]).netloc
        with closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as connection:
            for path in ("/", "/api/view"):
                asked(connection, path)
            figures = {"view_s": time.perf_counter() - started}
            for name, path in (("list", ""), ("search", "?q=99&order=sure")):
                started = time.perf_counter()
                figures[f"view_{name}_kb"] = asked(connection, "/api/runs/0/slides" + path) / 1024
                figures[f"view_{name}_s"] = time.perf_counter() - started
        status = Path(f"/proc/{process.pid}/status").read_text()
        return figures | {"view_mb": int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024}
    finally:
        process.kill()
        process.communicate()


def asked(connection: http.client.HTTPConnection, path: str) -> int:
    """The length of an answer in bytes."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{path}: {answer.status}"
    return len(body)


def growth(figures: dict[str, float], slides: Sequence[int]) -> dict[str, float]:
    """How many times as long, and as much, each step takes of the most slides as of the fewest."""
    if len(slides) < 2:
        return {}
    low, high = f"_{slides[0]}", f"_{slides[-1]}"
    grown = {name.removesuffix(high) for name in figures if name.endswith(high)}
    return {
        f"{name}_growth": figures[name + high] / figures[name + low]
        for name in sorted(grown)
        if figures.get(name + low)
    }


if __name__ == "__main__":
    main()
