"""Patches as they are listed, split, and turned; what is wrong with a folder is one line."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.drawn.drawn_nodes import SIDE_PX, draw_nodes
from wsi_ips.drawn.node_patches import (
    NodePatch,
    held_back,
    read_as_jpeg,
    read_patch,
    read_patches,
    split_patches,
    turned,
)
from wsi_ips.errors import ManifestError

HEADER = "path,class,source_group,stain_family,tissue_share\n"


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_nodes(tmp_path_factory.mktemp("patches"))


def test_eight_symmetries_are_eight(patches: Path) -> None:
    rgb_HWC = read_patch(patches / "normal" / "0_0.jpg", side_px=SIDE_PX)
    seen = [turned(rgb_HWC, symmetry) for symmetry in range(8)]
    assert all((one != two).any() for one, two in itertools.combinations(seen, 2))
    assert all(np.array_equal(np.sort(each.ravel()), np.sort(rgb_HWC.ravel())) for each in seen)
    assert np.array_equal(seen[0], rgb_HWC)


@pytest.mark.parametrize("symmetry", range(8))
def test_a_turned_jpeg_is_hardly_changed_by_being_stored_again(
    patches: Path, tmp_path: Path, symmetry: int
) -> None:
    off = []
    for number in range(5):
        path = patches / "normal" / f"1_{number}.jpg"
        rgb_HWC, stream = read_as_jpeg(path, symmetry, side_px=SIDE_PX)
        assert np.array_equal(rgb_HWC, turned(read_patch(path, side_px=SIDE_PX), symmetry))
        (tmp_path / "stored.jpg").write_bytes(stream)
        stored_HWC = read_patch(tmp_path / "stored.jpg", side_px=SIDE_PX)
        off.append(np.abs(stored_HWC.astype(int) - rgb_HWC).mean())
    # With tables that are not turned it is 1 or more for odd symmetries.
    assert np.mean(off) < 0.4


def test_a_png_is_stored_with_the_best_quality(patches: Path, tmp_path: Path) -> None:
    pixels_HWC = read_patch(patches / "normal" / "0_3.jpg", side_px=SIDE_PX)
    Image.fromarray(pixels_HWC).save(tmp_path / "patch.png")
    _, stream = read_as_jpeg(tmp_path / "patch.png", 0, side_px=SIDE_PX)
    (tmp_path / "stored.jpg").write_bytes(stream)
    assert np.abs(read_patch(tmp_path / "stored.jpg", side_px=SIDE_PX).astype(int) - pixels_HWC).mean() < 0.4


def test_groups_stay_together_and_kinds_are_shared_out_alike(patches: Path) -> None:
    files = read_patches(patches)
    shared_out = split_patches(files, fractions={"train": 0.5, "val": 0.2, "test": 0.3}, seed=3)
    groups = {split: {patch.group for patch in chosen} for split, chosen in shared_out.items()}
    assert all(not one & two for one, two in itertools.combinations(groups.values(), 2))
    assert sum(map(len, shared_out.values())) == len(files)
    for family, label in itertools.product("01", ("normal", "metastasis")):
        of_kind = {patch.group for patch in files if (patch.family, patch.label) == (family, label)}
        assert len(of_kind & groups["train"]) == pytest.approx(len(of_kind) / 2, abs=1)
    again = split_patches(files, fractions={"train": 0.5, "val": 0.2, "test": 0.3}, seed=4)
    assert {patch.group for patch in again["test"]} != groups["test"]


def test_a_group_of_both_classes_lies_in_one_split() -> None:
    both = [NodePatch(f"{n}.png", label, "both", "0", 1) for n, label in enumerate(("normal", "metastasis"))]
    others = [NodePatch(f"o{n}.png", "normal", f"g{n}", "0", 1) for n in range(20)]
    shared_out = split_patches([*others, *both], fractions={"train": 0.5, "val": 0.2, "test": 0.3}, seed=0)
    assert sorted(sum(patch.group == "both" for patch in chosen) for chosen in shared_out.values()) == [
        0,
        0,
        2,
    ]


def test_a_larger_share_holds_back_the_same_groups_and_more(patches: Path) -> None:
    files = read_patches(patches)
    few, more = (np.array(held_back(files, share=share)) for share in (0.2, 0.6))
    assert not (few & ~more).any()
    assert 0.1 < few.mean() < 0.3
    assert 0.5 < more.mean() < 0.7
    assert not any(held_back(files, share=0))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("path,class,source_group,stain_family\na.png,normal,g,0\n", "lacks the column tissue_share"),
        (HEADER, "lists no patches"),
        (HEADER + "none.png,normal,g,0,1\n", "line 2: no patch at"),
        (HEADER + "../secret.png,normal,g,0,1\n", "line 2: no patch at"),
        (HEADER + "a.png,tumour,g,0,1\n", "line 2: unknown class 'tumour'"),
        (HEADER + "a.png,normal,,0,1\n", "line 2: source_group is empty"),
        (HEADER + "a.png,normal,g,../0,1\n", "line 2: stain_family '../0' is no name"),
        (HEADER + "a.png,normal,g,0,much\n", "line 2: tissue_share 'much'"),
        (HEADER + "a.png,normal,g,0,nan\n", "line 2: tissue_share 'nan'"),
        (HEADER + "a.png,normal,g,0,1\na.png,normal,h,0,1\n", "a.png is listed twice"),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path: Path, content: str, error: str) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (SIDE_PX, SIDE_PX)).save(path)
    (folder / "manifest.csv").write_text(content)
    with pytest.raises(ManifestError, match=error):
        read_patches(folder)


def test_a_folder_without_manifest_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_patches(tmp_path)


def test_a_picture_that_is_none_or_of_another_size_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(ManifestError, match=r"torn\.jpg.*no picture"):
        read_patch(tmp_path / "torn.jpg", side_px=SIDE_PX)
    Image.new("RGB", (40, SIDE_PX)).save(tmp_path / "wide.png")
    with pytest.raises(ManifestError, match=r"wide\.png.*is 40x32 px"):
        read_patch(tmp_path / "wide.png", side_px=SIDE_PX)
