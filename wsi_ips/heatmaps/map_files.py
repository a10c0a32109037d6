"""Where the maps of a run are written: a folder for each map, and no file of anything else is replaced there.

The map that a command writes by default lies in the folder itself (``exports/geojson/SLIDE.geojson``), every
other map in a folder below it that is named after the map (``exports/geojson/attention-grade/SLIDE.geojson``).
Files keep the slide's name, by which programs find them, and the maps of a run never meet.

In a folder that the user names, files of other runs and of other programs may lie. :class:`MapFiles` notes what
was written there, and refuses to replace a file that it did not write for the same run and purpose.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from wsi_ips.config import HeatOptions
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.heatmaps.maps import choose_heat, outputs, task_queries
from wsi_ips.inference.results import SlideResult
from wsi_ips.storage.files import check_table_size

NOTED_IN = ".wsi_ips_maps.jsonl"
"""The file, in a folder that the user names, that says which files of it were written for which run."""

LONGEST_PART_BYTES = 60
"""Bytes of a task's or a class's name in the name of a folder."""

_PLAIN = re.compile(r"\w+")
_TAKEN = re.compile(r"(head|query)\d+")
"""What heads and queries without a name are called."""


def map_name(result: SlideResult, options: HeatOptions, by_default: HeatOptions) -> str:
    """The name of the folder of a map, such as ``contribution-label-tumor``; "" for the map that ``by_default``
    chooses.

    It is the same for every slide of a run: where each slide shows its own likeliest class, no class is named. Two
    maps of a run never have the same name. Raises the errors of :func:`wsi_ips.heatmaps.maps.choose_heat`.
    """
    chosen = _parts(result, options)
    return "" if chosen == _parts(result, by_default) else "-".join(chosen)


def _parts(result: SlideResult, options: HeatOptions) -> tuple[str, ...]:
    heat = choose_heat(result, options, alone=True)
    if heat.output is None:
        return _attention_parts(result, options)
    task, class_name = heat.output
    parts = [heat.kind, *([_part(result, task)] if len(result.probabilities) > 1 else [])]
    by_slide = options.class_name is None and len(result.probabilities[task]) > 2
    return (*parts, *([] if by_slide else [_part(result, class_name)]))


def _attention_parts(result: SlideResult, options: HeatOptions) -> tuple[str, ...]:
    heads, queries = result.attention_NHT.shape[1:]
    readers = task_queries(result)
    query = options.query if options.task is None else readers[options.task]
    parts = ["attention"]
    if query is not None and queries > 1:
        tasks = [task for task, its in readers.items() if its == query]
        names = [result.query_names[query]] if result.query_names else tasks
        parts += [_part(result, name) for name in names] or [f"query{query}"]
    if options.head is not None and heads > 1:
        parts.append(f"head{options.head}")
    return tuple(parts)


def _part(result: SlideResult, name: str) -> str:
    """A task, class or query as a part of a folder's name: itself, or with a digest where that is no plain word,
    is taken, or differs from another name of the run in capital letters alone, which some disks do not tell apart.
    """
    known = {*result.probabilities, *(output for _, output in outputs(result)), *result.query_names}
    alike = Counter(each.casefold() for each in known)[name.casefold()] > 1
    long = len(name.encode("utf-8", "surrogateescape")) > LONGEST_PART_BYTES
    if _PLAIN.fullmatch(name) and not _TAKEN.fullmatch(name.casefold()) and not alike and not long:
        return name
    plain = re.sub(r"\W", "_", name).encode()[:LONGEST_PART_BYTES].decode(errors="ignore")
    return f"{plain}_{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


class MapFiles:
    """The files of one map in a folder.

    ``run`` is the run whose map it is and ``purpose`` what is written: ``overlay``, or an export's name.
    ``shared`` says that the user named the folder, so that files of others may be in it.

    Raises :class:`ResultsError` if the notes in the folder are larger than any that were written.
    """

    def __init__(self, folder: Path, *, run: Path, purpose: str, shared: bool) -> None:
        self.folder, self.run, self.purpose, self.shared = folder, run, purpose, shared
        self._whose = str(run.resolve()), purpose
        self._noted = _noted(folder / NOTED_IN) if shared else {}

    def check(self, names: Iterable[str]) -> None:
        """Raise :class:`ConfigError` if one of the files with these names is there already, and was not written
        for this run and purpose."""
        if not self.shared or not self.folder.is_dir():
            return
        others = [
            place
            for name in names
            if self._noted.get(name) != self._whose
            for place in _places(self.folder / name)
            if place.exists() or place.is_symlink()
        ]
        if others:
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            raise ConfigError(
                f"{others[0]} is there already{more}, and was not written as {self.purpose} of {self.run}; name "
                "another folder with --out, or remove it"
            )

    def note(self, name: str) -> None:
        """Note that the file with this name was written."""
        if not self.shared or self._noted.get(name) == self._whose:
            return
        run, purpose = self._noted[name] = self._whose
        with (self.folder / NOTED_IN).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"file": name, "run": run, "purpose": purpose}) + "\n")


def _noted(notes: Path) -> dict[str, tuple[str, str]]:
    """``{name of a file: (run, purpose)}``; the last note of a file counts."""
    if not notes.is_file():
        return {}
    check_table_size(notes, ResultsError)
    noted = {}
    for line in notes.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            said = json.loads(line)
            noted[str(said["file"])] = str(said["run"]), str(said["purpose"])
        except (ValueError, TypeError, KeyError, RecursionError):  # cut off, or not ours
            continue
    return noted


def _places(path: Path) -> tuple[Path, ...]:
    """The files and folders that an export writes at ``path``: Deep Zoom tiles lie beside their ``.dzi``."""
    return (path, path.with_name(f"{path.stem}_files")) if path.suffix == ".dzi" else (path,)
