"""What a run stored of the reading of one slide: :func:`read_stored`, for runs of predict, tile and features.

The three commands store different things in different places; a :class:`StoredReading` is what they have in
common, with the whole result where there is one.
"""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from wsi_ips.config import TilingConfig
from wsi_ips.datasets.feature_files import open_features
from wsi_ips.errors import ConfigError, FeaturesError, ResultsError, one_line
from wsi_ips.inference.feature_export import READ_FROM
from wsi_ips.inference.made_from import MadeFrom
from wsi_ips.inference.results import SlideResult, read_result
from wsi_ips.inference.run_folder import RunFolder
from wsi_ips.inference.telemetry import SlideRow, read_slide_table
from wsi_ips.slides.folder import slide_id as id_of
from wsi_ips.slides.resolution import FILE_SUFFIXES
from wsi_ips.storage.files import check_table_size
from wsi_ips.storage.hdf5 import opened_hdf5, stated_text
from wsi_ips.storage.held_folder import read_description
from wsi_ips.storage.location import is_file_name
from wsi_ips.tiling.coords import read_coords, stored_tiled_from
from wsi_ips.tiling.grid import PatchCoords

RunKind = Literal["predict", "features", "tile"]
"""The command that wrote a run."""

NAMED = 5
"""How many slides of a run a message names."""

A_RUN = "name a folder that wsi-ips predict, features or tile wrote"
"""What to do about a folder that is none of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReading:
    """What is stored of one slide.

    Attributes:
        kind: The command that wrote the run.
        run: Its folder.
        slide_id: The slide's name in the run.
        file: The file that holds what follows; None for a slide that failed or was not begun.
        slide_path: Where the slide was read. Empty if the run does not say, as those of tile.
        status, error, note, seconds: The slide's row in the run's table; seconds is None if it was not measured.
        coords: Its patches. None without a file, and for features that do not say how large patches are.
        result: Everything that predict stored.
        fingerprint: That of the slide's files when they were read; empty if there is none.
        mpp_given: µm per pixel that the user gave; None: the file's own were used.
        mpp_source: How they were given, in words.
        tiling: The settings by which tissue was found; None if they are not known, or somebody else's patches or
            outlines were taken.
        patches_from: Where the patches come from, in words.
        outlines: GeoJSON of the tissue that tile found.
        bad_tiles: Names of tiles that could not be read and are white.
        width: Length of a patch's feature, for features.
        of_features: Whether predict read stored features instead of a slide.
    """

    kind: RunKind
    run: Path
    slide_id: str
    file: Path | None
    slide_path: str = ""
    status: str = "ok"
    error: str = ""
    note: str = ""
    seconds: float | None = None
    coords: PatchCoords | None = None
    result: SlideResult | None = None
    fingerprint: str = ""
    mpp_given: float | None = None
    mpp_source: str = ""
    tiling: TilingConfig | None = None
    patches_from: str = ""
    outlines: Path | None = None
    bad_tiles: tuple[str, ...] = ()
    width: int | None = None
    of_features: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's folder, and what its tables say. ``rows`` are those of its table, ``described`` its run.json."""

    kind: RunKind
    root: Path
    described: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, str]]
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings in ``run.json``, or an empty mapping."""
        held = self.described.get("config", self.described.get("settings"))
        return held if isinstance(held, dict) else {}


def read_stored(run: Path, slide: str) -> StoredReading:
    """Read what a run stored of a slide.

    Args:
        run: A folder that predict, tile or features wrote.
        slide: The slide's id, or the name or path of its file.

    Raises:
        ResultsError: The folder is no such run, the run has no such slide, or its file is damaged.
        CoordsError: The same for coordinates.
        FeaturesError: The same for features.
    """
    found = _found(run)
    slide_id = _known_id(found, slide)
    readers: Mapping[RunKind, Callable[[_Run, str, Path], StoredReading]] = {
        "predict": _of_predict,
        "features": _of_features,
        "tile": _of_tile,
    }
    path = found.files.get(slide_id)
    if path is not None and not path.is_file():
        path = None
    return _of_row(found, slide_id) if path is None else readers[found.kind](found, slide_id, path)


def _found(run: Path) -> _Run:
    """Which command's run the folder is, with the files of its slides by id."""
    if not run.is_dir():
        raise ResultsError(run, "no such folder", A_RUN)
    if (run / "predictions.csv").is_file() or (run / "attention").is_dir():
        files = {path.stem: path for path in _hdf5(run / "attention")}
        return _Run("predict", run, _description(run), _rows(run / "slides.csv"), files)
    roots = [table.parent for table in sorted(run.glob("features_*/features.csv"))]
    root = run if (run / "features.csv").is_file() else roots[0] if len(roots) == 1 else None
    if root is None and roots:
        names = ", ".join(path.name for path in roots)
        raise ResultsError(run, f"holds features of several encoders ({names})", "name one of these folders")
    if root is not None:
        files = {path.stem: path for path in (*_hdf5(root), *_hdf5(root / "h5_files"))}
        return _Run("features", root, _description(root), _rows(root / "features.csv"), files)
    if (run / "tiles.csv").is_file() or (run / "patches").is_dir():
        files = {path.stem.removesuffix("_patches"): path for path in _hdf5(run / "patches")}
        return _Run("tile", run, {}, _rows(run / "tiles.csv"), files)
    raise ResultsError(run, "is no run: it holds neither attention nor features nor patches", A_RUN)


def _hdf5(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.h5")) if not path.name.startswith(".")]


def _description(root: Path) -> Mapping[str, Any]:
    """``run.json``; empty if there is none that can be read: what it says is beside the results."""
    try:
        return read_description(root / "run.json")
    except (OSError, ValueError):
        return {}


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a run's table by slide; none if there is no such table.

    Raises :class:`ResultsError` for one that cannot be read.
    """
    if not path.is_file():
        return {}
    check_table_size(path, ResultsError)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["slide_id"]: {**row} for row in csv.DictReader(file, strict=True)}
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ResultsError(
            path, f"is not a table of slides ({one_line(error)})", "run the command again"
        ) from None


def _known_id(run: _Run, slide: str) -> str:
    """The id of the run's slide that is meant. Raises :class:`ResultsError` if it has none of this name."""
    known = list(dict.fromkeys([*run.rows, *run.files]))
    if slide in known:
        return slide
    wanted = slide
    if Path(slide).suffix.lower() in FILE_SUFFIXES or Path(slide).exists() or "/" in slide:
        try:
            wanted = id_of(slide)
        except ConfigError:
            wanted = slide
    if wanted in known and is_file_name(wanted):
        return wanted
    alike = get_close_matches(wanted, known, n=1)
    shown = ", ".join(known[:NAMED]) + (f", … ({len(known)} in all)" if len(known) > NAMED else "")
    fix = f"did you mean {alike[0]}?" if alike else f"it has {shown or 'none'}"
    raise ResultsError(run.root, f"has no slide {one_line(wanted, most=80)!r}", fix)


def _of_row(run: _Run, slide_id: str) -> StoredReading:
    """A slide that has no file: one that failed, or that the run has not come to."""
    row = run.rows.get(slide_id, {})
    return StoredReading(
        kind=run.kind,
        run=run.root,
        slide_id=slide_id,
        file=None,
        slide_path=row.get("path") or "",
        status=row.get("status") or "unknown",
        error=row.get("error") or "",
        note=row.get("note") or "",
    )


def _of_predict(run: _Run, slide_id: str, path: Path) -> StoredReading:
    result = read_result(path)
    made = result.made_from
    row = _slide_row(run, slide_id)
    given = run.settings.get("from_coords")
    of_features = bool(run.settings.get("features"))
    patches = "found in the tissue, by our own segmentation"
    if of_features:
        patches = f"those of the features in {run.settings['features']}"
    elif made is not None and made.patches:
        patches = f"given, --from-coords {given}" if given else "given, --from-coords"
    mpp = None if made is None else made.mpp_given
    return StoredReading(
        kind="predict",
        run=run.root,
        slide_id=slide_id,
        file=path,
        slide_path=result.slide_path,
        status=row.status if row else "ok",
        error=row.error if row else "",
        note=row.note if row else "",
        seconds=(row.telemetry.seconds or None) if row else None,
        coords=result.coords,
        result=result,
        fingerprint="" if made is None else made.slide,
        mpp_given=mpp,
        mpp_source=_given_how(run, mpp),
        tiling=None
        if of_features or (made is not None and made.patches)
        else _tiling(run.settings.get("tiling")),
        patches_from=patches,
        bad_tiles=result.bad_tiles,
        of_features=of_features,
    )


def _slide_row(run: _Run, slide_id: str) -> SlideRow | None:
    table = RunFolder(run.root).slides
    return read_slide_table(table).get(slide_id) if table.is_file() else None


def _of_tile(run: _Run, slide_id: str, path: Path) -> StoredReading:
    coords, made = read_coords(path), stored_tiled_from(path)
    row = run.rows.get(slide_id, {})
    outlined = made is not None and bool(made.outlines)
    outlines = run.root / "contours_geojson" / f"{slide_id}.geojson"
    mpp = None if made is None else made.mpp_given
    return StoredReading(
        kind="tile",
        run=run.root,
        slide_id=slide_id,
        file=path,
        status=row.get("status") or "ok",
        error=row.get("error") or "",
        note=row.get("note") or "",
        coords=coords,
        fingerprint="" if made is None else made.slide,
        mpp_given=mpp,
        mpp_source="" if mpp is None else "given, --slide-mpp or --mpp-csv",
        tiling=None if made is None or outlined else _tiling(_json(made.tiling)),
        patches_from="found in tissue that was outlined, --contours"
        if outlined
        else "found in the tissue, by our own segmentation",
        outlines=outlines if outlines.is_file() and not outlined else None,
    )


def _of_features(run: _Run, slide_id: str, path: Path) -> StoredReading:
    stored = open_features(path)
    try:
        with opened_hdf5(path) as file:
            about = json.loads(stated_text(file.attrs, READ_FROM) or "{}")
        made = MadeFrom.from_json(about["made_from"]) if about else None
        bad_tiles = tuple(str(name) for name in about.get("bad_tiles", ()))
        slide_path, note = str(about.get("slide_path", "")), str(about.get("note", ""))
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise FeaturesError(
            path, f"does not say what it was made from ({one_line(error)})", "store it again"
        ) from None
    row = run.rows.get(slide_id, {})
    coords = stored.coords
    beside = run.root.parent / "patches" / f"{slide_id}_patches.h5"
    if coords is None and beside.is_file():
        coords = read_coords(beside)
    given = run.settings.get("--from-coords") == "given"
    mpp = None if made is None else made.mpp_given
    return StoredReading(
        kind="features",
        run=run.root,
        slide_id=slide_id,
        file=path,
        slide_path=slide_path,
        status=row.get("status") or "ok",
        error=row.get("error") or "",
        note=note or row.get("note") or "",
        coords=coords,
        fingerprint="" if made is None else made.slide,
        mpp_given=mpp,
        mpp_source=_given_how(run, mpp),
        tiling=None if given else _tiling(run.settings.get("tiling")),
        patches_from="given, --from-coords" if given else "found in the tissue, by our own segmentation",
        bad_tiles=bad_tiles,
        width=stored.width,
    )


def _given_how(run: _Run, mpp: float | None) -> str:
    """How the user gave a resolution, in words; empty if it was the file's own."""
    if mpp is None:
        return ""
    table = run.settings.get("mpp_csv")
    if table:
        return f"given, --mpp-csv {table}"
    return "given, --slide-mpp" if run.settings.get("slide_mpp") else "given, --slide-mpp or --mpp-csv"


def _tiling(settings: Any) -> TilingConfig | None:
    """The settings of a run; None if this version does not know them."""
    try:
        return TilingConfig.model_validate(settings)
    except ValidationError:
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
