"""``summary.md`` of a prediction run: how it went, in words that a person reads first (:func:`write_summary`).

It is made of what the run's folder holds, so a run that was resumed has the same summary as one that went through.
Everything but the section Times depends on the results alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from wsi_ips.config import TaskConfig
from wsi_ips.errors import count, harmless, one_line
from wsi_ips.inference.telemetry import SlideTelemetry
from wsi_ips.report.stored_run import StoredRun, StoredSlide
from wsi_ips.report.summary import duration
from wsi_ips.storage.files import whole_file

PLACES = frozenset({"command", "slides", "features", "from_coords", "coords", "checkpoint", "calibration", "out",
                    "device", "overlays", "profile", "force", "mpp_csv", "cases",
                    "batch", "streaming"})  # fmt: skip
"""Settings that say where things are or who does the work, and not what is computed."""

DECIDING_OF_STREAMING = ("decode", "max_bad_tiles")
"""Settings of ``streaming`` on which results depend."""

PARTS = (("attention", ".h5"), ("overlays", ".png"))
"""The folders of a run with a file of each slide, and how their names end."""

LISTED = 50
"""How many failed slides, and how many with a remark, are listed; ``slides.csv`` has all of them."""

LONGEST_CELL = 300
"""Characters of a slide's name or of a reason."""

FINGERPRINT_DIGITS = 12
"""Hexadecimal digits that are shown of a checksum."""


def write_summary(stored: StoredRun) -> None:
    """Write ``summary.md`` of a run, completely or not at all. Raises ``OSError`` if it cannot be written."""
    run = stored.folder
    text = "\n".join(_lines(stored)) + "\n"
    with whole_file(run.summary) as partial:
        partial.write_text(text, encoding="utf-8")


def settings_fingerprint(description: Mapping[str, Any]) -> str:
    """The first 12 digits of the SHA-256 of everything in ``run.json`` that decides what is computed.

    These are the settings, without places and devices, and the checksum of the model. Whether resolutions or
    coordinates were given counts, not in which file.
    """
    config = description.get("config")
    config = config if isinstance(config, dict) else {}
    checkpoint = description.get("checkpoint")
    deciding = {
        "settings": {name: value for name, value in config.items() if name not in PLACES},
        "streaming": {name: _section(config, "streaming").get(name) for name in DECIDING_OF_STREAMING},
        "given": {name: bool(config.get(name)) for name in ("features", "from_coords", "mpp_csv", "cases")},
        "checkpoint": checkpoint.get("sha256") if isinstance(checkpoint, dict) else None,
        "calibration": description.get("calibration"),
    }
    text = json.dumps(deciding, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _lines(run: StoredRun) -> Iterator[str]:
    labelled = [slide for slide in run.slides if slide.status == "ok"]
    failed = [slide for slide in run.slides if slide.status == "failed"]
    waiting = [slide for slide in run.slides if slide.status == "unfinished"]
    yield "# Summary of a prediction run"
    yield ""
    said = f"**{len(labelled)} of {count(len(run.slides), 'slide')} labelled, {len(failed)} failed"
    yield said + (f", {len(waiting)} not begun**." if waiting else "**.")
    yield f"Patches of all of them: {sum(slide.n_patches or 0 for slide in labelled)}."
    yield ""
    yield from _settings(run)
    yield from _labels(run.tasks, labelled)
    yield from _listed("Failed slides", failed)
    yield from _listed("Labelled, with a remark", [slide for slide in labelled if slide.error])
    yield from _files(run)
    yield from _times(run, labelled)


def _settings(run: StoredRun) -> Iterator[str]:
    """What the run was made with."""
    described = run.description
    config = described.get("config")
    config = config if isinstance(config, dict) else {}
    checkpoint = described.get("checkpoint")
    sha = str(checkpoint.get("sha256", "")) if isinstance(checkpoint, dict) else ""
    yield "## Settings"
    yield ""
    yield "| what | |"
    yield "|---|---|"
    yield f"| fingerprint of the settings | `{settings_fingerprint(described)}` |"
    yield f"| model (SHA-256) | `{_cell(sha[:FINGERPRINT_DIGITS])}` |"
    tiling, selection, model = (_section(config, name) for name in ("tiling", "selection", "model"))
    if tiling and not run.of_features:
        size = f"{tiling.get('patch_px')} px at {tiling.get('patch_mpp')} µm per pixel"
        yield f"| patches | {_cell(size)}, overlap {_cell(tiling.get('overlap_px', 0))} px |"
    if config.get("bag") == "case":
        yield "| read together | all slides of a case, as one bag: a slide has the label of its case |"
    if selection:
        kept = f", the best {selection.get('memory_size')} are kept" if selection.get("memory_size") else ""
        turns = selection.get("turns", 1)
        kept += f", and read in {turns} orientations" if turns != 1 else ""
        yield f"| selection | {_cell(str(selection.get('selector')) + kept)} |"
    if encoder := _section(model, "encoder"):
        yield f"| encoder | {_cell(encoder.get('name'))} |"
    versions = _section(described, "versions")
    if versions:
        yield f"| wsi_ips, torch | {_cell(versions.get('wsi_ips'))}, {_cell(versions.get('torch'))} |"
    yield f"| calibrated | {'yes' if described.get('calibration') else 'no'} |"
    yield ""


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    held = values.get(name)
    return held if isinstance(held, dict) else {}


def _labels(tasks: Sequence[TaskConfig], labelled: Sequence[StoredSlide]) -> Iterator[str]:
    """For each task, how many slides got which label, and the probabilities of each."""
    yield "## Labels"
    yield ""
    if not labelled:
        yield "No slide was labelled."
        yield ""
        return
    for task in tasks:
        outputs = [slide.probabilities[task.name] for slide in labelled if slide.probabilities]
        counted = task.activation != "linear" and task.survival is None
        yield f"**{_cell(task.name)}**"
        yield ""
        yield ("| class | slides | " if counted else "| output | ") + "mean | median | lowest | highest |"
        yield "|---|---:|---:|---:|---:|" + ("---:|" if counted else "")
        for name in task.classes:
            values = [output[name] for output in outputs if output[name] == output[name]]
            count = f"{sum(_is_said(task, output, name) for output in outputs)} | " if counted else ""
            numbers = (fmean(values), median(values), min(values), max(values)) if values else ()
            shown = " | ".join(f"{number:.4f}" for number in numbers) or "- | - | - | -"
            yield f"| {_cell(name)} | {count}{shown} |"
        yield ""


def _is_said(task: TaskConfig, output: Mapping[str, float], name: str) -> bool:
    """Whether the class is in the slide's ``pred``: the likeliest one, or one of several with 0.5 or more."""
    if task.activation == "sigmoid":
        return output[name] >= 0.5
    return name == max(task.classes, key=lambda each: output[each])


def _listed(title: str, slides: Sequence[StoredSlide]) -> Iterator[str]:
    if not slides:
        return
    yield f"## {title}"
    yield ""
    yield "| slide | why |"
    yield "|---|---|"
    for slide in slides[:LISTED]:
        yield f"| {_cell(slide.slide_id)} | {_cell(slide.error or 'not known')} |"
    if len(slides) > LISTED:
        yield f"| … | {len(slides) - LISTED} more in slides.csv |"
    yield ""


def _files(run: StoredRun) -> Iterator[str]:
    """What is in the folder, and where its pictures are."""
    folder = run.folder
    attention, overlays = (_counted(run, name, suffix) for name, suffix in PARTS)
    yield "## Files"
    yield ""
    yield "| file | what it holds |"
    yield "|---|---|"
    yield "| predictions.csv | probabilities and label of each slide |"
    if folder.cases.is_file():
        yield "| cases.csv | the same of each patient |"
    if folder.slides.is_file():
        yield "| slides.csv | how each slide went, and where its time went |"
    yield f"| attention/ | {count(attention, 'file')}: attention, kept patches and scores of each slide |"
    pictures = (
        f"{count(overlays, 'picture')}, one of each slide"
        if overlays
        else "no pictures: draw them with wsi-ips overlay"
    )
    yield f"| overlays/ | {'none: features have no slides' if run.of_features else pictures} |"
    yield "| run.json | all settings |"
    yield ""
    yield "`wsi-ips inspect RUN SLIDE` says what was read of one slide, `wsi-ips view RUN` shows all of them."
    yield ""


def _counted(run: StoredRun, name: str, suffix: str) -> int:
    """How many of the run's slides have a file in a folder of it. Files of slides that an earlier start had, and
    this one has not, do not count.
    """
    folder = run.folder.root / name
    if not folder.is_dir():
        return 0
    names = frozenset(os.listdir(folder))  # noqa: PTH208 - a Path for each of 100,000 files takes a second
    return sum(f"{slide.slide_id}{suffix}" in names for slide in run.slides)


def _times(run: StoredRun, labelled: Sequence[StoredSlide]) -> Iterator[str]:
    """The only section that differs from run to run."""
    yield "## Times"
    yield ""
    started = run.description.get("started")
    if started:
        yield f"The last start was at {_cell(started)}."
    measured = [slide.telemetry for slide in labelled if slide.telemetry is not None]
    if not measured:
        yield "How long the slides took was not recorded."
        return
    seconds = [telemetry.seconds for telemetry in measured]
    total = SlideTelemetry.total(measured)
    each = f"half of them up to {duration(median(seconds))}, the longest {duration(max(seconds))}"
    slides = count(len(measured), "slide")
    yield f"{slides} took {duration(sum(seconds))} in all, over all starts and workers: {each}."
    yield f"The encoder waited {total.waited:.0%} of its passes. Peak memory was {total.peak_rss_mb:.0f} MB."


def _cell(text: object) -> str:
    """A text, which may come from anybody, as a cell of a table: one line that Markdown does not obey."""
    line = harmless(one_line(str(text), most=LONGEST_CELL))
    for mark in "\\`*_{}[]<>#|~&":
        line = line.replace(mark, "\\" + mark)
    return line
