"""Work in several processes, some of which die."""

import os
import sys

import pytest

from wsi_ips.inference.in_hand import Died
from wsi_ips.inference.shared_out import shared_out, started_early


def double_or_die(number: int) -> int:
    if number == 3:
        os._exit(9)
    return 2 * number


def refuse(number: int) -> int:
    raise ValueError(f"no {number}")


def test_a_process_that_dies_costs_its_own_piece_of_work_alone() -> None:
    done = list(shared_out(double_or_die, range(6), workers=2))
    assert sorted(key for key, _ in done) == [0, 1, 2, 3, 4, 5]
    results = dict(done)
    death = results.pop(3)
    assert isinstance(death, Died)
    assert str(death) == "ended with exit code 9"
    assert results == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}


def test_what_work_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no 7"):
        list(shared_out(refuse, [7], workers=1))


def test_processes_that_were_started_early_do_the_work_and_are_replaced_when_one_dies() -> None:
    # Modules that nothing here imports.
    with started_early(2, modules=["colorsys"]) as pool:
        loaded = dict(shared_out(is_loaded, ["colorsys", "xdrlib_of_nobody"], workers=2, pool=pool))
        assert loaded == {"colorsys": True, "xdrlib_of_nobody": False}
    with started_early(2, modules=["wsi_ips.errors"]) as pool:
        results = dict(shared_out(double_or_die, range(6), workers=2, pool=pool))
    assert isinstance(results.pop(3), Died)
    assert results == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}


def test_one_worker_needs_no_process_of_its_own() -> None:
    with started_early(1, modules=["no.such.module"]) as pool:
        assert pool is None


def is_loaded(module: str) -> bool:
    return module in sys.modules
