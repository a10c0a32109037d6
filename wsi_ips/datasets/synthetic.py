"""A small data set in CAMELYON's layout, drawn from a seed: for the demo, for tests, for benchmarks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_ips.config import SyntheticConfig
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.made_sets import claim, make_all
from wsi_ips.datasets.manifest import SlideRecord, write_manifest
from wsi_ips.datasets.pyramid_file import write_pyramid
from wsi_ips.datasets.synthetic_tissue import draw_slide
from wsi_ips.progress import Progress, silent
from wsi_ips.units import Mpp

LABELS = ("normal", "tumor")


@dataclass(frozen=True, slots=True)
class _Order:
    """One slide to draw; ``number`` makes its own random numbers, whichever process draws it."""

    record: SlideRecord
    annotation: Path
    number: int
    config: SyntheticConfig


def make_camelyon_like(
    out: Path, config: SyntheticConfig, *, processes: int = 2, progress: Progress = silent
) -> Path:
    """Write ``images/*.tif``, ``annotations/*.xml`` (tumour slides) and ``reference.csv``, whose path is returned.

    Half of each split has lesions; no case lies in two splits. The same config gives the same bytes. What an
    earlier, interrupted call has drawn is kept. Raises :class:`ConfigError` where ``out`` holds another set.
    """
    claim(
        out / "synthetic.json",
        config,
        holds="a data set drawn with other settings",
        content={"config": config.model_dump(mode="json")},
    )
    orders = list(_orders(out, config))
    missing = [order for order in orders if not order.record.path.exists()]
    make_all(missing, _draw, processes=processes, what="Drawing slides", progress=progress)
    manifest = out / "reference.csv"
    write_manifest(manifest, [order.record for order in orders])
    return manifest


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
    write_pyramid(order.record.path, drawn.rgb_HWC, mpp=Mpp(config.mpp))
    return order.record.slide_id
