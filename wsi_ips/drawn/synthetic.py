"""A small data set of drawn H&E slides in CAMELYON's layout, made from a seed: :func:`make_camelyon_like`.

It is for the demo, tests and benchmarks. :func:`draw_slide` draws one slide, whose lesions differ from normal
tissue by morphology and not by mean colour. Stain is drawn as two maps, eosin and haematoxylin, and becomes colour
by Beer and Lambert's law, so that overlapping stains darken as they do on glass. :func:`write_pyramid` writes a
picture as the kind of file that CAMELYON's slides are, a tiled JPEG BigTIFF pyramid.

Drawn nuclei: small, round and dark in normal lymphoid tissue; large, pale and irregular in lesions.

:func:`draw_nuclei` draws them as small pictures, :func:`scatter` places these on a slide.

Shape suffixes: H rows, W columns, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from shapely import MultiPolygon, Polygon
from shapely.affinity import translate

from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.checksums import claim, make_all
from wsi_ips.datasets.manifest import SlideRecord, write_manifest
from wsi_ips.drawn.config import SyntheticConfig
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import RgbImage
from wsi_ips.storage.files import whole_file
from wsi_ips.units import Mpp, Size

Density = NDArray[np.uint8]
"""Stain per pixel, 0 none to 255 most."""


@dataclass(frozen=True, slots=True)
class NucleusKind:
    """How a kind of nucleus looks. Lengths are in µm, densities 0 to 255."""

    diameter_um: tuple[float, float]
    elongation: tuple[float, float]
    roughness: float
    """How far the outline departs from an ellipse, as a share of the radius."""
    chromatin: float
    """Stain of the inside; the rim and nucleoli are darker."""
    clumps: float
    """Contrast of the chromatin's texture."""
    nucleoli: int


NORMAL = NucleusKind((5.6, 7.2), (1.0, 1.25), 0.03, 165, 0.12, 0)
"""Nuclei of normal lymphoid tissue."""
TUMOR = NucleusKind((10.0, 14.0), (1.0, 1.7), 0.13, 90, 0.35, 2)
"""Nuclei of lesions."""


def draw_nuclei(kind: NucleusKind, variants: int, *, mpp: Mpp, rng: np.random.Generator) -> list[Density]:
    """Draw ``variants`` nuclei, each a small (h, w) uint8 map of stain with a soft edge."""
    return [_draw_nuclei(kind, mpp=mpp, rng=rng) for _ in range(variants)]


def _draw_nuclei(kind: NucleusKind, *, mpp: Mpp, rng: np.random.Generator) -> Density:
    radius = rng.uniform(*kind.diameter_um) / 2 / mpp
    stretch = np.sqrt(rng.uniform(*kind.elongation))
    reach = int(np.ceil(radius * stretch * (1 + 2 * kind.roughness))) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along = (x * np.cos(turn) + y * np.sin(turn)) / stretch
    across = (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = 1 + kind.roughness * sum(
        rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) / k**0.5 for k in range(2, 6)
    )
    # 1 at the centre, 0 at the outline.
    depth = 1 - np.hypot(along, across) / (radius * outline)
    inside = np.clip(depth * radius / 1.2 + 0.5, 0, 1)
    rim = np.exp(-((depth * radius / 1.4) ** 2))
    grain = _blobs(y.shape, scale=3, rng=rng)
    stain = kind.chromatin * (1 + kind.clumps * grain) + (215 - kind.chromatin) * 0.55 * rim
    for _ in range(rng.integers(1, kind.nucleoli + 1) if kind.nucleoli else 0):
        at, where = rng.uniform(0, 0.5) * radius, rng.uniform(0, 2 * np.pi)
        spot = np.hypot(x - at * np.cos(where), y - at * np.sin(where)) / (0.9 / mpp)
        stain += 140 * np.exp(-(spot**2) * 1.5)
    return np.asarray(np.clip(stain * inside, 0, 255).astype(np.uint8))


def _blobs(shape: tuple[int, ...], *, scale: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of about unit deviation: coarse values, interpolated."""
    coarse = rng.normal(size=(shape[0] // scale + 3, shape[1] // scale + 3)).astype(np.float32)
    rows, columns = np.arange(shape[0]) / scale, np.arange(shape[1]) / scale
    r0, c0 = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r0)[:, None], (columns - c0)[None, :]
    top = coarse[r0][:, c0] * (1 - fc) + coarse[r0][:, c0 + 1] * fc
    bottom = coarse[r0 + 1][:, c0] * (1 - fc) + coarse[r0 + 1][:, c0 + 1] * fc
    return np.asarray(top * (1 - fr) + bottom * fr, np.float32)


def scatter(
    canvas: Density,
    sprites: list[Density],
    where: NDArray[np.bool_],
    where_px: int,
    *,
    spacing_px: float,
    jitter: float,
    rng: np.random.Generator,
) -> None:
    """Place nuclei about ``spacing_px`` apart on ``canvas`` wherever ``where`` is True.

    ``where`` has one value per ``where_px`` pixels. Places are those of a grid, each moved by up to ``jitter`` of
    the spacing, so that cells keep their distance.
    """
    height, width = canvas.shape
    rows, columns = np.mgrid[0 : height / spacing_px, 0 : width / spacing_px].reshape(2, -1)
    offsets = rng.uniform(-jitter, jitter, (2, rows.size))
    # Every other row is shifted by half a step, as packed cells are.
    y = ((rows + 0.5 + offsets[0]) * spacing_px).astype(np.int64)
    x = ((columns + 0.5 + 0.5 * (rows.astype(np.int64) % 2) + offsets[1]) * spacing_px).astype(np.int64)
    chosen = rng.integers(0, len(sprites), y.size)
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    y, x, chosen = y[inside], x[inside], chosen[inside]
    keep = where[y // where_px, x // where_px]
    for place_y, place_x, number in zip(y[keep], x[keep], chosen[keep], strict=True):
        _stamp(canvas, sprites[number], int(place_x), int(place_y))


def _stamp(canvas: Density, sprite: Density, x: int, y: int) -> None:
    top, left = y - sprite.shape[0] // 2, x - sprite.shape[1] // 2
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.shape[0], canvas.shape[0]), min(left + sprite.shape[1], canvas.shape[1])
    part = canvas[y0:y1, x0:x1]
    np.maximum(part, sprite[y0 - top : y1 - top, x0 - left : x1 - left], out=part)


TILE_PX = 256
"""Side of the tiles of a pyramid."""

JPEG_QUALITY = 85
"""Quality of the JPEG tiles."""

SMALLEST_SIDE_PX = 512
"""Levels halve until their shorter side would be below this."""

REDUCED_IMAGE = 1
"""NewSubfileType of reduced levels (TIFF 6.0)."""

COARSE_PX = 16
"""Level-0 pixels per pixel of the map on which tissue and lesions are laid out."""

# Optical density of the pure stains in R, G, B (about those of Ruifrok and Johnston 2001).
EOSIN = np.array([0.10, 0.75, 0.35])
"""Optical density of pure eosin in R, G, B (about that of Ruifrok and Johnston 2001)."""

HAEMATOXYLIN = np.array([0.75, 0.80, 0.35])
"""Optical density of pure haematoxylin in R, G, B."""

VARIANTS = 72
"""Different nuclei of each kind that are drawn for one slide."""

LABELS = ("normal", "tumor")
"""The labels of slides."""


def make_camelyon_like(
    out: Path, config: SyntheticConfig, *, processes: int = 2, progress: Progress = silent
) -> Path:
    """Draw a data set and return the path of its ``reference.csv``.

    The folder also holds ``images/*.tif`` and ``annotations/*.xml`` (tumour slides).

    Half of each split has lesions, and no case is in two splits. The same config gives the same bytes. Slides of
    an earlier, interrupted call are kept. Raises :class:`ConfigError` if ``out`` holds another data set.
    """
    claim(
        out / "synthetic.json",
        config,
        holds="a data set drawn with other settings",
        content={"config": config.model_dump(mode="json")},
    )
    orders = list(_orders(out, config))
    missing = [order for order in orders if not order.record.file.exists()]
    make_all(missing, _draw, processes=processes, what="Drawing slides", progress=progress)
    manifest = out / "reference.csv"
    write_manifest(manifest, [order.record for order in orders])
    return manifest


@dataclass(frozen=True, slots=True)
class _Order:
    """A slide to draw. ``number`` seeds its random numbers, whichever process draws it."""

    record: SlideRecord
    annotation: Path
    number: int
    config: SyntheticConfig


def _orders(out: Path, config: SyntheticConfig) -> Iterator[_Order]:
    number = 0
    for split, count in (("train", config.train), ("val", config.val), ("test", config.test)):
        for index in range(count):
            label = LABELS[index % 2]
            slide_id = f"{split}_{index:03d}_{label}"
            record = SlideRecord(
                slide_id=slide_id,
                case_id=f"case_{split}_{index // 2:03d}",
                labels={"label": label},
                split=split,
                path=out / "images" / f"{slide_id}.tif",
            )
            yield _Order(record, out / "annotations" / f"{slide_id}.xml", number, config)
            number += 1


def _draw(order: _Order) -> str:
    config = order.config
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, order.number]))
    width, height = (int(config.side_px * rng.uniform(0.9, 1.1)) | 1 for _ in range(2))
    drawn = draw_slide(
        (width, height), mpp=Mpp(config.mpp), tumor=order.record.labels["label"] == "tumor", rng=rng
    )
    if drawn.lesions.geoms:
        write_asap(order.annotation, list(drawn.lesions.geoms))
    # The slide comes last: while it is missing, the slide counts as not drawn.
    write_pyramid(order.record.file, drawn.rgb_HWC, mpp=Mpp(config.mpp))
    return order.record.slide_id


@dataclass(frozen=True, slots=True)
class DrawnSlide:
    """A drawn slide: its picture, (H, W, 3) uint8, and the outlines of its lesions in level-0 pixels."""

    rgb_HWC: RgbImage
    lesions: MultiPolygon


def draw_slide(size_px: Size, *, mpp: Mpp, tumor: bool, rng: np.random.Generator) -> DrawnSlide:
    """Draw a slide of ``size_px`` (width, height) with two or three pieces of tissue and, if ``tumor``,
    lesions.
    """
    coarse = (-(-size_px[0] // COARSE_PX), -(-size_px[1] // COARSE_PX))
    pieces = [_blob(coarse, share=rng.uniform(0.12, 0.22), rng=rng) for _ in range(rng.integers(2, 4))]
    tissue = _filled(coarse, pieces)
    for _ in range(rng.integers(4, 12)):
        tissue &= ~_filled(coarse, [_spot(coarse, radius=rng.uniform(2, 7), rng=rng)])
    outlines = _lesions(tissue, coarse, mpp=mpp, rng=rng) if tumor else []
    lesion = _filled(coarse, outlines) & tissue
    eosin, haematoxylin = _stains(size_px, tissue, lesion, mpp=mpp, rng=rng)
    rgb_HWC = _develop(eosin, haematoxylin, rng=rng)
    if outlines:
        _match_mean_colour(rgb_HWC, eosin > 0, tissue, lesion)
    scaled = [Polygon(np.array(outline.exterior.coords) * COARSE_PX) for outline in outlines]
    return DrawnSlide(rgb_HWC, MultiPolygon(scaled))


def _blob(coarse: Size, *, share: float, rng: np.random.Generator) -> Polygon:
    """An organic outline around a random place; its area is about ``share`` of the slide."""
    radius = np.sqrt(share * coarse[0] * coarse[1] / np.pi)
    centre = [rng.uniform(0.3, 0.7) * side for side in coarse]
    return translate(_outline(radius, harmonics=7, roughness=0.16, rng=rng), *centre)


def _spot(coarse: Size, *, radius: float, rng: np.random.Generator) -> Polygon:
    centre = [rng.uniform(0, side) for side in coarse]
    return translate(_outline(radius, harmonics=3, roughness=0.1, rng=rng), *centre)


def _outline(radius: float, *, harmonics: int, roughness: float, rng: np.random.Generator) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    waves = sum(
        rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, harmonics + 1)
    )
    reach = radius * np.clip(1 + roughness * waves, 0.4, 1.8)
    return Polygon(np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1))


def _filled(coarse: Size, polygons: list[Polygon]) -> NDArray[np.bool_]:
    image = Image.new("L", coarse)
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon([(x - 0.5, y - 0.5) for x, y in polygon.exterior.coords], fill=1)
    return np.asarray(image).astype(bool)


def _lesions(tissue: NDArray[np.bool_], coarse: Size, *, mpp: Mpp, rng: np.random.Generator) -> list[Polygon]:
    """One to three outlines in the tissue, each about 0.4 to 0.7 mm across."""
    # Far enough from the tissue's edge to hold a lesion.
    deep = np.asarray(Image.fromarray(tissue).convert("L").filter(ImageFilter.MinFilter(15))) > 0
    places = np.argwhere(deep if deep.any() else tissue)
    outlines: list[Polygon] = []
    for _ in range(rng.integers(1, 4)):
        row, column = places[rng.integers(len(places))]
        radius = rng.uniform(180, 360) / mpp / COARSE_PX
        outline = translate(_outline(radius, harmonics=6, roughness=0.18, rng=rng), float(column), float(row))
        if not any(outline.intersects(other) for other in outlines):
            outlines.append(outline)
    return outlines


def _stains(
    size_px: Size,
    tissue: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
    *,
    mpp: Mpp,
    rng: np.random.Generator,
) -> tuple[Density, Density]:
    width, height = size_px
    rounded = Image.fromarray(tissue).convert("L").filter(ImageFilter.GaussianBlur(1.2))
    present = np.asarray(rounded.resize(size_px, Image.Resampling.BICUBIC)) > 127
    eosin = _texture(size_px, scale_px=170, mean=105, deviation=14, rng=rng).astype(np.int16)
    fibres = _texture((512, 512), scale_px=5, mean=0, deviation=18, rng=rng, signed=True)
    eosin += np.tile(fibres, (-(-height // 512), -(-width // 512)))[:height, :width]
    haematoxylin: Density = np.full((height, width), 12, np.uint8)
    lymphoid = _texture((tissue.shape[1], tissue.shape[0]), scale_px=12, mean=128, deviation=40, rng=rng)
    normal = draw_nuclei(NORMAL, VARIANTS, mpp=mpp, rng=rng)
    spacing = rng.uniform(11.0, 12.5) / mpp
    scatter(haematoxylin, normal, tissue & ~lesion & (lymphoid > 90), COARSE_PX,
            spacing_px=spacing, jitter=0.36, rng=rng)  # fmt: skip
    scatter(haematoxylin, normal, tissue & ~lesion & (lymphoid <= 90), COARSE_PX,
            spacing_px=1.5 * spacing, jitter=0.45, rng=rng)  # fmt: skip
    if lesion.any():
        malignant = draw_nuclei(TUMOR, VARIANTS, mpp=mpp, rng=rng)
        scatter(haematoxylin, malignant, lesion, COARSE_PX,
                spacing_px=rng.uniform(15.5, 17.5) / mpp, jitter=0.42, rng=rng)  # fmt: skip
    return np.clip(eosin, 0, 255).astype(np.uint8) * present, haematoxylin * present


def _texture(
    size_px: Size,
    *,
    scale_px: int,
    mean: float,
    deviation: float,
    rng: np.random.Generator,
    signed: bool = False,
) -> NDArray[np.int16]:
    """Smooth noise: coarse random values, interpolated."""
    width, height = size_px
    coarse = rng.normal(size=(height // scale_px + 4, width // scale_px + 4)) * 50 + 128
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize(
        size_px, Image.Resampling.BICUBIC
    )
    noise = (np.asarray(image).astype(np.int16) - 128) * (deviation / 35) + mean
    return (noise if signed else np.clip(noise, 0, 255)).astype(np.int16)


def _develop(eosin: Density, haematoxylin: Density, *, rng: np.random.Generator) -> RgbImage:
    """Colours from the stains. Each slide is stained a little differently, whatever its label."""
    levels = np.arange(256) / 255
    strength = rng.normal(1, 0.08, 2).clip(0.8, 1.2)
    tint = rng.normal(1, 0.05, (2, 3)).clip(0.85, 1.15)
    glass = rng.uniform(238, 247) + rng.normal(0, 1.2, 3)
    noise = np.tile(rng.normal(0, 2.2, (512, 512)), (eosin.shape[0] // 512 + 1, eosin.shape[1] // 512 + 1))
    noise = noise[: eosin.shape[0], : eosin.shape[1]].astype(np.int16)
    rgb_HWC = np.empty((*eosin.shape, 3), np.uint8)
    for channel in range(3):
        pink = np.exp(-levels * strength[0] * EOSIN[channel] * tint[0, channel]) * glass[channel] * 64
        blue = np.exp(-levels * strength[1] * 1.25 * HAEMATOXYLIN[channel] * tint[1, channel]) * 256
        product = pink.astype(np.uint16)[eosin].astype(np.uint32) * blue.astype(np.uint16)[haematoxylin]
        rgb_HWC[..., channel] = np.clip((product >> 14).astype(np.int16) + noise, 0, 255)
    return rgb_HWC


def _match_mean_colour(
    rgb_HWC: RgbImage, stained: NDArray[np.bool_], tissue: NDArray[np.bool_], lesion: NDArray[np.bool_]
) -> None:
    """Shift the colours of lesions so that their mean is that of the normal tissue beside them.

    ``stained`` is at level 0, the other two are on the coarse map.
    """
    height, width = rgb_HWC.shape[:2]

    def at_level_0(coarse: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return coarse.repeat(COARSE_PX, 0)[:height].repeat(COARSE_PX, 1)[:, :width] & stained

    inside = at_level_0(lesion)
    normal = at_level_0(tissue & ~lesion)
    # Every seventh pixel each way is plenty for a mean.
    sample = rgb_HWC[::7, ::7]
    wanted = sample[normal[::7, ::7]].mean(axis=0)
    found = sample[inside[::7, ::7]].mean(axis=0)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    shift = np.rint(wanted - found).astype(np.int16)
    shifted = np.clip(rgb_HWC[box].astype(np.int16) + shift, 0, 255).astype(np.uint8)
    rgb_HWC[box] = np.where(inside[box][..., None], shifted, rgb_HWC[box])


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level that is already encoded.

    ``tiles`` gives one JPEG stream (YCbCr) per tile, row by row. ``subsampling`` is that of chroma along x and y
    as in TIFF, (1, 1) for none.
    """

    tiles: Iterator[bytes]
    tile_px: int
    subsampling: tuple[int, int]


def write_pyramid(path: Path, image: RgbImage, *, mpp: Mpp, finest: StoredLevel | None = None) -> None:
    """Write a picture, (H, W, 3) uint8, as a tiled pyramid with its resolution of ``mpp`` µm per pixel.

    Levels are halved as long as the shorter side has 512 px or more; tiles are JPEG YCbCr 4:2:0. ``finest`` is
    stored as level 0 instead of ``image``, which has to show the same. Reduced levels are top-level images with
    NewSubfileType 1 (TIFF 6.0), which OpenSlide reads as a generic tiled TIFF. The same image gives the same
    bytes.
    """
    level, number = image, 0
    stored = finest or _encoded(image)
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as writer:
        while True:
            writer.write(
                stored.tiles,
                shape=level.shape,
                dtype=np.uint8,
                tile=(stored.tile_px, stored.tile_px),
                photometric="ycbcr",
                subsampling=stored.subsampling,
                compression="jpeg",
                subfiletype=REDUCED_IMAGE if number else 0,
                resolution=(1e4 / (mpp * 2**number), 1e4 / (mpp * 2**number)),
                resolutionunit="CENTIMETER",
                metadata=None,
                software="wsi_ips",
            )
            if min(level.shape[:2]) < 2 * SMALLEST_SIDE_PX:
                return
            level, number = np.asarray(Image.fromarray(level).reduce(2)), number + 1
            stored = _encoded(level)


def _encoded(level: RgbImage) -> StoredLevel:
    return StoredLevel(_encoded_tiles(level), tile_px=TILE_PX, subsampling=(2, 2))


def _encoded_tiles(level: RgbImage) -> Iterator[bytes]:
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), "edge")
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = np.ascontiguousarray(padded[top : top + TILE_PX, left : left + TILE_PX])
            yield bytes(simplejpeg.encode_jpeg(tile, JPEG_QUALITY, "RGB", "420"))
