"""Where the time of a slide went (:class:`SlideTelemetry`), and ``slides.csv``, the table of how each slide
went.

:func:`write_slide_table` and :func:`read_slide_table` are the table. It has times, attempts and workers: all
that differs from run to run.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from wsi_ips.errors import ResultsError, one_line
from wsi_ips.storage.files import LONGEST_CELL, check_table_size, whole_table
from wsi_ips.storage.system import peak_memory_bytes
from wsi_ips.streaming.telemetry import StreamTelemetry

if TYPE_CHECKING:
    import torch


IN_THREADS = ("read_s", "decode_s", "assemble_s", "resample_s")
"""Stages that several threads do beside the encoder. Their seconds are those of all threads together."""
HIGHEST = ("threads", "peak_rss_mb", "peak_vram_mb")
"""Numbers whose total over slides is the highest."""
IN_TURN = ("copy_s", "encode_s", "select_s")
"""Stages that are done one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTelemetry:
    """Where the time of a slide went. Times are in seconds.

    Attributes:
        threads: Threads that read the slide.
        patches: Patches that were read in full resolution.
        patches_saved: Patches of the tissue that a coarse scorer did not let through.
        recall: The share of a full pass's attention that the coarse scorer lets through, as measured on
            validation slides. NaN if it was not measured.
        seconds: The whole slide.
        open_s: Opening it and finding tissue.
        read_s, decode_s, assemble_s, resample_s, copy_s, waited_s: See :class:`StreamTelemetry`.
        encode_s, select_s: The encoder, and the rest of the pass. On CUDA these, and copy_s, are times of the
            device.
        tiles_decoded: How many tiles were decoded.
        tile_uses: How often a tile was needed.
        peak_rss_mb: Highest memory of the process so far, in MB.
        peak_vram_mb: Highest memory of PyTorch on the device of the slide, in MB; 0 without CUDA.
    """

    threads: int = 1
    patches: int = 0
    patches_saved: int = 0
    recall: float = 1.0
    seconds: float = 0.0
    open_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    assemble_s: float = 0.0
    resample_s: float = 0.0
    copy_s: float = 0.0
    encode_s: float = 0.0
    select_s: float = 0.0
    waited_s: float = 0.0
    tiles_decoded: int = 0
    tile_uses: int = 0
    peak_rss_mb: float = 0.0
    peak_vram_mb: float = 0.0

    @classmethod
    def of(
        cls,
        stream: StreamTelemetry,
        *,
        threads: int,
        seconds: float,
        open_s: float,
        encode_s: float,
        select_s: float,
        device: "torch.device | None" = None,
    ) -> Self:
        """The telemetry of one pass over a slide, or over a part of it.

        Args:
            stream: What the stream counted.
            threads: Threads that read the slide.
            seconds: The whole slide.
            open_s: Opening it and finding tissue.
            encode_s: The encoder.
            select_s: The rest of the pass.
            device: Where the network is. None: on the CPU.
        """
        return cls(
            threads=threads,
            patches=stream.patches,
            seconds=seconds,
            open_s=open_s,
            **{name: getattr(stream, name) for name in (*IN_THREADS, "copy_s", "waited_s")},
            encode_s=encode_s,
            select_s=select_s,
            tiles_decoded=stream.tiles_decoded,
            tile_uses=stream.tile_uses,
            peak_rss_mb=peak_rss_mb(),
            peak_vram_mb=_peak_vram_mb(device),
        )

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The telemetry that :meth:`to_json` wrote. Unknown names are ignored.

        Raises:
            ValueError: It is not names and numbers, or a number is negative or infinite.
        """
        if not isinstance(value, dict) or not all(
            isinstance(number, int | float) and not (number < 0 or math.isinf(number))
            for number in value.values()
        ):
            raise ValueError("telemetry is not {name: number}, none of them negative or infinite")
        known = cls.__dataclass_fields__
        return cls(**{name: number for name, number in value.items() if name in known})

    def to_json(self) -> dict[str, float]:
        """The telemetry as ``{name: number}``."""
        return asdict(self)

    @classmethod
    def total(cls, slides: Iterable[Self]) -> Self:
        """The total over slides: sums, but of peaks and threads the highest, and of recall the lowest."""
        names = [measure.name for measure in fields(cls)]
        numbers_of = attrgetter(*names)
        together: list[float] = []
        for slide in slides:
            numbers = numbers_of(slide)
            together = [
                _together(name, so_far, number)
                for name, so_far, number in zip(
                    names, together or _before(names, numbers), numbers, strict=True
                )
            ]
        return cls.from_json(dict(zip(names, together, strict=True))) if together else cls()

    @property
    def waited(self) -> float:
        """The share of the pass in which the encoder waited for patches."""
        passed = self.waited_s + self.copy_s + self.encode_s + self.select_s
        return self.waited_s / passed if passed else 0.0

    @property
    def cache_hits(self) -> float:
        """The share of tile uses that found the tile already decoded."""
        return 1 - self.tiles_decoded / self.tile_uses if self.tile_uses else 0.0

    def wall_ms(self) -> Mapping[str, float]:
        """Milliseconds that each stage would need for 1,000 patches if it were alone."""
        per = 1e6 / max(1, self.patches)
        shared = {name: getattr(self, name) / self.threads * per for name in IN_THREADS}
        return {**shared, **{name: getattr(self, name) * per for name in IN_TURN}}

    def table(self) -> list[str]:
        """Lines to print. The last one names the slowest stage."""
        wall_ms = self.wall_ms()
        slowest = max(wall_ms, key=lambda name: wall_ms[name])
        lines = ["stage      ms per 1,000 patches"]
        lines += [f"{name.removesuffix('_s'):10} {value:10.1f}" for name, value in wall_ms.items()]
        lines.append(
            f"opening and tissue {self.open_s * 1e3:.0f} ms in all; "
            f"the encoder waited {self.waited:.0%} of its pass"
        )
        lines.append(
            f"tiles decoded {self.tiles_decoded:.0f}, cache hits {self.cache_hits:.0%}, peak memory "
            f"{self.peak_rss_mb:.0f} MB" + (f", {self.peak_vram_mb:.0f} MB VRAM" if self.peak_vram_mb else "")
        )
        lines.append(f"slowest: {slowest.removesuffix('_s')}")
        return lines


def _before(names: Sequence[str], first: Sequence[float]) -> list[float]:
    """What the totals are before the first slide."""
    return [number if name in (*HIGHEST, "recall") else 0 for name, number in zip(names, first, strict=True)]


def _together(name: str, so_far: float, number: float) -> float:
    if name == "recall":
        return min(so_far, number)
    return max(so_far, number) if name in HIGHEST else so_far + number


def _peak_vram_mb(device: "torch.device | None") -> float:
    if device is None or device.type != "cuda":
        return 0.0
    # Imported here because many import this module without needing torch.
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20


def peak_rss_mb() -> float:
    """The most MiB of memory that this process has held, 0 if the system does not say."""
    return peak_memory_bytes() / 2**20


Status = Literal["waiting", "running", "ok", "failed"]
"""How far a slide is."""
STATUSES: tuple[Status, ...] = ("waiting", "running", "ok", "failed")
"""All values of :data:`Status`."""

MEASURED = tuple(measure.name for measure in fields(SlideTelemetry) if measure.name != "seconds")
"""Columns of the telemetry."""
NOTHING_MEASURED = SlideTelemetry()
"""The telemetry of a slide of which nothing was measured."""
_measured = attrgetter(*MEASURED)
COLUMNS = ("slide_id", "path", "status", "attempts", "seconds", "worker", "error", "note", *MEASURED)
"""Columns of ``slides.csv``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRow:
    """One slide of ``slides.csv``.

    Attributes:
        slide_id: Its name.
        path: The slide, as it was read.
        status: How far it is. A slide that a dead run left as ``running`` was begun and not finished.
        attempts: How often it was begun, over all starts of the run.
        worker: The worker that had it last.
        error: As in ``predictions.csv``.
        note: What a reader of the result has to know, such as that patches were enlarged.
        telemetry: Where the time went.
    """

    slide_id: str
    path: str
    status: Status = "waiting"
    attempts: int = 0
    worker: str = ""
    error: str = ""
    note: str = ""
    telemetry: SlideTelemetry = field(default_factory=SlideTelemetry)


def write_slide_table(path: Path, rows: Sequence[SlideRow]) -> None:
    """Write the table, completely or not at all. A number that was not measured is an empty cell."""
    with whole_table(path) as writer:
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in rows)


def read_slide_table(path: Path) -> dict[str, SlideRow]:
    """Read what :func:`write_slide_table` wrote, as ``{slide_id: row}``.

    Raises:
        ResultsError: The file cannot be read.
    """
    check_table_size(path, ResultsError)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = next(rows, None)
            if columns is None:
                return {}
            read = _RowReader(columns)
            return {row.slide_id: row for row in map(read, filter(None, rows))}
    except (csv.Error, UnicodeDecodeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(path, f"is not a table of slides ({one_line(error)})", "remove it") from None


def _cells(row: SlideRow) -> list[str]:
    nothing = row.status in ("waiting", "running") or row.telemetry == NOTHING_MEASURED
    measured = [""] * len(MEASURED) if nothing else [f"{number:.6g}" for number in _measured(row.telemetry)]
    seconds = f"{row.telemetry.seconds:.3f}" if row.telemetry.seconds else ""
    cells = [row.slide_id, row.path, row.status, str(row.attempts), seconds, row.worker]
    words = (text and one_line(text, most=LONGEST_CELL) for text in (row.error, row.note))
    return [*cells, *words, *measured]


class _RowReader:
    """Reads the lines of a table with these columns. A table of 100,000 slides is read within seconds."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Raises ``ValueError`` for a table without one of our columns. Earlier versions have no notes."""
        self._about = itemgetter(*(columns.index(name) for name in COLUMNS[: COLUMNS.index("note")]))
        self._note = columns.index("note") if "note" in columns else None
        self._numbers = itemgetter(*(columns.index(name) for name in MEASURED))

    def __call__(self, cells: Sequence[str]) -> SlideRow:
        """The row of a line. Raises ``IndexError`` or ``ValueError`` for one that is broken."""
        slide_id, path, status, attempts, seconds, worker, error = self._about(cells)
        return SlideRow(
            slide_id=slide_id,
            path=path,
            status=STATUSES[STATUSES.index(status)],
            attempts=int(attempts),
            worker=worker,
            error=error,
            note="" if self._note is None else cells[self._note],
            telemetry=_telemetry(seconds, self._numbers(cells)),
        )


def _telemetry(seconds: str, measured: Sequence[str]) -> SlideTelemetry:
    """The telemetry in the cells of a line; an empty cell was not measured."""
    told = {name: float(cell) for name, cell in zip(MEASURED, measured, strict=True) if cell}
    if seconds:
        told["seconds"] = float(seconds)
    if not told:
        return NOTHING_MEASURED
    if any(number < 0 or number == math.inf for number in told.values()):
        raise ValueError("a number is negative or infinite")
    return SlideTelemetry(**told)  # type: ignore[arg-type]  # counts are numbers like all others here
