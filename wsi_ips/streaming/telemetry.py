"""Where the time of a stream goes."""

from dataclasses import dataclass, field


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
