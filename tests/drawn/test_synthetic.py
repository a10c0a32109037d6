from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import SmallData
from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.drawn.config import SyntheticConfig
from wsi_ips.drawn.synthetic import LABELS, draw_slide, make_camelyon_like
from wsi_ips.errors import ConfigError
from wsi_ips.evaluation.slide_level import lesion_share_of_patches, roc_auc
from wsi_ips.slides.registry import open_slide
from wsi_ips.streaming.region_source import PatchRegion
from wsi_ips.tiling.patches import tile_slide
from wsi_ips.units import Mpp


def test_the_set_is_laid_out_as_its_manifest_says(small_data: SmallData) -> None:
    manifest = read_manifest(small_data.manifest, tasks=[TaskConfig(classes=LABELS)])
    assert {split: len(manifest.split(split)) for split in ("train", "val", "test")} == {
        "train": 2, "val": 2, "test": 2,
    }  # fmt: skip
    for record in manifest.records:
        annotation = small_data.manifest.parent / "annotations" / f"{record.slide_id}.xml"
        assert annotation.exists() == (record.labels["label"] == "tumor")


def test_both_readers_open_the_slides_alike(small_data: SmallData) -> None:
    path = sorted(small_data.slides.glob("*.tif"))[0]
    with open_slide(path, reader="tiff") as ours, open_slide(path, reader="openslide") as theirs:
        assert ours.info.levels == theirs.info.levels
        assert len(ours.info.levels) >= 2
        assert ours.info.mpp == pytest.approx(0.5, rel=1e-6)
        assert theirs.info.mpp == pytest.approx(0.5, rel=1e-6)
        assert min(ours.info.l0_size) % 2 == 1
        size = ours.info.l0_size
        corner = (size[0] - 200, size[1] - 200)
        for level in (0,):
            pixels = [each.read(corner, level=level, size_px=(256, 256)) for each in (ours, theirs)]
            assert np.array_equal(*pixels)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(tmp_path: Path) -> None:
    config = SyntheticConfig(train=2, val=1, test=1, side_px=700)
    for name, processes in (("a", 1), ("b", 2)):
        make_camelyon_like(tmp_path / name, config, processes=processes)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_slides_that_are_there_are_not_drawn_again_and_other_settings_refused(tmp_path: Path) -> None:
    config = SyntheticConfig(train=1, val=1, test=1, side_px=600)
    make_camelyon_like(tmp_path, config, processes=1)
    slides = sorted((tmp_path / "images").iterdir())
    before = [path.stat().st_mtime_ns for path in slides]
    slides[1].unlink()
    make_camelyon_like(tmp_path, config, processes=1)
    after = [path.stat().st_mtime_ns for path in slides]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(ConfigError, match="other settings"):
        make_camelyon_like(tmp_path, SyntheticConfig(train=1, val=1, test=1, side_px=601), processes=1)


def inside(size: tuple[int, int], polygons: list[object]) -> np.ndarray:
    mask = Image.new("1", size)
    for polygon in polygons:
        ImageDraw.Draw(mask).polygon(list(polygon.exterior.coords), fill=1)  # type: ignore[attr-defined]
    return np.asarray(mask)


@pytest.mark.parametrize("seed", range(3))
def test_lesions_have_the_mean_colour_of_the_tissue_around_them(seed: int) -> None:
    drawn = draw_slide((1801, 1703), mpp=Mpp(0.5), tumor=True, rng=np.random.default_rng(seed))
    lesion = inside((1801, 1703), list(drawn.lesions.geoms))
    tissue = drawn.rgb_HWC.min(axis=2) < 215
    lesion_mean = drawn.rgb_HWC[lesion & tissue].mean(axis=0)
    normal_mean = drawn.rgb_HWC[~lesion & tissue].mean(axis=0)
    assert np.abs(lesion_mean - normal_mean).max() < 3


@pytest.mark.slow
def test_mean_colour_does_not_tell_lesion_patches_from_normal_ones(tmp_path: Path) -> None:
    """Within each slide, so that stain does not matter: AUC of every channel's mean stays near a half."""
    manifest = make_camelyon_like(
        tmp_path, SyntheticConfig(train=1, val=1, test=8, side_px=2200), processes=1
    )
    aucs = []
    for record in read_manifest(manifest, tasks=[TaskConfig(classes=LABELS)]).records:
        if record.labels["label"] == "normal":
            continue
        with open_slide(record.path) as slide:
            coords, _ = tile_slide(slide, TilingConfig(patch_px=64, patch_mpp=1.0), slide_id="s")
            region = PatchRegion.of(slide.info, patch_px=64, patch_mpp=Mpp(1.0), slide_mpp=Mpp(0.5))
            means = np.array(
                [region.read(slide, (int(x), int(y))).mean(axis=(0, 1)) for x, y in coords.l0_xy_N2]
            )
        lesions = lesion_area(tmp_path / "annotations" / f"{record.slide_id}.xml")
        share = lesion_share_of_patches(coords.l0_xy_N2, coords.l0_patch, lesions)
        # Patches of whole tissue only: the amount of glass is no colour.
        whole = (coords.tissue_N > 0.98) & ((share > 0.9) | (share == 0))
        aucs.append([roc_auc(means[whole, channel], share[whole] > 0.9) for channel in range(3)])
    assert len(aucs) >= 4
    assert np.all(np.abs(np.mean(aucs, axis=0) - 0.5) < 0.2)
