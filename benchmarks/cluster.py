"""A simulation of a large run on a cluster: how much of 64 workers' time is work, and what a lost node costs.

    python benchmarks/cluster.py [--json] [--slides 1000] [--workers 64] [--node 8] [--seeds 5]

The schedule is the program's own: ``predict_on_workers``'s desk hands out the slides of its own order to
workers that a clock of this script makes pass the time, so a run of hours takes seconds. The encoder is a stub
of known cost. The patches of the slides are drawn from a skewed (log-normal) distribution, and the bytes of a
file tell them only roughly, as real files do. A node that is lost takes its workers and the slides that they
had in hand; others begin these anew, as dask has it.

``cluster_efficiency_64`` is work / (workers x duration), where work is what the slides take and everything else is
lost: loading the network, handing out, waiting at the end. A worker finds the patches of its first slide while it
loads the network, so it waits for the longer of the two.

With a node lost, all 64 workers still count to the end, those of the lost node too: with a node of 8 lost at the
very beginning, 0.875 is the most that any schedule can reach. ``_of_those_there`` divides by the seconds of the
workers that were there. ``node_replaced`` is a run in which as many workers join a while after the loss, as a job
array or an adaptive cluster starts them again.
"""

import argparse
import heapq
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python looks beside it, not in the repository's root

from wsi_ips.inference import cluster as program  # noqa: E402
from wsi_ips.inference.predictions import PredictionRow  # noqa: E402
from wsi_ips.inference.slide_tasks import largest_first  # noqa: E402
from wsi_ips.inference.slide_work import Done, SlideJob  # noqa: E402

MEDIAN_PATCHES, SIGMA, FEWEST, MOST = 9_000, 0.8, 200, 100_000
"""Patches of a slide: log-normal, so that the largest of 1,000 has about ten times the median."""
BYTES_PER_PATCH, BYTES_SIGMA = 25_000, 0.35
"""Bytes of a file: 25 kB for each patch with tissue, times a factor that glass and compression decide."""
PATCHES_PER_S = 250.0
"""Of the stubbed encoder."""
TISSUE_S, LOAD_S, ORDER_S = 4.0, 20.0, 0.05
"""Opening a slide and finding tissue; loading the network, once a worker; handing an order out."""
LOST_AT = (0.1, 0.5, 0.9)
"""When a node is lost, as shares of the duration without a loss."""
REPLACED_S = 120.0
"""Seconds from the loss of a node to the first slide of the node that takes its place."""


@dataclass(frozen=True)
class Ran:
    """How a run went: seconds of work, its duration, slides that were begun twice, how long it went on after the
    last slide was begun, and the seconds that its workers were there, all together."""

    work_s: float
    seconds: float
    begun_again: int
    tail_s: float
    there_s: float

    def efficiency(self, workers: int) -> float:
        return self.work_s / (workers * self.seconds)

    def efficiency_of_those_there(self) -> float:
        return self.work_s / self.there_s


def main() -> None:
    """Simulate, and print a table or one JSON object."""
    arguments = parsed()
    logging.disable(logging.WARNING)
    figures = simulated(arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:44} {value:>10.4g}" if isinstance(value, float) else f"{name:44} {value!s:>10}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--node", type=int, default=8, help="workers of a node")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the slides; figures are medians")
    return parser.parse_args()


def simulated(arguments: argparse.Namespace) -> dict[str, Any]:
    """Efficiencies: in the program's order, in the order of names, and with a node lost at several moments."""
    found: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        slides = drawn(arguments.slides, seed)
        whole = run(slides, arguments.workers)
        by_name = run(slides, arguments.workers, order=list)
        rows = {
            "efficiency": whole.efficiency(arguments.workers),
            "efficiency_by_name": by_name.efficiency(arguments.workers),
            "minutes": whole.seconds / 60,
            "tail_minutes": whole.tail_s / 60,
            "tail_minutes_by_name": by_name.tail_s / 60,
        }
        for share in LOST_AT:
            at = share * whole.seconds
            lost = run(slides, arguments.workers, lost=arguments.node, at=at)
            again = run(slides, arguments.workers, lost=arguments.node, at=at, replaced_after=REPLACED_S)
            rows[f"efficiency_node_lost_at_{share:g}"] = lost.efficiency(arguments.workers)
            rows[f"efficiency_of_those_there_at_{share:g}"] = lost.efficiency_of_those_there()
            rows[f"efficiency_node_replaced_at_{share:g}"] = again.efficiency(arguments.workers)
            rows[f"minutes_lost_at_{share:g}"] = (lost.seconds - whole.seconds) / 60
            rows[f"slides_begun_again_at_{share:g}"] = float(lost.begun_again)
        for name, value in rows.items():
            found.setdefault(name, []).append(value)
    figures: dict[str, Any] = {
        "slides": arguments.slides,
        "workers": arguments.workers,
        "node": arguments.node,
    }
    figures |= {name: statistics.median(values) for name, values in found.items()}
    key = f"cluster_efficiency_{arguments.workers}"
    figures[key] = figures.pop("efficiency")
    figures[f"{key}_lowest"] = min(found["efficiency"])
    figures[f"{key}_node_lost"] = figures["efficiency_node_lost_at_0.5"]
    figures[f"{key}_node_lost_lowest"] = min(
        value for share in LOST_AT for value in found[f"efficiency_node_lost_at_{share:g}"]
    )
    return figures


def drawn(slides: int, seed: int) -> list[tuple[SlideJob, float, int]]:
    """(slide, seconds that it takes, bytes of its file) of each slide."""
    rng = np.random.default_rng(seed)
    patches = np.clip(rng.lognormal(np.log(MEDIAN_PATCHES), SIGMA, slides), FEWEST, MOST)
    stored = patches * BYTES_PER_PATCH * rng.lognormal(0, BYTES_SIGMA, slides)
    return [
        (
            SlideJob(f"slide_{number:04d}", Path(f"slide_{number:04d}.tif")),
            TISSUE_S + n / PATCHES_PER_S,
            int(size),
        )
        for number, (n, size) in enumerate(zip(patches, stored, strict=True))
    ]


def run(
    slides: Sequence[tuple[SlideJob, float, int]],
    workers: int,
    *,
    order: Callable[[Sequence[SlideJob]], Sequence[SlideJob]] = largest_first,
    lost: int = 0,
    at: float = 0.0,
    replaced_after: float | None = None,
) -> Ran:
    """Let the program's desk work off the slides. ``lost`` workers vanish at ``at`` seconds, and as many new ones
    join ``replaced_after`` seconds later."""
    seconds = {job.slide_id: cost for job, cost, _ in slides}
    with tempfile.TemporaryDirectory() as folder:
        jobs = sized(slides, Path(folder))
        cluster = Cluster(workers, seconds, lost=lost, lost_at=at, replaced_after=replaced_after)
        desk = program.Desk(cast(Any, cluster), cast(Any, None))
        with (
            patch.object(program, "wait", cluster.wait),
            patch.object(program.time, "sleep", cluster.pass_time),
        ):
            assert len(list(desk.work_off(order(jobs)))) == len(slides)
    assert cluster.done == len(slides)
    return Ran(
        sum(seconds.values()),
        cluster.now,
        cluster.begun_again,
        cluster.now - cluster.last_begun,
        cluster.there_s(),
    )


def sized(slides: Sequence[tuple[SlideJob, float, int]], folder: Path) -> list[SlideJob]:
    """The slides as files of their sizes, without content."""
    jobs = []
    for job, _, size in slides:
        with (folder / job.path.name).open("wb") as file:
            file.truncate(size)
        jobs.append(SlideJob(job.slide_id, folder / job.path.name))
    return jobs


class Future:
    """An order under way, or done."""

    def __init__(self, slide_id: str) -> None:
        self.slide_id = slide_id
        self.finished = False

    def done(self) -> bool:
        return self.finished

    def result(self, timeout: float) -> Done:
        return Done(PredictionRow(slide_id=self.slide_id, status="ok"))


class Cluster:
    """Takes the place of a dask client and its workers, with a clock of its own.

    An order goes to a worker that has none, and otherwise waits for the first one that has finished. A worker
    loads the network before its first slide, and finds the patches of that slide meanwhile.
    """

    status = "running"

    def __init__(
        self,
        workers: int,
        seconds: dict[str, float],
        *,
        lost: int,
        lost_at: float,
        replaced_after: float | None = None,
    ) -> None:
        self.now = 0.0
        self.done = 0
        self.begun_again = 0
        self.last_begun = 0.0
        self._seconds = seconds
        self._alive = set(range(workers))
        self._since = dict.fromkeys(range(workers), 0.0)
        self._gone_s = 0.0
        self._loaded: set[int] = set()
        self._busy: dict[int, tuple[Future, int]] = {}
        self._queue: list[Future] = []
        self._events: list[tuple[float, int, int]] = []
        self._number = count()
        self._changes: list[tuple[float, set[int], set[int]]] = []
        if lost:
            self._changes.append((lost_at, set(range(lost)), set()))
        if lost and replaced_after is not None:
            self._changes.append((lost_at + replaced_after, set(), set(range(workers, workers + lost))))

    def there_s(self) -> float:
        """The seconds that all workers were there, up to now."""
        return self._gone_s + sum(self.now - self._since[worker] for worker in self._alive)

    def nthreads(self) -> dict[int, int]:
        return dict.fromkeys(self._alive, 1)

    def submit(self, function: Any, run: str, order: Any, parts: Any, *, key: str, pure: bool) -> Future:
        future = Future(order.job.slide_id)
        self._queue.append(future)
        self._assign()
        return future

    def _assign(self) -> None:
        for worker in sorted(self._alive - set(self._busy)):
            if not self._queue:
                return
            future, number = self._queue.pop(0), next(self._number)
            self.last_begun = self.now
            load = 0.0 if worker in self._loaded else max(LOAD_S, TISSUE_S) - TISSUE_S
            self._loaded.add(worker)
            self._busy[worker] = future, number
            end = self.now + ORDER_S + load + self._seconds[future.slide_id]
            heapq.heappush(self._events, (end, number, worker))

    def wait(self, futures: Sequence[Future], *, timeout: float, return_when: str) -> None:
        """Pass the time until an order is done, or workers go or come."""
        if any(future.finished for future in futures):
            return
        if self._changes and (not self._events or self._changes[0][0] <= self._events[0][0]):
            self.now, gone, come = self._changes.pop(0)
            self._since |= dict.fromkeys(come, self.now)
            self._alive |= come
            self._lose(gone)
            raise TimeoutError
        self.now, number, worker = heapq.heappop(self._events)
        if worker not in self._busy or self._busy[worker][1] != number:
            raise TimeoutError  # it was lost meanwhile
        future, _ = self._busy.pop(worker)
        future.finished = True
        self.done += 1
        self._assign()

    def _lose(self, gone: set[int]) -> None:
        self._alive -= gone
        self._gone_s += sum(self.now - self._since[worker] for worker in gone)
        for worker in sorted(gone & set(self._busy)):
            future, _ = self._busy.pop(worker)
            self._queue.insert(0, future)
            self.begun_again += 1
        self._assign()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


if __name__ == "__main__":
    main()
