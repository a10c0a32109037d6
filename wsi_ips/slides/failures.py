"""What is said of a slide that failed, whatever it raised."""

import errno
import logging
import os

from wsi_ips.errors import WsiIpsError

logger = logging.getLogger(__name__)


def failure_in_words(slide_id: str, error: Exception) -> str:
    """The error in words. One that was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, WsiIpsError):
        return str(error)
    if no_room(error):
        return f"{os.strerror(errno.ENOSPC).lower()} where the results are written; make room there"
    logger.error("slide %s failed", slide_id, exc_info=error)
    return f"{type(error).__name__}: {error}"


def no_room(error: Exception) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def named(slide_id: str, why: str) -> str:
    """The reason, with the slide's id in front where it does not name the slide yet."""
    return why if slide_id in why else f"{slide_id}: {why}"
