"""How much of a slide may be unreadable."""

import logging
from threading import Lock

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.location import Location
from wsi_ips.outside_causes import outside_cause

logger = logging.getLogger(__name__)


class BadTiles:
    """Counts what could not be decoded in one pass over a slide, and ends the pass when it is too much.

    A tile that is dropped from the cache and fails again counts once. Safe from several threads.
    """

    def __init__(self, path: Location, *, most_share: float, of_slide: float = 1.0) -> None:
        """``of_slide``: share of the slide's patches that are read. The slide is what ``most_share`` is a share
        of: one bad tile that the pass put up with does not end the reading of the few patches that were kept."""
        self._path = path
        self._most_share = most_share
        self._of_slide = of_slide
        self._expected = 0
        self._names: dict[str, None] = {}
        self._lock = Lock()

    def expect(self, n: int) -> None:
        """``n`` tiles (or, of a reader without tiles, patches) will be read."""
        self._expected = n

    def add(self, name: str, error: SlideReadError) -> None:
        """``name`` stays unreadable and becomes white.

        Raises :class:`SlideReadError` once more than the allowed share of all is bad, and ``error`` itself if the
        file is not to blame: read another time, there would be something else than white.
        """
        if isinstance(error, SlideInterrupted):
            raise error
        with self._lock:
            if name in self._names:
                return
            self._names[name] = None
            bad = len(self._names)
        cause = outside_cause(error)
        logger.info("%s; it is read as white", error)  # named in the result: no line a tile
        if bad > self._most_share * self._expected / self._of_slide:
            raise SlideReadError(
                self._path,
                f"{bad} of {self._expected} tiles cannot be decoded, more than {self._most_share:.2%} of the "
                f"slide's; the last: {error.args[1]}",
                f"{cause.mend if cause else 'the file is damaged; copy it again'}; or allow more with "
                "streaming.max_bad_tiles",
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)
