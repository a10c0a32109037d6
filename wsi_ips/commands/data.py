"""``data verify`` and ``data manifest``: whether a data set is whole, and which of its slides are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_ips.commands.options import SOME_FAILED, Outcome, finish
from wsi_ips.errors import ConfigError, DatasetError, count
from wsi_ips.progress import Progress
from wsi_ips.registry import did_you_mean

if TYPE_CHECKING:
    from wsi_ips.datasets.camelyon import Row

Labels = Annotated[
    Path | None, typer.Option(help="Table of labels, where it is not in the folder under its own name.")
]
_SETS = "camelyon16, camelyon17, camelyon_plus, panda, tcga_brca"


def verify_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set; its checksums are in it.")],
    manifest: Annotated[
        Path | None, typer.Option(help=f"Are all its slides there? A CSV, or {_SETS}.")
    ] = None,
    labels: Labels = None,
) -> None:
    """Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered."""
    from wsi_ips.commands.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = verify(folder, progress, manifest=manifest, labels=labels)
    finish(outcome)


def verify(
    folder: Path, progress: Progress, *, manifest: Path | None = None, labels: Path | None = None
) -> Outcome:
    """Check files against the lists of checksums in ``folder``, and slides against a manifest or a known data set.

    Of a known data set, whatever is not as its release has it is a line that says what was expected. Raises
    :class:`DatasetError` where there is neither a list nor a manifest to check against, and what
    :func:`wsi_ips.datasets.known_sets.look` raises.
    """
    from wsi_ips.datasets.checksums import LIST_NAMES, verify_folder
    from wsi_ips.datasets.download_faults import unopened
    from wsi_ips.datasets.known_sets import KNOWN_SETS

    _must_be_folder(folder)
    known = str(manifest) if str(manifest) in KNOWN_SETS and manifest and not manifest.exists() else None
    if labels is not None and known is None:
        raise ConfigError("--labels goes with --manifest and the name of a data set")
    # Before the hashing, which takes hours: a wrong manifest or layout shows at once.
    lines: list[str] = []
    absent = False
    slides: list[Path] = []
    if known is not None:
        lines, absent, slides = _known_slides(known, folder, labels)
    elif manifest is not None:
        if not manifest.exists() and not manifest.suffix:
            raise ConfigError(
                f"--manifest {manifest}: no such file; known by name are {', '.join(KNOWN_SETS)}"
                f"{did_you_mean(str(manifest), KNOWN_SETS)}"
            )
        lines, absent = _listed_slides(manifest, folder)
    found = verify_folder(folder, progress=progress)
    if not found.lists and manifest is None:
        raise DatasetError(folder, f"holds no {' or '.join(LIST_NAMES)}", "download it, or give --manifest")
    hashed = [*found.bad]
    if known is not None and not found.lists:
        cut = unopened(slides, progress=progress)
        hashed += [
            f"no {' or '.join(LIST_NAMES)}: contents were not compared; each slide was opened, which finds those "
            "that were cut short",
            *cut,
        ]
        absent = absent or bool(cut)
    if found.lists:
        listed = count(found.checked, "listed file is", "listed files are")
        hashed.append(f"{found.checked - len(found.bad)} of {listed} as listed")
        first = f", the first {found.unlisted[0]}" if found.unlisted else ""
        hashed.append(f"{count(len(found.unlisted), 'file is', 'files are')} in no list{first}")
    return Outcome([*hashed, *lines], SOME_FAILED if found.bad or absent else 0)


def _listed_slides(manifest: Path, folder: Path) -> tuple[list[str], bool]:
    """What there is to say of a manifest of the user's, and whether something is missing."""
    from wsi_ips.datasets.camelyon import SlideFinder, read_rows
    from wsi_ips.datasets.camelyon_layout import first_release

    rows, finder = read_rows(manifest), SlideFinder(folder)
    absent = [row for row in rows if finder(row["slide_id"], row["path"]) is None]
    outdated = first_release(rows)
    lines = [*outdated, *(f"missing: {row['slide_id']} of {manifest} ({row['path']})" for row in absent)]
    return [*lines, f"{len(rows) - len(absent)} of {_slides(len(rows), str(manifest))}"], bool(
        absent or outdated
    )


def _known_slides(name: str, folder: Path, labels: Path | None) -> tuple[list[str], bool, list[Path]]:
    """What there is to say of a known data set, whether something is missing or not as released, and the slides
    that are there.
    """
    from wsi_ips.datasets.camelyon import NAMES, shipped_rows
    from wsi_ips.datasets.download_faults import missing_lines
    from wsi_ips.datasets.known_sets import look

    listed = look(name, folder, labels=labels)
    there = {row["slide_id"] for row in listed.rows}
    absent = [row for row in shipped_rows(name) if row["slide_id"] not in there] if name in NAMES else []
    lines = [*listed.told, *listed.wrong]
    lines += missing_lines(name, [(row["slide_id"], row["path"]) for row in absent])
    lines.append(f"{len(there)} of {_slides(listed.total, name)}")
    faulty = bool(listed.wrong or (len(there) < listed.total and name in NAMES))
    return lines, faulty, [Path(row["path"]) for row in listed.rows]


def manifest_command(
    root: Annotated[
        Path, typer.Argument(help="Folder of the data set as it was downloaded, or the one above it.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write.")],
    name: Annotated[str | None, typer.Option(help=f"{_SETS}; default: what is there.")] = None,
    labels: Labels = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            help="Folder of train.csv, val.csv, test.csv, where no split is official (PANDA, TCGA)."
        ),
    ] = None,
) -> None:
    """Write a manifest of the slides that are there, with the data set's labels and splits."""
    finish(list_slides(root, out, name=name, labels=labels, splits=splits))


def list_slides(
    root: Path, out: Path, *, name: str | None = None, labels: Path | None = None, splits: Path | None = None
) -> Outcome:
    """Write the lines of a known data set's manifest whose slides lie below ``root``.

    Paths become relative to the new CSV's folder where they lie below it, else absolute. ``name`` may be left
    out where ``root`` holds slides of one of the sets only. Raises :class:`DatasetError` where it holds
    none, :class:`ConfigError` for another name or an open choice. Lines before the last tell what was left out and
    why, labels that were corrected or that an official file has otherwise, and what is not as the release has it.
    """
    from wsi_ips.datasets.camelyon import NAMES, write_rows
    from wsi_ips.datasets.known_sets import KNOWN_SETS, look

    _must_be_folder(root)
    if name is not None and name not in KNOWN_SETS:
        known = ", ".join(KNOWN_SETS)
        raise ConfigError(f"--name {name}: known manifests are {known}{did_you_mean(name, KNOWN_SETS)}")
    chosen = name or _only_one(root)
    listed = look(chosen, root, labels=labels, splits=splits)
    rows = [_relative(row, out.parent) for row in listed.rows]
    write_rows(out, rows)
    by_split = [f"{split} {number}" for split in ("train", "val", "test")
                if (number := sum(row["split"] == split for row in rows))]  # fmt: skip
    gone = "missing" if chosen in NAMES else "missing or left out"
    summary = f"{len(rows)} of {count(listed.total, 'slide')} of {chosen} in {out} ({', '.join(by_split)})"
    return Outcome([*listed.told, *listed.wrong, f"{summary}; {listed.total - len(rows)} {gone}"])


def _only_one(root: Path) -> str:
    """The data set of which there are slides. CAMELYON+ has those of others, and is asked for by name."""
    from wsi_ips.datasets.known_sets import held_sets, nothing_there

    chosen = held_sets(root)
    if not chosen:
        raise nothing_there(root, _SETS.split(", "))
    if len(chosen) > 1:
        raise ConfigError(f"{root} holds slides of {' and '.join(chosen)}: say which with --name")
    return chosen[0]


def _relative(row: "Row", folder: Path) -> "Row":
    path, folder = Path(row["path"]), folder.absolute()
    return {**row, "path": (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()}


def _must_be_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DatasetError(folder, "no such folder", "check the path")


def _slides(number: int, where: str) -> str:
    return f"1 slide of {where} is there" if number == 1 else f"{number:,} slides of {where} are there"
