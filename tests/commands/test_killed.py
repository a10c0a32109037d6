"""A slide that kills the process which reads it costs one start at most, and no other slide."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.commands.deadly import begin, ended, install, rows, start, write_deadly
from tests.conftest import SmallData
from wsi_ips.inference.in_hand import IN_HAND

PATCH = ("--patch-px", "64", "--mag", "10")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install(folder)
    return folder


@pytest.fixture
def good(small_data: SmallData) -> Path:
    return sorted(small_data.slides.glob("*.tif"))[0]


@pytest.fixture
def slides(good: Path, tmp_path: Path) -> Path:
    """Two good slides, a and c; tests add b."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "c"):
        shutil.copy(good, folder / f"{name}.tif")
    return folder


def in_hand(out: Path) -> dict[str, str]:
    path = out / IN_HAND
    return dict(json.loads(path.read_text())["slides"]) if path.exists() else {}


def been(slide: Path) -> int:
    """How many processes have opened a deadly slide."""
    return len(slide.with_suffix(".been").read_text().split())


@pytest.mark.slow
def test_tile_gets_past_a_deadly_slide(installed: Path, slides: Path, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_deadly(slides / "b.tif", "SIGSEGV", good)
    assert start(installed, "tile", slides, "--out", out, *PATCH)[0] == -signal.SIGSEGV
    assert [path.name for path in (out / "patches").glob("*.h5")] == ["a.h5"], "stored before b was touched"
    assert list(rows(out / "tiles.csv")) == ["a"]
    assert in_hand(out) == {"b": "read"}
    first = (out / "patches" / "a.h5").stat()
    for attempts in (2, 3):
        assert start(installed, "tile", slides, "--out", out, *PATCH)[0] == 3
        table = rows(out / "tiles.csv")
        assert [row["status"] for row in table.values()] == ["ok", "failed", "ok"]
        assert table["b"][
            "error"
        ] == f"{slides / 'b.tif'}: the process that read it was killed by SIGSEGV; " + (
            "its file may be damaged: leave it out, or convert it"
        )
        assert been(slides / "b.tif") == attempts, "tried once more, and never by the command's own process"
    assert (out / "patches" / "a.h5").stat().st_mtime_ns == first.st_mtime_ns


def test_a_slide_that_a_process_of_its_own_can_read_is_as_if_nothing_had_happened(
    installed: Path, slides: Path, good: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", ("--patch-px", "48", "--mag", "10", "--slide-mpp", "0.4")
    write_deadly(slides / "b.tif", "once", good)
    assert start(installed, "tile", slides, "--out", out, *settings)[0] == -signal.SIGKILL
    code, said = start(installed, "tile", slides, "--out", out, *settings)
    assert code == 0, said
    assert not (out / IN_HAND).exists()
    assert start(installed, "tile", slides, "--out", tmp_path / "fresh", *settings)[0] == 0
    for name in ("patches/b.h5", "contours_geojson/b.geojson", "tiles.csv"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


@pytest.mark.slow
def test_with_workers_no_start_dies(installed: Path, slides: Path, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_deadly(slides / "b.tif", "SIGSEGV", good)
    code, _ = start(installed, "tile", slides, "--out", out, *PATCH, "--workers", "2")
    assert code == 3
    table = rows(out / "tiles.csv")
    assert [row["status"] for row in table.values()] == ["ok", "failed", "ok"]
    assert "the process that read it was killed by SIGSEGV" in table["b"]["error"]
    assert in_hand(out) == {"b": "deadly"}
    assert start(installed, "tile", slides, "--out", out, *PATCH)[0] == 3, "nor without them later"


def test_a_slide_that_takes_the_start_with_it_even_from_a_child_fails_at_the_third(
    installed: Path, slides: Path, good: Path, tmp_path: Path
) -> None:
    """Where all processes of a group are killed together."""
    out = tmp_path / "out"
    write_deadly(slides / "b.tif", "whole start", good)
    for _ in range(2):
        assert start(installed, "tile", slides, "--out", out, *PATCH)[0] == -signal.SIGKILL
    assert sorted(path.name for path in (out / "patches").glob("*.h5")) == ["a.h5", "c.h5"]
    assert in_hand(out) == {"b": "read alone"}
    code, said = start(installed, "tile", slides, "--out", out, *PATCH)
    assert code == 3
    assert "the next start died while it was read in a process of its own" in said
    assert been(slides / "b.tif") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_blames_no_slide(
    installed: Path, slides: Path, good: Path, tmp_path: Path, number: int
) -> None:
    out, slow = tmp_path / "out", slides / "b.tif"
    write_deadly(slow, "slow", good)
    process = begin(installed, "tile", slides, "--out", out, *PATCH)
    while not slow.with_suffix(".been").exists():
        time.sleep(0.02)
        assert process.poll() is None
    assert in_hand(out) == {"b": "read"}
    process.send_signal(number)
    assert ended(process, within_s=120)[0] == 128 + number
    assert in_hand(out) == {}
    process = begin(installed, "tile", slides, "--out", out, *PATCH)
    assert ended(process)[0] == 0
    assert slow.with_suffix(".been").read_text().split()[1] == str(process.pid), "by itself, not by a child"


@pytest.mark.slow
def test_a_slide_given_by_itself_is_one_line(installed: Path, good: Path, tmp_path: Path) -> None:
    slide, out = tmp_path / "b.tif", tmp_path / "out"
    write_deadly(slide, "SIGKILL", good)
    assert start(installed, "tile", slide, "--out", out, *PATCH)[0] == -signal.SIGKILL
    code, said = start(installed, "tile", slide, "--out", out, *PATCH)
    assert code == 2
    assert [line for line in said.splitlines() if not line.startswith("Tiling")] == [
        f"wsi-ips: {slide}: the process that read it was killed by SIGKILL; if memory ran out give it more, "
        "else leave the slide out"
    ]
