"""What of the log a terminal shows: our own warnings, as lines that cannot harm it."""

import logging

from wsi_ips.errors import harmless
from wsi_ips.progress import silence_libraries


def log_to_terminal(*, verbose: bool = False) -> None:
    """Show our warnings on standard error; with ``verbose`` everything, what libraries say too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Harmless("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    if not verbose:
        silence_libraries()


class _Harmless(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
