"""Slides made of real tissue textures, with real lesions' outlines: nothing but morphology tells their class.

A slide's tissue is woven from benign textures. In every slide, regions with real outlines are pasted onto it:
decoys, woven from other benign textures, and lesions, woven from textures of the slide's class; in a benign
slide the lesions' places hold benign texture too. Tissue, decoys and lesions are woven and pasted alike and all
textures have the same histogram in each channel, so that neither a seam, nor the number of regions, nor colour
tells the classes apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from shapely import Polygon
from shapely.affinity import translate

from wsi_ips.config import Section
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.composite_layout import COARSE_PX, filled, lay_out, read_outlines
from wsi_ips.datasets.made_sets import claim, make_all
from wsi_ips.datasets.manifest import SPLITS, SlideRecord, write_manifest
from wsi_ips.datasets.pyramid_file import write_pyramid
from wsi_ips.datasets.textures import (
    TextureFile,
    TexturePool,
    load_matched,
    mix,
    read_textures,
    reference_colours,
    split_by_group,
    weave,
)
from wsi_ips.errors import ConfigError
from wsi_ips.files import whole_file
from wsi_ips.progress import Progress, silent
from wsi_ips.slides.base import RgbImage
from wsi_ips.units import Mpp

BENIGN = "benign"
CLASSES = (BENIGN, "adenocarcinoma", "squamous")
LABEL, TUMOR = "label", "tumor"
"""The manifest's columns: the class, and yes or no."""
GLASS = (243, 242, 244)
EDGE_PX = 3
"""How far a pasted region fades into the tissue around it, about."""
BAND_PX = 512


class CompositeConfig(Section):
    """Composite slides. Textures are shared out by source group in proportion to the slides of each split."""

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
    """Sources of the texture in one slide's lesions (and as many in its decoys)."""
    seed: int = 0

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Self:
        if not self.lesion_share[0] <= self.lesion_share[1] <= 0.2:
            raise ValueError(f"lesion_share {self.lesion_share} must rise, and stay under 0.2")
        return self


@dataclass(frozen=True, slots=True)
class _Order:
    """One slide to compose; ``number`` makes its own random numbers, whichever process composes it."""

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
    """Write ``images/*.tif``, ``annotations/*.xml`` (slides with lesions) and ``manifest.csv``, which is returned.

    textures: see :mod:`wsi_ips.datasets.textures`. outlines: a folder of NCRF's JSON files. The same input and
    config give the same bytes; what an earlier, interrupted call has composed is kept. Memory per process: three
    times a slide's level 0 at most. Raises :class:`ConfigError` where ``out`` holds another set, and
    :class:`ManifestError` or :class:`AnnotationError` for what is wrong with the input.
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
    missing = [order for order in orders if not order.record.path.exists()]
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
    """Matched textures as arrays on disk: every process maps the same pages instead of holding its own."""
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
    write_pyramid(record.path, rgb_HWC, mpp=Mpp(config.mpp))
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
    """Glass where there is no tissue, band by band."""
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
