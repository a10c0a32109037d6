"""The table of a public data set: our rows beside published numbers, as CSV, Markdown and a page of HTML.

Start with :func:`write_tables`. :func:`read_scores` reads the figures of one job from its ``metrics.json``.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from wsi_ips.datasets.known_sets import KNOWN_SETS
from wsi_ips.datasets.label_table import read_label_table
from wsi_ips.errors import DatasetError, ResultsError, count, first_of
from wsi_ips.evaluation.intervals import OverSeeds
from wsi_ips.evaluation.run.table_config import TableConfig
from wsi_ips.storage.files import check_size, whole_file

LARGEST_METRICS = 100_000_000
"""Bytes of the largest ``metrics.json`` that is read."""
NOT_RUN = "not run here"
"""What stands in place of a figure of a row that has not been run."""
FILES = ("table.csv", "table.md", "table.html")
"""What is written."""

_COSTS = (
    "train_seconds", "predict_seconds", "feature_seconds", "peak_ram", "peak_vram", "bytes_written",
    "feature_bytes",
)  # fmt: skip
_COLUMNS = (
    "row", "kind", "encoder", "task", "of", "figure", "mean", "sd", "worst", "seeds", "per_seed", *_COSTS,
    "protocol", "source",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of one job. ``of``: slides, patients or lesions."""

    task: str
    of: str
    figure: str
    value: float


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of one row with one seed.

    Attributes:
        row, seed: Which.
        scores: Its figures; none where it failed.
        costs: By the names of the columns of ``table.csv``; None: not known.
        failed: Why it has no figures; empty where it has.
        skipped: Whether it was complete before.
        left_out: Slides that it could not use, in training or in its figures.
    """

    row: str
    seed: int
    scores: Sequence[Score] = ()
    costs: Mapping[str, float | None] = field(default_factory=dict)
    failed: str = ""
    skipped: bool = False
    left_out: Sequence[str] = ()

    @property
    def warning(self) -> str:
        """What is said of slides that are left out; empty where none is."""
        if not self.left_out:
            return ""
        names = first_of(self.left_out, 5)
        return (
            f"{self.row}, seed {self.seed}: {count(len(self.left_out), 'slide')} could not be used: {names}"
        )


@dataclass(frozen=True, slots=True)
class Published:
    """A number that others have published.

    Attributes:
        data_set, method, encoder: Of what.
        figure: A name of ``metrics.json`` where it is one, else the words of the source.
        value: As it was published, shares as shares.
        protocol: Split, labels, and what is not said.
        source: Where it stands.
    """

    data_set: str
    method: str
    encoder: str
    figure: str
    value: float
    protocol: str
    source: str


def read_published(path: Path) -> list[Published]:
    """Read ``published.csv``. Raises :class:`DatasetError` for a line without a number, protocol or source."""
    table = read_label_table(path)
    names = [
        table.column(name)
        for name in ("data_set", "method", "encoder", "figure", "value", "protocol", "source")
    ]
    found = []
    for line, row in table.rows:
        cells = {name: row[name] for name in names}
        try:
            value = float(cells.pop("value"))
        except ValueError:
            raise DatasetError(path, f"line {line}: value is no number", "correct the line") from None
        if not cells["protocol"] or not cells["source"] or cells["data_set"] not in KNOWN_SETS:
            raise DatasetError(
                path, f"line {line}: lacks a data set, protocol or source", "say where it is from"
            )
        found.append(Published(value=value, **cells))
    return found


def unscored_slides(path: Path) -> list[str]:
    """The slides of the split that a ``metrics.json`` has no prediction of.

    Raises :class:`ResultsError` as :func:`read_scores` does.
    """
    slides = _read_metrics(path)["slides"]
    try:
        return sorted({*map(str, slides["failed"]), *map(str, slides["missing"])})
    except (KeyError, TypeError) as error:
        raise ResultsError(
            path, f"is not of wsi-ips evaluate ({error!r})", "evaluate the run again"
        ) from None


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ResultsError(path, "no such file of figures", "evaluate the run again")
    check_size(path, ResultsError, most=LARGEST_METRICS, fix="is it of wsi-ips evaluate?")
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert {"tasks", "slides", "stages", "froc"} <= set(held)
    except (ValueError, TypeError, AssertionError):
        raise ResultsError(path, "is not of wsi-ips evaluate", "evaluate the run again") from None
    return held


def read_scores(path: Path) -> list[Score]:
    """The figures of a ``metrics.json``: of slides, of patients, pN stages, FROC.

    Raises :class:`ResultsError` for a file that is missing or not of ``evaluate``.
    """
    held = _read_metrics(path)
    try:
        scores = []
        for task, its in held["tasks"].items():
            scores += [
                Score(task, "slides", name, _number(one["value"])) for name, one in its["metrics"].items()
            ]
            cases = its["cases"]["metrics"]
            scores += [Score(task, "patients", name, _number(one["value"])) for name, one in cases.items()]
        scores += [
            Score(task, "patients", "pn_kappa", _number(its["quadratic_kappa"]["value"]))
            for task, its in held["stages"].items()
        ]
        if held["froc"] is not None:
            scores.append(
                Score(held["froc"]["task"], "lesions", "froc", _number(held["froc"]["score"]["value"]))
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            path, f"is not of wsi-ips evaluate ({error!r})", "evaluate the run again"
        ) from None
    return scores


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True)
class TableLine(OverSeeds):
    """One figure of one row over its seeds."""

    row: str
    task: str
    of: str
    figure: str
    values: tuple[float, ...]


def lines_of(results: Sequence[JobResult]) -> list[TableLine]:
    """Every figure of every row, over the seeds that have it."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for result in results:
        for one in result.scores:
            values.setdefault((result.row, one.task, one.of, one.figure), []).append(one.value)
    return [TableLine(*key, tuple(its)) for key, its in values.items()]


def mean_costs(results: Sequence[JobResult]) -> dict[str, float | None]:
    """Means over the seeds of a row; peaks are the largest."""
    means: dict[str, float | None] = {}
    for name in _COSTS:
        known = [value for one in results if (value := one.costs.get(name)) is not None]
        peak = name.startswith("peak")
        means[name] = (max(known) if peak else math.fsum(known) / len(known)) if known else None
    return means


def write_tables(
    config: TableConfig,
    results: Sequence[JobResult],
    published: Sequence[Published],
    encoders: Mapping[str, str],
) -> list[Path]:
    """Write ``table.csv``, ``table.md`` and ``table.html`` into ``config.out``.

    Args:
        config: The table.
        results: What came of each row and seed; what is missing is said to be not run.
        published: Numbers of others; those of other data sets are left out.
        encoders: ``{row: name of its encoder}``.
    """
    ours = [one for one in published if one.data_set == config.data_set]
    texts = (
        _csv(config, results, ours, encoders),
        "\n".join(_markdown(config, results, ours, encoders)) + "\n",
        _html(config, results, ours, encoders),
    )
    paths = [config.out / name for name in FILES]
    for path, text in zip(paths, texts, strict=True):
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return paths


def _csv(
    config: TableConfig,
    results: Sequence[JobResult],
    published: Sequence[Published],
    encoders: Mapping[str, str],
) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    lines = lines_of(results)
    for row in config.rows:
        costs = [_cell(value) for value in mean_costs([one for one in results if one.row == row]).values()]
        its = [line for line in lines if line.row == row]
        for line in its:
            writer.writerow([
                row, "ours", encoders[row], line.task, line.of, line.figure, _cell(line.mean), _cell(line.sd),
                _cell(line.worst), len(line.values), ";".join(map(repr, line.values)), *costs, _protocol(config),
                "",
            ])  # fmt: skip
        if not its:
            why = _failure(results, row)
            state = "failed" if why else NOT_RUN
            writer.writerow([row, "ours", encoders[row], *[""] * 8, *costs, state, why])
    for one in published:
        blanks = [""] * (4 + len(_COSTS))
        writer.writerow([
            one.method, "published", one.encoder, "", "", one.figure, one.value, *blanks, one.protocol, one.source,
        ])  # fmt: skip
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _failure(results: Sequence[JobResult], row: str) -> str:
    return next((one.failed for one in results if one.row == row and one.failed), "")


def _protocol(config: TableConfig) -> str:
    split = "the official validation cases, held out" if config.held_out == "val" else "split test"
    return f"slide labels only; {split}; epoch chosen on validation"


def _heads(config: TableConfig) -> list[str]:
    return ["row", "encoder", *config.figures, "seeds", "hours", "peak GPU memory", "peak memory", "on disk"]


def _cells(config: TableConfig, results: Sequence[JobResult], row: str, encoder: str) -> list[str]:
    """The cells of one of our rows, for people."""
    its = [one for one in results if one.row == row]
    done = [one for one in its if not one.failed]
    first = config.model.tasks[0].name
    lines = {(line.of, line.figure): line for line in lines_of(its) if line.task == first}
    costs = mean_costs(its)
    hours = [costs[name] for name in ("train_seconds", "predict_seconds", "feature_seconds")]
    known = [value for value in hours if value is not None]
    sizes = [value for value in (costs["bytes_written"], costs["feature_bytes"]) if value is not None]
    return [
        row,
        encoder,
        *(_figure(lines, name, failed=bool(its) and not done) for name in config.figures),
        f"{len(done)} of {len(config.seeds)}" if its else f"0 of {len(config.seeds)}",
        f"{sum(known) / 3600:.2f}" if known else "",
        _gib(costs["peak_vram"]),
        _gib(costs["peak_ram"]),
        _gib(sum(sizes)) if sizes else "",
    ]


def _figure(lines: Mapping[tuple[str, str], TableLine], name: str, *, failed: bool) -> str:
    of = {"froc": ("lesions",), "pn_kappa": ("patients",)}.get(name, ("slides", "patients"))
    line = next((lines[one, name] for one in of if (one, name) in lines), None)
    if line is None:
        return "failed" if failed else ("not defined" if lines else NOT_RUN)
    if math.isnan(line.mean):
        return "not defined"
    return f"{line.mean:.3f}" + ("" if math.isnan(line.sd) else f" ± {line.sd:.3f}")


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f} GiB"


def _words(config: TableConfig) -> list[str]:
    known = KNOWN_SETS[config.data_set]
    return [
        f"{known.title}: {known.labels}. Splits: {known.splits}. Source: {known.source}.",
        f"Our rows: {_protocol(config)}; mean and standard deviation over seeds. Hours are of one job, training, "
        "prediction and storing features together; peaks are the largest of the seeds.",
        "Published numbers have protocols of their own, and are no comparison unless these are the same.",
    ]


def _markdown(
    config: TableConfig,
    results: Sequence[JobResult],
    published: Sequence[Published],
    encoders: Mapping[str, str],
) -> list[str]:
    heads = _heads(config)
    first, *words = _words(config)
    lines = [f"# {KNOWN_SETS[config.data_set].title}", "", first, "", *words, ""]
    lines += [_md_row(heads), _md_row(["---"] * len(heads))]
    lines += [_md_row(_cells(config, results, row, encoders[row])) for row in config.rows]
    lines += [
        "",
        _md_row(["published", "encoder", "figure", "value", "protocol", "source"]),
        _md_row(["---"] * 6),
    ]
    lines += [
        _md_row([one.method, one.encoder, one.figure, f"{one.value:g}", one.protocol, one.source])
        for one in published
    ]
    if warnings := [one.warning for one in results if one.warning]:
        lines += ["", "Slides that a job could not use; its figures are of the others:", ""]
        lines += [f"- {warning}" for warning in warnings]
    if failures := [one for one in results if one.failed]:
        lines += ["", "Failed:", "", *(f"- {one.row}, seed {one.seed}: {one.failed}" for one in failures)]
    return lines


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;"
    "text-align:left;vertical-align:top}th{border-bottom:2px solid #888}p{max-width:60rem}"
)


def _html(
    config: TableConfig,
    results: Sequence[JobResult],
    published: Sequence[Published],
    encoders: Mapping[str, str],
) -> str:
    title = escape(KNOWN_SETS[config.data_set].title)
    ours = [_cells(config, results, row, encoders[row]) for row in config.rows]
    theirs = [
        [one.method, one.encoder, one.figure, f"{one.value:g}", one.protocol, one.source] for one in published
    ]
    failures = [[f"{one.row}, seed {one.seed}", one.failed] for one in results if one.failed]
    parts = [f"<p>{escape(words)}</p>" for words in _words(config)]
    parts.append(_html_table(_heads(config), ours))
    parts.append("<h2>Published</h2>")
    parts.append(_html_table(["method", "encoder", "figure", "value", "protocol", "source"], theirs))
    if warnings := [[one.warning] for one in results if one.warning]:
        parts.append(
            _html_table(["slides that a job could not use; its figures are of the others"], warnings)
        )
    if failures:
        parts.append(f"<h2>Failed</h2>{_html_table(['job', 'why'], failures)}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
