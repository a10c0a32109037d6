"""Where a slide's time went, and which stage to mend first."""

import math
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from wsi_ips.streaming.telemetry import StreamTelemetry

if TYPE_CHECKING:
    import torch

IN_THREADS = ("read_s", "decode_s", "assemble_s", "resample_s")
"""Stages that several threads do beside the encoder: their seconds are those of all threads together."""
HIGHEST = ("threads", "peak_rss_mb", "peak_vram_mb")
IN_TURN = ("copy_s", "encode_s", "select_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTelemetry:
    """patches: read closely; patches_saved: of the tissue, not read closely, because a look from afar did not let
    them through; recall: the share of a full pass's attention that it lets through, as measured on validation
    slides, NaN where it was not. seconds: the whole slide. open_s: opening and finding tissue. read_s …
    copy_s, waited_s: see :class:`StreamTelemetry`. encode_s, select_s: on CUDA, as copy_s, by the card's own
    clock. cache_hits: share of tile uses that found the tile decoded. peak_rss_mb: of the process so far;
    peak_vram_mb: of PyTorch on the slide's own card, 0 without CUDA."""

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
        """What one pass over a slide, or a part of it, took. device: where the network is; none: on the CPU."""
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
            peak_rss_mb=_peak_rss_mb(),
            peak_vram_mb=_peak_vram_mb(device),
        )

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What :meth:`to_json` gave, unknown names left out. Raises ``ValueError`` for anything else."""
        if not isinstance(value, dict) or not all(
            isinstance(number, int | float) and not (number < 0 or math.isinf(number))
            for number in value.values()
        ):
            raise ValueError("telemetry is not {name: number}, none of them negative or infinite")
        known = {field.name for field in fields(cls)}
        return cls(**{name: number for name, number in value.items() if name in known})

    def to_json(self) -> dict[str, float]:
        """{name: number}."""
        return asdict(self)

    @classmethod
    def total(cls, slides: Iterable[Self]) -> Self:
        """Sums over slides; the highest peak, the lowest recall."""
        together: dict[str, float] = {}
        for slide in slides:
            for name, number in slide.to_json().items():
                so_far = together.get(name, number if name in (*HIGHEST, "recall") else 0)
                if name == "recall":
                    together[name] = min(so_far, number)
                else:
                    together[name] = max(so_far, number) if name in HIGHEST else so_far + number
        return cls.from_json(together)

    @property
    def waited(self) -> float:
        """Share of the pass in which the encoder waited for patches."""
        passed = self.waited_s + self.copy_s + self.encode_s + self.select_s
        return self.waited_s / passed if passed else 0.0

    @property
    def cache_hits(self) -> float:
        """Share of tile uses that found the tile decoded."""
        return 1 - self.tiles_decoded / self.tile_uses if self.tile_uses else 0.0

    def wall_ms(self) -> Mapping[str, float]:
        """Milliseconds of the clock that each stage needs for 1,000 patches, were it alone."""
        per = 1e6 / max(1, self.patches)
        shared = {name: getattr(self, name) / self.threads * per for name in IN_THREADS}
        return {**shared, **{name: getattr(self, name) * per for name in IN_TURN}}

    def table(self) -> list[str]:
        """Lines to print; the last names the slowest stage."""
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


def _peak_vram_mb(device: "torch.device | None") -> float:
    if device is None or device.type != "cuda":
        return 0.0
    # Whoever used a GPU has torch loaded, and this module is read by many who need none.
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
