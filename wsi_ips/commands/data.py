"""``data verify`` and ``data manifest``: whether a data set is whole, and which of its slides are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_ips.commands.options import SOME_FAILED, Outcome, finish
from wsi_ips.errors import ConfigError, DatasetError
from wsi_ips.progress import Progress
from wsi_ips.registry import did_you_mean

if TYPE_CHECKING:
    from wsi_ips.datasets.camelyon import CamelyonFiles, Row, SlideFinder


def verify_command(
    folder: Annotated[Path, typer.Argument(help="Folder with checksums.md5 or checksums.txt in it.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Are all its slides there? A CSV, camelyon16 or camelyon17.")
    ] = None,
) -> None:
    """Check a downloaded data set against its checksums; exit code 3 where a file is missing or altered."""
    from wsi_ips.commands.progress_bars import RichProgress

    with RichProgress() as progress:
        outcome = verify(folder, progress, manifest=manifest)
    finish(outcome)


def verify(folder: Path, progress: Progress, *, manifest: Path | None = None) -> Outcome:
    """Check files against the lists of checksums in ``folder``, and slides against a manifest (or its name).

    Raises :class:`DatasetError` where there is neither a list nor a manifest to check against.
    """
    from wsi_ips.datasets.camelyon import SlideFinder
    from wsi_ips.datasets.checksums import LIST_NAMES, verify_folder

    _must_be_folder(folder)
    rows = (
        [] if manifest is None else _rows(manifest)
    )  # read first: a wrong one shows before hours of hashing
    found = verify_folder(folder, progress=progress)
    if not found.lists and manifest is None:
        raise DatasetError(folder, f"holds no {' or '.join(LIST_NAMES)}", "download it, or give --manifest")
    finder = SlideFinder(folder)
    absent = [row for row in rows if finder(row["slide_id"], row["path"]) is None]
    lines = [*found.bad, *(f"missing: {row['slide_id']} of {manifest} ({row['path']})" for row in absent)]
    if found.lists:
        lines.append(f"{found.checked - len(found.bad)} of {found.checked} listed files are as listed")
        first = f", the first {found.unlisted[0]}" if found.unlisted else ""
        lines.append(f"{len(found.unlisted)} files are in no list{first}")
    if manifest is not None:
        lines.append(f"{len(rows) - len(absent)} of {len(rows)} slides of {manifest} are there")
    return Outcome(lines, SOME_FAILED if found.bad or absent else 0)


def manifest_command(
    root: Annotated[Path, typer.Argument(help="Folder with CAMELYON's slides, in either layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write.")],
    name: Annotated[
        str | None, typer.Option(help="camelyon16 or camelyon17; default: what is there.")
    ] = None,
) -> None:
    """Write a manifest of the slides that are there, with CAMELYON's labels and splits."""
    finish(list_slides(root, out, name=name))


def list_slides(root: Path, out: Path, *, name: str | None = None) -> Outcome:
    """Write the lines of CAMELYON's manifest whose slides lie below ``root``, in either layout.

    Paths become relative to the new CSV's folder where they lie below it, else absolute. ``name`` may be left
    out where ``root`` holds slides of one of the two sets only. Raises :class:`DatasetError` where it holds
    none, :class:`ConfigError` for another name or an open choice. Where the official label file lies there too,
    a line tells of every label that it has otherwise.
    """
    from wsi_ips.datasets.camelyon import NAMES, SlideFinder, shipped_rows, write_rows

    _must_be_folder(root)
    if name is not None and name not in NAMES:
        known = ", ".join(NAMES)
        raise ConfigError(f"--name {name}: known manifests are {known}{did_you_mean(name, NAMES)}")
    all_rows = {each: shipped_rows(each) for each in NAMES if name in (None, each)}
    finder = SlideFinder(root)
    present = {each: _there(rows, finder, out.parent) for each, rows in all_rows.items()}
    chosen = [each for each, rows in present.items() if rows]
    if not chosen:
        fix = "name the folder that holds images/ or training/, or the one above it; archives have to be unpacked"
        raise DatasetError(root, f"holds no slide of {' or '.join(all_rows)}", fix)
    if len(chosen) > 1:
        raise ConfigError(f"{root} holds slides of {' and '.join(chosen)}: say which with --name")
    rows, total = present[chosen[0]], len(all_rows[chosen[0]])
    write_rows(out, rows)
    splits = [f"{split} {count}" for split in ("train", "val", "test")
              if (count := sum(row["split"] == split for row in rows))]  # fmt: skip
    summary = f"{len(rows)} of {total} slides of {chosen[0]} in {out} ({', '.join(splits)})"
    differing = _other_labels(rows, chosen[0], finder.files)
    return Outcome([*differing, f"{summary}; {total - len(rows)} missing"])


def _other_labels(rows: list["Row"], name: str, files: "CamelyonFiles") -> list[str]:
    from wsi_ips.datasets.camelyon import read_reference, read_stages

    path = files.labels.get(name)
    if path is None:
        return []
    try:
        official = read_reference(path) if name == "camelyon16" else read_stages(path).nodes
    except DatasetError as error:
        return [f"labels were not compared: {error}"]
    return [
        f"{row['slide_id']} is {row['label']} in the manifest, {official[row['slide_id']]} in {path}"
        for row in rows
        if official.get(row["slide_id"], row["label"]) != row["label"]
    ]


def _there(rows: list["Row"], finder: "SlideFinder", folder: Path) -> list["Row"]:
    folder = folder.absolute()
    there: list[Row] = []
    for row in rows:
        path = finder(row["slide_id"], row["path"])
        if path is not None:
            path = path.absolute()
            below = path.is_relative_to(folder)
            there.append({**row, "path": (path.relative_to(folder) if below else path).as_posix()})
    return there


def _rows(manifest: Path) -> list["Row"]:
    from wsi_ips.datasets.camelyon import NAMES, read_rows, shipped_rows

    if str(manifest) in NAMES and not manifest.exists():
        return shipped_rows(str(manifest))
    return read_rows(manifest)


def _must_be_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DatasetError(folder, "no such folder", "check the path")
