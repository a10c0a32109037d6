"""What stands on top of a report."""

import math
from pathlib import Path

import pytest

from tests.report.reported_run import Slide, stored
from wsi_ips.config import TaskConfig
from wsi_ips.errors import count
from wsi_ips.report.summary import BINS, answer, class_colour, duration, figure, shortened, summarise


def test_slides_are_counted_and_sorted_into_classes_and_bins(tmp_path: Path) -> None:
    chances = [0.02, 0.31, 0.49, 0.51, 0.97, 1.0]
    slides = [Slide(f"s{place}", chance) for place, chance in enumerate(chances)]
    slides += [Slide("bad", status="failed", error="why"), Slide("late", status="waiting")]
    summary = summarise(stored(tmp_path, slides))
    assert summary.counts == {"ok": 6, "failed": 1, "unfinished": 1}
    assert summary.patches == 6 * 176
    (task,) = summary.tasks
    shown = [(part.name, part.shown, part.share) for part in task.parts]
    assert shown == [
        ("normal", "3", 0.5),
        ("tumor", "3", 0.5),
    ]
    assert task.histogram is not None
    assert task.histogram.of == "probability of tumor"
    filled = {place: number for place, number in enumerate(task.histogram.counts) if number}
    assert filled == {0: 1, 6: 1, 9: 1, 10: 1, 19: 2}
    assert task.histogram.colours[9] == class_colour(0)
    assert task.histogram.colours[10] == class_colour(1)


def test_where_the_time_went_adds_up(tmp_path: Path) -> None:
    summary = summarise(
        stored(tmp_path, [Slide("a", seconds=8), Slide("b", seconds=72), Slide("c", seconds=4)])
    )
    assert summary.time is not None
    assert summary.time.total == "1 min 24 s"
    assert summary.time.median == "8.0 s"
    assert summary.time.slowest_number == 2
    assert {part.name: round(part.share, 3) for part in summary.time.parts} == {
        "opening and tissue": 0.25, "encoding": 0.5, "the rest": 0.25,
    }  # fmt: skip
    assert summary.time.peak_memory == "512 MB"


def test_every_kind_of_task_has_its_summary(tmp_path: Path) -> None:
    tasks = (
        TaskConfig(name="type", classes=("a", "b", "c")),
        TaskConfig(name="found", classes=("x", "y"), activation="sigmoid"),
        TaskConfig(name="age", classes=("years",), activation="linear"),
    )
    slides = [
        Slide("one", probabilities={"type": {"a": 0.2, "b": 0.7, "c": 0.1}, "found": {"x": 0.9, "y": 0.6},
                                    "age": {"years": 61.5}}),
        Slide("two", probabilities={"type": {"a": 0.8, "b": 0.1, "c": 0.1}, "found": {"x": 0.7, "y": 0.1},
                                    "age": {"years": 40.0}}),
    ]  # fmt: skip
    kind, found, age = summarise(stored(tmp_path, slides, tasks)).tasks
    assert [part.shown for part in kind.parts] == ["1", "1", "0"]
    assert kind.histogram is not None
    assert sum(kind.histogram.counts) == 2
    assert [(part.name, part.share) for part in found.parts] == [("x", 1.0), ("y", 0.5)]
    assert not found.stacked
    assert age.numbers == "years: median 50.75, from 40 to 61.5"
    assert [answer(task, dict(slides[0].probabilities[task.name])) for task in tasks] == ["b", "x, y", "61.5"]  # type: ignore[index]


def test_a_probability_that_is_none_is_in_no_bin(tmp_path: Path) -> None:
    summary = summarise(stored(tmp_path, [Slide("a", math.nan), Slide("b", 0.2)]))
    assert summary.tasks[0].histogram is not None
    assert sum(summary.tasks[0].histogram.counts) == 1
    assert len(summary.tasks[0].histogram.counts) == BINS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.42 s"),
        (3.26, "3.3 s"),
        (38.4, "38 s"),
        (59.7, "1 min"),
        (725, "12 min 5 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_words() -> None:
    assert count(1, "slide") == "1 slide"
    assert count(1024, "patch", "patches") == "1,024 patches"
    assert [figure(value) for value in (None, math.nan, 0.5, -0.25, 1234.5)] == [
        "–",
        "–",
        "0.500",
        "-0.250",
        "1.23e3",
    ]
    long = shortened("x" * 5000 + "\nend")
    assert len(long) < 700
    assert long.endswith("end")
