"""Composite lymph nodes: slides of real lymph-node patches with metastases in the outlines of real lesions.

Start with :func:`make_lymph_nodes`. A slide is a mosaic on the patches' own grid. Every cell of its tissue holds
one real patch in one of its eight symmetries, and level 0 begins with the grid: if it is read with patches of the
same size and resolution (:func:`tiling_of`), each patch that an encoder sees is a real one. Half of the slides are
normal; the positive ones have macro, micro or small metastases in turn. A slide has patches of one stain family,
which says nothing about its label: in every split, each family has equally many positive slides of each size. No
source group is in two splits.

:func:`plan_slides` decides which patch lies where (:func:`lay_out_node` lays out tissue and metastases),
:func:`write_node_slide` writes the file.

Patches: see :mod:`wsi_ips.drawn.node_patches` (PatchCamelyon, Veeling et al. 2018, CC0). Outlines: those of
CAMELYON16's lesions (CC0), in NCRF's JSON format.

Shape suffixes: R, C rows and columns of the grid's cells; a cell holds one patch, or glass. N patches of a slide.
"""

import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Self

import numpy as np
import shapely
import simplejpeg
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from scipy import ndimage
from shapely import MultiPolygon, Polygon
from shapely.affinity import rotate, scale, translate

from wsi_ips.config import Fraction, Section, TilingConfig
from wsi_ips.datasets.annotations import polygons_of, write_asap
from wsi_ips.datasets.checksums import claim, make_all
from wsi_ips.datasets.manifest import SPLITS, SlideRecord, write_manifest
from wsi_ips.drawn.composite import filled, read_outlines
from wsi_ips.drawn.node_patches import (
    METASTASIS,
    NORMAL,
    SYMMETRIES,
    NodePatch,
    digest,
    families_of,
    held_back,
    read_as_jpeg,
    read_patches,
    split_patches,
)
from wsi_ips.drawn.synthetic import StoredLevel, write_pyramid
from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import RgbImage
from wsi_ips.storage.files import check_table_size, whole_file
from wsi_ips.units import Mpp

MARGIN = 2
"""Cells of glass around the tissue, and between two pieces of it."""

SUB = 8
"""Points along each side of a cell at which an outline's share of it is counted."""

PLACEMENTS = 60
"""Places and outlines that are tried for one piece of metastasis."""

LARGEST_GROWTH = 3.0
"""How many times the area of its cells an outline may grow to, until enough cells are half covered."""

MOST_CLIPPED = 0.3
"""Share of an outline that may lie outside the tissue, where it is cut off: metastases reach the node's edge."""

Cells = NDArray[np.bool_]
"""(rows, columns) bool."""

GLASS = (243, 242, 244)
"""Colour of glass."""

GLASS_QUALITY = 95
"""JPEG quality of glass."""

LABELS = ("normal", "tumor")
"""The labels of slides."""

SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"macro": (0.05, 0.2), "micro": (0.01, 0.05), "small": (0.002, 0.01)}
)
"""Sizes of metastases by their share of the tissue, from and to."""

FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.5, "val": 0.2, "test": 0.3})
"""Shares of the source groups in each split.

They do not depend on the numbers of slides: with fewer training slides, the test slides stay the same.
"""

OWN_NORMAL, OWN_METASTASES = 0.5, 60
"""Share of its split's normal patches from which a slide draws, and the number of its patches with metastasis."""

CELL_COLUMNS = ("row", "column", "path", "symmetry", "tumor")
"""Columns of the list of a slide's patches."""


class LymphNodesConfig(Section):
    """Settings of composite lymph nodes. Multiples of 12 slides balance families, labels and sizes exactly."""

    train: PositiveInt = 90
    val: NonNegativeInt = 30
    test: NonNegativeInt = 60
    """Slides per split. A set with fewer slides of a split has the first ones of a larger set, bit by bit."""
    patches: Annotated[PositiveInt, Field(ge=120, le=100_000)] = 500
    """Approximate number of patches of tissue on a slide; they vary by 10 %."""
    patch_px: Annotated[PositiveInt, Field(ge=16, le=1024, multiple_of=16)] = 96
    mpp: PositiveFloat = 0.97
    """µm per pixel of the patches: PatchCamelyon's 0.972, rounded."""
    lesion_share: tuple[PositiveFloat, PositiveFloat] | None = None
    """Least and largest share of the tissue that is metastasis on every positive slide; None: sizes take turns."""
    families: tuple[str, ...] = ()
    """Stain families to make slides of; empty: all."""
    least_tissue: Fraction = 0.3
    """Patches with less tissue are not used."""
    hold_back: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the source groups that is not used."""
    only_held_back: bool = False
    """Use the groups that ``hold_back`` sets aside, and no others."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        if self.lesion_share and not self.lesion_share[0] <= self.lesion_share[1] <= 0.3:
            raise ValueError(f"lesion_share {self.lesion_share} must rise, and be 0.3 at most")
        if self.only_held_back and not self.hold_back:
            raise ValueError("only_held_back needs a hold_back above 0")
        return self


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Which cells hold a patch, and which of them hold metastasis, (R, C) bool each."""

    tissue_RC: Cells
    lesion_RC: Cells


@dataclass(frozen=True, slots=True)
class NodeCell:
    """A patch on a slide.

    ``row`` and ``column`` are its place on the grid. ``path`` is relative to the patch folder; ``symmetry`` is
    explained at :func:`wsi_ips.drawn.node_patches.turned`.
    """

    row: int
    column: int
    path: str
    symmetry: int
    tumor: bool


@dataclass(frozen=True, slots=True)
class NodeSlide:
    """A slide as it is planned, before any pixel is read. ``cells`` are all cells of tissue, row by row."""

    record: SlideRecord
    layout: NodeLayout
    cells: tuple[NodeCell, ...]


@dataclass(frozen=True, slots=True)
class _Order:
    """A slide to compose, with everything random already drawn."""

    slide: NodeSlide
    out: Path
    patches: Path
    config: LymphNodesConfig


class _Input(Section):
    """What a data set is made of: other patches or outlines make another set."""

    config: LymphNodesConfig
    patches: str
    outlines: str


def make_lymph_nodes(
    out: Path,
    config: LymphNodesConfig,
    *,
    patches: Path,
    outlines: Path,
    processes: int = 2,
    progress: Progress = silent,
) -> Path:
    """Compose the slides below ``out``, and return the path of ``manifest.csv``.

    The folder then holds ``images/ID.tif``; ``annotations/ID.xml`` with the outlines of a positive slide's
    metastases along the cells' borders; ``cells/ID.csv`` with the patch in each cell; ``manifest.csv``; and for
    every two stain families ``cross_A_to_B.csv`` with A's slides as training data and B's to test on. The
    manifests' columns are slide_id, case_id, label (normal, tumor), lesion_size (macro, micro, small, none),
    lesion_share, stain_family, patches (how many), split and path.

    The same input and config give the same bytes; slides of an earlier, interrupted call are kept. Raises
    :class:`ConfigError` if ``out`` holds another data set or there are too few patches, and :class:`ManifestError`
    or :class:`AnnotationError` for input that cannot be used.
    """
    files, shapes = read_patches(patches), read_outlines(outlines)
    slides = list(plan_slides(out, config, patches=files, outlines=shapes))
    made_of = _Input(config=config, patches=digest(patches, files), outlines=_digest(shapes))
    claim(
        out / "lymph_nodes.json",
        made_of,
        holds="slides composed with other settings, or of other patches or outlines",
        content=made_of.model_dump(mode="json"),
    )
    orders = [_Order(slide, out, patches, config) for slide in slides if not slide.record.file.exists()]
    make_all(orders, _compose, processes=processes, what="Composing slides", progress=progress)
    return _write_manifests(out, [slide.record for slide in slides])


def _write_manifests(out: Path, records: Sequence[SlideRecord]) -> Path:
    """Write the manifests across stains and the one of all slides, whose path is returned."""
    families = sorted({record.labels["stain_family"] for record in records})
    for one, other in itertools.permutations(families, 2):
        family_of = {"train": one, "val": one, "test": other}
        crossed = [record for record in records if record.labels["stain_family"] == family_of[record.split]]
        write_manifest(out / f"cross_{one}_to_{other}.csv", crossed)
    write_manifest(out / "manifest.csv", records)
    return out / "manifest.csv"


def plan_slides(
    out: Path, config: LymphNodesConfig, *, patches: Sequence[NodePatch], outlines: Sequence[Polygon]
) -> Iterator[NodeSlide]:
    """Plan the slides that :func:`make_lymph_nodes` composes, without reading or writing a file.

    Raises :class:`ConfigError` for too few patches, or no room for a metastasis.
    """
    chosen = [
        patch
        for patch, back in zip(patches, held_back(patches, share=config.hold_back), strict=True)
        if back is config.only_held_back and patch.tissue_share >= config.least_tissue
    ]
    families = families_of(patches, config.families)
    pools = split_patches(chosen, fractions=FRACTIONS, seed=config.seed)
    for number, split in enumerate(SPLITS):
        for index in range(getattr(config, split)):
            rng = np.random.default_rng(np.random.SeedSequence([config.seed, number, index]))
            family = families[index % len(families)]
            turn = index // len(families)
            size = list(SIZES)[turn // 2 % len(SIZES)] if turn % 2 else None
            pool = [patch for patch in pools[split] if patch.family == family]
            slide_id = f"{split}_{index:03d}"
            record = SlideRecord(slide_id, f"case_{slide_id}", {}, split, out / "images" / f"{slide_id}.tif")
            yield _planned(record, pool, outlines, family=family, size=size, config=config, rng=rng)


def _planned(
    record: SlideRecord,
    pool: Sequence[NodePatch],
    outlines: Sequence[Polygon],
    *,
    family: str,
    size: str | None,
    config: LymphNodesConfig,
    rng: np.random.Generator,
) -> NodeSlide:
    tissue = round(config.patches * rng.uniform(0.9, 1.1))
    lesion = 0
    if size is not None:
        lesion = _lesion_cells(tissue, config.lesion_share or SIZES[size], rng)
    layout = lay_out_node(tissue, lesion, outlines, rng=rng)
    cells = _filled(layout, pool, where=f"{record.split} slides of stain family {family!r}", rng=rng)
    share = lesion / tissue
    if config.lesion_share or size is None:
        size = size_of(share)
    labels = {
        "label": LABELS[lesion > 0],
        "lesion_size": size,
        "lesion_share": f"{share:.4f}",
        "stain_family": family,
        "patches": str(tissue),
    }
    return NodeSlide(replace(record, labels=labels), layout, cells)


def _filled(
    layout: NodeLayout, pool: Sequence[NodePatch], *, where: str, rng: np.random.Generator
) -> tuple[NodeCell, ...]:
    """A patch for every cell of the layout. ``where`` says in messages whose patches ``pool`` has."""
    drawn = {}
    for label, cells_RC in (
        (NORMAL, layout.tissue_RC & ~layout.lesion_RC),
        (METASTASIS, layout.lesion_RC),
    ):
        count = int(cells_RC.sum())
        of_class = [patch for patch in pool if patch.label == label]
        if len(of_class) * SYMMETRIES < count:
            raise ConfigError(
                f"too few patches for {where}: {count} with class {label} cannot be drawn from "
                f"{len(of_class)}, each used {SYMMETRIES} times at most; lower patches, or add source groups"
            )
        own = math.ceil(OWN_NORMAL * len(of_class)) if label == NORMAL else OWN_METASTASES
        drawn[label] = iter(draw_patches(of_class, count, own, rng))
    cells = []
    for row, column in np.argwhere(layout.tissue_RC).tolist():
        tumor = bool(layout.lesion_RC[row, column])
        patch, symmetry = next(drawn[METASTASIS if tumor else NORMAL])
        cells.append(NodeCell(row, column, patch.name, symmetry, tumor))
    return tuple(cells)


def size_of(share: float) -> str:
    """The name of a metastasis with this share of the tissue: none, small, micro or macro."""
    if share <= 0:
        return "none"
    return next((name for name, (low, _) in SIZES.items() if share >= low), "small")


def _lesion_cells(tissue: int, share: tuple[float, float], rng: np.random.Generator) -> int:
    """A number of cells whose share lies between the two values, log-uniform; at least one cell.

    If no whole number lies between them, the nearest one is returned.
    """
    low, high = share
    least = max(1, math.ceil(low * tissue - 1e-9))
    most = math.floor(high * tissue + 1e-9)
    drawn = max(1, round(tissue * math.exp(rng.uniform(math.log(low), math.log(high)))))
    return min(max(drawn, least), most) if least <= most else drawn


def draw_patches(
    patches: Sequence[NodePatch], count: int, own: int, rng: np.random.Generator
) -> list[tuple[NodePatch, int]]:
    """Draw ``count`` patches with their symmetries from ``own`` of the patches (more if these are too few).

    ``count`` is at most ``SYMMETRIES`` times the number of patches. Every patch is used once before any is used
    again, and then in another symmetry.
    """
    if not count:
        return []
    own = min(len(patches), max(own, -(-count // SYMMETRIES)))
    mine = rng.choice(len(patches), own, replace=False)
    symmetries_n8 = rng.permuted(np.tile(np.arange(SYMMETRIES), (own, 1)), axis=1)
    drawn: list[tuple[NodePatch, int]] = []
    for again in range(SYMMETRIES):
        order = rng.permutation(own)[: count - len(drawn)]
        drawn += [(patches[int(mine[each])], int(symmetries_n8[each, again])) for each in order]
    return [drawn[place] for place in rng.permutation(count)]


def _compose(order: _Order) -> str:
    slide, side_px = order.slide, order.config.patch_px
    record = slide.record
    stored = {
        (cell.row, cell.column): read_as_jpeg(order.patches / cell.path, cell.symmetry, side_px=side_px)
        for cell in slide.cells
    }
    lesions = outlines_of(slide.layout.lesion_RC, side_px=side_px)
    if not lesions.is_empty:
        write_asap(order.out / "annotations" / f"{record.slide_id}.xml", list(lesions.geoms))
    _write_cells(cells_path(order.out, record.slide_id), slide.cells)
    # The slide comes last: while it is missing, the slide counts as not composed.
    size: tuple[int, int] = slide.layout.tissue_RC.shape
    write_node_slide(record.file, stored, size, side_px=side_px, mpp=Mpp(order.config.mpp))
    return record.slide_id


def _write_cells(path: Path, cells: Sequence[NodeCell]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CELL_COLUMNS)
        writer.writerows((cell.row, cell.column, cell.path, cell.symmetry, int(cell.tumor)) for cell in cells)


def cells_path(out: Path, slide_id: str) -> Path:
    """The path at which :func:`make_lymph_nodes` lists the patches of a slide."""
    return out / "cells" / f"{slide_id}.csv"


def read_cells(path: Path) -> list[NodeCell]:
    """The patches of a slide, row by row, which is the order in which its grid is read.

    With them, a frozen encoder reads every pair of patch and symmetry once, however many slides show it. Raises
    :class:`ManifestError` for a file that is missing or broken.
    """
    if not path.is_file():
        raise ManifestError(path, "no such list of patches", "make the data set again")
    check_table_size(path, ManifestError)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_cell(row) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ManifestError(path, f"is no list of patches ({error})", "make the data set again") from None


def _cell(row: Mapping[str, str]) -> NodeCell:
    symmetry, tumor = int(row["symmetry"]), int(row["tumor"])
    if symmetry not in range(SYMMETRIES) or tumor not in (0, 1):
        raise ValueError(f"symmetry {symmetry}, tumor {tumor}")
    return NodeCell(int(row["row"]), int(row["column"]), row["path"], symmetry, bool(tumor))


def tumor_cells(cells: Sequence[NodeCell]) -> NDArray[np.bool_]:
    """Which patches of a slide hold metastasis, (N,) bool."""
    return np.array([cell.tumor for cell in cells], np.bool_)


def tiling_of(config: LymphNodesConfig) -> TilingConfig:
    """The tiling with which each patch that is read is a real one, and nearly all of the tissue is read.

    With the default tissue mask, 99.99 % of the cells of 180 slides of PatchCamelyon are kept, and no glass.
    """
    return TilingConfig(patch_px=config.patch_px, patch_mpp=config.mpp, min_tissue=0.2)


def _digest(outlines: Sequence[Polygon]) -> str:
    held = sha256()
    for outline in outlines:
        held.update(shapely.to_wkb(outline, byte_order=1))
    return held.hexdigest()[:16]


def lay_out_node(
    tissue: int, lesion: int, outlines: Sequence[Polygon], *, rng: np.random.Generator
) -> NodeLayout:
    """Lay out node-shaped tissue of exactly ``tissue`` cells, of which exactly ``lesion`` hold metastasis.

    Tissue comes in one or two pieces.

    Metastasis comes in one to three pieces that lie apart. Each has one of the ``outlines`` (area 1, around the
    origin), turned, perhaps mirrored, and scaled until it covers as many cells as it should. Raises
    :class:`ConfigError` if there is no room.
    """
    tissue_RC = node_tissue(tissue, rng)
    if lesion == 0:
        return NodeLayout(tissue_RC, np.zeros_like(tissue_RC))
    most = 3 if lesion >= 12 else 2 if lesion >= 4 else 1
    for pieces in range(int(rng.integers(1, most + 1)), 0, -1):
        counts = 1 + rng.multinomial(lesion - pieces, rng.dirichlet(np.full(pieces, 2.0)))
        lesion_RC = _lesion(tissue_RC, sorted(counts.tolist(), reverse=True), outlines, rng)
        if lesion_RC is not None:
            return NodeLayout(tissue_RC, lesion_RC)
    raise ConfigError(f"no room for a metastasis of {lesion} of {tissue} patches; give a lower lesion_share")


def outlines_of(cells_RC: Cells, *, side_px: int) -> MultiPolygon:
    """The outlines of the cells in level-0 pixels: one polygon per connected region, along the cells' borders."""
    rows, columns = np.nonzero(cells_RC)
    boxes = shapely.box(columns * side_px, rows * side_px, (columns + 1) * side_px, (rows + 1) * side_px)
    return polygons_of(shapely.union_all(boxes).simplify(0))


def node_tissue(cells: int, rng: np.random.Generator) -> Cells:
    """Exactly ``cells`` cells in one or two smooth blobs, apart, with glass around them."""
    if rng.integers(2) or cells < 20:
        return np.pad(_blob(cells, rng), MARGIN)
    first = round(cells * rng.uniform(0.55, 0.75))
    parts = [_blob(first, rng), _blob(cells - first, rng)]
    if rng.integers(2):
        parts.reverse()
    # Side by side; the shorter one somewhere along the taller one. Then perhaps one above the other.
    tall = max(len(part) for part in parts)
    placed = []
    for part in parts:
        above = int(rng.integers(tall - len(part) + 1))
        placed.append(np.pad(part, ((above, tall - len(part) - above), (0, 0))))
    gap = np.zeros((tall, MARGIN), np.bool_)
    tissue_RC = np.pad(np.hstack([placed[0], gap, placed[1]]), MARGIN)
    return np.ascontiguousarray(tissue_RC.T) if rng.integers(2) else tissue_RC


def _blob(cells: int, rng: np.random.Generator) -> Cells:
    """Exactly so many connected cells in their bounding box: an ellipse with a wavy edge and a dent (the
    hilum).
    """
    side = 4 * int(np.ceil(np.sqrt(cells))) + 5
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    while True:
        angle = np.arctan2(y, x) - rng.uniform(0, 2 * np.pi)
        aspect = rng.uniform(1.05, 1.35)
        radius = 1 / np.hypot(np.cos(angle) / aspect, np.sin(angle) * aspect)
        for waves in (2, 3, 4, 5):
            radius *= 1 + rng.uniform(0, 0.25 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
        dent = np.angle(np.exp(1j * (angle - rng.choice([-1, 1]) * np.pi / 2)))
        radius *= 1 - rng.uniform(0, 0.4) * np.exp(-((dent / 0.5) ** 2))
        nearest = np.argsort((np.hypot(x, y) / radius).ravel(), kind="stable")[:cells]
        blob = np.zeros(side * side, np.bool_)
        blob[nearest] = True
        blob_RC = blob.reshape(side, side)
        if ndimage.label(blob_RC)[1] == 1:
            rows, columns = np.nonzero(blob_RC)
            return blob_RC[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _lesion(
    tissue_RC: Cells, counts: Sequence[int], outlines: Sequence[Polygon], rng: np.random.Generator
) -> Cells | None:
    """Pieces of so many cells each, at least one cell apart; None if one of them finds no room."""
    lesion_RC, free_RC = np.zeros_like(tissue_RC), tissue_RC.copy()
    for count in counts:
        piece_RC = _piece(free_RC, count, outlines, rng)
        if piece_RC is None:
            return None
        lesion_RC |= piece_RC
        free_RC &= ~ndimage.binary_dilation(piece_RC, np.ones((3, 3)))
    return lesion_RC


def _piece(free_RC: Cells, count: int, outlines: Sequence[Polygon], rng: np.random.Generator) -> Cells | None:
    """The ``count`` free cells that an outline covers most, each at least by half."""
    rows, columns = np.nonzero(free_RC)
    if len(rows) < count:
        return None
    for _ in range(PLACEMENTS):
        outline = rotate(outlines[int(rng.integers(len(outlines)))], rng.uniform(0, 360), origin=(0, 0))
        mirrored = -1 if rng.integers(2) else 1
        at = int(rng.integers(len(rows)))
        x, y = columns[at] + rng.uniform(), rows[at] + rng.uniform()
        area = float(count)
        while area <= LARGEST_GROWTH * count + 1:
            placed = translate(scale(outline, mirrored * area**0.5, area**0.5, origin=(0, 0)), x, y)
            covered_RC = np.where(free_RC, _coverage(placed, free_RC.shape), 0)
            if (covered_RC >= 0.5).sum() >= count:
                if covered_RC.sum() < (1 - MOST_CLIPPED) * area and count > 1:
                    break  # too much of it lies outside
                most = np.argsort(-covered_RC.ravel(), kind="stable")[:count]
                piece = np.zeros(covered_RC.size, np.bool_)
                piece[most] = True
                return piece.reshape(free_RC.shape)
            area *= 1.08
    return None


def _coverage(outline: Polygon, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The share of each cell that lies inside the outline, (R, C) float64."""
    rows, columns = shape
    inside = filled((columns * SUB, rows * SUB), scale(outline, SUB, SUB, origin=(0, 0)))
    return np.asarray(inside.reshape(rows, SUB, columns, SUB).mean(axis=(1, 3)))


def write_node_slide(
    path: Path,
    stored: Mapping[tuple[int, int], tuple[RgbImage, bytes]],
    size: tuple[int, int],
    *,
    side_px: int,
    mpp: Mpp,
) -> None:
    """Write a pyramid whose level-0 tiles are the cells of a grid of ``size`` (rows, columns).

    ``stored`` maps each cell (row, column) with tissue to its pixels and its JPEG stream (YCbCr, no chroma
    subsampling), as :func:`wsi_ips.drawn.node_patches.read_as_jpeg` returns them. All other cells are glass. The
    same cells give the same bytes.
    """
    rows, columns = size
    noise = np.random.default_rng(0).integers(-1, 2, (side_px, side_px, 3))
    glass = (np.array(GLASS) + noise).astype(np.uint8)
    glass_jpeg = bytes(simplejpeg.encode_jpeg(glass, GLASS_QUALITY, "RGB", "444"))
    image = np.tile(glass, (rows, columns, 1))
    for (row, column), (rgb_HWC, _) in stored.items():
        top, left = row * side_px, column * side_px
        image[top : top + side_px, left : left + side_px] = rgb_HWC

    def tiles() -> Iterator[bytes]:
        for row in range(rows):
            for column in range(columns):
                held = stored.get((row, column))
                yield held[1] if held else glass_jpeg

    finest = StoredLevel(tiles(), tile_px=side_px, subsampling=(1, 1))
    write_pyramid(path, image, mpp=mpp, finest=finest)
