"""What once failed does not fail any more: each stored finding, and those that were known before the fuzzer."""

from collections.abc import Iterator

import pytest

from tests.fuzz.corpus import Entry, stored
from tests.fuzz.known import KNOWN
from tests.fuzz.targets import TARGETS
from tests.fuzz.workers import Worker

STORED = stored()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.mark.parametrize("name", STORED)
@pytest.mark.slow
def test_a_stored_finding(worker: Worker, name: str) -> None:
    entry: Entry = STORED[name]
    if entry.stale:
        pytest.skip(f"{entry.seed} is written otherwise by these versions of the libraries")
    verdict = worker.judge(TARGETS[entry.target].run, entry.files())
    assert not verdict.problem, f"{verdict.problem} {verdict.where}; it once was: {entry.found}"


@pytest.mark.parametrize("name", KNOWN)
def test_what_was_known_before(worker: Worker, name: str) -> None:
    target, once, make = KNOWN[name]
    verdict = worker.judge(TARGETS[target].run, make())
    assert not verdict.problem, f"{verdict.problem} {verdict.where}; it once was: {once}"
