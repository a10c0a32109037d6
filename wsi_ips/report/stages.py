"""Where the time of a run went, stage by stage: :func:`stage_shares`.

The numbers come from the run's ``timeline.json`` (``predict --profile``) where there is one, else from
``slides.csv``, which knows fewer stages. Two things are told apart, because they go on at the same time: what each
slide waited for, which adds up to the time of the slides, and what the decoding threads did beside it, which is
measured against the time that all of them had.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsi_ips.errors import count
from wsi_ips.inference.telemetry import IN_THREADS, SlideTelemetry
from wsi_ips.report.stored_run import StoredRun
from wsi_ips.report.summary import STAGES, Part, duration
from wsi_ips.timeline import REST, Stage, Stages

LEAST = 0.001
"""Share below which stages are put together as :data:`OTHERS`."""

OTHERS, IDLE = "others", "idle"
"""Rows of small stages, and of the time that threads had nothing to do."""

COLOURS = {
    "open": "#8a7fb5", "tissue": "#a99fd0", "opening and tissue": "#8a7fb5", "plan": "#c3bce0",
    "wait for decoder": "#d39b46", "waiting for patches": "#d39b46", "wait for device": "#e2bb80",
    "copy to device": "#8f9aa6", "to the device": "#8f9aa6",
    "encode": "#4080a0", "encoding": "#4080a0", "coarse scorer": "#76a9c4",
    "select": "#5e9c6a", "selecting": "#5e9c6a", "kept patches": "#8cbf96", "head": "#3f7a5c",
    "write results": "#a9745a", "draw overlay": "#c79a83", "backward": "#7d5a6f",
    "read": "#8f9aa6", "decode": "#4080a0", "assemble": "#5e9c6a", "area means": "#d39b46",
}  # fmt: skip
"""Colours of the stages, for CSS. Stages of the same kind have colours of the same hue."""
OF_OTHERS = "#b9b4ab"
"""Colour of a stage that has none of its own."""
NOTHING = "var(--track)"
"""Colour of the time in which nothing was done."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A row of the table: the stage with its share and colour, and how often it came (empty if not known)."""

    part: Part
    times: str = ""


@dataclass(frozen=True, slots=True)
class StageTable:
    """The stages of one kind of thread, the longest first, and what their shares are shares of."""

    title: str
    of: str
    rows: Sequence[StageRow]

    @property
    def knows_times(self) -> bool:
        """Whether it is known how often stages came."""
        return any(row.times for row in self.rows)


@dataclass(frozen=True, slots=True)
class StageShares:
    """The stages of a run. ``source`` says in a sentence where the numbers come from."""

    tables: Sequence[StageTable]
    source: str


def stage_shares(run: StoredRun) -> StageShares | None:
    """The stages of a run; None if no time was recorded."""
    measured = [slide.telemetry for slide in run.slides if slide.telemetry is not None]
    threads = max((int(one.threads) for one in measured), default=1)
    if run.timeline is not None and run.timeline.seconds("main"):
        told = run.timeline
        source = (
            f"From timeline.json, of {count(told.slides, 'slide')} that the last start with --profile worked "
            "on; https://ui.perfetto.dev opens it."
        )
    elif measured:
        total = SlideTelemetry.total(measured)
        told = _of_slide_table(total, threads)
        source = f"From slides.csv, of {count(len(measured), 'slide')}; predict --profile tells more stages."
    else:
        return None
    whole = told.seconds("main")
    if not whole:
        return None
    tables = [_table("Slides, one stage after the other", whole, told.of("main"))]
    if told.of("ahead"):
        ahead = told.seconds("ahead")
        tables.append(_table("Next slides, prepared meanwhile", ahead, told.of("ahead")))
    if told.of("threads"):
        had = threads * whole
        name = count(threads, "decoding thread")
        busy = [_named_rest(stage) for stage in told.of("threads")]
        tables.append(_table(f"{name} beside them", had, busy, idle=True))
    return StageShares(tables, source)


def _of_slide_table(total: SlideTelemetry, threads: int) -> Stages:
    """The stages that ``slides.csv`` knows."""
    main = {words: getattr(total, name) for name, words in STAGES.items()}
    main[REST] = max(0.0, total.seconds - sum(main.values()))
    beside = {"area means" if name == "resample_s" else name.removesuffix("_s"): getattr(total, name)
              for name in IN_THREADS}  # fmt: skip
    return Stages(
        [Stage("main", name, 0, seconds) for name, seconds in main.items() if seconds]
        + [Stage("threads", name, 0, seconds) for name, seconds in beside.items() if seconds]
    )


def _named_rest(stage: Stage) -> Stage:
    """What a decoding thread does in no stage of its own: it plans, and waits for tiles of another one."""
    name = "planning, waiting for each other" if stage.name == REST else stage.name
    return Stage(stage.who, name, stage.times, stage.seconds)


def _table(title: str, whole: float, stages: Iterable[Stage], *, idle: bool = False) -> StageTable:
    rows, small, busy = [], 0.0, 0.0
    for stage in stages:
        busy += stage.seconds
        if stage.seconds < LEAST * whole:
            small += stage.seconds
            continue
        times = f"{stage.times:,}" if stage.times else ""
        colour = COLOURS.get(stage.name, OF_OTHERS)
        rows.append(StageRow(_part(stage.name, stage.seconds, whole, colour), times))
    if small:
        rows.append(StageRow(_part(OTHERS, small, whole, OF_OTHERS)))
    if idle and busy < whole:
        rows.append(StageRow(_part(IDLE, whole - busy, whole, NOTHING)))
    return StageTable(title, duration(whole), rows)


def _part(name: str, seconds: float, whole: float, colour: str) -> Part:
    return Part(name, duration(seconds), seconds / whole, colour)
