"""Writes the report as one HTML file that loads nothing from elsewhere: :func:`write_page`.

The file is written slide by slide, so that only the pictures of one slide are in memory at a time. Names, labels
and errors come from files that anybody may have made: Jinja2 escapes all of them, and the page's content security
policy allows no script but the one whose hash it names, and no loading at all.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wsi_ips.errors import ResultsError, count
from wsi_ips.evaluation.plots import figure_name
from wsi_ips.evaluation.task_scores import kind_of
from wsi_ips.report.cards import Card, Line
from wsi_ips.report.pictures import Plot
from wsi_ips.report.stages import StageShares
from wsi_ips.report.stored_run import Figure, StoredEvaluation, StoredRun, TrainingRun
from wsi_ips.report.summary import Summary, figure, raw, shortened
from wsi_ips.storage.files import no_empty_folder, whole_file

MOST_CHECKPOINTS = 20
"""The most checkpoints of an ensemble that are listed."""
LONGEST_SETTINGS = 60_000
"""Characters of the settings that are shown, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The content of a report.

    ``lines`` has one row per slide that is shown; ``cards`` are made while the page is written.
    ``plots`` are those of the
    evaluation, ``training_plots`` those of the training. ``notes`` say what is left out, and why.
    ``of_gradients`` says whether the maps are of gradients. ``stages`` is where the time went, if that is known.
    """

    run: StoredRun
    summary: Summary
    lines: Sequence[Line]
    cards: Iterable[Card]
    evaluation: StoredEvaluation | None = None
    plots: Sequence[Plot] = ()
    training: TrainingRun | None = None
    training_plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    of_gradients: bool = False
    stages: StageShares | None = None


def write_page(path: Path, page: Page) -> None:
    """Write the page, whole or not at all. Raises :class:`ResultsError` if the file cannot be written."""
    try:
        # backslashreplace: a file name that is not UTF-8 must not cost the report.
        with (
            no_empty_folder(path.parent),
            whole_file(path) as partial,
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            file.writelines(_pieces(page))
    except OSError as error:
        raise ResultsError(
            path, f"cannot be written ({error.strerror or error})", "name another file with --out"
        ) from None


def _pieces(page: Page) -> Iterable[str]:
    here = Path(__file__).parent
    jinja = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_never_none,
    )  # fmt: skip
    jinja.filters |= {"figure": figure, "raw": raw, "shortened": shortened, "count": count,
                      "figure_name": figure_name, "whisker": whisker}  # fmt: skip
    jinja.tests["binary"] = lambda task: kind_of(task) == "binary"
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return jinja.get_template("page.html").generate(
        page=page,
        # Ours, and the only text that is not escaped.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=digest,
        linked={line.slide.number for line in page.lines if line.has_card},
        title=page.run.folder.root.resolve().name,
        settings=settings_text(page.run.description.get("config")),
        described=_described(page.run.description),
    )


def _never_none(value: Any) -> Any:
    """Refuse None: if it reached the page, that would be a mistake of this package."""
    if value is None:
        raise ValueError("the page would say None")
    return value


def settings_text(config: object) -> str:
    """Settings as YAML, as in a recipe; shortened if they are very long."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100) if config else ""
    return text if len(text) <= LONGEST_SETTINGS else text[:LONGEST_SETTINGS] + "\n…"


@dataclass(frozen=True, slots=True)
class Described:
    """What ``run.json`` says of a run; empty where it says nothing.

    ``others`` are further checkpoints whose mean with the first one is reported. ``calibrated`` says on which
    slides the probabilities were calibrated.
    """

    started: str
    host: str
    checkpoint: str
    sha256: str
    versions: Mapping[str, str]
    others: Sequence[str] = ()
    calibrated: str = ""


def _described(description: Mapping[str, Any]) -> Described:
    checkpoint = _mapping(description.get("checkpoint"))
    versions = {str(name): str(version) for name, version in _mapping(description.get("versions")).items()}
    return Described(
        started=str(description.get("started") or "").replace("T", " ").replace("+00:00", " UTC"),
        host=str(description.get("host") or ""),
        checkpoint=str(checkpoint.get("path") or ""),
        sha256=str(checkpoint.get("sha256") or ""),
        versions=versions,
        others=_other_checkpoints(description.get("checkpoints")),
        calibrated=_calibrated(_mapping(description.get("calibration"))),
    )


def _other_checkpoints(told: object) -> Sequence[str]:
    files = told[1:MOST_CHECKPOINTS] if isinstance(told, list) else []
    return [str(_mapping(one).get("path") or "") for one in files]


def _calibrated(calibration: Mapping[str, Any]) -> str:
    slides = calibration.get("slides")
    if not isinstance(slides, list):
        return ""
    tasks = ", ".join(map(str, _mapping(calibration.get("tasks"))))
    return (
        f"{tasks}: on {count(len(slides), 'slide')} of split {calibration.get('split')}, at a risk of "
        f"{calibration.get('risk')}"
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def whisker(one: Figure) -> tuple[float, float, float] | None:
    """(low, value, high) in percent of a figure that is a share, else None.

    It is None without an interval as well.
    """
    if one.value is None or one.low is None or one.high is None:
        return None
    ends = (one.low, one.value, one.high)
    return (100 * one.low, 100 * one.value, 100 * one.high) if all(0 <= end <= 1 for end in ends) else None
