"""What a check of the installation finds (:class:`Finding`), and how checks are done (:func:`examine`).

Checks are independent of each other. They are done in a process of their own, because a broken library may not
only raise but crash the process, and a network drive that does not answer keeps a check waiting for ever. The
process is started again for the checks that are left.
"""

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wsi_ips.errors import WsiIpsError, one_line

LONGEST_WAIT_S = 120.0
"""Seconds after which a check that has not ended is a fault. PyTorch's import from a slow drive takes a minute."""

LONGEST_REASON = 400
"""Characters of a library's message that are shown."""

Status = Literal["ok", "warning", "fault"]
"""``ok``; ``warning``: works, but slower or with less than it could; ``fault``: something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``wsi-ips doctor``: the check, its status, what was found, and what to change if anything."""

    check: str
    status: Status
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.status:<8} {self.check}: {self.found}" + (f"; {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, str]:
        """The four fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its name: a function of a module, which other processes can import, and its arguments.

    The function returns one finding or several; its own name for a finding may say more than ``name``.
    """

    name: str
    function: Callable[..., Finding | Sequence[Finding]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """What the check finds. Whatever it raises is a fault with the reason, and never a traceback."""
        try:
            found = self.function(**self.arguments)
        except WsiIpsError as error:
            return [Finding(self.name, "fault", one_line(str(error), most=LONGEST_REASON))]
        except Exception as error:  # noqa: BLE001 - whatever a broken library raises is what is looked for
            reason = one_line(f"{type(error).__name__}: {error}", most=LONGEST_REASON)
            return [Finding(self.name, "fault", f"the check failed ({reason})", "see the other lines")]
        return [found] if isinstance(found, Finding) else list(found)


def examine(checks: Sequence[Check], *, longest_wait_s: float = LONGEST_WAIT_S) -> Iterator[Finding]:
    """Do the checks in turn, and yield every finding as soon as it is known.

    A check that kills its process, or that takes longer than ``longest_wait_s`` seconds, is a fault, and the
    others are done all the same.
    """
    left = list(checks)
    context = multiprocessing.get_context("spawn")
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_do, args=(left, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is seen
        try:
            while left:
                if not ours.poll(longest_wait_s):
                    process.kill()
                    yield _hung(left.pop(0), longest_wait_s)
                    break
                findings = ours.recv()
                left.pop(0)
                yield from findings
        except EOFError:
            process.join()
            yield _died(left.pop(0), process.exitcode)
        finally:
            process.kill()
            process.join()
            ours.close()


def _do(checks: Sequence[Check], answers: Any) -> None:
    """Do the checks in a process of their own, and send the findings of each."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.WARNING)  # what is found is said in the lines
    warnings.simplefilter("ignore")
    for check in checks:
        answers.send(check.findings())


def _end_with_parent() -> None:
    """End this process once its parent is gone, so that none is left behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hung(check: Check, waited_s: float) -> Finding:
    return Finding(
        check.name,
        "fault",
        f"did not end within {waited_s:g} s",
        "a drive or a device does not answer; leave it out, or have it mended",
    )


def _died(check: Check, code: int | None) -> Finding:
    how = f"exit code {code}"
    if code is not None and code < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = names.get(-code, f"signal {-code}")
    return Finding(
        check.name,
        "fault",
        f"the process died of it ({how})",
        "a library is broken or built for another processor: install it again, see the versions above",
    )


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among the findings; ``ok`` if there are none."""
    there: set[Status] = {finding.status for finding in findings}
    return "fault" if "fault" in there else "warning" if "warning" in there else "ok"
