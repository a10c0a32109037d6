"""The data sets of benchmarks/evidence.py: real lymph nodes and lung textures, composed into slides.

Both are drawn anew for every seed: slides, splits and lesions. What is told apart, and with which patches, is
fixed here for every method.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import evidence_settings as settings
from wsi_ips.config import FinetuneConfig, TaskConfig
from wsi_ips.datasets.manifest import SPLITS, Manifest, SlideRecord, read_manifest
from wsi_ips.drawn.composite import CompositeConfig, make_composite
from wsi_ips.drawn.lymph_nodes import LymphNodesConfig, make_lymph_nodes, tiling_of
from wsi_ips.models.build import build_net
from wsi_ips.models.encoders.network import Compute, compute_in
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.tiling.patches import PatchesInTissue
from wsi_ips.training.bags import SlideBag, tile_bag
from wsi_ips.training.head_start import EncodedBag

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class EvidenceData:
    """One data set of one seed. name: one of DATA_SETS. sources: the folders that it is made of. work: where its
    slides and features lie. quick: a small set that shows that everything runs."""

    name: str
    seed: int
    sources: Mapping[str, Path]
    work: Path
    quick: bool = False

    @property
    def folder(self) -> Path:
        """Its slides and features, beside those of other sets that have the same slides."""
        return self.work / f"{settings.slides_of(self.name)}{'_quick' if self.quick else ''}_{self.seed}"

    @property
    def drawn(self) -> dict[str, Any]:
        """What is drawn."""
        return settings.drawn(self.name, seed=self.seed, quick=self.quick)

    @property
    def features(self) -> Path:
        """Features of the frozen encoder."""
        owner = settings.DATA_SETS[self.name].features_of or self.name
        return self.folder / f"features_{owner}"

    @property
    def precision(self) -> str:
        """What the encoder computes in."""
        return settings.DATA_SETS[self.name].precision

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        told = settings.TEXTURE_TASKS if settings.kind(self.name) == "textures" else settings.NODE_TASKS
        return tuple(TaskConfig.model_validate(task) for task in told)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the label; the first one is the healthy one."""
        return self.tasks[0].classes

    def finetune(self, **training: Any) -> FinetuneConfig:
        """The project's defaults on these slides; ``training`` over them."""
        if settings.kind(self.name) == "textures":
            # 128 px at twice the slide's µm per pixel: 256 x 256 level-0 pixels.
            tiling: Any = {"patch_px": 128, "patch_mpp": 1.0, "min_tissue": 0.25}
        else:
            tiling = tiling_of(LymphNodesConfig.model_validate(self.drawn)).model_dump()
        return FinetuneConfig.model_validate(
            {
                "tiling": tiling,
                "selection": settings.selection(self.name, quick=self.quick),
                "streaming": {"batch": 32, "threads": 1},
                "model": {"encoder": settings.encoder(self.name), "tasks": self.tasks},
                "training": {"seed": self.seed, "precision": self.precision, **training},
            }
        )

    def compose(self, *, processes: int) -> None:
        """Make the slides that are not there yet."""
        out = self.folder / "data"
        outlines = self.sources["outlines"]
        if settings.kind(self.name) == "textures":
            config = CompositeConfig.model_validate(self.drawn)
            make_composite(
                out, config, textures=self.sources["textures"], outlines=outlines, processes=processes
            )
        else:
            nodes = LymphNodesConfig.model_validate(self.drawn)
            make_lymph_nodes(
                out, nodes, patches=self.sources["nodes"], outlines=outlines, processes=processes
            )

    @property
    def manifest(self) -> Manifest:
        name = "cross_0_to_1.csv" if self.name.startswith("nodes_cross") else "manifest.csv"
        return read_manifest(self.folder / "data" / name, tasks=self.tasks)

    def sizes(self) -> dict[str, str]:
        """{slide id: macro, micro, small or none}; empty where lesions have no named sizes."""
        with (self.folder / "data" / "manifest.csv").open(newline="") as file:
            return {row["slide_id"]: row.get("lesion_size") or "" for row in csv.DictReader(file)}

    def annotation(self, slide_id: str) -> Path | None:
        """The slide's lesions (ASAP); None for a healthy one."""
        path = self.folder / "data" / "annotations" / f"{slide_id}.xml"
        return path if path.exists() else None

    def tile(self, record: SlideRecord) -> SlideBag:
        config = self.finetune()
        find = PatchesInTissue(config.tiling)
        return tile_bag(record, tasks=self.tasks, find_patches=find, slide_mpp=SlideMpp())

    def slide_bags(self) -> dict[str, list[SlideBag]]:
        """{split: its slides, cut into patches}."""
        manifest = self.manifest
        return {split: [self.tile(record) for record in manifest.split(split)] for split in SPLITS}

    def encoded_bags(self) -> dict[str, list[EncodedBag]]:
        """The same as the frozen encoder sees them; each is encoded when it is first opened."""
        encoder = build_net(self.finetune().model).encoder
        compute_in(encoder, Compute(self.precision))
        bags = self.slide_bags()
        return {
            split: [EncodedBag(bag, encoder, self.features, None) for bag in bags[split]] for split in bags
        }
