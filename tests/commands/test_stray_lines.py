"""What libraries write about odd files does not reach the user, who starts processes of their own."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_ips.slides.folder import find_slides

PROGRAM = "import sys; from wsi_ips.cli import main; sys.argv = ['wsi-ips', *sys.argv[1:]]; main()"
OURS = ("wsi-ips: ", "wsi_ips.", "Tiling (", "Predicting (")


def run(*words: object) -> tuple[int, list[str]]:
    """Exit code, and the lines of stderr."""
    environment = {**os.environ, "PYTHONWARNINGS": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def stray(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(OURS)]


def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    rgb = np.full((512, 512, 3), 240, np.uint8)
    rgb[100:400, 100:400] = rng.integers(80, 200, (300, 300, 3)) // (1, 2, 1)
    return rgb


def with_odd_tag(path: Path, **edit: bytes) -> None:
    """A TIFF whose Software tag has another type, or lies beyond the file's end."""
    tifffile.imwrite(path, picture(), tile=(256, 256), photometric="rgb", software="x" * 30,
                     resolution=(20_000, 20_000), resolutionunit=3)  # fmt: skip
    data = bytearray(path.read_bytes())
    at = struct.unpack("<I", data[4:8])[0]
    entries = range(at + 2, at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0], 12)
    (entry,) = (place for place in entries if struct.unpack("<H", data[place : place + 2])[0] == 305)
    for field, value in edit.items():
        start = entry + {"type": 2, "count": 4, "offset": 8}[field]
        data[start : start + len(value)] = value
    path.write_bytes(data)


def with_odd_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 40
    Image.fromarray(picture()).save(path, "JPEG", exif=exif.tobytes())
    data = bytearray(path.read_bytes())
    at = data.index(b"Exif\0\0") + 14
    data[at : at + 2] = b"\x40\x40"
    path.write_bytes(data)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    with_odd_tag(folder / "type.tif", type=struct.pack("<H", 99))
    with_odd_tag(folder / "offset.tif", offset=struct.pack("<I", 2**31))
    with_odd_exif(folder / "exif.jpg")
    return folder


def test_the_files_are_odd(odd: Path) -> None:
    """``--verbose`` shows what the libraries said: the other tests could not fail otherwise."""
    for slides, *said in ((odd, "invalid data type", "offset"), (odd / "exif.jpg", "EXIF")):
        code, lines = run("--verbose", "info", slides)
        assert code == 0
        assert all(any(each in line for line in lines) for each in said), lines


def test_info(odd: Path) -> None:
    assert sorted(path.name for path in find_slides(odd)) == ["offset.tif", "type.tif"]
    assert run("info", odd) == (0, [])
    assert run("info", odd / "exif.jpg") == (0, [])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tile(workers: int, odd: Path, tmp_path: Path) -> None:
    code, lines = run("tile", odd, "--out", tmp_path, "--workers", workers, "--patch-px", 64, "--mag", 20,
                      "--slide-mpp", 0.5)  # fmt: skip
    assert (code, stray(lines)) == (0, [])


@pytest.mark.parametrize("workers", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_predict(workers: int | None, odd: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    code, lines = run("predict", odd, "--checkpoint", small_checkpoint, "--out", tmp_path, "--device", "cpu",
                      "--slide-mpp", 1.0, *([] if workers is None else ["--workers", workers]))  # fmt: skip
    assert (code, stray(lines)) == (0, [])


@pytest.mark.slow
def test_cases_and_real_slides(cases_folder: Path, real_data: Path, tmp_path: Path) -> None:
    for number, folder in enumerate((cases_folder / "tiff", cases_folder / "mirax", real_data / "slides")):
        assert find_slides(folder)
        for words in (("info", folder), ("tile", folder, "--out", tmp_path / str(number), "--patch-px", 64,
                                         "--set", "tiling.patch_mpp=4")):  # fmt: skip
            _, lines = run(*words)
            assert stray(lines) == []
