"""``init``: the folder of a study to begin from, with a commented recipe and the next steps."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.commands.command_line import one_of
from wsi_ips.commands.options import Outcome, finish
from wsi_ips.datasets.proposed_task import KINDS, WITHOUT_TABLE, propose_task
from wsi_ips.errors import ConfigError
from wsi_ips.registry import did_you_mean

RECIPE, README, LABELS = "recipe.yaml", "README.md", "labels.csv"
"""What is written into the folder; the table only where there is none yet."""
KEYS = (
    "command", "manifest", "slides_root", "features", "out", "folds", "device",
    "tiling.patch_px", "tiling.patch_mpp", "tiling.min_tissue",
    "selection.selector", "selection.memory_size", "selection.iteration_size",
    "model.encoder.name", "model.encoder.weights", "model.encoder.features", "model.encoder.trainable",
    "model.aggregator", "model.tasks",
    "training.epochs", "training.lr", "training.encoder_lr", "training.slides_per_step", "training.restarts",
    "training.class_weights", "training.sampling", "training.monitor", "training.patience", "training.precision",
    "training.seed",
    "streaming.batch", "streaming.threads",
)  # fmt: skip
"""The settings that are changed first, in the order of the recipe."""
OF_SLIDES = (
    "slides_root",
    "tiling",
    "model.encoder.weights",
    "model.encoder.trainable",
    "training.encoder_lr",
)
"""Those that mean nothing where stored features are learned from."""
OF_FEATURES = ("features", "model.encoder.features")
"""Those that mean nothing where slides are."""
HEAD = """\
# A recipe of wsi-ips. Train with:  {run}
# A setting behind # has its default: take the # away to change it. README.md beside this file has the next steps.
# The page reference/settings of the documentation lists every setting; a key that is not known is refused.

"""


def command(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; it is made where there is none.")],
    task: Annotated[
        str,
        typer.Option(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", autocompletion=one_of(*KINDS)),
    ] = "classification",
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV: slide_id,case_id,split,path and the labels; default: one to fill in."),
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="Folder of the slides.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder of features stored by CLAM, TRIDENT or STAMP, instead of slides."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the labels (default label).")] = None,
    time: Annotated[str, typer.Option(help="survival: column of the follow-up times.")] = "time",
    event: Annotated[str, typer.Option(help="survival: column of the events, 1 or 0.")] = "event",
    force: Annotated[bool, typer.Option("--force", help="Replace recipe.yaml and README.md.")] = False,
) -> None:
    """Write a commented recipe and the next steps into a folder, checked against your labels and slides."""
    finish(
        init(
            folder, kind=task, labels=labels, slides=slides, features=features, column=column, time=time,
            event=event, force=force,
        )
    )  # fmt: skip


def init(
    folder: Path,
    *,
    kind: str,
    labels: Path | None,
    slides: Path | None,
    features: Path | None,
    column: str | None,
    time: str,
    event: str,
    force: bool,
) -> Outcome:
    """Write ``recipe.yaml`` and ``README.md`` into ``folder``, and ``labels.csv`` to fill in where there is no
    table. Everything is checked first, and written together or not at all.

    Raises:
        ConfigError: A file is there already, both slides and features are given, or there is no such task.
        ManifestError: The table cannot teach such a task.
        WsiIpsError: A slide or a file of features is missing.
    """
    from wsi_ips.storage.files import whole_file

    if kind not in KINDS:
        raise ConfigError(f"--task {kind}: known are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if slides is not None and features is not None:
        raise ConfigError("--slides and --features: features are learned from instead of slides; give one")
    written = [RECIPE, README, *([LABELS] if labels is None else [])]
    _must_be_free(folder, written, force=force)
    texts: dict[str, str] = {}
    if labels is None:
        task: Mapping[str, Any] = WITHOUT_TABLE[kind]
        columns = [time, event] if kind == "survival" else [column or "label"]
        task = _renamed(task, columns)
        texts[LABELS], notes = _table_to_fill(folder, columns, slides, features)
    else:
        proposal = propose_task(labels, kind, column=column, time=time, event=event)
        task, notes = proposal.task, list(proposal.notes)
        _check_slides(labels, slides, features)
    width = None if features is None else _width(features)
    table = (folder / LABELS if labels is None else labels).absolute()
    texts[RECIPE] = _recipe(folder, task, table, slides, features, width)
    texts[README] = _readme(folder, table, slides, features, to_fill=labels is None)
    with ExitStack() as all_written:
        for name in written:
            partial = all_written.enter_context(whole_file(folder / name))
            partial.write_text(texts[name], encoding="utf-8")
    return Outcome([*notes, f"wrote {', '.join(str(folder / name) for name in written)}"])


def _must_be_free(folder: Path, names: list[str], *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder")
    there = [folder / name for name in names if (folder / name).exists()]
    if folder / LABELS in there:  # somebody may have filled it in
        raise ConfigError(f"{folder / LABELS}: is there already; go on with it: --labels {folder / LABELS}")
    if there and not force:
        raise ConfigError(f"{there[0]}: is there already; name another folder, or replace it with --force")


def _renamed(task: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    if "survival" in task:
        return {**task, "survival": {**task["survival"], "time": columns[0], "event": columns[1]}}
    return {**task, "name": columns[0]}


def _table_to_fill(
    folder: Path, columns: list[str], slides: Path | None, features: Path | None
) -> tuple[str, list[str]]:
    """A table with a line for each slide that is there, whose labels are empty, and what there is to say of it."""
    from wsi_ips.datasets.feature_files import list_features
    from wsi_ips.slides.folder import find_slides, unique_slide_ids

    rows: list[tuple[str, str]] = []
    if slides is not None:
        found = unique_slide_ids(find_slides(slides))
        rows = [(name, str(Path(str(path)).absolute())) for name, path in found.items()]
    elif features is not None:
        rows = [(name, str(path.absolute())) for name, path in list_features(features).items()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "case_id", *columns, "split", "path"])
    writer.writerows([name, name, *[""] * len(columns), "train", path] for name, path in rows)
    said = f"{len(rows)} slides are listed" if rows else "no slides were given"
    return text.getvalue(), [
        f"{said}: fill in {', '.join(columns)}, case_id (the patient) and split in {folder / LABELS}"
    ]


def _check_slides(labels: Path, slides: Path | None, features: Path | None) -> None:
    """Raise :class:`WsiIpsError` where a slide of the table, or its file of features, is not there."""
    from wsi_ips.datasets.feature_files import find_features
    from wsi_ips.datasets.manifest import read_manifest

    manifest = read_manifest(labels, tasks=(), root=slides, need_slides=features is None)
    if features is not None:
        find_features(features, (record.slide_id for record in manifest.records))


def _width(features: Path) -> int:
    from wsi_ips.datasets.feature_files import list_features, open_features

    return open_features(next(iter(list_features(features).values()))).width


def _recipe(
    folder: Path,
    task: Mapping[str, Any],
    table: Path,
    slides: Path | None,
    features: Path | None,
    width: int | None,
) -> str:
    from wsi_ips.commands.finetune import FinetuneJob
    from wsi_ips.commands.recipe import make_job
    from wsi_ips.config.commented import commented_yaml
    from wsi_ips.config.section import load_yaml

    given: dict[str, Any] = {
        "command": "finetune",
        "manifest": str(table),
        "out": str((folder / "run").absolute()),
        "model": {"tasks": [dict(task)]},
    }
    if slides is not None:
        given["slides_root"] = str(slides.absolute())
    if features is not None:
        given["features"] = str(features.absolute())
        given["model"]["encoder"] = {"name": "features", "features": width}
    left_out = OF_FEATURES if features is None else OF_SLIDES
    keys = [key for key in KEYS if not any(f"{key}.".startswith(f"{other}.") for other in left_out)]
    text = commented_yaml(FinetuneJob, given, keys)
    make_job(load_yaml(text), source=RECIPE)
    return HEAD.format(run=shlex.join(["wsi-ips", "run", str(folder / RECIPE)])) + text


def _readme(folder: Path, table: Path, slides: Path | None, features: Path | None, *, to_fill: bool) -> str:
    where = {
        name: shlex.quote(str((folder / name).absolute())) for name in (RECIPE, "run", "predictions", "tiles")
    }
    labels = shlex.quote(str(table))
    source = "SLIDES" if slides is None else shlex.quote(str(slides.absolute()))
    read = f"--features {shlex.quote(str(features.absolute()))}" if features is not None else source
    folds = shlex.quote(f"out={(folder / 'run_folds').absolute()}")
    checkpoint = shlex.quote(str((folder / "run" / "model.safetensors").absolute()))
    steps: list[tuple[str, list[str]]] = []
    if to_fill:
        steps.append((
            f"Fill in `{LABELS}`: a line for each slide, its patient (`case_id`), its label, `train`, `val` or "
            "`test`, and its path. All slides of a patient belong into one split.", []))  # fmt: skip
    if features is None:
        steps.append((
            "Look at what is taken for tissue before anything is trained.",
            [f"wsi-ips tile {source} --out {where['tiles']}"]))  # fmt: skip
        steps.append((
            "See what training will cost: patches, hours, memory, disk. It takes a minute and trains nothing.",
            [f"wsi-ips plan {where[RECIPE]}"]))  # fmt: skip
    steps += [
        ("Train. A run that was killed goes on where it was.", [f"wsi-ips run {where[RECIPE]}"]),
        (
            "Read `run/MODEL_CARD.md`, then label slides.",
            [f"wsi-ips predict {read} --checkpoint {checkpoint} --out {where['predictions']}"],
        ),
        (
            "Score the test slides, look at the maps, and make a page that can be mailed.",
            [
                f"wsi-ips evaluate {where['predictions']} {labels} --split test",
                f"wsi-ips view {where['predictions']}",
                f"wsi-ips report {where['predictions']} --training {where['run']}",
            ],
        ),
        (
            "Few slides? Cross-validate by patient instead of training once.",
            [f"wsi-ips run {where[RECIPE]} --set folds=5 --set {folds}"],
        ),
    ]
    return _as_markdown(steps)


def _as_markdown(steps: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A numbered list of what to do, with the commands that do it."""
    lines = [
        "# Next steps",
        "",
        f"`{RECIPE}` holds the settings that are changed first, with their meaning.",
        "",
    ]
    for number, (what, commands) in enumerate(steps, 1):
        lines += [f"{number}. {what}", ""]
        if commands:
            lines += ["```bash", *commands, "```", ""]
    lines += ["What comes out is for research. It is no diagnosis."]
    return "\n".join(lines) + "\n"
