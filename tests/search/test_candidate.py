"""A candidate's own process: what becomes of it stays there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_ips.search.candidate import CandidateScore, in_own_process


def double(number: float) -> float:
    return 2 * number


def refuse(number: float) -> float:
    raise ValueError(f"no\nscore for {number}")


def die(number: float) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def dawdle(number: float) -> float:
    time.sleep(60)
    return number


def test_a_score_comes_back_from_another_process() -> None:
    assert in_own_process(double, (2.0,), timeout_s=120) == CandidateScore(4.0)


def test_an_error_is_the_candidate_s_reason() -> None:
    assert in_own_process(refuse, (1.0,), timeout_s=120) == CandidateScore(
        None, "ValueError: no score for 1.0"
    )


def test_a_process_that_is_killed_costs_its_candidate_only() -> None:
    scored = in_own_process(die, (1.0,), timeout_s=120)
    assert scored.score is None
    assert "exit code -9" in scored.error
    assert in_own_process(double, (1.0,), timeout_s=120) == CandidateScore(2.0)


def write_pid_and_dawdle(path: str) -> float:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    return 0.0


@pytest.mark.slow
def test_a_search_that_is_killed_takes_its_candidate_along(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    program = (
        "from tests.search.test_candidate import write_pid_and_dawdle as work\n"
        "from wsi_ips.search.candidate import in_own_process\n"
        f"in_own_process(work, ({str(told)!r},), timeout_s=600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=root) as search:
        try:
            wait_for(lambda: told.is_file() and bool(told.read_text()))
        finally:
            search.kill()
    wait_for(lambda: not lives(int(told.read_text())))


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_candidate_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    scored = in_own_process(dawdle, (1.0,), timeout_s=0.5)
    assert scored == CandidateScore(None, "took longer than 0.5 s")
    assert time.monotonic() - started < 50
