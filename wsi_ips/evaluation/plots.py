"""Figures as PNG: ROC and FROC curves, reliability, confusion, and the course of a training.

matplotlib is an optional package (``wsi_ips[plots]``) and is imported when something is drawn. Figures are drawn
on Agg canvases through the objects of matplotlib: no display, no pyplot, and nothing global is changed.
:func:`read_history` reads the figures of a training run, and :func:`figure_name` turns a key of ``metrics.json``
into words.

Shape suffixes: C classes.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError, ResultsError, count
from wsi_ips.evaluation.froc import RATES, FrocCurve
from wsi_ips.evaluation.intervals import Band, Interval
from wsi_ips.evaluation.slide_level import Reliability, RocCurve
from wsi_ips.storage.files import check_size, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WORDS = {"auc": "AUC", "ece": "calibration error", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "f1": "F1",
         "brier": "Brier score", "ibs": "integrated Brier score", "c": "C", "uno": "(Uno)",
         "kaplan": "of Kaplan", "meier": "Meier"}  # fmt: skip
"""Words of a key that are written differently for people."""
LARGEST_HISTORY_BYTES = 2**26
"""Largest history that is read."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""
STYLES = ("-", "--", "-.", ":")
"""Line styles, for more curves than colours."""
GREY = "#777777"
"""Colour of what is not a curve."""
DPI = 150
"""Pixels per inch of a figure."""
MOST_NAMED_CLASSES = 12
"""With more classes, the numbers of a confusion matrix are written smaller."""
SELECTION = ("kept_overlap", "kept_attention", "attention_spread")
"""Columns of a history that say how the selection develops."""


@dataclass(frozen=True, slots=True)
class NamedRoc:
    """A ROC curve of a plot, its AUC, and its band if there is one."""

    name: str
    curve: RocCurve
    auc: Interval
    band: Band | None = None


@dataclass(frozen=True, slots=True)
class NamedFroc:
    """A FROC curve of a plot, its score, and its band if there is one."""

    name: str
    curve: FrocCurve
    score: Interval
    band: Band | None = None


def draw_roc(path: Path, curves: Sequence[NamedRoc], *, title: str) -> None:
    """Draw ROC curves, each with its AUC and 95 % interval. The pointwise 95 % band is shaded."""
    with figure_at(path, width=5.2, height=5.2) as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for number, one in enumerate(curves):
            if one.band is not None:
                axes.fill_between(
                    one.band.at, one.band.low, one.band.high,
                    color=COLOURS[number % len(COLOURS)], alpha=0.18, linewidth=0,
                )  # fmt: skip
            label = f"{one.name}: {_with_interval(one.auc)}"
            axes.plot(one.curve.false_positive_rate_T, one.curve.sensitivity_T, label=label, linewidth=1.8,
                      **_style(number))  # fmt: skip
        axes.set(
            xlabel="false-positive rate (1 - specificity)", ylabel="sensitivity", title=title,
            xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal",
        )  # fmt: skip
        axes.legend(loc="lower right", frameon=False, title="AUC [95 % interval]", fontsize="small")


def draw_reliability(path: Path, curve: Reliability, *, ece: Interval, of: str, title: str) -> None:
    """Draw the observed share against the mean probability ``of`` something, a point for each bin, sized by its
    slides.
    """
    check_can_plot()
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    filled = curve.count_B > 0
    with figure_at(path, width=5.2, height=5.5) as axes:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated")
        axes.plot(curve.predicted_B[filled], curve.observed_B[filled], linewidth=1, marker="o",
                  markersize=5, label="observed (number: in this bin)", **_style(0))  # fmt: skip
        area = 20 + 280 * curve.count_B[filled] / curve.count_B.max()
        axes.scatter(curve.predicted_B[filled], curve.observed_B[filled], s=area, color=COLOURS[0],
                     edgecolors="white", zorder=3, clip_on=False)  # fmt: skip
        for x, y, count, size in zip(
            curve.predicted_B[filled], curve.observed_B[filled], curve.count_B[filled], area, strict=True
        ):
            below = y > 0.5
            reach = math.sqrt(size / math.pi) + 2
            axes.annotate(str(count), (x, y), xytext=(0, -reach if below else reach), fontsize="x-small",
                          textcoords="offset points", ha="center", va="top" if below else "bottom",
                          path_effects=halo, zorder=4)  # fmt: skip
        axes.set(
            xlabel=f"predicted probability of {of}, mean of the bin", ylabel="observed share", aspect="equal",
            title=f"{title}\nexpected calibration error {_with_interval(ece)}",
            xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
        )  # fmt: skip
        axes.title.set_fontsize("medium")
        # The legend goes below the axes, because points may be in any corner.
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")


def draw_confusion(path: Path, confusion_CC: NDArray[np.int64], names: Sequence[str], *, title: str) -> None:
    """Draw a confusion matrix with its counts. The colour is the share of the slides with the label of the row."""
    classes = len(names)
    side = min(2.6 + 0.75 * classes, 14)
    rows = confusion_CC.sum(axis=1, keepdims=True)
    share_CC = confusion_CC / np.maximum(rows, 1)
    with figure_at(path, width=side + 0.8, height=side) as axes:
        picture = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion_CC):
            dark = share_CC[row, column] > 0.55
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black",
                      fontsize="medium" if classes <= MOST_NAMED_CLASSES else "xx-small")  # fmt: skip
        places = range(classes)
        turn = 0 if classes <= 3 and max(map(len, names)) <= 10 else 45
        axes.set_xticks(places, names, rotation=turn, ha="center" if not turn else "right",
                        rotation_mode="anchor" if turn else "default")  # fmt: skip
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="called", ylabel="label", title=title)
        axes.figure.colorbar(picture, ax=axes, label="share of the label's slides", shrink=0.8)


def draw_froc(path: Path, curves: Sequence[NamedFroc], *, title: str) -> None:
    """Draw the sensitivity for lesions against false positives per slide, with dots at the six rates of the
    score.

    Only the first curve has a band; the others are drawn beside it.
    """
    lowest, highest = RATES[0] / 2, RATES[-1] * 2
    rates = np.geomspace(lowest, highest, 400)
    first = curves[0]
    scores = [f"score by {one.name} {_with_interval(one.score)}" for one in curves]
    with figure_at(path, width=6, height=4.6 + 0.2 * len(curves)) as axes:
        if first.band is not None:
            band = first.band
            axes.fill_between(band.at, band.low, band.high, color=COLOURS[0], alpha=0.18, linewidth=0)
        for number, one in enumerate(curves):
            sensitivity = one.curve.sensitivity_at(rates.tolist())
            axes.plot(rates, sensitivity, linewidth=1.8, label=f"by {one.name}", **_style(number))
            axes.plot(RATES, one.curve.sensitivity_at(), "o", color=COLOURS[number], clip_on=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, ["1/4", "1/2", "1", "2", "4", "8"])
        axes.minorticks_off()
        over = f"{count(first.curve.lesions, 'lesion')}, {count(first.curve.slides, 'slide')}"
        axes.set(
            xlabel="false positives a slide", ylabel="sensitivity for lesions", xlim=(lowest, highest),
            ylim=(-0.01, 1.01),
            title="\n".join([f"{title}: {over}", *scores]),
        )  # fmt: skip
        axes.title.set_fontsize("medium")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize="small", loc="lower right")


def draw_selection(path: Path, history: Mapping[str, Sequence[float]], *, title: str) -> None:
    """Draw how the selection develops by epoch: those columns of :data:`SELECTION` that are there, between 0 and
    1.
    """
    check_can_plot()
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch + 1 for epoch in history["epoch"]]
    with figure_at(path, width=6, height=4.2) as axes:
        for number, name in enumerate(name for name in SELECTION if name in history):
            axes.plot(epochs, history[name], label=name.replace("_", " "), marker="o", markersize=3, linewidth=1.8,
                      **_style(number))  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="share", title=title, ylim=(-0.02, 1.02))
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.legend(frameon=False, fontsize="small")


def draw_history(path: Path, history: Mapping[str, Sequence[float]], *, title: str) -> None:
    """Draw the losses by epoch (columns named ``…loss``), and the epoch with the lowest validation loss."""
    check_can_plot()
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch + 1 for epoch in history["epoch"]]
    losses = {name: values for name, values in history.items() if name.endswith("loss")}
    with figure_at(path, width=6, height=4.2) as axes:
        for number, (name, values) in enumerate(losses.items()):
            few = len(epochs) < 3
            axes.plot(epochs, values, label=name.replace("_", " "), marker="o" if few else None, linewidth=1.8,
                      **_style(number))  # fmt: skip
        chosen = np.asarray(losses.get("val_loss", []), np.float64)
        if len(chosen) and not np.isnan(chosen).all():
            best = int(np.nanargmin(chosen))
            axes.axvline(epochs[best], color=GREY, linewidth=0.8, linestyle=":")
            axes.plot(epochs[best], chosen[best], "o", color=GREY, zorder=3,
                      label=f"lowest val loss: epoch {epochs[best]:g}")  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set(xlabel="epoch", ylabel="loss", title=title)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.legend(frameon=False, fontsize="small")


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of a ``history.csv`` as numbers. An empty cell is NaN.

    Raises:
        ResultsError: The file is missing, too large, or not such a table.
    """
    fix = "name the history.csv of a fine-tuning run"
    if not path.is_file():
        raise ResultsError(path, "no such history", fix)
    check_size(path, ResultsError, most=LARGEST_HISTORY_BYTES, fix=fix)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        columns = {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise ResultsError(path, f"is not a table of numbers ({error})", fix) from None
    if "epoch" not in columns or not any(name.endswith("loss") for name in columns):
        raise ResultsError(path, "has no column epoch with losses beside it", fix)
    return columns


def figure_name(key: str) -> str:
    """The name of a figure for people: ``auc_macro`` becomes ``AUC macro``."""
    return " ".join(WORDS.get(word, word) for word in key.split("_"))


def check_can_plot() -> None:
    """Raise :class:`ConfigError` if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401 - to see whether it is there
    except ImportError:
        raise ConfigError(
            "plots need matplotlib: pip install 'wsi_ips[plots]', or leave them out with --no-plots"
        ) from None


@contextmanager
def figure_at(path: Path, *, width: float, height: float) -> Iterator["Axes"]:
    """Axes to draw on. The figure is written, completely, when the block ends."""
    check_can_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    with whole_file(path) as partial:
        figure.savefig(partial)


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
    }


def _with_interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
