"""How long-running work reports its progress, and how libraries are kept from writing to the terminal.

Work takes a :class:`Progress` and calls it without knowing who shows it::

    with progress("Tiling", total=12) as advance:
        advance("slide_03")

The library only reports; a front end such as the command line draws bars, and :func:`silent` shows nothing.
:func:`silence_libraries` hides the log lines and warnings that libraries write about odd files, except with
``--verbose``. What matters of them the readers say in one error that names the file.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LOGGERS = (
    "tifffile",
    "tiffslide",
    "fsspec",
    "fsspec.http",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.TiffImagePlugin",
)
"""Loggers of the libraries that read files."""

MODULES = r"(PIL|tifffile|tiffslide|fsspec|zarr|numcodecs|imagecodecs|openslide)(\.|$)"
"""Regular expression for the modules whose warnings are hidden."""


class Advance(Protocol):
    """The function that counts the steps of one progress bar."""

    def __call__(self, note: str = "") -> None:
        """Count one step as done. ``note`` is shown beside the bar."""


class Progress(Protocol):
    """The function that opens progress bars."""

    def __call__(self, what: str, *, total: int) -> AbstractContextManager[Advance]:
        """Open a bar of ``total`` steps that is labelled ``what``, for the length of a ``with`` block.

        Blocks may nest.
        """


@contextmanager
def silent(what: str, *, total: int) -> Iterator[Advance]:
    """A :class:`Progress` that shows nothing."""

    def advance(note: str = "") -> None:
        pass

    yield advance


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the client of the Hugging Face hub from logging each of its retries, within the ``with`` block.

    What it finally raises is the caller's to tell. With logging at level INFO or finer its lines are shown.
    """
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class OnlyIfVerbose(logging.Filter):
    """A logging filter that lets records through only if the program logs at level INFO.

    It asks the root logger each time, so it also works in worker processes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the root logger is enabled for INFO."""
        return logging.getLogger().isEnabledFor(logging.INFO)


def silence_libraries() -> None:
    """Show the log lines and warnings of the libraries that read files only with ``--verbose``."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, OnlyIfVerbose) for one in logger.filters):
            logger.addFilter(OnlyIfVerbose())
    warnings.filterwarnings("ignore", module=MODULES)
