"""How a search went, as PNG (the extra ``wsi_ips[plots]``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.evaluation.plots import COLOURS, DPI, STYLES, check_can_plot
from wsi_ips.files import whole_file
from wsi_ips.search.record import Candidate, best_so_far

LOWEST_SHARE = 0.05
"""The worst candidates, so many of all, lie below the picture: a few that learned nothing would flatten it."""


def draw_search(path: Path, found: Mapping[Any, Sequence[Candidate]], *, title: str) -> None:
    """Each strategy's candidates as points, its best so far as a line; a failed one as a cross at the bottom.

    Runs of a strategy, e.g. "random 0" and "random 1", share its colour.

    Raises :class:`ConfigError` where matplotlib is not installed.
    """
    check_can_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    looks = _looks(list(found))
    scores = sorted(one.score for its in found.values() for one in its if one.score is not None)
    for name, its in found.items():
        colour, style = looks[name]
        scored = [(one.number + 1, one.score) for one in its if one.score is not None]
        axes.plot(
            *zip(*scored, strict=True) if scored else ((), ()), ".", color=colour, alpha=0.45, markersize=5
        )
        best = [(number, score) for number, score in enumerate(best_so_far(its), 1) if score is not None]
        axes.step(
            *zip(*best, strict=True) if best else ((), ()),
            where="post",
            color=colour,
            linestyle=style,
            linewidth=1.8,
            label=name,
        )
    if scores:
        low = scores[int(LOWEST_SHARE * len(scores))]
        axes.set_ylim(low - 0.05 * (scores[-1] - low or 1), scores[-1] + 0.08 * (scores[-1] - low or 1))
    bottom = axes.get_ylim()[0]
    for name, its in found.items():
        failed = [one.number + 1 for one in its if one.score is None]
        axes.plot(failed, [bottom] * len(failed), "x", color=looks[name][0], clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="candidate (× failed)", ylabel="score on the proxy task", title=title)
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    with whole_file(path) as partial:
        figure.savefig(partial)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour for each strategy (the first word), a line style for each of its runs."""
    runs: dict[str, list[str]] = {}
    for name in names:
        runs.setdefault(name.partition(" ")[0], []).append(name)
    return {
        name: (COLOURS[place % len(COLOURS)], STYLES[run % len(STYLES)])
        for place, its in enumerate(runs.values())
        for run, name in enumerate(its)
    }
