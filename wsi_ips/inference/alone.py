"""One piece of work in a process of its own, so that native code that crashes there ends nothing else.

The process is a new interpreter, not a fork (threads and locks would be copied in whatever state they are) and not
one of :mod:`multiprocessing`'s (which runs the caller's script once more). It has the caller's ``sys.path`` and
environment. Work travels to it pickled over its stdin, the answer comes back over its stdout.
"""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wsi_ips.errors import ConfigError
from wsi_ips.library_lines import silence_libraries

Argument = TypeVar("Argument")
Result = TypeVar("Result")

ENDS_IN_S = 10.0
"""How long the process may take to put away what it has begun before it is killed."""
LENGTH_BYTES = 8
READY = b"+"
FIRST_TO_GO = "1000"
"""Linux' out-of-memory killer takes the process with the highest of these numbers: this one, not the batch."""
_START = "import sys; sys.path[:] = {path!r}; from wsi_ips.inference.alone import _answer; _answer()"


class Died(Exception):
    """``Died(code)``: the process ended with this exit code (as :mod:`subprocess` has it) and without an answer.

    In words: "was killed by SIGSEGV", "ended with exit code 9".
    """

    def __str__(self) -> str:
        (code,) = self.args
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    @property
    def by_kill(self) -> bool:
        """Whether it was killed as the system kills for want of memory."""
        return bool(self.args == (-signal.SIGKILL,))


class NotStarted(ConfigError):
    """The process did not come to begin: that is nobody's fault who was to be worked on."""


def alone(work: Callable[[Argument], Result], argument: Argument) -> Result:
    """``work(argument)``, done by a new process. What it raises is raised here.

    ``work`` is a function of a module, and it, its argument, its result and its errors can be pickled. Raises
    :class:`Died` where the process dies at it, and :class:`NotStarted` where it never came to begin. Whatever
    ends the wait (Ctrl-C) ends the process too, and the end of this process does.
    """
    task = pickle.dumps((work, argument))
    process = subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", _START.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says how
            for part in (pickle.dumps(logging.getLogger().level), task):
                process.stdin.write(len(part).to_bytes(LENGTH_BYTES, "little") + part)
            process.stdin.flush()
        answer = process.stdout.read()
        code = process.wait()
    finally:
        _end(process)
    if not answer.startswith(READY):
        raise NotStarted(f"a process of its own does not start for a slide: it {Died(code)}")
    try:
        raised, result = pickle.loads(answer.removeprefix(READY))  # noqa: S301 - from our own process
    except (EOFError, pickle.UnpicklingError):  # none, or half of one
        raise Died(code) from None
    if raised:
        raise result
    return result  # type: ignore[no-any-return]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process where it still runs, cleanly if it lets itself be ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDS_IN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _answer() -> None:
    """What the new process does."""
    _obey_the_parent_alone()
    # What libraries print belongs on stderr: stdout is for the answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    level = _received()
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if level > logging.INFO:
        silence_libraries()
    work, argument = _received()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers.write(READY)
    answers.flush()
    try:
        answer = pickle.dumps((False, work(argument)))
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)
    except Exception as error:  # noqa: BLE001 - it is raised in the process that waits
        answer = _pickled(error)
    answers.write(answer)
    answers.close()
    logging.shutdown()
    # Native libraries that crash while they are put away have nothing to say about the slide.
    os._exit(0)


def _received() -> Any:
    length = int.from_bytes(_exactly(LENGTH_BYTES), "little")
    return pickle.loads(_exactly(length))  # noqa: S301 - from the process that started this one


def _exactly(length: int) -> bytes:
    """So many bytes of stdin and none more: its end is waited for later."""
    parts = bytearray()
    while len(parts) < length:
        if not (part := os.read(0, length - len(parts))):
            sys.exit(1)
        parts += part
    return bytes(parts)


def _pickled(error: Exception) -> bytes:
    """The error, or one in its words where it does not survive pickling."""
    try:
        answer = pickle.dumps((True, error))
        pickle.loads(answer)  # noqa: S301 - of the line above
    except Exception:  # noqa: BLE001 - whatever its class does
        return pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def _obey_the_parent_alone() -> None:
    """Ctrl-C goes to every process of a terminal; the parent decides what it means, and sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _end_with_parent() -> None:
    """Once stdin ends the parent is gone: nobody holds the folder any more, or hears the answer."""
    while os.read(0, 1):
        pass
    os._exit(1)
