"""What real downloads have that no release has: files that are not finished, links to nowhere, slides cut short.

:func:`unfinished` and :func:`dead_links` look at names only. :func:`unopened` opens every slide, which reads its
headers and finds one that was cut short: the tables in a slide's headers say how long its file has to be. It
takes the place of checksums where a download has none. :func:`missing_lines` says which slides are missing.
"""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from wsi_ips.errors import WsiIpsError
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import failure_in_words
from wsi_ips.slides.registry import open_slide

UNFINISHED = (
    ".part", ".partial", ".crdownload", ".download", ".filepart", ".aria2", ".incomplete", ".tmp", ".!qb", ".!ut",
)  # fmt: skip
"""What programs that download add to the name of a file until it is whole: Firefox, gdc-client, Chrome, Safari,
WinSCP, aria2, the AWS command line and BitTorrent clients among them."""
MOST_LOOKED_AT = 50_000
"""Files and folders that are looked at."""
DEEPEST = 5
"""Folders below the root that are looked into."""
FEW = 10
"""Missing slides that are named one by one."""

_SLIDE = re.compile(r"\.(tiff?|svs|mrxs|ndpi|dcm|zip|xml|csv)\b", re.IGNORECASE)


def unfinished(root: Path) -> Iterator[str]:
    """A line if downloads are not finished: files such as ``tumor_001.tif.part``, in any folder of the layout."""
    found = [path for path in _files(root) if _is_unfinished(path.name)]
    if found:
        yield (
            f"{len(found)} downloads are not finished, the first {found[0].relative_to(root)}: go on with them, "
            "or download the files again"
        )


def dead_links(root: Path) -> Iterator[str]:
    """A line if links lead to files that are not there, as where a disk is not mounted."""
    found = [path for path in _files(root) if path.is_symlink() and not path.exists()]
    if found:
        yield (
            f"{len(found)} links lead nowhere, the first {found[0].relative_to(root)} to {os.readlink(found[0])}: "  # noqa: PTH115
            "mount the disk that it is on, or make the link again"
        )


def unopened(paths: Sequence[Path], *, progress: Progress = silent) -> list[str]:
    """A line for every slide that cannot be opened, such as one that was cut short."""
    lines = []
    with progress("Opening slides", total=len(paths)) as advance:
        for path in paths:
            try:
                open_slide(path).close()
            except WsiIpsError as error:
                lines.append(f"cannot be opened: {error}")
            except Exception as error:  # noqa: BLE001 - whatever a library raises over a broken file
                lines.append(f"cannot be opened: {path}: {failure_in_words(path.stem, error)}")
            advance(path.name)
    return lines


def missing_lines(name: str, absent: Sequence[tuple[str, str]]) -> list[str]:
    """Say which slides of a data set are not there.

    Args:
        name: The data set.
        absent: (slide id, where it is expected) of each, in the order of the manifest.

    Returns:
        A line for each of a few; else a line for each kind of slide (``normal``, ``patient_017``) with the numbers
        in a row told as "normal_004 to normal_160".
    """
    if len(absent) <= FEW:
        return [f"missing: {slide_id} of {name} ({path})" for slide_id, path in absent]
    lines = []
    for kind, group in groupby(absent, key=lambda one: one[0].partition("_")[0]):
        ids = [slide_id for slide_id, _ in group]
        runs = _runs(ids)
        shown = ", ".join(runs[:FEW]) + (f" and {len(runs) - FEW} more such rows" if len(runs) > FEW else "")
        lines.append(f"missing: {len(ids)} slides {kind}_* of {name}: {shown}")
    return lines


def _runs(ids: Sequence[str]) -> list[str]:
    """``a_001, a_002, a_003, a_007`` as ``a_001 to a_003`` and ``a_007``. Patients with all nodes are one."""
    if ids and "_node_" in ids[0]:
        patients = [(patient, list(nodes)) for patient, nodes in groupby(ids, key=lambda name: name[:11])]
        whole = [patient if len(nodes) == 5 else "" for patient, nodes in patients]
        told = _runs([patient for patient in whole if patient])
        return told + [
            name for (_, nodes), patient in zip(patients, whole, strict=True) if not patient for name in nodes
        ]
    rows: list[list[str]] = []
    for slide_id in ids:
        if rows and _number(slide_id) == _number(rows[-1][-1]) + 1:
            rows[-1].append(slide_id)
        else:
            rows.append([slide_id])
    return [row[0] if len(row) == 1 else f"{row[0]} to {row[-1]}" for row in rows]


def _number(slide_id: str) -> int:
    return int(slide_id.rpartition("_")[2])


def _is_unfinished(name: str) -> bool:
    return name.lower().endswith(UNFINISHED) and _SLIDE.search(name) is not None


def _files(root: Path) -> Iterator[Path]:
    """Files, and links to nothing, below the root, in order. Folders that are links are looked into once."""
    looked_at = 0
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen or len(Path(folder).relative_to(root).parts) > DEEPEST:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner.sort()
        yield from (Path(folder, file) for file in sorted(files))
        looked_at += len(files) + len(inner)
        if looked_at > MOST_LOOKED_AT:
            return
