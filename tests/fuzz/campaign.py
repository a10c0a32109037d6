"""Makes inputs from seeds by chance, has them judged, and keeps what was wrong as short as it can be made.

Every input is a function of (seed number, target, its own number): a run with the same ``SEED`` makes the same
inputs in the same order, however long it lasts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.corpus import Entry
from tests.fuzz.edits import Edit, Files, apply, edits_between
from tests.fuzz.judge import Verdict
from tests.fuzz.mutators import mutators_of, spliced
from tests.fuzz.seeds import SEEDS, seed
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.workers import Worker

MOST_TRIES_TO_SHORTEN = 60
MOST_SECONDS_TO_SHORTEN = 60.0
MOST_BYTES = 4 << 20
HOW_MANY = (1, 1, 1, 2, 3, 5)
"""Changes to one input."""

Say = Callable[[str], None]


@dataclass
class Tally:
    """inputs: {target: how many were tried}. findings: {what is wrong: the input that showed it first}."""

    inputs: dict[str, int] = field(default_factory=dict)
    findings: dict[str, Entry] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    """{what is wrong: how many more inputs showed it}."""


def edits_of(number: int, target: str, chance_seed: int) -> tuple[str, list[Edit]]:
    """(the seed's name, what is changed) of one input."""
    chance = Random(f"{chance_seed}/{target}/{number}")
    names = [name for name in SEEDS if name.startswith(TARGETS[target].seeds)]
    name = chance.choice(names)
    files: Files = seed(name)
    edits: list[Edit] = []
    for _ in range(chance.choice(HOW_MANY)):
        file = _file_of(chance, files)
        data = files[file]
        if chance.random() < 0.08:
            other = seed(chance.choice(names))
            changed = spliced(chance, data, other[_file_of(chance, other)])
        else:
            changed = _changed(chance, file, data, sound=data is seed(name)[file])
        more = edits_between(file, data, changed) if changed != data else []
        files = apply(files, more)
        edits += more
    return name, edits


def _changed(chance: Random, file: str, data: bytes, *, sound: bool) -> bytes:
    """By one of the mutators; as it is where that one cannot take what others left, or makes too much of it."""
    try:
        changed = chance.choice(mutators_of(file, data, sound=sound))(chance, data)
    except (ValueError, RecursionError):
        return data
    return changed if len(changed) <= MOST_BYTES else data


def _file_of(chance: Random, files: Files) -> str:
    """One of the files: small ones, which say how the others are to be read, as often as large ones."""
    small = [name for name, data in files.items() if len(data) < 5000]
    return chance.choice(small if small and chance.random() < 0.5 else list(files))


def fuzz(targets: Sequence[str], *, seconds: float, chance_seed: int, say: Say, corpus: Path) -> Tally:
    """Share the time out to the targets, each in a child of its own; findings are written below ``corpus``."""
    tally = Tally()
    whole = sum(TARGETS[name].share for name in targets)
    for name in targets:
        target = TARGETS[name]
        until = time.monotonic() + seconds * target.share / whole
        with Worker() as worker:
            for number, entry, verdict in _judged(worker, name, target, chance_seed, until):
                tally.inputs[name] = number + 1
                if not verdict.problem:
                    continue
                key = f"{name}: {verdict.key}"
                if key in tally.findings:
                    tally.again[key] = tally.again.get(key, 0) + 1
                    continue
                say(f"{name} {number}: {verdict.problem} {verdict.where}")
                tally.findings[key] = shortened(worker, target, entry, verdict)
                tally.findings[key].write(corpus)
    return tally


def _judged(
    worker: Worker, name: str, target: Target, chance_seed: int, until: float
) -> Iterator[tuple[int, Entry, Verdict]]:
    number = 0
    while time.monotonic() < until:
        seed_name, edits = edits_of(number, name, chance_seed)
        entry = Entry.of(name, seed_name, edits)
        yield number, entry, worker.judge(target.run, entry.files())
        number += 1


def shortened(worker: Worker, target: Target, entry: Entry, verdict: Verdict) -> Entry:
    """The finding with as few of its edits as still fail alike, and what is wrong in words."""
    edits, tries, until = list(entry.edits), 0, time.monotonic() + MOST_SECONDS_TO_SHORTEN
    step = max(1, len(edits) // 2)
    while step and tries < MOST_TRIES_TO_SHORTEN and time.monotonic() < until:
        for start in range(0, len(edits), step):
            fewer = edits[:start] + edits[start + step :]
            tries += 1
            shorter = Entry.of(entry.target, entry.seed, fewer)
            if fewer and worker.judge(target.run, shorter.files()).key == verdict.key:
                edits = fewer
                break
        else:
            step //= 2
    return Entry.of(entry.target, entry.seed, edits, found=f"{verdict.problem} {verdict.where}".strip())
