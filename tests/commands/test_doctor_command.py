"""``wsi-ips doctor``: a line for each check, exit code 1 for a fault, and what it says of broken installations."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread
from typing import Any

import imagecodecs
import numpy as np
import pytest

from tests.commands.console import Console
from wsi_ips.doctor import findings, folders, machine, pixels, speed
from wsi_ips.doctor.findings import Check, Finding
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.storage import system


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks are done here, so that a test can break what they find."""

    def examine(checks: Sequence[Check]) -> Iterator[Finding]:
        for check in checks:
            yield from check.findings()

    monkeypatch.setattr(findings, "examine", examine)


@pytest.fixture
def without_pixels(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the checks that draw slides."""
    monkeypatch.setattr(pixels, "pixel_checks", list)


def told(console: Console, *arguments: str | Path, code: int) -> dict[str, dict[str, str]]:
    said = console("doctor", "--json", *arguments)
    assert said.code == code, said.out
    return {finding["check"]: finding for finding in json.loads(said.out)["findings"]}


@pytest.mark.slow
def test_this_installation_is_healthy_and_says_so_line_by_line(console: Console, tmp_path: Path) -> None:
    said = console("doctor", "--quick", "--folder", tmp_path)
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert all(line.startswith(("ok  ", "warning ")) for line in lines[:-1])
    assert lines[-1].endswith("0 faults")
    wanted = ["versions", "processor", "memory", "pixels", "codec JPEG", "codec JPEG XL", "container DICOM"]
    for check in (*wanted, f"folder {tmp_path}"):
        assert any(line[9:].startswith(f"{check}: ") for line in lines), f"no line about {check}"
    assert "speed" not in said.out, "--quick leaves speeds out"
    assert "Traceback" not in said.out + said.err
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_missing_folder_and_a_file_are_faults(
    console: Console, tmp_path: Path, without_pixels: None
) -> None:
    (tmp_path / "file").touch()
    found = told(console, "--quick", "--folder", tmp_path / "none", "--folder", tmp_path / "file", code=1)
    assert found[f"folder {tmp_path / 'none'}"]["found"] == "does not exist"
    assert found[f"folder {tmp_path / 'file'}"]["found"] == "is a file, not a folder"
    assert found[f"folder {tmp_path / 'none'}"]["status"] == "fault"


def test_what_other_packages_add_and_what_of_it_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {
        "wsi_ips.aggregators": [EntryPoint("abmil", "math:pi", ""), EntryPoint("odd", "math:pi", "")],
        "wsi_ips.selectors": [EntryPoint("mine", "logging:log", "")],
        "wsi_ips.encoders": [EntryPoint("resnet18", "math:floor", "")],
    }
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: offered.get(group, []))
    assert [(finding.status, finding.found) for finding in machine.extensions()] == [
        ("ok", "selector mine of the package logging"),
        ("warning", "aggregator odd of the package math does not load: it is of type float, no Kind"),
        ("warning", "encoder resnet18 of the package math is ignored: the name is timm's"),
        ("warning", "aggregator abmil of the package math is ignored: the name is wsi_ips' own"),
    ]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root may write into any folder: see the next test",
)
def test_a_folder_without_permission_to_write_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        (finding,) = folders.folder_of_slides_or_results(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert finding.status == "warning"
    assert "not written to (permission denied)" in finding.found


def test_a_read_only_folder_is_a_warning_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(folders.tempfile, "mkdtemp", refused)
    (finding,) = folders.folder_of_slides_or_results(tmp_path)
    assert finding.status == "warning"
    assert "can be read, not written to (read-only file system)" in finding.found
    speed_there = folders.speed(tmp_path)
    assert isinstance(speed_there, Finding)
    assert "not measured: read-only file system" in speed_there.found


def test_a_drive_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    (finding,) = folders.folder_of_slides_or_results(tmp_path)
    assert (finding.status, finding.found[:18]) == ("warning", "has no file locks:")


def test_locks_that_keep_nobody_out_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *arguments: None)
    (finding,) = folders.folder_of_slides_or_results(tmp_path)
    assert finding.status == "fault"
    assert "do not keep a second run out" in finding.found


def test_a_full_drive_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 2**40, "used": 2**40, "free": 1000})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda folder: usage)
    (finding,) = folders.folder_of_slides_or_results(tmp_path)
    assert (finding.status, finding.found) == ("fault", "is full: 0.0 of 1024.0 GiB are free")


def test_swapped_colours_are_a_fault(
    console: Console, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenSlideReader.read
    monkeypatch.setattr(
        OpenSlideReader,
        "read",
        lambda *given, **named: np.ascontiguousarray(read(*given, **named)[..., ::-1]),
    )
    found = told(console, "--quick", code=1)
    assert found["pixels"]["status"] == "fault"
    assert "reader openslide is off by up to" in found["pixels"]["found"]
    assert "openslide-bin" in found["pixels"]["fix"]
    assert found["codec JPEG"]["status"] == "ok", "the other reader is right"


def test_a_reader_that_is_wrong_in_the_far_corner_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    read = pixels._read

    def wrong(path: Path, region: tuple[int, int, int, int], *, reader: str | None = None) -> Any:
        found = read(path, region, reader=reader)
        if region == pixels.REGIONS[-1] and reader == "openslide":
            found = np.roll(found, 1, axis=1)
        return found

    monkeypatch.setattr(pixels, "_read", wrong)
    finding = pixels.openslide_and_ours()
    assert (finding.status, "80x50 px at (620, 470)" in finding.found) == ("fault", True)


def test_a_codec_whose_library_is_absent_is_a_warning_that_names_the_package(
    console: Console, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagecodecs.JPEGXL, "available", False)
    monkeypatch.setitem(sys.modules, "zarr", None)
    found = told(console, "--quick", code=0)
    assert found["codec JPEG XL"]["status"] == "warning"
    assert "'imagecodecs'" in found["codec JPEG XL"]["fix"]
    assert found["container OME-Zarr"]["status"] == "warning"
    assert "'wsi_ips[zarr]'" in found["container OME-Zarr"]["fix"]


def test_a_codec_that_decodes_wrongly_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "drawn", lambda: np.full((520, 700, 3), 100, np.uint8))
    write = pixels.write_tiff
    monkeypatch.setattr(
        pixels, "write_tiff", lambda path, picture, codec: write(path, picture + np.uint8(1), codec)
    )
    finding = pixels.codec_decodes("Zstandard")
    assert finding.status == "fault"
    assert "off by up to 1 grey levels" in finding.found


def test_a_package_that_is_missing_or_too_old_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=99",
        "no-such-package>=1",
        "h5py>=3",
        "zarr>=3; extra == 'zarr'",
        "nothing; extra == 'view'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    numpy, missing = machine.packages()
    assert (numpy.status, missing.status) == ("fault", "fault")
    assert numpy.found == f"numpy is {np.__version__}, and numpy>=99 is needed"
    assert missing.fix == "pip install 'no-such-package>=1'"
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted[2:])
    (whole,) = machine.packages()
    assert whole.status == "ok"
    assert whole.found.endswith("extras: zarr")
    assert whole.fix.startswith("nothing has to be done; extras that could be added")
    assert "view" in whole.fix
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["nothing; extra == 'demo'"])
    (whole,) = machine.packages()
    assert whole.fix.endswith("demo (the weights of wsi-ips demo)")


def test_an_old_openslide_is_a_warning_and_one_that_does_not_load_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openslide.__library_version__", "4.0.0")
    assert machine.openslide_library().status == "warning"
    assert "CVE-2026-48977" in machine.openslide_library().found
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert machine.openslide_library().status == "fault"


def test_a_container_that_may_use_less_says_how_many_threads_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(system, "CONTAINER_CPU", tmp_path / "cpu.max")
    monkeypatch.setattr(system, "CONTAINER_MEMORY", tmp_path / "memory.max")
    assert machine.processor().status == "warning"
    assert "OMP_NUM_THREADS=1" in machine.processor().fix
    assert machine.memory().found.endswith("of 1.0 GiB are free")


def test_a_card_that_pytorch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert [finding.status for finding in machine.devices()] == ["ok"]
    monkeypatch.setattr(machine.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    (finding,) = machine.devices()
    assert finding.status == "warning"
    assert "there is an NVIDIA GPU" in finding.found


class _Hub(BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200 if "good" in (self.headers.get("Authorization") or "good") else 401)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """A hub on this machine, and what it was asked."""
    asked: list[tuple[str, str | None]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("token", "status"), [("hf_goodsecret", "ok"), ("hf_badsecret", "fault")])
def test_the_hub_is_asked_only_where_it_may_be_and_the_token_is_never_shown(
    console: Console,
    without_pixels: None,
    hub: list[tuple[str, str | None]],
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    status: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    said = console("doctor", "--quick")
    assert not hub, "nothing is sent unasked"
    assert "a token is there" in said.out
    asked = console("doctor", "--quick", "--online")
    assert f"{status:<8} hub online: " in asked.out
    assert hub == [("/api/whoami-v2", f"Bearer {token}")]
    assert "secret" not in said.out + said.err + asked.out + asked.err


def test_a_hub_that_does_not_answer_is_a_fault_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    finding = machine.hub(online=True)[-1]
    assert (finding.check, finding.status) == ("hub online", "fault")
    assert "does not answer" in finding.found


def test_speeds_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(speed, "SLOW_TILES_S", 1e9)
    monkeypatch.setattr(speed, "SLOW_PATCHES_S", 0.0)
    monkeypatch.setattr(speed, "BATCH", 2)
    monkeypatch.setattr(folders, "TRIED_MIB", 2)
    monkeypatch.setattr(folders, "SLOW_MIB_S", 1e9)
    assert speed.decoding().status == "warning"
    assert "JPEG tiles of 256 px a second in one thread" in speed.decoding().found
    assert speed.encoding().status == "ok"
    assert "resnet18 in float32 on" in speed.encoding().found
    measured = folders.speed(tmp_path)
    assert isinstance(measured, Finding)
    assert (measured.status, "MiB/s written" in measured.found) == ("warning", True)
    assert folders.speed(tmp_path / "none") == []
    assert not list(tmp_path.iterdir())
