"""What of the log a terminal shows: our own warnings, as lines that cannot harm it."""

import logging

from wsi_ips.errors import harmless

TOLD_IN_ERRORS = ("tifffile", "PIL")
"""Packages that log what they meet in broken files. The error or the warning of ours says it once, in words."""


def log_to_terminal(*, verbose: bool = False) -> None:
    """Show warnings on standard error; with ``verbose`` everything, other packages' lines too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Harmless("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    for name in TOLD_IN_ERRORS:
        logging.getLogger(name).setLevel(logging.NOTSET if verbose else logging.CRITICAL)


class _Harmless(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
