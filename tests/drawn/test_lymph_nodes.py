"""Composite lymph nodes from small drawn patches: every patch real, the truth exact, nothing that tells labels."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from scipy import ndimage

from tests.drawn.drawn_nodes import FAMILIES, SIDE_PX, draw_nodes
from tests.drawn.drawn_textures import draw_outlines
from wsi_ips.config import StreamingConfig, TaskConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import SPLITS, Manifest, read_manifest
from wsi_ips.drawn.composite import read_outlines
from wsi_ips.drawn.lymph_nodes import (
    SIZES,
    LymphNodesConfig,
    NodeSlide,
    cells_path,
    make_lymph_nodes,
    plan_slides,
    read_cells,
    size_of,
    tiling_of,
    tumor_cells,
)
from wsi_ips.drawn.node_patches import read_patch, read_patches, turned
from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.tiling.patches import PatchesInTissue
from wsi_ips.training.bags import tile_bag

TASKS = [TaskConfig()]
SMALL = LymphNodesConfig(train=12, val=4, test=4, patches=120, patch_px=SIDE_PX, mpp=2.9)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_nodes(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def outlines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_outlines(tmp_path_factory.mktemp("outlines"))


@pytest.fixture(scope="module")
def composed(patches: Path, outlines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed")
    return make_lymph_nodes(out, SMALL, patches=patches, outlines=outlines, processes=1)


def planned(config: LymphNodesConfig, patches: Path, outlines: Path) -> list[NodeSlide]:
    return list(plan_slides(Path(), config, patches=read_patches(patches), outlines=read_outlines(outlines)))


def table(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def read(manifest: Path) -> Manifest:
    return read_manifest(manifest, tasks=TASKS)


@pytest.mark.slow
def test_each_patch_that_is_read_is_a_real_one_and_no_glass_is(composed: Path, patches: Path) -> None:
    for record in read(composed).records[:6]:
        cells = read_cells(cells_path(composed.parent, record.slide_id))
        bag = tile_bag(
            record, tasks=TASKS, find_patches=PatchesInTissue(tiling_of(SMALL)), slide_mpp=SlideMpp()
        )
        corners = [(cell.column * SIDE_PX, cell.row * SIDE_PX) for cell in cells]
        assert bag.coords.l0_xy_N2.tolist() == [list(corner) for corner in corners]
        with bag.open(StreamingConfig(batch=64), torch.device("cpu")) as stream:
            pixels_N3PP = torch.cat([chunk.pixels_n3PP for chunk in stream]).numpy()
        for cell, pixels_3PP in zip(cells, pixels_N3PP, strict=True):
            real_HWC = read_patch(patches / cell.path, side_px=SIDE_PX)
            off = [
                np.abs(turned(real_HWC, symmetry).astype(float) - pixels_3PP.transpose(1, 2, 0)).mean()
                for symmetry in range(8)
            ]
            assert off[cell.symmetry] < 0.6
            assert sum(each < 3 for each in off) == 1
            assert ("metastasis" in cell.path) == cell.tumor


def test_outlines_enclose_exactly_the_cells_of_metastasis(composed: Path) -> None:
    for record in read(composed).records:
        annotation = composed.parent / "annotations" / f"{record.slide_id}.xml"
        cells = read_cells(cells_path(composed.parent, record.slide_id))
        assert annotation.exists() == (record.labels["label"] == "tumor") == bool(tumor_cells(cells).any())
        if annotation.exists():
            truth = shapely.union_all(
                [
                    shapely.box(cell.column, cell.row, cell.column + 1, cell.row + 1)
                    for cell in cells
                    if cell.tumor
                ]
            )
            truth = shapely.affinity.scale(truth, SIDE_PX, SIDE_PX, origin=(0, 0))
            assert lesion_area(annotation).symmetric_difference(truth).area == 0


def test_the_table_says_what_lies_on_the_slides(composed: Path) -> None:
    for row in table(composed):
        cells = read_cells(cells_path(composed.parent, row["slide_id"]))
        share = tumor_cells(cells).mean()
        assert int(row["patches"]) == len(cells)
        assert 108 <= len(cells) <= 132
        assert float(row["lesion_share"]) == pytest.approx(share, abs=5e-5)
        low, high = (0, 0) if row["lesion_size"] == "none" else SIZES[row["lesion_size"]]
        assert low <= share <= high
        assert row["label"] == ("tumor" if share else "normal")
        assert {Path(cell.path).name[0] for cell in cells} == {row["stain_family"]}


def test_stain_and_split_say_nothing_of_the_label(patches: Path, outlines: Path) -> None:
    slides = planned(SMALL.model_copy(update={"train": 24, "val": 12, "patches": 250}), patches, outlines)
    for split, each in (("train", 2), ("val", 1)):
        counts = Counter(
            (slide.record.labels["stain_family"], slide.record.labels["lesion_size"])
            for slide in slides
            if slide.record.split == split
        )
        for family in FAMILIES:
            assert [counts[family, size] for size in SIZES] == [each] * 3
            assert counts[family, "none"] == 3 * each


def test_no_source_group_lies_in_two_splits(composed: Path, patches: Path) -> None:
    group_of = {patch.name: patch.group for patch in read_patches(patches)}
    groups = {
        split: {
            group_of[cell.path]
            for record in read(composed).split(split)
            for cell in read_cells(cells_path(composed.parent, record.slide_id))
        }
        for split in SPLITS
    }
    assert all(len(found) > 10 for found in groups.values())
    assert all(not groups[one] & groups[two] for one, two in itertools.combinations(SPLITS, 2))


def test_no_picture_is_on_a_slide_twice_and_slides_differ(patches: Path, outlines: Path) -> None:
    slides = planned(SMALL.model_copy(update={"patches": 300}), patches, outlines)
    for slide in slides:
        assert len({(cell.path, cell.symmetry) for cell in slide.cells}) == len(slide.cells)
    used = [{cell.path for cell in slide.cells if not cell.tumor} for slide in slides[:4:2]]
    assert used[0] - used[1]
    assert used[1] - used[0]


def test_the_same_seed_gives_the_same_bytes_and_slides_that_are_there_stay(
    composed: Path, patches: Path, outlines: Path, tmp_path: Path
) -> None:
    fewer = SMALL.model_copy(update={"train": 3, "val": 1, "test": 2})
    make_lymph_nodes(tmp_path, fewer, patches=patches, outlines=outlines, processes=2)
    made = [path for path in sorted(tmp_path.rglob("*.*")) if path.parent != tmp_path]
    assert len(made) == 6 + 6 + 1  # slides, their cells, the outlines of the one positive slide
    for path in made:
        assert path.read_bytes() == (composed.parent / path.relative_to(tmp_path)).read_bytes(), path
    slides = sorted((tmp_path / "images").iterdir())
    slides[0].unlink()
    before = [path.stat().st_mtime_ns for path in slides[1:]]
    make_lymph_nodes(tmp_path, fewer, patches=patches, outlines=outlines, processes=1)
    assert [path.stat().st_mtime_ns for path in slides[1:]] == before
    assert slides[0].read_bytes() == (composed.parent / "images" / slides[0].name).read_bytes()


def test_a_folder_of_another_set_is_refused(
    composed: Path, patches: Path, outlines: Path, tmp_path: Path
) -> None:
    other = SMALL.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="other settings"):
        make_lymph_nodes(composed.parent, other, patches=patches, outlines=outlines)
    drawn_anew = draw_nodes(tmp_path, seed=1)
    with pytest.raises(ConfigError, match="other patches"):
        make_lymph_nodes(composed.parent, SMALL, patches=drawn_anew, outlines=outlines)


def test_another_seed_gives_other_slides(patches: Path, outlines: Path) -> None:
    one, two = (planned(SMALL.model_copy(update={"seed": seed}), patches, outlines)[0] for seed in (0, 1))
    assert one.cells != two.cells


def test_cross_stain_manifests_learn_from_one_family_and_test_on_the_other(composed: Path) -> None:
    for one, other in (FAMILIES, FAMILIES[::-1]):
        crossed = table(composed.parent / f"cross_{one}_to_{other}.csv")
        for row in crossed:
            assert row["stain_family"] == (other if row["split"] == "test" else one)
        assert Counter(row["split"] for row in crossed) == {"train": 6, "val": 2, "test": 2}
        read(composed.parent / f"cross_{one}_to_{other}.csv")


def test_one_family_alone(patches: Path, outlines: Path) -> None:
    slides = planned(SMALL.model_copy(update={"families": ("1",)}), patches, outlines)
    assert {slide.record.labels["stain_family"] for slide in slides} == {"1"}
    assert [slide.record.labels["lesion_size"] for slide in slides[:6]] == [
        "none", "macro", "none", "micro", "none", "small",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="family '7'; there are 0, 1"):
        planned(SMALL.model_copy(update={"families": ("7",)}), patches, outlines)


@pytest.mark.parametrize("share", [(0.02, 0.02), (0.1, 0.3)])
def test_a_share_of_metastasis_that_is_given(
    patches: Path, outlines: Path, share: tuple[float, float]
) -> None:
    positive = [
        slide
        for slide in planned(SMALL.model_copy(update={"lesion_share": share}), patches, outlines)
        if slide.record.labels["label"] == "tumor"
    ]
    shares = [float(tumor_cells(slide.cells).mean()) for slide in positive]
    assert [slide.record.labels["lesion_size"] for slide in positive] == [size_of(each) for each in shares]
    assert len(shares) == 10
    assert all(share[0] - 1 / 108 < each <= share[1] + 1 / 108 for each in shares)


def test_what_is_held_back_is_not_used_and_can_be_used_alone(patches: Path, outlines: Path) -> None:
    half = {"hold_back": 0.5, "patches": 120, "train": 12, "val": 0}
    used = {}
    for only in (False, True):
        for seed in (0, 1):
            config = SMALL.model_copy(update=half | {"only_held_back": only, "seed": seed})
            used[only, seed] = {
                cell.path for slide in planned(config, patches, outlines) for cell in slide.cells
            }
    assert not (used[False, 0] | used[False, 1]) & (used[True, 0] | used[True, 1])
    assert min(map(len, used.values())) > 50


def test_too_few_patches_are_one_line(patches: Path, outlines: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"too few patches for train slides of stain family '0': .* class normal"
    ):
        planned(SMALL.model_copy(update={"patches": 1200}), patches, outlines)
    normals = [patch for patch in read_patches(patches) if patch.label == "normal"]
    slides = plan_slides(Path(), SMALL, patches=normals, outlines=read_outlines(outlines))
    with pytest.raises(ConfigError, match="class metastasis cannot be drawn from 0"):
        list(slides)


@pytest.mark.parametrize(
    "settings",
    [{"lesion_share": (0.1, 0.05)}, {"lesion_share": (0.1, 0.5)}, {"only_held_back": True}, {"patch_px": 90}],
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LymphNodesConfig.model_validate(settings)


@pytest.mark.parametrize("line", ["x,0,a,0,0", "0,0,a,8,0", "0,0,a,0,yes", "0,0,a"])
def test_a_broken_list_of_patches_is_one_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ManifestError, match="no such list"):
        read_cells(tmp_path / "none.csv")
    (tmp_path / "broken.csv").write_text(f"row,column,path,symmetry,tumor\n0,0,a,0,0\n{line}\n")
    with pytest.raises(ManifestError, match="no list of patches"):
        read_cells(tmp_path / "broken.csv")


@pytest.fixture
def real_patches(real_data: Path) -> Path:
    if not (real_data / "lymph_nodes").is_dir():
        pytest.skip(f"no lymph-node patches at {real_data / 'lymph_nodes'}")
    return real_data / "lymph_nodes"


@pytest.mark.slow
def test_real_patches_suffice_for_balanced_slides(real_patches: Path) -> None:
    slides = planned(LymphNodesConfig(), real_patches, real_patches.parent / "camelyon" / "lesion_polygons")
    assert len(slides) == 180
    for slide in slides:
        labels = slide.record.labels
        assert ndimage.label(slide.layout.tissue_RC)[1] in (1, 2)
        if labels["label"] == "tumor":
            low, high = SIZES[labels["lesion_size"]]
            assert low <= tumor_cells(slide.cells).mean() <= high
    counts = Counter(
        (slide.record.split, slide.record.labels["stain_family"], slide.record.labels["label"])
        for slide in slides
    )
    assert counts["train", "0", "tumor"] == counts["train", "1", "tumor"] == 22
    assert counts["test", "0", "tumor"] == counts["test", "1", "tumor"] == 15


@pytest.mark.slow
def test_the_tissue_of_real_patches_is_found_and_no_glass(real_patches: Path, tmp_path: Path) -> None:
    lesions, few = (
        real_patches.parent / "camelyon" / "lesion_polygons",
        LymphNodesConfig(train=6, val=0, test=0),
    )
    manifest = make_lymph_nodes(tmp_path, few, patches=real_patches, outlines=lesions, processes=1)
    for record in read(manifest).records:
        cells = read_cells(cells_path(tmp_path, record.slide_id))
        bag = tile_bag(
            record, tasks=TASKS, find_patches=PatchesInTissue(tiling_of(few)), slide_mpp=SlideMpp()
        )
        found = {(x // 96, y // 96) for x, y in bag.coords.l0_xy_N2.tolist()}
        there = {(cell.column, cell.row) for cell in cells}
        assert found <= there
        assert len(found) >= 0.99 * len(there)
