"""Which slides are being read now, on disk: a start that dies of one has said which, and the next one knows.

A damaged slide may crash a native library, and memory may run out over a large one: then the process ends where it
stands. What was in hand is suspected by the next start, which reads it last of all and in a process of its own
(:mod:`wsi_ips.inference.alone`). What ends with an error, Ctrl-C or SIGTERM has nothing in hand any more.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from wsi_ips.errors import ProcessDied
from wsi_ips.files import whole_file
from wsi_ips.inference.alone import Died, alone
from wsi_ips.location import Location

logger = logging.getLogger(__name__)

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Job = TypeVar("Job")

IN_HAND = "in_hand.json"
LARGEST_BYTES = 2**26
WANT_OF_MEMORY = "if memory ran out give it more, else leave the slide out"

State = Literal["read", "read alone", "deadly"]
STATES: tuple[State, ...] = ("read", "read alone", "deadly")
"""``read``: by the process that does the batch. ``read alone``: by a process of its own. ``deadly``: that one died
of it."""


class SlidesInHand:
    """``with SlidesInHand(folder) as in_hand:`` the slides that are read into a folder, which one start at a time
    writes into. Its file is there only while there is something to be known.

    A file that cannot be written now (a full disk) is a warning: the slide can be read all the same.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / IN_HAND
        self._earlier = _read(self._path)
        self._now: dict[str, State] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._now:
            self._now.clear()
            self._write()

    def suspect(self, slide_ids: Iterable[str]) -> None:
        """These were being read when a process died, as something else has told."""
        read: State = "read"
        known = self._earlier
        self._earlier = dict.fromkeys(slide_ids, read) | known
        if self._earlier != known:
            self._write()

    def suspected(self, slide_id: str) -> bool:
        """Whether an earlier start died while the slide was being read, or it killed a process by itself."""
        return slide_id in self._earlier

    def apart(
        self, jobs: Iterable[Job], slide_id: Callable[[Job], str]
    ) -> tuple[Sequence[Job], Sequence[Job]]:
        """The jobs whose slides nothing is held against, and those of suspected slides."""
        both: tuple[list[Job], list[Job]] = ([], [])
        for job in jobs:
            both[self.suspected(slide_id(job))].append(job)
        return both

    def begin(self, slide_id: str, *, alone: bool = False) -> None:
        """The slide will be read next; on disk before it is touched."""
        self._now[slide_id] = "read alone" if alone else "read"
        self._write()

    def end(self, slide_id: str) -> None:
        """The slide is read, or has failed by an error. Nothing is held against it any more."""
        known = self._now.pop(slide_id, None), self._earlier.pop(slide_id, None)
        if any(known):
            self._write()

    def blame(self, slide_id: str) -> None:
        """The slide killed a process that read nothing else: it is never read by the batch's own again."""
        self._now.pop(slide_id, None)
        self._earlier[slide_id] = "deadly"
        self._write()

    def check(self, slide_id: str, location: Location) -> None:
        """Raises :class:`ProcessDied` for a slide that took a start with it though it was read alone."""
        if self._earlier.get(slide_id) == "read alone":
            self.blame(slide_id)
            raise ProcessDied(
                str(location),
                "a start died while it was being read, and the next one while a process of its own read it",
                WANT_OF_MEMORY,
            )

    def killed(self, slide_id: str, location: Location, death: Died) -> ProcessDied:
        """Blame the slide for the death of a process that read nothing else; gives the error that says so."""
        self.blame(slide_id)
        mend = WANT_OF_MEMORY if death.by_kill else "its file may be damaged: leave it out, or convert it"
        return ProcessDied(str(location), f"the process that read it {death}", mend)

    def alone(
        self,
        slide_id: str,
        location: Location,
        work: Callable[[Argument], Result],
        argument: Argument,
    ) -> Result:
        """``work(argument)`` by a process of its own, for a slide that is suspected; what it raises is raised.

        Raises :class:`ProcessDied` where the slide kills that process, or did so and the whole start with it.
        """
        self.check(slide_id, location)
        self.begin(slide_id, alone=True)
        try:
            result = alone(work, argument)
        except Died as death:
            raise self.killed(slide_id, location, death) from None
        except Exception:
            self.end(slide_id)
            raise
        self.end(slide_id)
        return result

    def _write(self) -> None:
        slides = self._earlier | self._now
        try:
            if slides:
                with whole_file(self._path) as partial:
                    partial.write_text(json.dumps({"slides": slides}, indent=1) + "\n", encoding="utf-8")
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is not written: %s", self._path, error)


def _read(path: Path) -> dict[str, State]:
    """{slide_id: state} of what earlier starts left; nothing of a file that is none of ours."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("too large")
        told = json.loads(path.read_text(encoding="utf-8"))["slides"]
        return {str(slide_id): STATES[STATES.index(state)] for slide_id, state in told.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is passed over, it cannot be read: %s", path, error)
        return {}
