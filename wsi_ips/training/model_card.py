"""The model card of a training run: what the model was made from, how well it does, and what it is not for.

:func:`write_card` leaves ``MODEL_CARD.md`` in the folder of a run, :func:`write_folds_card` in that of a
cross-validation. The text says nothing of the time and place of the run, so the same run has the same card.
:func:`card_beside` finds the card of a checkpoint.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.config import EncoderConfig, FinetuneConfig, TaskConfig
from wsi_ips.config.slides import file_sha256
from wsi_ips.datasets.manifest import NONE, SPLITS, Manifest, SlideRecord
from wsi_ips.errors import ConfigError, count, harmless, one_line
from wsi_ips.models.encoders.identity import EncoderIdentity, FeaturesOrigin
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.storage.files import whole_file
from wsi_ips.storage.fingerprint import versions

if TYPE_CHECKING:
    from wsi_ips.training.run_state import FinetuneReport

CARD_NAME = "MODEL_CARD.md"
"""File of the card in the folder of a run."""
FEW_TRAINED = 20
"""With fewer training slides of a class, the card says that the class has few."""
FEW_VALIDATED = 50
"""With fewer validation slides, the card says that their figures are rough."""
MOST_NAMED = 10
"""How many slides or classes are named one by one."""
INTENDED_USE = """\
This model is for research. It is no medical device, it has not been validated for patients, and its answers,
figures and maps are no diagnosis and no ground for treatment.

It may be used to study slides like those that it was trained on: the same tissue, stain, resolution and question.
On other slides (another organ, stain, scanner or laboratory) it answers as readily, and nothing in its answer
says that it is wrong there. Measure it on labelled slides of your own before anything is concluded from it.

Attention and contribution maps say what this model read. They do not say where a lesion is, and a patch that the
model did not need may still be a finding.
"""
"""What every card begins with."""


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What a training knows of a slide that it read.

    Attributes:
        patches: How many patches it has.
        mpp: µm per pixel of its finest level, None if that is not known.
        scanner: The vendor that its file names, "" if it is not known.
    """

    patches: int
    mpp: float | None = None
    scanner: str = ""


def write_card(
    out: Path,
    manifest: Manifest,
    config: FinetuneConfig,
    report: "FinetuneReport",
    facts: Mapping[str, SlideFacts],
) -> Path:
    """Write the card of a training into its folder, whole or not at all.

    Args:
        out: The folder of the run.
        manifest: The slides and their splits.
        config: The settings of the run.
        report: How it ended.
        facts: ``{slide_id: what is known of it}`` of the slides that were read.

    Returns:
        The file.
    """
    parts = [
        "# Model card",
        f"Written by `wsi-ips finetune`, version {_version()}, for `{report.checkpoint.name}` in this folder.",
        "## Intended use",
        INTENDED_USE,
        "## What it answers",
        _tasks(config),
        "## Data",
        _data(manifest, config.model.tasks, report, facts),
        "## Encoder",
        _encoder(config.model.encoder),
        "## Figures",
        _figures(manifest, report),
        "## Calibration",
        "The probabilities are as the network gives them: they are **not calibrated**. `wsi-ips calibrate` fits "
        "them on slides with known labels, for `wsi-ips predict --calibration`.",
        "## Limits that were found",
        _limits(manifest, config, report, facts),
        "## Settings",
        _settings(config),
    ]
    path = out / CARD_NAME
    with whole_file(path) as partial:
        partial.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")
    return path


def write_folds_card(
    out: Path,
    manifest: Manifest,
    config: FinetuneConfig,
    held_out: Mapping[str, tuple[float, float]],
    *,
    k: int,
) -> Path:
    """Write the card of a cross-validation: what it measured, and where the cards of its models are.

    Args:
        out: Its folder.
        manifest: The slides as they were given, before they were divided into folds.
        config: The settings of each training.
        held_out: ``{figure: (mean, standard deviation)}`` over the folds, on slides that a model has not seen.
        k: Number of folds.
    """
    records = manifest.split("train+val")
    rows = [[name, f"{mean:.4f}", f"{sd:.4f}"] for name, (mean, sd) in held_out.items()]
    measured = (
        _table(["figure", "mean", "standard deviation"], rows) if rows else "No figure could be measured."
    )
    cards = [f"- [fold {number}](fold_{number}/{CARD_NAME})" for number in range(k)]
    parts = [
        "# Model cards of a cross-validation",
        f"Written by `wsi-ips finetune --folds {k}`, version {_version()}.",
        "## Intended use",
        INTENDED_USE,
        "## Data",
        f"{count(len(records), 'slide')} of {count(len({record.case_id for record in records}), 'patient')} "
        f"({_named(manifest)}), "
        f"divided by patient into {k} folds. Slides in the manifest's split `test` were not read: "
        f"{len(manifest.split('test'))}.",
        "## Figures on slides that a model has not seen",
        f"{measured}\n\nMean and standard deviation over {k} models, each measured on its own fold. The folds "
        "share training slides, so the standard deviation is no confidence interval.",
        "## Encoder",
        _encoder(config.model.encoder),
        "## Models",
        "\n".join(cards),
    ]
    path = out / CARD_NAME
    with whole_file(path) as partial:
        partial.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")
    return path


def merged_card_name(checkpoint: Path) -> str:
    """The name of the card of a checkpoint that has no folder of its own, such as a merged one."""
    return f"{checkpoint.stem}.{CARD_NAME}"


def card_beside(checkpoint: Path) -> Path | None:
    """The card of a checkpoint: the one with its name, or that of the run whose folder it lies in."""
    places = (checkpoint.with_name(merged_card_name(checkpoint)), checkpoint.with_name(CARD_NAME))
    return next((place for place in places if place.is_file()), None)


def write_merged_card(checkpoint: Path, out: Path) -> Path | None:
    """Write the card of a merged checkpoint: that of the training, with a note on top.

    Args:
        checkpoint: The checkpoint that holds adapters alone.
        out: The merged checkpoint.

    Returns:
        The file; None if the training has no card.
    """
    card = card_beside(checkpoint)
    if card is None:
        return None
    note = (
        f"`{out.name}` is `{checkpoint.name}` of this training, merged with the encoder's own weights: it holds "
        "them, and their licence is that of this file too.\n\n"
    )
    path = out.with_name(merged_card_name(out))
    with whole_file(path) as partial:
        partial.write_text(note + card.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def _version() -> str:
    from wsi_ips import __version__

    return __version__


def _named(manifest: Manifest) -> str:
    path = manifest.path
    known = f", SHA-256 `{file_sha256(path)}`" if path.is_file() else ""
    return f"{_cell(path.name)}{known}"


def _tasks(config: FinetuneConfig) -> str:
    kinds = {"softmax": "one class of several", "sigmoid": "each class by itself", "linear": "numbers"}
    rows = [
        [
            task.name,
            {"ordinal": "one class of several in order", "survival": "time to an event"}.get(
                task.kind, kinds[task.activation]
            ),
            ", ".join(task.columns),
            ", ".join(task.classes),
        ]
        for task in config.model.tasks
    ]
    model, selection = config.model, config.selection
    reads = model.attention.block if model.aggregator is None else model.aggregator.name
    kept = f"; {selection.memory_size} patches are kept" if selection.selector not in ("all",) else ""
    kept += f" and read in {selection.turns} orientations" if selection.turns > 1 else ""
    one = "all slides of a patient together" if config.bag == "case" else "each slide by itself"
    return (
        f"{_table(['task', 'kind', 'column', 'answers'], rows)}\n\nIt reads {one}, in patches of "
        f"{config.tiling.patch_px} px at {config.tiling.patch_mpp:g} µm per pixel, chosen by "
        f"`{selection.selector}`{kept}, with the aggregator `{reads}`."
    )


def _data(
    manifest: Manifest,
    tasks: Sequence[TaskConfig],
    report: "FinetuneReport",
    facts: Mapping[str, SlideFacts],
) -> str:
    splits = [split for split in SPLITS if manifest.split(split)]
    of = {split: manifest.split(split) for split in splits}
    rows = [
        ["slides", *(str(len(of[split])) for split in splits)],
        ["patients", *(str(len({record.case_id for record in of[split]})) for split in splits)],
        ["slides left out", *(str(sum(one.slide_id in report.bad for one in of[split])) for split in splits)],
    ]
    for task in tasks:
        for name in _counted(task):
            counts = (_count(of[split], task, name) for split in splits)
            rows.append([f"{task.name}: {name}", *map(str, counts)])
    said = [f"Manifest: {_named(manifest)}.", _table(["", *splits], rows)]
    if "test" in of:
        said.append("The slides of the split `test` were not read by this training.")
    known = list(facts.values())
    if known:
        patches = [fact.patches for fact in known]
        said.append(
            f"Patches of the slides that were read: {sum(patches):,}; per slide {min(patches):,} to "
            f"{max(patches):,}, median {statistics.median(patches):,.0f}."
        )
    mpps = [fact.mpp for fact in known if fact.mpp is not None]
    if mpps:
        span = f"{min(mpps):.4g}" if min(mpps) == max(mpps) else f"{min(mpps):.4g} to {max(mpps):.4g}"
        said.append(f"Resolution of the slides at level 0: {span} µm per pixel.")
    scanners = Counter(fact.scanner for fact in known if fact.scanner)
    if scanners:
        listed = ", ".join(f"{_cell(name)} ({count})" for name, count in sorted(scanners.items()))
        said.append(f"Scanner or format, as the files name it: {listed}.")
    return "\n\n".join(said)


def _counted(task: TaskConfig) -> Sequence[str]:
    if task.survival is not None:
        return ("events", "censored")
    return () if task.activation == "linear" else task.classes


def _count(records: Sequence[SlideRecord], task: TaskConfig, name: str) -> int:
    """How many slides have a class, an event, or none."""
    if task.survival is not None:
        wanted = "1" if name == "events" else "0"
        return sum(record.labels.get(task.survival.event) == wanted for record in records)
    cells = (record.labels.get(task.column_name, "") for record in records)
    if task.activation != "sigmoid":
        return sum(cell == name for cell in cells)
    one = len(task.classes) == 1
    return sum(name in _parts(cell) or (one and cell == "1") for cell in cells)


def _parts(cell: str) -> set[str]:
    return {part.strip() for part in cell.split(";")} - {NONE, ""}


def _encoder(encoder: EncoderConfig) -> str:
    rows = [["name", encoder.name], *_origin(encoder)]
    if encoder.lora is not None:
        rows.append(
            [
                "learned",
                f"adapters of rank {encoder.lora.rank}; the encoder's own weights are not in the file",
            ]
        )
    elif encoder.name != "features":
        rows.append(["learned", "all of its weights" if encoder.trainable else "nothing: it stays as it was"])
    return _table(["", ""], rows)


def _origin(encoder: EncoderConfig) -> list[list[str]]:
    """Where the encoder comes from, and who may use it."""
    if encoder.name == "features":
        maker = EncoderIdentity.from_text(encoder.features_of)
        width = ["width", str(encoder.features)]
        if encoder.features_patch_um is not None:
            width[1] += f", of patches of {encoder.features_patch_um:.4g} µm"
        if maker is None:
            return [
                width,
                ["licence", "that of the encoder which made the features; the run does not know it"],
            ]
        weights = "from a file" if maker.weights.startswith("file:") else maker.weights
        made = FeaturesOrigin().into(encoder.model_copy(update={"name": maker.name, "weights": weights}))
        return [width, ["made by", maker.name], *_origin(made)]
    if encoder.weights == "none":
        return [["weights", "random at the start: no licence but that of the slides"]]
    try:
        entry = entry_of(encoder.name)
    except ConfigError:
        entry = None
    if entry is None:
        licence = _timm_licence(encoder) or "not known here: look where the weights come from"
        return [["weights", encoder.weights], ["licence of the weights", licence]]
    consent = "yes: whoever is given this model needs the owners' consent too" if entry.gated else "no"
    its_mpp = ", ".join(f"{mpp:g}" for mpp in entry.mpp)
    return [
        ["weights", encoder.weights if encoder.weights != "timm" else (*entry.sources, "its package's")[0]],
        ["licence of the weights", entry.licence],
        ["gated (its owners ask for consent)", consent],
        ["terms", entry.page or "not stated"],
        ["patches of its own training", f"{entry.patch_px} px at {its_mpp or '?'} µm per pixel"],
    ]  # fmt: skip


def _timm_licence(encoder: EncoderConfig) -> str:
    if encoder.weights != "timm":
        return ""
    import timm

    try:
        found = timm.models.get_pretrained_cfg(encoder.name)
    except (RuntimeError, ValueError, KeyError):
        return ""
    return str(getattr(found, "license", None) or "")


def _figures(manifest: Manifest, report: "FinetuneReport") -> str:
    best = report.history[report.best_epoch]
    rows = [[name, f"{value:.4f}"] for name, value in best.items() if name != "epoch"]
    val = sum(record.slide_id not in report.bad for record in manifest.split("val"))
    chosen = (
        f"The figures that begin with `val_` are of validation slides ({val}), which also chose the epoch: they "
        "flatter."
        if val
        else "There were no validation slides: the epoch was chosen by the training loss, and nothing here was "
        "measured on slides that were not learned from."
    )
    table = _table(["figure", "value"], rows)
    return (
        f"Epoch {report.best_epoch + 1} of {len(report.history)} was kept.\n\n{table}\n\n{chosen}\n\n"
        "On test slides this training measured nothing. `wsi-ips evaluate` does, with intervals."
    )


def _limits(
    manifest: Manifest,
    config: FinetuneConfig,
    report: "FinetuneReport",
    facts: Mapping[str, SlideFacts],
) -> str:
    found = [f"The run itself doubts its result: {_cell(doubt)}" for doubt in report.doubts]
    used = {
        split: [one for one in manifest.split(split) if one.slide_id not in report.bad]
        for split in ("train", "val")
    }
    for task in config.model.tasks:
        for name in _counted(task):
            counts = {split: _count(used[split], task, name) for split in used}
            if counts["train"] < FEW_TRAINED:
                found.append(f"Few training slides: {counts['train']} of {_cell(task.name)} {_cell(name)}.")
            if used["val"] and not counts["val"]:
                found.append(
                    f"No validation slide is {_cell(task.name)} {_cell(name)}: no figure speaks of it."
                )
    if 0 < len(used["val"]) < FEW_VALIDATED:
        found.append(f"Few validation slides, {len(used['val'])}: their figures are rough.")
    if len(manifest.split("train")) > len({record.case_id for record in manifest.split("train")}):
        found.append(
            "Several training slides are of one patient: there are fewer independent ones than slides."
        )
    scanners = {fact.scanner for fact in facts.values() if fact.scanner}
    if len(scanners) == 1:
        found.append(f"All slides are of one scanner or format ({_cell(scanners.pop())}).")
    bad = sorted(report.bad.items())
    found += [f"Left out: {_cell(slide_id)}, {_cell(reason)}" for slide_id, reason in bad[:MOST_NAMED]]
    if len(bad) > MOST_NAMED:
        found.append(f"Left out: {count(len(bad) - MOST_NAMED, 'slide')} more.")
    found.append(
        "Nothing was measured on slides of another laboratory, by age, sex or origin of patients, or over time."
    )
    return "\n".join(f"- {line}" for line in found)


def _settings(config: FinetuneConfig) -> str:
    sections = {"tiling", "selection", "model", "training", "bag"}
    given = dict(_flat(config.model_dump(mode="json", include=sections)))
    plain = dict(_flat(FinetuneConfig().model_dump(mode="json", include=sections)))
    differing = [
        [name, str(value)] for name, value in given.items() if plain.get(name, value is None) != value
    ]
    rows = [row for row in differing if not row[0].startswith("model.tasks")]
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    table = _table(["setting", "value"], rows) if rows else "All settings have their defaults."
    return (
        f"Those that differ from the defaults of this version; `run.json` has all of them. Seed: "
        f"{config.training.seed}.\n\n{table}\n\nMade with {_cell(used)}."
    )


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", value))
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text of a file or of the user as Markdown shows it: on one line, and without marks of its own."""
    plain = harmless(one_line(text, most=300))
    return "".join(f"\\{letter}" if letter in "\\`*|<>[]" else letter for letter in plain)
