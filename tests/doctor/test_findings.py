"""Checks are independent: one that raises, crashes or never ends is a fault, and the others are done."""

import os

import pytest

from tests.doctor import fatal_checks
from wsi_ips.doctor.findings import Check, Finding, examine, worst


@pytest.mark.slow
def test_a_check_that_raises_crashes_or_hangs_costs_no_other_check() -> None:
    checks = [
        Check("first", fatal_checks.fine, {"name": "first"}),
        Check("raises", fatal_checks.raises),
        Check("dies", fatal_checks.dies),
        Check("between", fatal_checks.fine, {"name": "between"}),
        Check("hangs", fatal_checks.hangs),
        Check("last", fatal_checks.fine, {"name": "last"}),
    ]
    found = {finding.check: finding for finding in examine(checks, longest_wait_s=8)}
    assert list(found) == ["first", "raises", "dies", "between", "hangs", "last"]
    assert {name: finding.status for name, finding in found.items() if finding.status != "ok"} == {
        "raises": "fault",
        "dies": "fault",
        "hangs": "fault",
    }
    assert found["raises"].found == "the check failed (LookupError: no such luck)"
    assert "SIGSEGV" in found["dies"].found
    assert found["hangs"].found == "did not end within 8 s"
    processes = [found[name].found for name in ("first", "between", "last")]
    assert len(set(processes)) == 3, "a new process after each that was lost"
    assert f"found by {os.getpid()}" not in processes


def test_the_worst_status_of_all_counts() -> None:
    ok, warning, fault = (Finding("c", status, "") for status in ("ok", "warning", "fault"))
    assert worst([]) == worst([ok]) == "ok"
    assert worst([ok, warning]) == "warning"
    assert worst([fault, ok, warning]) == "fault"


def test_a_line_says_the_status_first_and_the_fix_last() -> None:
    assert str(Finding("disk", "fault", "is full", "free some")) == "fault    disk: is full; free some"
    assert str(Finding("disk", "ok", "is empty")) == "ok       disk: is empty"
