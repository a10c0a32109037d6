"""Composite slides from small drawn textures: what a classifier could cheat by must not be there."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from shapely import Polygon

from tests.drawn.drawn_textures import GROUPS, draw_outlines, draw_textures
from wsi_ips.config import TaskConfig, TilingConfig
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.drawn.composite import (
    CLASSES,
    COARSE_PX,
    CompositeConfig,
    filled,
    lay_out,
    make_composite,
    read_outlines,
)
from wsi_ips.drawn.textures import (
    TexturePool,
    load_matched,
    mix,
    read_textures,
    reference_colours,
    split_by_group,
    weave,
)
from wsi_ips.errors import AnnotationError, ConfigError, ManifestError
from wsi_ips.slides.registry import open_slide
from wsi_ips.tiling.patches import tile_slide

TASKS = [TaskConfig(classes=CLASSES)]
SMALL = CompositeConfig(train=3, val=3, test=3, side_px=1400, lesion_share=(0.02, 0.05), groups_per_region=2)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_textures(tmp_path_factory.mktemp("textures"))


@pytest.fixture(scope="module")
def outlines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_outlines(tmp_path_factory.mktemp("outlines"))


@pytest.fixture(scope="module")
def composed(textures: Path, outlines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed")
    return make_composite(out, SMALL, textures=textures, outlines=outlines, processes=1)


@pytest.mark.slow
def test_the_set_is_what_its_manifest_says(composed: Path) -> None:
    manifest = read_manifest(composed, tasks=TASKS)
    for split in ("train", "val", "test"):
        assert [record.labels["label"] for record in manifest.split(split)] == list(CLASSES)
    for record in manifest.records:
        annotation = composed.parent / "annotations" / f"{record.slide_id}.xml"
        assert annotation.exists() == (record.labels["label"] != "benign")
        with open_slide(record.path) as slide:
            assert slide.info.mpp == pytest.approx(0.5, rel=1e-6)
            assert min(slide.info.l0_size) >= SMALL.side_px


def test_lesions_lie_in_tissue_and_take_their_share(composed: Path) -> None:
    for record in read_manifest(composed, tasks=TASKS).records:
        if record.labels["label"] == "benign":
            continue
        lesions = lesion_area(composed.parent / "annotations" / f"{record.slide_id}.xml")
        with open_slide(record.path) as slide:
            _, tissue = tile_slide(slide, TilingConfig(patch_px=64, patch_mpp=1.0), slide_id=record.slide_id)
            l0_width, l0_height = slide.info.l0_size
        share = lesions.area / (tissue.mask_HW.mean() * l0_width * l0_height)
        assert 0.8 * SMALL.lesion_share[0] < share < 1.25 * SMALL.lesion_share[1]
        scaled = shapely.affinity.scale(lesions, *(1 / each for each in tissue.l0_per_px), origin=(0, 0))
        inside = np.logical_or.reduce([filled(tissue.mask_HW.shape[::-1], part) for part in scaled.geoms])
        assert tissue.mask_HW[inside].mean() > 0.95


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_slides_that_are_there_stay(
    composed: Path, textures: Path, outlines: Path, tmp_path: Path
) -> None:
    again = make_composite(tmp_path, SMALL, textures=textures, outlines=outlines, processes=2)
    for path in sorted(composed.parent.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(composed.parent)).read_bytes(), path
    slides = sorted((tmp_path / "images").iterdir())
    slides[0].unlink()
    before = [path.stat().st_mtime_ns for path in slides[1:]]
    make_composite(tmp_path, SMALL, textures=textures, outlines=outlines, processes=1)
    assert [path.stat().st_mtime_ns for path in slides[1:]] == before
    assert slides[0].read_bytes() == (composed.parent / "images" / slides[0].name).read_bytes()
    other = SMALL.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="other settings"):
        make_composite(again.parent, other, textures=textures, outlines=outlines, processes=1)


def test_no_source_lies_in_two_splits(textures: Path) -> None:
    files = read_textures(textures, classes=CLASSES)
    shared_out = split_by_group(files, fractions={"train": 0.5, "val": 0.25, "test": 0.25}, seed=3)
    groups = {split: {texture.group for texture in chosen} for split, chosen in shared_out.items()}
    assert (
        not groups["train"] & groups["test"]
        | groups["train"] & groups["val"]
        | groups["val"] & groups["test"]
    )
    assert sum(map(len, shared_out.values())) == len(files)
    for label in CLASSES:
        assert len({t.group for t in shared_out["train"] if t.label == label}) == GROUPS // 2


def test_all_textures_have_exactly_the_same_histograms(textures: Path) -> None:
    files = read_textures(textures, classes=CLASSES)
    tiles = load_matched(files, reference_colours(files, seed=0), seed=0)
    sorted_nVC = np.sort(tiles.reshape(len(tiles), -1, 3), axis=1).astype(int)
    assert np.abs(sorted_nVC - sorted_nVC[0]).max() <= 1
    # Matched, not replaced: the pattern is still there.
    original = np.asarray(Image.open(files[0].path)).astype(float)
    assert np.corrcoef(original[..., 0].ravel(), tiles[0, ..., 0].ravel().astype(float))[0, 1] > 0.9


def test_weaving_uses_every_texture_and_leaves_no_gap() -> None:
    tiles = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.full((1, 64, 64, 3), 40, np.uint8)
    pool = TexturePool(tiles, np.arange(6))
    area = weave((301, 203), pool, np.arange(6), np.random.default_rng(0))
    assert area.shape == (203, 301, 3)
    assert set(np.unique(area)) >= {40, 80, 120, 160, 200, 240}
    assert area.min() == 40
    chosen = weave((301, 203), pool, np.array([2, 3]), np.random.default_rng(0))
    assert chosen.min() == 120
    assert chosen.max() == 160


def test_mixing_is_exact_at_its_ends() -> None:
    under, over = np.full((1, 3, 3), 255, np.uint8), np.full((1, 3, 3), 7, np.uint8)
    mixed = mix(under, over, np.array([[0, 128, 256]]))
    assert mixed[0, :, 0].tolist() == [255, 131, 7]


def test_layouts_keep_lesions_and_decoys_apart_and_alike(outlines: Path) -> None:
    shapes = read_outlines(outlines)
    assert shapes[0].area == pytest.approx(1, rel=0.02)
    assert len(shapes[0].interiors) == 1
    shares = []
    for seed in range(12):
        layout = lay_out((4000, 4000), shapes, share=(0.005, 0.05), rng=np.random.default_rng(seed))
        regions = [*layout.lesions, *layout.decoys]
        assert all(not one.intersects(two) for one in regions for two in regions if one is not two)
        tissue = (layout.present_HW >= 128).sum() * COARSE_PX**2
        shares += [sum(each.area for each in kind) / tissue for kind in (layout.lesions, layout.decoys)]
    assert 0.005 * 0.99 < min(shares) < 0.015
    assert 0.025 < max(shares) < 0.05 * 1.01


def test_a_slide_without_room_is_told(outlines: Path) -> None:
    with pytest.raises(ConfigError, match="lesion_share"):
        lay_out((600, 600), read_outlines(outlines), share=(0.9, 0.95), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("path,class\nbenign_0.png,benign\n", "lacks the column source_group"),
        ("path,class,source_group\nnone.png,benign,a\n", "no texture at"),
        ("path,class,source_group\n../secret.png,benign,a\n", "no texture at"),
        ("path,class,source_group\nbenign_0.png,benign,a\nbenign_0.png,squamous,a\n", "two classes"),
        ("path,class,source_group\nbenign_0.png,benign,a\n", "no textures of class 'adenocarcinoma'"),
    ],
)
def test_a_broken_texture_folder_is_one_line(
    textures: Path, tmp_path: Path, content: str, error: str
) -> None:
    folder = tmp_path / "textures"
    folder.mkdir()
    (folder / "benign_0.png").write_bytes((textures / "benign_0.png").read_bytes())
    (tmp_path / "secret.png").write_bytes((textures / "benign_0.png").read_bytes())
    (folder / "manifest.csv").write_text(content)
    with pytest.raises(ManifestError, match=error):
        read_textures(folder, classes=CLASSES)


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"positive": [{"vertices": [[0, "x"]]}], "negative": []}', "[]"]
)
def test_broken_outlines_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(AnnotationError, match="no outline file"):
        read_outlines(tmp_path)


@pytest.mark.slow
def test_real_outlines_and_textures_read(real_data: Path) -> None:
    shapes = read_outlines(real_data / "camelyon" / "lesion_polygons")
    assert len(shapes) > 30
    assert all(isinstance(shape, Polygon) and shape.is_valid for shape in shapes)
    assert len(read_textures(real_data / "textures", classes=CLASSES)) > 2000
