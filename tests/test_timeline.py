"""The recorder of stages: what it writes, what it adds up, and what it leaves alone."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from wsi_ips import timeline
from wsi_ips.errors import ResultsError
from wsi_ips.timeline import TIMELINE_NAME, carried, in_thread, read_timeline, recording, slide, span, staged

Event = dict[str, Any]


def spans(folder: Path) -> list[Event]:
    """The spans of a timeline, after a check that it is valid and that nothing overlaps without being inside."""
    events = [
        event
        for event in json.loads((folder / TIMELINE_NAME).read_text(encoding="utf-8"))["traceEvents"]
        if event["ph"] == "X"
    ]
    tracks: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for track in tracks.values():
        open_until: list[float] = []
        for event in sorted(track, key=lambda event: (event["ts"], -event["dur"])):
            end = event["ts"] + event["dur"]
            while open_until and open_until[-1] <= event["ts"] + 1e-4:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-4, f"{event} overlaps"
            open_until.append(end)
    return events


def seconds(folder: Path) -> dict[tuple[str, str], float]:
    return {(one.who, one.name): one.seconds for one in read_timeline(folder / TIMELINE_NAME).stages}


def test_stages_of_a_slide_are_written_and_add_up_to_it(tmp_path: Path) -> None:
    with recording(tmp_path, command="test", on=True) as recorded, slide("s1"):
        with span("kept patches"):
            time.sleep(0.02)
            with span("encode"):
                time.sleep(0.03)
        time.sleep(0.01)
    its = {event["name"]: event for event in spans(tmp_path)}
    whole, outer, inner = its["s1"], its["kept patches"], its["encode"]
    assert whole["cat"] == "slide"
    assert inner["args"] == {"slide": "s1"}
    told = seconds(tmp_path)
    assert sum(told.values()) * 1e6 == pytest.approx(whole["dur"], rel=1e-6)
    assert told["main", "kept patches"] * 1e6 == pytest.approx(outer["dur"] - inner["dur"], rel=1e-6)
    assert told["main", "the rest"] * 1e6 == pytest.approx(whole["dur"] - outer["dur"], rel=1e-6)
    assert told["main", "the rest"] > 0.009
    assert recorded.path == tmp_path / TIMELINE_NAME
    assert recorded.stages == read_timeline(tmp_path / TIMELINE_NAME)
    assert [path.name for path in tmp_path.iterdir()] == [TIMELINE_NAME]


def test_without_a_recording_nothing_is_written_and_functions_stay_as_they_are(tmp_path: Path) -> None:
    with recording(tmp_path, command="test", on=False) as recorded:
        with slide("s1"), span("encode") as stage:
            stage.inside({"read": 1.0})
        assert in_thread(time.sleep) is carried(time.sleep) is time.sleep
        assert staged("encode")(len)("abc") == 3
    assert recorded.table() == []
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_a_valid_file_that_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        recording(tmp_path, command="test", on=True),
        slide("s1"),
        span("encode"),
    ):
        raise ZeroDivisionError
    assert {event["name"]: event["args"]["error"] for event in spans(tmp_path)} == {
        "s1": "ZeroDivisionError",
        "encode": "ZeroDivisionError",
    }
    with recording(tmp_path, command="test", on=True), span("open"):
        pass
    assert [event["name"] for event in spans(tmp_path)] == ["open"], "an error may not leave a recording on"


def test_an_error_before_anything_is_done_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recording(tmp_path, command="test", on=True):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with recording(tmp_path, command="test", on=True):
        pass
    assert (tmp_path / TIMELINE_NAME).is_file()


@pytest.mark.parametrize("name", ["Präparat é 標本", 'a "quoted" \\ name', "no utf-8 \udcff", "<b>\n"])
def test_any_name_of_a_slide_comes_back(tmp_path: Path, name: str) -> None:
    with recording(tmp_path, command="test", on=True), slide(name), span("open"):
        pass
    assert {event["args"]["slide"] for event in spans(tmp_path)} == {name}
    if name.startswith("Pr"):  # Perfetto knows no escapes of letters
        assert "Präparat é 標本" in (tmp_path / TIMELINE_NAME).read_text(encoding="utf-8")


def test_a_run_that_did_nothing_keeps_the_file_of_the_one_before(tmp_path: Path) -> None:
    with recording(tmp_path, command="test", on=True), span("open"):
        pass
    before = (tmp_path / TIMELINE_NAME).read_bytes()
    with recording(tmp_path, command="test", on=True) as recorded:
        pass
    assert (tmp_path / TIMELINE_NAME).read_bytes() == before
    assert recorded.told() == []


def test_threads_have_tracks_of_their_own_which_later_threads_take_over(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def work() -> None:
        with span("chunk") as chunk:
            together.wait()
            time.sleep(0.01)
            chunk.inside({"read": 0.002, "decode": 0.004, "area means": 60.0})

    with recording(tmp_path, command="test", on=True), slide("s1"):
        for _ in range(3):
            with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
                for each in [pool.submit(in_thread(work, slide_id="s2")) for _ in range(2)]:
                    each.result()
    chunks = [event for event in spans(tmp_path) if event["name"] == "chunk"]
    assert len(chunks) == 6
    assert len({event["tid"] for event in chunks}) == 2
    assert all(event["args"] == {"slide": "s2"} and event["cat"] == "threads" for event in chunks)
    told = seconds(tmp_path)
    assert told["threads", "read"] == pytest.approx(6 * 0.002, rel=1e-3)
    # A sum that cannot be true is cut at the end of its chunk.
    of_threads = sum(value for (who, _), value in told.items() if who == "threads")
    assert of_threads * 1e6 == pytest.approx(sum(event["dur"] for event in chunks), rel=1e-6)


def tiled(slide_id: str) -> str:
    with slide(slide_id), span("tissue"):
        time.sleep(0.001)
    return slide_id


def test_other_processes_add_their_part(tmp_path: Path) -> None:
    with recording(tmp_path, command="test", on=True):
        with slide("here"), span("tissue"):
            time.sleep(0.001)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            assert list(pool.map(carried(tiled), ["a", "b", "c"])) == ["a", "b", "c"]
    events = [event for event in spans(tmp_path) if event["cat"] == "slide"]
    assert len({event["pid"] for event in events}) == 2
    assert [event["name"] for event in sorted(events, key=lambda event: event["ts"])] == [
        "here",
        "a",
        "b",
        "c",
    ]
    assert read_timeline(tmp_path / TIMELINE_NAME).slides == 4


def test_processes_that_were_started_beside_the_first_add_their_part_and_join_nothing(tmp_path: Path) -> None:
    """As those of a training on several devices do, each of which runs the whole command."""
    program = (
        "import sys; from pathlib import Path; from wsi_ips.timeline import recording, step, span\n"
        "with recording(Path(sys.argv[1]), command='test', on=True, joins=False), step(0), span('backward'): pass"
    )
    with recording(tmp_path, command="test", on=True):
        with timeline.step(0), span("optimizer"):
            pass
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
        assert not (tmp_path / TIMELINE_NAME).exists()
    events = spans(tmp_path)
    assert sorted(event["name"] for event in events) == ["backward", "optimizer", "step 1", "step 1"]
    assert len({event["pid"] for event in events}) == 2


def test_a_process_that_was_killed_in_the_middle_of_a_line_costs_that_line(tmp_path: Path) -> None:
    with recording(tmp_path, command="test", on=True):
        with slide("s1"), span("encode"):
            pass
        (part,) = (tmp_path / timeline.PARTS).iterdir()
        (tmp_path / timeline.PARTS / "killed-1.jsonl").write_bytes(part.read_bytes()[:-20])
    assert sum(event["name"] == "encode" for event in spans(tmp_path)) == 2


def test_a_long_run_is_bounded_in_memory_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_BYTES", 100_000)
    with recording(tmp_path, command="test", on=True):
        held = timeline._NOW.get()
        assert held is not None
        with slide("s1"):
            for _ in range(5_000):
                with span("encode"):
                    pass
                assert len(held.timeline._lines) <= timeline.AT_ONCE
        with slide("s2"):
            pass
    events = spans(tmp_path)
    told = read_timeline(tmp_path / TIMELINE_NAME)
    assert 500 < len(events) < 3_000
    assert {event["name"] for event in events} == {"encode", "s1", "s2"}
    (encoded,) = (one for one in told.stages if one.name == "encode")
    assert encoded.times == 5_000
    assert told.left_out == 5_000 - sum(event["name"] == "encode" for event in events)


def test_a_folder_that_cannot_be_written_to_costs_the_timeline_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.write_text("a file where a folder should be")
    done = []
    with recording(out, command="test", on=True) as recorded, slide("s1"):
        done.append("s1")
    assert done == ["s1"]
    assert recorded.told() == []
    assert "not written" in caplog.text


def test_it_stays_off_in_processes_that_no_recording_began() -> None:
    program = "from wsi_ips import timeline as t; print(t.span('a') is t.span('b'), t._NOW.get())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True None"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]\n",
        '{"otherData": 5,\n"traceEvents": []}',
        '{"otherData": {"program": "another", "slides": 1, "left_out": 0, "stages": []},\n"traceEvents": []}',
        '{"otherData": {"program": "wsi_ips", "slides": 1, "left_out": 0, "stages": [["main", "a", 1, NaN]]},\n',
        '{"otherData": {"program": "wsi_ips", "slides": 1, "left_out": 0, "stages": [["main", "a", 1, 1e999]]},\n',
        '{"otherData": {"program": "wsi_ips", "slides": -1, "left_out": 0, "stages": []},\n',
        '{"otherData": {"program": "wsi_ips", "slides": 1, "left_out": 0, "stages": [["nobody", "a", 1, 1]]},\n',
        '{"otherData": {"program": "wsi_ips", "slides": 1, "left_out": 0, "stages": [["main", "a", 1, 1, 1]]},\n',
        '{"otherData": {"program": "wsi_ips", "slides": 1, "left_out": 0, "stages": [["main", "a", 1, 1'
        + "0" * 400
        + "]]},\n",
        '{"otherData": {"program": "wsi_ips", "slides": 1' + "0" * 40 + ', "left_out": 0, "stages": []},\n',
        '{"a": ' + "[" * 100_000 + ",\n",
        '{"a": "' + "b" * 2_000_000,
    ],
)
def test_what_is_no_timeline_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / TIMELINE_NAME
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"timeline\.json: is no timeline of wsi_ips"):
        read_timeline(path)
