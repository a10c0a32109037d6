"""What a stream is made of.

Where the time of a stream goes.

How much of a slide may be unreadable.

What a pass needs of patches, wherever they come from: a slide, an image, stored features.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

from torch import Tensor

from wsi_ips.config import CoarseConfig
from wsi_ips.errors import SlideInterrupted, SlideReadError
from wsi_ips.storage.files import outside_cause
from wsi_ips.storage.location import Location
from wsi_ips.units import PlaceKind


@dataclass(frozen=True, slots=True)
class Chunk:
    """Patches that travel together.

    ids_n: (n,) int64, raster index in the slide's grid. l0_xy_n2: (n, 2) int64, top-left corners in level-0
    pixels. pixels_n3PP: (n, 3, P, P) uint8 RGB on the wanted device, channels last in memory.
    """

    ids_n: Tensor
    l0_xy_n2: Tensor
    pixels_n3PP: Tensor

    def __len__(self) -> int:
        return len(self.ids_n)


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
                f"{cause.mend if cause else 'the file is damaged; copy it again'}; or allow more with "
                "streaming.max_bad_tiles",
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)


class PatchSource(Protocol):
    """All patches of a bag in chunks, some of them again, and where they lie. :class:`PatchStream` is one."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def ids(self) -> Tensor:
        """(N,) int64 on the CPU: all patches, in the order of iterating."""
        ...

    def read(self, ids_n: Tensor) -> Chunk:
        """The patches with these ids, in the order given, with the pixels that iterating gave."""
        ...

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        """Where these patches lie, (n,) int64 or (n, 2) float64 as ``kind`` says, on the CPU.

        Asked only by networks that encode positions.
        """
        ...


class SomePatches(PatchSource, Protocol):
    """A source that can be narrowed down."""

    def only(self, ids_n: Tensor) -> "SomePatches":
        """The same patches, iterating over these alone, in grid order. Raises ``KeyError`` as :meth:`read`."""
        ...


class CoarseSource(SomePatches, Protocol):
    """Patches that can be looked at from afar. :class:`PatchStream` is one."""

    def windows(self, coarse: CoarseConfig) -> "Windows":
        """What is seen of them at a coarser resolution."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """source: the windows, ids from 0 to W - 1 in the order of iterating. window_N: (N,) int64 on the CPU, in
    which window each patch lies, patches in the order of :meth:`CoarseSource.ids`."""

    source: SomePatches
    window_N: Tensor
