"""Where a stream's time goes, and how much of a slide may be unreadable.

See :class:`StreamTelemetry` and :class:`BadTiles`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import ParamSpec

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.location import Location
from wsi_ips.timeline import in_thread, span

P = ParamSpec("P")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamTelemetry:
    """Sums over a stream: times in seconds, counts, and names of bad tiles.

    Times are those of all threads together, except ``waited_s``.

    - ``read_s``: reading stored bytes from the file.
    - ``decode_s``: decoding bytes to pixels; for a reader without tiles, reading as well.
    - ``assemble_s``: putting patches together from tiles.
    - ``resample_s``: resampling to the wanted resolution.
    - ``copy_s``: copying to the device; on CUDA by the GPU's own clock, for copies run beside everything else.
    - ``waited_s``: how long the consumer waited for chunks.
    - ``patches``: patches that were given.
    - ``tile_uses``: how often patches needed a tile.
    - ``tiles_decoded``: how many of these uses decoded the tile; for the rest it was cached.
    - ``bad_tiles``: what could not be decoded and is white.
    """

    read_s: float = 0.0
    decode_s: float = 0.0
    assemble_s: float = 0.0
    resample_s: float = 0.0
    copy_s: float = 0.0
    waited_s: float = 0.0
    patches: int = 0
    tile_uses: int = 0
    tiles_decoded: int = 0
    bad_tiles: list[str] = field(default_factory=list)

    def add(self, other: "StreamTelemetry") -> None:
        """Add the work of one thread or of another stream."""
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.assemble_s += other.assemble_s
        self.resample_s += other.resample_s
        self.copy_s += other.copy_s
        self.waited_s += other.waited_s
        self.patches += other.patches
        self.tile_uses += other.tile_uses
        self.tiles_decoded += other.tiles_decoded
        self.bad_tiles += other.bad_tiles


def shown_in_threads(fill: Callable[P, StreamTelemetry], *, slide_id: str) -> Callable[P, StreamTelemetry]:
    """``fill`` to be called in a decoding thread: its chunk, and the sums of what it did, go into the timeline of
    the caller, if there is one.
    """

    def filled(*args: P.args, **kwargs: P.kwargs) -> StreamTelemetry:
        with span("chunk") as chunk:
            work = fill(*args, **kwargs)
            chunk.inside(
                {
                    "read": work.read_s,
                    "decode": work.decode_s,
                    "assemble": work.assemble_s,
                    "area means": work.resample_s,
                }
            )
        return work

    return in_thread(filled, slide_id=slide_id)


class BadTiles:
    """Counts what could not be decoded in one pass over a slide, and ends the pass when it is too much.

    A tile that is dropped from the cache and fails again counts once. Safe to use from several threads.
    """

    def __init__(self, path: Location, *, most_share: float, of_slide: float = 1.0) -> None:
        """Allow the share ``most_share`` of the slide's tiles to be bad.

        ``of_slide`` is the share of the slide's patches that are read.

        The limit counts against the whole slide, so that one bad tile that a full pass put up with does not end
        the reading of the few patches that were kept.
        """
        self._path = path
        self._most_share = most_share
        self._of_slide = of_slide
        self._expected = 0
        self._names: dict[str, None] = {}
        self._lock = Lock()

    def expect(self, n: int) -> None:
        """Set how many tiles (for a reader without tiles: patches) are going to be read."""
        self._expected = n

    def add(self, name: str, error: SlideReadError) -> None:
        """Count ``name`` as unreadable, which makes it white.

        Raises :class:`SlideReadError` once more than the allowed share is bad, and ``error`` itself if the file is
        not to blame, for another read would then give something else than white.
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
                f"{cause.fix if cause else 'the file is damaged; copy it again'}; or allow more with "
                "streaming.max_bad_tiles",
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        """What could not be decoded, in the order in which it was met."""
        return tuple(self._names)
