"""Slides made of real tissue textures with real lesions' outlines: :func:`make_composite`.

Only morphology tells their classes apart. A slide's tissue is woven from benign textures. In every slide, regions
with real outlines are pasted onto it: decoys, woven from other benign textures, and lesions, woven from textures
of the slide's class; in a benign slide, the lesions' places hold benign texture too. Tissue, decoys and lesions
are woven and pasted in the same way, and all textures have the same histogram in each channel, so that neither a
seam, nor the number of regions, nor colour reveals the class.

:func:`lay_out` places the regions on a map that is :data:`COARSE_PX` times coarser than level 0.

Shape suffixes: H rows, W columns, C channels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from shapely import Polygon
from shapely.affinity import rotate, scale, translate

from wsi_ips.config import Section
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.checksums import claim, make_all
from wsi_ips.datasets.manifest import SPLITS, SlideRecord, write_manifest
from wsi_ips.drawn.synthetic import write_pyramid
from wsi_ips.drawn.textures import (
    TextureFile,
    TexturePool,
    load_matched,
    mix,
    read_textures,
    reference_colours,
    split_by_group,
    weave,
)
from wsi_ips.errors import AnnotationError, ConfigError
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import RgbImage
from wsi_ips.storage.files import whole_file
from wsi_ips.units import Mpp, Size

COARSE_PX = 16
"""Level-0 pixels per pixel of the map on which tissue and regions are laid out."""

LARGEST_BYTES = 100_000_000
"""The largest file of outlines that is read."""

LEAST_POINTS = 20
"""Points of an outline, at least."""

LEAST_FILL = 0.35
"""Share of its tightest box that an outline fills, at least: a thin thread would not hold a patch."""

PLACEMENTS = 400
"""Places that are tried for an outline."""

Mask = NDArray[np.bool_]
"""(H, W) bool array."""

BENIGN = "benign"
"""The class without lesions."""

CLASSES = (BENIGN, "adenocarcinoma", "squamous")
"""The classes of slides."""

LABEL, TUMOR = "label", "tumor"
"""Columns of the manifest: the class, and whether the slide has a tumour."""

GLASS = (243, 242, 244)
"""Colour of glass."""

EDGE_PX = 3
"""Approximate width over which a pasted region fades into the tissue around it."""

BAND_PX = 512
"""Rows that are put on glass at once."""


class CompositeConfig(Section):
    """Settings of composite slides.

    Source groups of textures are divided in proportion to the slides of each split.
    """

    train: PositiveInt = 45
    val: NonNegativeInt = 15
    test: NonNegativeInt = 40
    """Slides per split; classes take turns."""
    side_px: PositiveInt = 8192
    """Level-0 side of a slide, at least; sizes vary by 5 %, so that nothing divides evenly."""
    mpp: PositiveFloat = 0.5
    lesion_share: tuple[PositiveFloat, PositiveFloat] = (0.005, 0.05)
    """Least and largest share of the tissue that a slide's lesions take; drawn per slide, log-uniform."""
    groups_per_region: PositiveInt = 12
    """Source groups of the texture in one slide's lesions, and as many in its decoys."""
    seed: int = 0

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        if not self.lesion_share[0] <= self.lesion_share[1] <= 0.2:
            raise ValueError(f"lesion_share {self.lesion_share} must rise, and stay under 0.2")
        return self


@dataclass(frozen=True, slots=True)
class _Order:
    """A slide to compose. ``number`` seeds its random numbers, whichever process composes it."""

    record: SlideRecord
    annotation: Path
    textures: Path
    number: int
    outlines: tuple[Polygon, ...]
    config: CompositeConfig


def make_composite(
    out: Path,
    config: CompositeConfig,
    *,
    textures: Path,
    outlines: Path,
    processes: int = 2,
    progress: Progress = silent,
) -> Path:
    """Compose slides with their annotations, and return the path of ``manifest.csv``.

    The folder then holds ``images/*.tif``, ``annotations/*.xml`` (slides with lesions) and ``manifest.csv``.

    ``textures`` is a folder as :mod:`wsi_ips.drawn.textures` describes, ``outlines`` a folder of NCRF's JSON
    files. The same input and config give the same bytes; slides of an earlier, interrupted call are kept. Each
    process uses at most three times the memory of a slide's level 0.

    Raises :class:`ConfigError` if ``out`` holds another data set, and :class:`ManifestError` or
    :class:`AnnotationError` for input that cannot be used.
    """
    files = read_textures(textures, classes=CLASSES)
    shapes = tuple(read_outlines(outlines))
    claim(
        out / "composite.json",
        config,
        holds="slides composed with other settings",
        content={"config": config.model_dump(mode="json")},
    )
    orders = list(_orders(out, shapes, config))
    missing = [order for order in orders if not order.record.file.exists()]
    if missing:
        _store_pools(out / "textures", files, config)
    make_all(missing, _compose, processes=processes, what="Composing slides", progress=progress)
    manifest = out / "manifest.csv"
    write_manifest(manifest, [order.record for order in orders])
    return manifest


def _orders(out: Path, outlines: tuple[Polygon, ...], config: CompositeConfig) -> Iterator[_Order]:
    number = 0
    for split in SPLITS:
        for index in range(getattr(config, split)):
            slide_id, label = f"{split}_{index:03d}", CLASSES[index % len(CLASSES)]
            record = SlideRecord(
                slide_id=slide_id,
                case_id=f"case_{slide_id}",
                labels={LABEL: label, TUMOR: "no" if label == BENIGN else "yes"},
                split=split,
                path=out / "images" / f"{slide_id}.tif",
            )
            annotation = out / "annotations" / f"{slide_id}.xml"
            yield _Order(record, annotation, out / "textures", number, outlines, config)
            number += 1


def _store_pools(folder: Path, files: Sequence[TextureFile], config: CompositeConfig) -> None:
    """Store matched textures as arrays on disk: all processes map the same pages instead of holding their own."""
    slides = {split: getattr(config, split) for split in SPLITS if getattr(config, split)}
    total = sum(slides.values())
    fractions = {split: count / total for split, count in slides.items()}
    shared_out = split_by_group(files, fractions=fractions, seed=config.seed)
    # Of the training textures alone: nothing of the others leaks into how slides look.
    reference = reference_colours(shared_out["train"], seed=config.seed)
    for split, chosen in shared_out.items():
        for number, label in enumerate(CLASSES):
            of_class = [texture for texture in chosen if texture.label == label]
            if len({texture.group for texture in of_class}) < 2:
                raise ConfigError(
                    f"too few source groups of class {label} for the split {split}; two are needed"
                )
            if _stored(folder, split, f"{label}_groups").exists():  # the last file of a pool: it is whole
                continue
            with whole_file(_stored(folder, split, label)) as partial:
                np.save(partial, load_matched(of_class, reference, seed=config.seed + number))
            _, group_N = np.unique([texture.group for texture in of_class], return_inverse=True)
            with whole_file(_stored(folder, split, f"{label}_groups")) as partial:
                np.save(partial, group_N.astype(np.int64))


def _pool(folder: Path, split: str, label: str) -> TexturePool:
    tiles_N = np.load(_stored(folder, split, label), mmap_mode="r", allow_pickle=False)
    return TexturePool(tiles_N, np.load(_stored(folder, split, f"{label}_groups"), allow_pickle=False))


def _stored(folder: Path, split: str, name: str) -> Path:
    return folder / f"{split}_{name}.npy"


def _compose(order: _Order) -> str:
    config, record, label = order.config, order.record, order.record.labels[LABEL]
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, order.number]))
    size_px = (int(config.side_px * rng.uniform(1, 1.05)) | 1, int(config.side_px * rng.uniform(1, 1.05)) | 1)
    layout = lay_out(size_px, order.outlines, share=config.lesion_share, rng=rng)
    benign = _pool(order.textures, record.split, BENIGN)
    foreign = benign if label == BENIGN else _pool(order.textures, record.split, label)
    # Tissue, decoys and a benign slide's stand-ins for lesions have sources of their own, as lesions have.
    groups = rng.permutation(np.unique(benign.group_N))
    few = min(config.groups_per_region, len(groups) // 3 or 1)
    in_decoys, in_stand_ins, in_tissue = groups[:few], groups[few : 2 * few], groups[2 * few :]
    in_lesions = in_stand_ins
    if label != BENIGN:
        in_lesions = rng.permutation(np.unique(foreign.group_N))[:few]
    rgb_HWC = weave(size_px, benign, benign.of_groups(in_tissue if len(in_tissue) else groups), rng)
    for outline in layout.decoys:
        _paste(rgb_HWC, outline, benign, benign.of_groups(in_decoys), rng)
    for outline in layout.lesions:
        _paste(rgb_HWC, outline, foreign, foreign.of_groups(in_lesions), rng)
    _put_on_glass(rgb_HWC, layout.present_HW, rng)
    if label != BENIGN:
        write_asap(order.annotation, layout.lesions)
    # The slide comes last: while it is missing, the slide counts as not composed.
    write_pyramid(record.file, rgb_HWC, mpp=Mpp(config.mpp))
    return record.slide_id


def _paste(
    rgb_HWC: RgbImage,
    outline: Polygon,
    pool: TexturePool,
    places: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Weave the outline's box and lay it over the picture inside the outline."""
    height, width = rgb_HWC.shape[:2]
    left, top = (max(0, int(side) - 2 * EDGE_PX) for side in outline.bounds[:2])
    right, bottom = (int(side) + 1 + 2 * EDGE_PX for side in outline.bounds[2:])
    right, bottom = min(right, width), min(bottom, height)
    size_px = (right - left, bottom - top)
    inside = Image.fromarray(filled(size_px, translate(outline, -left, -top))).convert("L")
    alpha_HW = np.asarray(inside.filter(ImageFilter.GaussianBlur(EDGE_PX / 2))).astype(np.uint16)
    box = (slice(top, bottom), slice(left, right))
    rgb_HWC[box] = mix(rgb_HWC[box], weave(size_px, pool, places, rng), alpha_HW + (alpha_HW >> 7))


def _put_on_glass(rgb_HWC: RgbImage, present_HW: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Show glass where there is no tissue, band by band."""
    height, width = rgb_HWC.shape[:2]
    noise = rng.integers(-1, 2, (BAND_PX, width, 3), dtype=np.int16)
    glass = (np.array(GLASS, np.int16) + noise).astype(np.uint8)
    soft = Image.fromarray(present_HW)
    for top in range(0, height, BAND_PX):
        bottom = min(top + BAND_PX, height)
        box = (0, top / COARSE_PX, width / COARSE_PX, bottom / COARSE_PX)
        band = soft.resize((width, bottom - top), Image.Resampling.BILINEAR, box=box)
        # The soft edge of the coarse map, made 8 times steeper around its middle.
        alpha = np.clip((np.asarray(band).astype(np.int16) - 128) * 8 + 128, 0, 256)
        rgb_HWC[top:bottom] = mix(glass[: bottom - top], rgb_HWC[top:bottom], alpha)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tissue and regions lie.

    ``present_HW``, uint8, is the tissue on the coarse map with a soft edge; tissue is where it is 128 or more.
    ``lesions`` and ``decoys`` are outlines in level-0 pixels, inside the tissue and apart from each other.
    """

    present_HW: NDArray[np.uint8]
    lesions: tuple[Polygon, ...]
    decoys: tuple[Polygon, ...]


def read_outlines(folder: Path) -> list[Polygon]:
    """Read the outlines of NCRF's JSON files (``{"positive": [{"vertices": [[x, y], ...]}], "negative": [...]}``).

    Holes are cut out. Each outline is moved to the origin and scaled to an area of 1. Threads and outlines of few
    points are left out. Raises :class:`AnnotationError` for a broken file, or a folder without outlines.
    """
    found: list[Polygon] = []
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size > LARGEST_BYTES:
            raise AnnotationError(
                path, f"is larger than {LARGEST_BYTES} bytes", "give outlines in NCRF's JSON format"
            )
        try:
            held: Any = json.loads(path.read_text(encoding="utf-8"))
            holes = shapely.union_all([_polygon(ring) for ring in held["negative"]])
            outlines = [_polygon(ring).difference(holes) for ring in held["positive"]]
        except (ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
            raise AnnotationError(path, f"is no outline file ({error})", "see NCRF's JSON format") from None
        found += [_unit(part) for outline in outlines for part in _parts(outline) if _is_lesion_like(part)]
    if not found:
        raise AnnotationError(folder, "holds no outlines", "name a folder of NCRF's JSON files")
    return found


def lay_out(
    size_px: Size, outlines: Sequence[Polygon], *, share: tuple[float, float], rng: np.random.Generator
) -> Layout:
    """Lay out tissue, one to three lesions, and one to three decoys.

    Lesions together cover a share of the tissue that is drawn between the two values of ``share`` (log-uniform),
    decoys another one of the same range. Both are drawn in the same way, so that shape, size and place reveal
    nothing. Raises :class:`ConfigError` if there is no room.
    """
    coarse = (-(-size_px[0] // COARSE_PX), -(-size_px[1] // COARSE_PX))
    present_HW = _tissue(coarse, rng=rng)
    free = present_HW >= 128
    tissue_area = float(free.sum())
    placed: list[tuple[Polygon, ...]] = []
    for _ in ("lesions", "decoys"):
        total = tissue_area * np.exp(rng.uniform(*np.log(share)))
        parts = rng.dirichlet(np.full(rng.integers(1, 4), 4.0))
        placed.append(tuple(_place(free, outlines, area=total * part, rng=rng) for part in parts))
    lesions, decoys = (
        tuple(scale(each, COARSE_PX, COARSE_PX, origin=(0, 0)) for each in kind) for kind in placed
    )
    return Layout(present_HW, lesions, decoys)


def filled(size_px: Size, outline: Polygon) -> Mask:
    """A mask of ``size_px`` (width, height) that is True inside the outline, without its holes."""
    image = Image.new("L", size_px)
    draw = ImageDraw.Draw(image)
    for ring, value in ((outline.exterior, 1), *((hole, 0) for hole in outline.interiors)):
        draw.polygon([(x - 0.5, y - 0.5) for x, y in ring.coords], fill=value)
    return np.asarray(image).astype(bool)


def _tissue(coarse: Size, *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth noise, higher in the middle, cut so that half to two thirds of the slide remain."""
    width, height = coarse
    noise = Image.fromarray(rng.uniform(0, 255, (9, 9)).astype(np.uint8)).resize(
        coarse, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.uniform(0, 255, (60, 60)).astype(np.uint8)).resize(
        coarse, Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    field = np.asarray(noise) + 0.15 * np.asarray(fine) - 500 * np.maximum(abs(x), abs(y)) ** 8
    cut = np.quantile(field, 1 - rng.uniform(0.5, 0.66))
    present = Image.fromarray(np.where(field > cut, 255, 0).astype(np.uint8))
    return np.asarray(present.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1.5)))


def _place(free: Mask, outlines: Sequence[Polygon], *, area: float, rng: np.random.Generator) -> Polygon:
    """An outline of this area, turned at random, where the map is free; the place is then taken, with a margin.

    Raises :class:`ConfigError` if none fits.
    """
    height, width = free.shape
    rows, columns = np.nonzero(free)
    for _ in range(PLACEMENTS):
        outline = rotate(outlines[int(rng.integers(len(outlines)))], rng.uniform(0, 360), origin=(0, 0))
        mirrored = -1 if rng.integers(2) else 1
        outline = scale(outline, mirrored * area**0.5, area**0.5, origin=(0, 0))
        at = rng.integers(len(rows))
        outline = translate(outline, columns[at] + rng.uniform(), rows[at] + rng.uniform())
        covered = filled((width, height), Polygon(outline.buffer(2).exterior))
        left, top, right, bottom = outline.bounds
        inside = left > 1 and top > 1 and right < width - 1 and bottom < height - 1
        if inside and not (covered & ~free).any():
            free &= ~covered
            return outline
    raise ConfigError(f"no room for a lesion of {area * COARSE_PX**2:.0f} px; give a lower lesion_share")


def _polygon(ring: Any) -> Polygon:
    points = np.asarray(ring["vertices"], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("coordinates that are no numbers")
    return shapely.make_valid(Polygon(points)) if len(points) >= 3 else Polygon()


def _parts(shape: Any) -> list[Polygon]:
    return [part for part in getattr(shape, "geoms", [shape]) if isinstance(part, Polygon) and part.area > 0]


def _is_lesion_like(outline: Polygon) -> bool:
    box = shapely.minimum_rotated_rectangle(outline)
    return len(outline.exterior.coords) >= LEAST_POINTS and outline.area >= LEAST_FILL * box.area


def _unit(outline: Polygon) -> Polygon:
    centred = translate(outline, -outline.centroid.x, -outline.centroid.y)
    factor = centred.area**-0.5
    return scale(centred, factor, factor, origin=(0, 0)).simplify(0.002)
