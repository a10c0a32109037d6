"""A candidate's own process: what becomes of it stays there."""

import os
import signal
import time

from wsi_ips.search.candidate import Scored, in_own_process


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
    assert in_own_process(double, (2.0,), timeout_s=120) == Scored(4.0)


def test_an_error_is_the_candidate_s_reason() -> None:
    assert in_own_process(refuse, (1.0,), timeout_s=120) == Scored(None, "ValueError: no score for 1.0")


def test_a_process_that_is_killed_costs_its_candidate_only() -> None:
    scored = in_own_process(die, (1.0,), timeout_s=120)
    assert scored.score is None
    assert "exit code -9" in scored.error
    assert in_own_process(double, (1.0,), timeout_s=120) == Scored(2.0)


def test_a_candidate_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    scored = in_own_process(dawdle, (1.0,), timeout_s=0.5)
    assert scored == Scored(None, "took longer than 0.5 s")
    assert time.monotonic() - started < 50
