"""SIGTERM and SIGHUP end a command as Ctrl-C does, instead of killing it where it stands.

A scheduler, a service manager or a shutdown sends SIGTERM, a terminal that closes sends SIGHUP. Python's own
answer to both is to die at once: partial files stay, and worker processes live on.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndingSignals:
    """``with EndingSignals() as ending:`` a signal raises ``KeyboardInterrupt`` in the main thread, once.

    More of them are ignored while the command puts away what it has begun; Ctrl-C still interrupts that. A signal
    that was ignored when the command started stays ignored: that is what nohup is for. On leaving, handlers are
    as before. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def exit_code(self) -> int | None:
        """128 and the signal's number, as a shell has it; None where none came."""
        return None if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child: what ends it is its parent's business
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is None:
            self.received = number
            raise KeyboardInterrupt
