"""Do a run's maps tell what decided? :func:`report_faithfulness` removes kept patches in the order of each map.

For every slide of the split, the probability of what the network decided is watched while patches are removed,
those with the highest values first and those with the lowest first. The area between the two curves is compared
with that of random orders of the same slide (:mod:`wsi_ips.evaluation.faithfulness`). Intervals are from
resampled patients.

What was decided is the likeliest class. In a task of independent classes whose likeliest class has a probability
below 0.5, it is that the class is not there: one minus its probability is watched, and maps with a sign are
turned over.

Shape suffixes: M kept patches, D width of embeddings, S slides, P points of a mean curve.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import SlideRecord
from wsi_ips.errors import ConfigError, WsiIpsError, count
from wsi_ips.evaluation.faithfulness import (
    RANDOM_ORDERS,
    FlippingCurves,
    area_under,
    flipping_curves,
    random_curves,
)
from wsi_ips.evaluation.intervals import Interval, Picked, bootstrap
from wsi_ips.evaluation.plots import COLOURS, GREY, figure_at
from wsi_ips.evaluation.run.config import EvaluationConfig
from wsi_ips.evaluation.run.kept_bags import KeptBag, KeptBags
from wsi_ips.heatmaps.maps import attention_map, check_finite, task_queries, tells
from wsi_ips.inference.results import SlideResult, by_output
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.progress import Progress
from wsi_ips.storage.files import whole_table

POINTS = 101
"""Points of a mean curve, from no patch removed to all of them."""

COLUMNS = (
    "task",
    "slide_id",
    "case_id",
    "decided",
    "probability",
    "patches",
    "explanation",
    "most_first",
    "least_first",
    "between",
    "random",
)


@dataclass(frozen=True, slots=True, eq=False)
class SlideFaithfulness:
    """The curves of one slide in one task.

    Attributes:
        record: The slide.
        decided: What the network decided: a class, or ``not`` and the class.
        probability: Its probability with all patches.
        patches: How many patches are removed.
        curves: For each explanation its curves.
        random: The curves of the random orders.
    """

    record: SlideRecord
    decided: str
    probability: float
    patches: int
    curves: Mapping[str, FlippingCurves]
    random: Sequence[FlippingCurves]

    @property
    def random_between(self) -> float:
        """The area between the curves of random orders, their mean."""
        return sum(each.between for each in self.random) / len(self.random)


@dataclass(frozen=True, slots=True, eq=False)
class FaithfulnessReport:
    """Faithfulness of the maps in one task.

    Attributes:
        task: The task.
        slides: The slides that could be read.
        figures: For each explanation, means over slides with their intervals: ``most_first`` and ``least_first``,
            areas under the curves; ``between``, the area between them; ``random``, that of random orders;
            ``above_random``, how much larger the first is than the second.
        complaints: A line for each slide that could not be read.
    """

    task: TaskConfig
    slides: Sequence[SlideFaithfulness]
    figures: Mapping[str, Mapping[str, Interval]]
    complaints: Sequence[str]

    def to_json(self, *, seed: int) -> dict[str, Any]:
        """The figures, as ``metrics.json`` has them."""
        return {
            "slides": len(self.slides),
            "decided": dict(Counter(one.decided for one in self.slides)),
            "random_orders": RANDOM_ORDERS,
            "seed": seed,
            "unread": list(self.complaints),
            "explanations": {
                name: {key: one.to_json() for key, one in figures.items()}
                for name, figures in self.figures.items()
            },
        }

    def in_words(self) -> list[str]:
        """A line for each explanation, to print."""
        return [
            f"{self.task.name}, faithfulness of {name}: area between the curves {_interval(figures['between'])}, "
            f"random order {figures['random'].value:.3f}, above it by {_interval(figures['above_random'])} "
            f"({count(len(self.slides), 'slide')}): {_verdict(figures['above_random'])}"
            for name, figures in self.figures.items()
        ]


def report_faithfulness(
    tasks: Sequence[TaskConfig], records: Sequence[SlideRecord], config: EvaluationConfig, progress: Progress
) -> dict[str, FaithfulnessReport]:
    """The faithfulness of every map of a run in these tasks. Tasks without classes are left out.

    Args:
        tasks: The tasks that are scored.
        records: The slides of the split that have a prediction.
        config: What to evaluate.
        progress: Shows how far it is.

    Raises:
        ConfigError: No task has classes, or the run's model cannot be asked.
        CheckpointError: The checkpoint is missing, or is another one.
        WsiIpsError: No slide could be read; the error is that of the first.
    """
    tasks = [task for task in tasks if task.survival is None and task.activation != "linear"]
    if not tasks:
        raise ConfigError(
            "--faithfulness watches the probability of a class, and no task has classes: leave it out"
        )
    bags = KeptBags.of(config)
    found: dict[str, list[SlideFaithfulness]] = {task.name: [] for task in tasks}
    errors: list[WsiIpsError] = []
    with progress("Removing patches", total=len(records)) as advance:
        for record in records:
            try:
                bag = bags.read(record.slide_id)
                for task in tasks:
                    found[task.name].append(_of_slide(bags.net, bag, record, task, seed=config.seed))
            except WsiIpsError as error:
                errors.append(error)
            advance(record.slide_id)
    if len(errors) == len(records):
        raise errors[0]
    complaints = [f"faithfulness: {error}" for error in errors]
    return {
        task.name: FaithfulnessReport(
            task,
            found[task.name],
            mean_figures(found[task.name], resamples=config.bootstrap, seed=config.seed),
            complaints if task is tasks[0] else (),
        )
        for task in tasks
    }


def _of_slide(
    net: IPSNet, bag: KeptBag, record: SlideRecord, task: TaskConfig, *, seed: int
) -> SlideFaithfulness:
    outputs = list(bag.result.probabilities[task.name].values())
    place = int(np.argmax(outputs))
    against = task.activation == "sigmoid" and outputs[place] < 0.5

    def decided(x_nD: Tensor) -> Tensor:
        probability = net.read_placed(x_nD).probabilities[task.name][0, place].float()
        return 1 - probability if against else probability

    maps = explanations(net, bag, task, place, against=against)
    # Slides have orders of their own, the same whichever other slides are evaluated.
    orders = (seed + crc32(record.slide_id.encode())) % 2**63
    with torch.no_grad():
        return SlideFaithfulness(
            record,
            f"not {task.classes[place]}" if against else task.classes[place],
            float(decided(bag.x_MD)),
            len(bag.x_MD),
            {name: flipping_curves(decided, bag.x_MD, scores_M) for name, scores_M in maps.items()},
            random_curves(decided, bag.x_MD, seed=orders),
        )


def explanations(
    net: IPSNet, bag: KeptBag, task: TaskConfig, place: int, *, against: bool = False
) -> dict[str, Tensor]:
    """The maps (M,) float32 of the kept patches for one class of a task, by their names, on the device of the bag.

    ``attention`` is the stored map that is drawn for the task. ``contribution`` is there if the result holds it.
    ``gradient`` is the stored map, or if there is none it is computed.

    Args:
        net: The network.
        bag: The patches.
        task: The task.
        place: The place of the class among those of the task.
        against: Turn maps with a sign over, because what is explained is that the class is not there.

    Raises:
        ResultsError: A map is not finite.
    """
    result = bag.result
    attention_N = attention_map(result, query=task_queries(result).get(task.name))
    maps = {"attention": attention_N[result.kept_rows()][bag.order_M.numpy()]}
    column = _column(result, task.name, place)
    sign = np.float32(-1 if against else 1)
    if tells(result):
        assert result.kept_contributions_MK is not None
        maps["contribution"] = sign * result.kept_contributions_MK[bag.order_M.numpy(), column]
    if result.kept_gradients_MK is not None:
        maps["gradient"] = sign * result.kept_gradients_MK[bag.order_M.numpy(), column]
    else:
        told = net.gradients(bag.emb_MD, bag.places_M)
        computed_MC = by_output({task.name: told[task.name]}, [task])
        assert computed_MC is not None
        maps["gradient"] = sign * computed_MC[:, place]
    for name, map_M in maps.items():
        check_finite(result, map_M, f"a value of {name}")
    return {
        name: torch.from_numpy(np.ascontiguousarray(map_M)).to(bag.x_MD.device)
        for name, map_M in maps.items()
    }


def _column(result: SlideResult, task: str, place: int) -> int:
    """The place of a task's class among all outputs."""
    before = 0
    for name, classes in result.probabilities.items():
        if name == task:
            break
        before += len(classes)
    return before + place


def mean_figures(
    slides: Sequence[SlideFaithfulness], *, resamples: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """The figures of :class:`FaithfulnessReport`, for each explanation that all slides have.

    Args:
        slides: The slides, at least one.
        resamples: How often the patients are drawn again for the intervals. 0: there are no intervals.
        seed: Seed of the draws.
    """
    names = [name for name in slides[0].curves if all(name in one.curves for one in slides)]
    cases = [one.record.case_id for one in slides]
    random_S = np.array([one.random_between for one in slides])
    told: dict[str, dict[str, Interval]] = {}
    for name in names:
        curves = [one.curves[name] for one in slides]
        columns = {
            "most_first": np.array([float(area_under(each.most_first)) for each in curves]),
            "least_first": np.array([float(area_under(each.least_first)) for each in curves]),
            "between": np.array([each.between for each in curves]),
            "random": random_S,
            "above_random": np.array([each.between for each in curves]) - random_S,
        }

        def means(picked: Picked, columns: Mapping[str, NDArray[np.float64]] = columns) -> dict[str, float]:
            return {key: float(values_S[picked].mean()) for key, values_S in columns.items()}

        told[name] = bootstrap(means, cases, resamples=resamples, seed=seed)
    return told


def write_faithfulness(path: Path, reports: Mapping[str, FaithfulnessReport]) -> None:
    """Write ``faithfulness.csv``: a row for each slide, task and explanation."""
    with whole_table(path) as writer:
        writer.writerow(COLUMNS)
        for name, report in reports.items():
            for one in report.slides:
                about = (
                    name,
                    one.record.slide_id,
                    one.record.case_id,
                    one.decided,
                    one.probability,
                    one.patches,
                )
                for explanation, curves in one.curves.items():
                    areas = (float(area_under(curves.most_first)), float(area_under(curves.least_first)))
                    writer.writerow((*about, explanation, *areas, curves.between, one.random_between))


def draw_faithfulness(path: Path, report: FaithfulnessReport, *, split: str) -> None:
    """Draw the mean curves of each explanation, and of random orders, as a PNG."""
    at_P = np.linspace(0, 1, POINTS)
    with figure_at(path, width=6.4, height=5.2) as axes:
        random_P = [_at(curve, at_P) for one in report.slides for each in one.random for curve in _both(each)]
        axes.plot(100 * at_P, np.mean(random_P, axis=0), color=GREY, linestyle=":", linewidth=1.6,
                  label=f"random order: {next(iter(report.figures.values()))['random'].value:.3f}")  # fmt: skip
        for number, (name, figures) in enumerate(report.figures.items()):
            colour = COLOURS[number % len(COLOURS)]
            for first, style in (("most_first", "-"), ("least_first", "--")):
                curves_P = [_at(getattr(one.curves[name], first), at_P) for one in report.slides]
                label = f"{name}: {_interval(figures['between'])}" if first == "most_first" else None
                axes.plot(100 * at_P, np.mean(curves_P, axis=0), color=colour, linestyle=style, linewidth=1.8,
                          label=label)  # fmt: skip
        slides = f"{len(report.slides)} slide{'' if len(report.slides) == 1 else 's'}"
        axes.set(
            xlabel="kept patches removed, in %", ylabel="probability of what was decided, mean over slides",
            title=f"{report.task.name}, split {split}, {slides}\nsolid: highest first; dashed: lowest first",
            xlim=(0, 100), ylim=(0, 1.02),
        )  # fmt: skip
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize="small",
                    title="area between the curves [95 % interval]")  # fmt: skip


def _both(curves: FlippingCurves) -> tuple[Tensor, Tensor]:
    return curves.most_first, curves.least_first


def _at(curve: Tensor, at_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve at shares of removed patches; slides have different numbers of steps."""
    values = curve.double().cpu().numpy()
    return np.asarray(np.interp(at_P, np.linspace(0, 1, len(values)), values))


def _interval(one: Interval) -> str:
    if np.isnan(one.low):
        return f"{one.value:.3f}"
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _verdict(above: Interval) -> str:
    """What the interval of the difference to random order says."""
    if np.isnan(above.low):
        return f"too few for an interval ({above.why_none})" if above.why_none else "no interval"
    if above.low > 0:
        return "tells more than a random order"
    return "tells less than a random order" if above.high < 0 else "not told apart from a random order"
