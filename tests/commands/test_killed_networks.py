"""Deadly slides before a network: ``predict``, ``features`` and ``detect`` get past them."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.commands.deadly import Command, detect, features, install, predict, rows, start, write_deadly
from tests.conftest import SmallData
from wsi_ips.inference.in_hand import IN_HAND

DIED = "the process that read it was killed by SIGSEGV; its file may be damaged"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install(folder)
    return folder


@pytest.fixture
def slides(small_data: SmallData, tmp_path: Path) -> Path:
    """a is good, b kills whoever opens it, c killed the first who did, d is good."""
    folder = tmp_path / "slides"
    folder.mkdir()
    good = sorted(small_data.slides.glob("*.tif"))[:3]
    shutil.copy(good[0], folder / "a.tif")
    write_deadly(folder / "b.tif", "SIGSEGV", good[1])
    write_deadly(folder / "c.tif", "once", good[1])
    shutil.copy(good[2], folder / "d.tif")
    return folder


@pytest.mark.parametrize(
    ("command", "table", "results"),
    [
        (predict, "slides.csv", ("attention/*.h5",)),
        (features, "features.csv", ("h5_files/*.h5", "pt_files/*.pt")),
        (detect, "detections.csv", ("objects/*.csv", "objects/*.geojson")),
    ],
)
@pytest.mark.slow
def test_at_most_one_start_dies_of_one_slide(
    installed: Path,
    slides: Path,
    small_checkpoint: Path,
    small_detector: Path,
    tmp_path: Path,
    command: Command,
    table: str,
    results: tuple[str, ...],
) -> None:
    out, said = tmp_path / "out", command(slides, small_checkpoint, small_detector)

    def stored(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for pattern in results for path in out.glob(pattern)}

    assert start(installed, *said, "--out", out)[0] == -signal.SIGSEGV
    assert {name[0] for name in stored(out)} == {"a"}, "stored before b was touched"
    assert start(installed, *said, "--out", out)[0] == -signal.SIGKILL
    code, printed = start(installed, *said, "--out", out)
    assert code == 3, printed
    found = rows(out / table)
    assert {name: row["status"] for name, row in found.items()} == {
        "a": "ok", "b": "failed", "c": "ok", "d": "ok"
    }  # fmt: skip
    assert DIED in found["b"]["error"]
    assert "deadly" in (out / IN_HAND).read_text()
    if command is predict:
        assert [row["attempts"] for row in found.values()] == ["1", "2", "2", "1"]

    # What a child made of c is what the command's own process makes of it.
    (slides / "b.tif").unlink()
    code, printed = start(installed, *said, "--out", tmp_path / "fresh")
    assert code == 0, printed
    assert stored(out) == stored(tmp_path / "fresh")
