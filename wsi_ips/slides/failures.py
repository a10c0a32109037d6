"""What is said of a slide that failed, whatever it raised."""

import logging
import os

from wsi_ips.errors import WsiIpsError
from wsi_ips.files import no_room
from wsi_ips.outside_causes import system_cause

logger = logging.getLogger(__name__)


def failure_in_words(slide_id: str, error: Exception) -> str:
    """The error in words. One that was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, WsiIpsError):
        return str(error)
    if no_room(error):
        assert isinstance(error, OSError)
        assert error.errno is not None
        where = f": {error.filename}" if error.filename else ""
        return f"{os.strerror(error.errno).lower()} where the results are written{where}; make room there"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, OSError | MemoryError) and (cause := system_cause(error)):
        return f"{cause.problem}; {cause.mend}"
    logger.error("slide %s failed", slide_id, exc_info=error)
    return f"{type(error).__name__}: {error}"


def named(slide_id: str, why: str) -> str:
    """The reason, with the slide's id in front where it does not name the slide yet."""
    return why if slide_id in why else f"{slide_id}: {why}"
