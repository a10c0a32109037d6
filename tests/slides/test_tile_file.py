import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_ips.slides.tile_layout import LARGEST_GAP, LARGEST_READ, TileFile

SIZE = 300_000
CONTENT = os.urandom(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("file") / "bytes"
    file.write_bytes(CONTENT)
    return file


PART = st.tuples(st.integers(0, SIZE + 1000), st.integers(0, 40_000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PART, max_size=20), ordered=st.booleans())
def test_parts_are_the_files_bytes(path: Path, parts: list[tuple[int, int]], ordered: bool) -> None:
    """In any order, overlapping, and beyond the end, where they are shorter."""
    parts = sorted(parts) if ordered else parts
    read = TileFile(path).read_parts(parts)
    assert [bytes(data) for data in read] == [CONTENT[at : at + count] for at, count in parts]


@pytest.mark.parametrize(
    ("parts", "reads"),
    [
        ([(0, 100), (100, 50), (150, 7)], 1),
        ([(0, 100), (100 + LARGEST_GAP, 50)], 1),
        ([(0, 100), (101 + LARGEST_GAP, 50)], 2),
        ([(500, 100), (0, 100)], 2),
        ([(0, LARGEST_READ), (LARGEST_READ, 10)], 2),
        ([], 0),
    ],
)
def test_neighbours_are_read_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[tuple[int, int]], reads: int
) -> None:
    file, seen = TileFile(path), []

    def counted(offset: int, count: int) -> bytes:
        seen.append((offset, count))
        return CONTENT[offset : offset + count]

    monkeypatch.setattr(file, "read", counted)
    file.read_parts(parts)
    assert len(seen) == reads
