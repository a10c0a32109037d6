"""What is on disk of the slides that are being read, and what the next start makes of it."""

import json
from pathlib import Path

import pytest

from wsi_ips.errors import ProcessDied
from wsi_ips.inference.in_hand import IN_HAND, SlidesInHand


def on_disk(folder: Path) -> dict[str, str]:
    path = folder / IN_HAND
    return dict(json.loads(path.read_text())["slides"]) if path.exists() else {}


def test_a_slide_is_on_disk_from_begin_to_end(tmp_path: Path) -> None:
    with SlidesInHand(tmp_path) as in_hand:
        in_hand.begin("a")
        in_hand.begin("b")
        assert on_disk(tmp_path) == {"a": "read", "b": "read"}
        in_hand.end("a")
        assert on_disk(tmp_path) == {"b": "read"}
        assert not in_hand.suspected("b")
    assert not (tmp_path / IN_HAND).exists()


def test_what_a_dead_start_left_is_suspected_until_it_is_tried(tmp_path: Path) -> None:
    SlidesInHand(tmp_path).begin("b\udcff")  # a name that is no UTF-8; the start dies
    with SlidesInHand(tmp_path) as in_hand:
        assert in_hand.apart(["a", "b\udcff"], str) == (["a"], ["b\udcff"])
        in_hand.begin("a")
        in_hand.begin("b\udcff", alone=True)  # and then comes Ctrl-C
    assert on_disk(tmp_path) == {"b\udcff": "read"}
    with SlidesInHand(tmp_path) as in_hand:
        in_hand.end("b\udcff")
    assert on_disk(tmp_path) == {}


def test_a_slide_that_took_two_starts_is_blamed_unread(tmp_path: Path) -> None:
    SlidesInHand(tmp_path).begin("b", alone=True)
    with SlidesInHand(tmp_path) as in_hand, pytest.raises(ProcessDied, match=r"b\.svs: a start died"):
        in_hand.alone("b", Path("b.svs"), len, "")
    assert on_disk(tmp_path) == {"b": "deadly"}
    with SlidesInHand(tmp_path) as in_hand:
        assert in_hand.alone("b", Path("b.svs"), len, "four") == 4
    assert on_disk(tmp_path) == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"slides": 3}', b'{"slides": {"a": "eaten"}}', b"[" * 100_000]
)
def test_a_file_of_nonsense_is_passed_over(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / IN_HAND).write_bytes(content)
    with SlidesInHand(tmp_path) as in_hand:
        assert not in_hand.suspected("a")
        assert "is ignored" in caplog.text
        in_hand.begin("a")
        assert on_disk(tmp_path) == {"a": "read"}


def test_a_place_that_takes_no_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with SlidesInHand(tmp_path / "file" / "below") as in_hand:
        in_hand.begin("a")
    assert "is not written" in caplog.text
