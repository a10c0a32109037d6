"""Kaplan-Meier curves of risk groups as PNG, with the numbers at risk below."""

from pathlib import Path

from wsi_ips.evaluation.plots import COLOURS, GREY, figure_at
from wsi_ips.evaluation.risk_groups import RiskGroups

MOST_TICKS = 7
"""Most ticks of the time axis."""


def draw_kaplan_meier(path: Path, groups: RiskGroups, *, unit: str, title: str) -> None:
    """Draw survival over time for each group.

    Each curve has its 95 % band and strokes where patients were censored. The numbers of patients at risk stand
    below the axis.

    Args:
        path: The file to write.
        groups: The groups.
        unit: Unit of time, for the axis.
        title: The title.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    height = 4.4 + 0.25 * len(groups.names)
    with figure_at(path, width=6.4, height=height) as axes:
        for number, (name, curve) in enumerate(zip(groups.names, groups.curves, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            axes.step(curve.time, curve.survival, where="post", color=colour, label=name, linewidth=1.8)
            axes.fill_between(
                curve.time, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0
            )
            censored = curve.censored > 0
            axes.plot(
                curve.time[censored],
                curve.survival[censored],
                linestyle="",
                marker="|",
                color=colour,
                markersize=7,
            )
        axes.set(ylim=(0, 1.02), title=title, ylabel="without the event", xlabel=f"time ({unit})")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=MOST_TICKS)
        axes.legend(frameon=False, loc="upper right", title=_compared(groups))
        last = max(float(curve.time[-1]) for curve in groups.curves)
        ticks = [tick for tick in axes.get_xticks().tolist() if 0 <= tick <= last]
        axes.text(0, -0.19, "at risk", transform=axes.transAxes, color=GREY, ha="right", va="center")
        for number, curve in enumerate(groups.curves):
            for tick in ticks:
                axes.text(
                    tick, -0.19 - 0.065 * (number + 1), str(int(curve.at_risk_at(tick))), ha="center", va="center",
                    transform=axes.get_xaxis_transform(), color=COLOURS[number % len(COLOURS)],
                )  # fmt: skip


def _compared(groups: RiskGroups) -> str:
    if groups.test is None:
        return ""
    said = f"log-rank p = {groups.test.p:.2g}"
    if groups.ratio is not None:
        said += f"\nhazard ratio {groups.ratio.value:.2f} [{groups.ratio.low:.2f}, {groups.ratio.high:.2f}]"
    return said
