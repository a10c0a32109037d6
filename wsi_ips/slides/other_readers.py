"""What the readers of other packages say of the slides in a folder.

A reader may declare the suffixes of its files or folders in an attribute ``suffixes``, such as
``suffixes = (".tiles",)``; :func:`others_suffixes` collects them. :func:`is_slide_of_others` asks the readers
about a folder that a user has named. Both import the readers, so they are called only where a folder of slides
is listed.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import SlideReadError, WsiIpsError
from wsi_ips.slides.registry import READERS, open_with_other

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OthersSuffixes:
    """The suffixes that readers of other packages declare.

    Attributes:
        known: The suffixes, in lower case and with their dot.
        problems: One line for each reader that does not load, or whose declaration cannot be used.
    """

    known: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    def warn(self) -> None:
        """Log a warning for each problem."""
        for problem in self.problems:
            logger.warning("%s; its slides are not looked for in folders", problem)


def others_suffixes() -> OthersSuffixes:
    """The suffixes that readers of other packages declare. A reader that does not load hides no other."""
    known: set[str] = set()
    problems: list[str] = []
    for entry in READERS.others():
        try:
            declared = getattr(READERS.load(entry.name), "suffixes", ())
        except WsiIpsError as error:
            problems.append(str(error))
            continue
        if not isinstance(declared, tuple | list) or not all(map(_is_suffix, declared)):
            problems.append(
                f"reader {entry.name} of {READERS.provider(entry.name)}: its suffixes are {declared!r}, "
                "not a tuple of endings such as ('.tiles',)"
            )
            continue
        known.update(suffix.lower() for suffix in declared)
    return OthersSuffixes(frozenset(known), tuple(problems))


def _is_suffix(declared: object) -> bool:
    """Whether this is what ``Path.suffix`` may give: a dot and a word that is no number."""
    return (
        isinstance(declared, str)
        and not declared[1:].isdecimal()
        and Path(f"slide{declared}").suffix == declared != ""
    )


def is_slide_of_others(folder: Path) -> bool:
    """Whether the reader of another package opens this folder as a slide."""
    for entry in READERS.others():
        try:
            open_with_other(entry.name, folder).close()
        except SlideReadError:  # it is a slide, and the reader is wrong: opening it says so
            return True
        except WsiIpsError:
            continue
        return True
    return False
