"""How long work says how far it is, without knowing who shows it.

``with progress("Tiling", total=12) as advance: ... advance("slide_03")``. The library reports; only the
command line draws bars.

Lines that libraries write about odd files, which nobody asked for: kept for ``--verbose``.

What of it matters is said by the readers, in one error that names the file.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, note: str = "") -> None:
        """One step is done; ``note`` is shown beside the bar."""


class Progress(Protocol):
    def __call__(self, what: str, *, total: int) -> AbstractContextManager[Advance]:
        """A bar of ``total`` steps for the time of a ``with`` block. Blocks may nest."""


@contextmanager
def silent(what: str, *, total: int) -> Iterator[Advance]:
    """Show nothing."""

    def advance(note: str = "") -> None:
        pass

    yield advance


LOGGERS = (
    "tifffile",
    "tiffslide",
    "fsspec",
    "fsspec.http",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",
)
MODULES = r"(PIL|tifffile|tiffslide|fsspec|zarr|numcodecs|imagecodecs|openslide)(\.|$)"


class OnlyIfVerbose(logging.Filter):
    """Lets lines through where the program logs what happens, whatever process this is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See :meth:`logging.Filter.filter`."""
        return logging.getLogger().isEnabledFor(logging.INFO)


def silence_libraries() -> None:
    """Log lines and warnings of the libraries that read files are shown with ``--verbose`` only."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, OnlyIfVerbose) for one in logger.filters):
            logger.addFilter(OnlyIfVerbose())
    warnings.filterwarnings("ignore", module=MODULES)
