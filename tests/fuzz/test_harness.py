"""The harness itself: what it notices, that it goes on, that a number makes the same inputs again."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.campaign import edits_of, shortened
from tests.fuzz.corpus import Entry
from tests.fuzz.edits import Edit, apply, edits_between, packed, unpacked
from tests.fuzz.mutators import mutators_of
from tests.fuzz.seeds import SEEDS, seed
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.workers import Worker

RUN = "tests.fuzz.misbehaving:misbehave"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        ("nothing", ""),
        ("refuse", ""),
        ("told", ""),
        ("escape", "a control character in a message"),
        ("bug", "IndexError"),
        ("die", "the process died of SIGSEGV"),
        ("swell", "too much memory"),
        ("warn", "RuntimeWarning"),
        ("log", "a line of elsewhere's log"),
        ("trace", "a traceback in the log: ValueError"),
        ("print", "printed by a library | lib: bad marker"),
        ("half", "a half-written file is left"),
    ],
)
def test_what_is_noticed(worker: Worker, act: str, problem: str) -> None:
    verdict = worker.judge(RUN, {"s": act.encode()})
    assert verdict.problem.startswith(problem)
    assert bool(verdict.problem) == bool(problem)
    assert not worker.judge(RUN, {"s": b"nothing"}).problem  # it goes on, whatever came before


def test_a_child_that_hangs_is_ended() -> None:
    with Worker() as worker:
        assert "is no such thing" in worker.judge(RUN, {"s": b"refuse"}).said
        worker.wall_s = 1.0
        assert worker.judge(RUN, {"s": b"hang"}).problem.startswith("does not end")


def test_a_finding_is_shortened_to_what_it_takes(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = {"s": b"nothing", "t": b"abc"}
    monkeypatch.setattr("tests.fuzz.corpus.seed", lambda name: sound)
    edits = [Edit("t", 0, 1, b"x"), Edit("s", 0, 7, b"bug"), Edit("t", 1, 1, b"y"), Edit("t", 2, 1, b"z")]
    entry = Entry.of("made", "up", edits)
    verdict = worker.judge(RUN, entry.files())
    short = shortened(worker, Target(("up",), RUN), entry, verdict)
    assert short.edits == (edits[1],)
    assert short.found.startswith("IndexError")


def test_the_same_number_makes_the_same_input() -> None:
    for target in TARGETS:
        made = [edits_of(number, target, 7) for number in range(3)]
        assert made == [edits_of(number, target, 7) for number in range(3)]
    assert edits_of(0, "tiff", 7) != edits_of(0, "tiff", 8)


def test_every_seed_has_a_target_and_every_target_seeds() -> None:
    prefixes = [prefix for target in TARGETS.values() for prefix in target.seeds]
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in SEEDS)
    assert all(any(name.startswith(prefix) for name in SEEDS) for prefix in prefixes)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_sound_input_is_taken(worker: Worker, target: str) -> None:
    """Else what is fuzzed behind the first check is never reached. An image or a recipe may lack something."""
    name = next(name for name in SEEDS if name.startswith(TARGETS[target].seeds))
    verdict = worker.judge(TARGETS[target].run, seed(name))
    assert not verdict.problem
    assert not verdict.said or target in {"coords", "tables", "recipe"}, verdict.said


@pytest.mark.parametrize("name", ["tiff/svs", "ndpi/small", "dicom/sparse", "zarr/version3", "coords/clam",
                                  "tables/manifest", "weights/safetensors", "recipe/evaluate"])  # fmt: skip
def test_each_mutator_of_a_kind_changes_something(name: str) -> None:
    file, data = next((file, data) for file, data in seed(name).items() if len(data) > 20)
    for mutate in set(mutators_of(file, data, sound=True)):
        assert any(mutate(Random(number), data) != data for number in range(60)), mutate.__name__


@pytest.mark.parametrize("number", range(40))
def test_edits_turn_one_file_into_the_other(number: int) -> None:
    chance = Random(number)
    before = chance.randbytes(chance.randrange(300))
    after = bytearray(before)
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(after) + 1)
        after[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
    edits = edits_between("a", before, bytes(after))
    assert apply({"a": before}, edits)["a"] == after
    assert [Edit.from_json(edit.to_json()) for edit in edits] == edits


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = Entry.of("tables", "tables/manifest", [Edit("manifest.csv", 0, 5, b"\xff" * 100)], found="x | y")
    parts = Entry.of("tiff", "tiff/svs", [Edit("s.svs", 60, 2, b"ab")], found="z")
    for entry in (whole, parts):
        again = Entry.read(entry.write(tmp_path))
        assert (again.target, again.found, dict(again.files())) == (
            entry.target,
            entry.found,
            dict(entry.files()),
        )
        assert not again.stale
    assert Entry.read(parts.write(tmp_path)).edits == parts.edits
    assert Entry(parts.target, "z", parts.seed, "0" * 16, parts.edits).stale


def test_bytes_are_packed_and_unpacked() -> None:
    for data in (b"", b"ab", b"[" * 100_000):
        assert unpacked(packed(data)) == data
    assert len(packed(b"[" * 100_000)) < 400
