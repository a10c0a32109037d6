"""Where the time of a stream goes.

How much of a slide may be unreadable.
"""

import logging
from dataclasses import dataclass, field
from threading import Lock

from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.location import Location


@dataclass(slots=True)
class StreamTelemetry:
    """Sums over a stream. Seconds are those of all threads together, except ``waited_s``.

    read_s: stored bytes from the file. decode_s: bytes to pixels (for a reader without tiles, reading too).
    assemble_s: patches put together from tiles. resample_s: to the wanted resolution. copy_s: to the device, on
    CUDA by the card's own clock: copies run beside everything else.
    waited_s: how long the consumer waited for chunks. tile_uses: how often patches needed a tile, of which
    tiles_decoded were decoded and the rest was there already. bad_tiles: what could not be decoded and is white.
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
        """Take in the work of one thread or of another stream."""
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
                f"{cause.fix if cause else 'the file is damaged; copy it again'}; or allow more with "
                "streaming.max_bad_tiles",
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)
