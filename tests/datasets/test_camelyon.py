"""Slides, masks and outlines are found in both layouts, under old names and new."""

from pathlib import Path

import pytest

from wsi_ips.datasets.camelyon import find_camelyon, resolve_slide, shipped_rows

LAYOUTS = {
    "GigaDB": (
        "training/normal/normal_001.tif",
        "training/tumor/tumor_002.tif",
        "testing/images/test_001.tif",
        "training/lesion_annotations/tumor_002.xml",
        "testing/lesion_annotations/test_001.xml",
        "testing/evaluation/evaluation_masks/test_001_mask.tif",
    ),
    "bucket": (
        "images/normal_001.tif",
        "images/tumor_002.tif",
        "images/test_001.tif",
        "annotations/tumor_002.xml",
        "annotations/test_001.xml",
        "masks/test_001_mask.tif",
    ),
    "first release": (
        "Training/Normal/Normal_001.tif",
        "Training/Tumor/Tumor_002.tif",
        "Testing/Images/Test_001.tif",
        "Training/Lesion_Annotations/Tumor_002.xml",
        "Testing/Lesion_Annotations/Test_001.xml",
        "Testing/Evaluation/Masks/Test_001_Mask.tif",
    ),
}


def laid_out(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("inside", ["", "CAMELYON16", "camelyon16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slides_masks_and_outlines_of_every_layout(tmp_path: Path, layout: str, inside: str) -> None:
    names = LAYOUTS[layout]
    laid_out(tmp_path / inside, names)
    paths = [tmp_path / inside / name for name in names]
    found = find_camelyon(tmp_path)
    assert [found.slide(name) for name in ("normal_001", "Tumor_002", "test_001")] == paths[:3]
    assert [found.annotation(name) for name in ("normal_001", "tumor_002", "test_001")] == [None, *paths[3:5]]
    assert [found.mask(name) for name in ("tumor_002", "test_001")] == [None, paths[5]]
    assert resolve_slide(tmp_path, "tumor_002", "images/tumor_002.tif") == paths[1]
    assert resolve_slide(tmp_path, "tumor_003", "images/tumor_003.tif") is None


@pytest.mark.parametrize(
    "name",
    [
        "CAMELYON17/images/patient_021_node_3.tif",
        "CAMELYON17/training/center_1/patient_021_node_3.tif",
        "CAMELYON17/training/center_1/patient_021/patient_021_node_3.tif",
        "training/Center_1/Patient_021_Node_3.tif",
    ],
)
def test_slides_of_camelyon17(tmp_path: Path, name: str) -> None:
    laid_out(tmp_path, (name,))
    relative = "images/patient_021_node_3.tif"
    assert resolve_slide(tmp_path, "patient_021_node_3", relative) == tmp_path / name


def test_a_slide_that_was_renamed_is_found_under_its_old_name(tmp_path: Path) -> None:
    laid_out(tmp_path, ("training/normal/Normal_086.tif",))
    old = tmp_path / "training/normal/Normal_086.tif"
    assert resolve_slide(tmp_path, "tumor_111", "images/tumor_111.tif") == old
    laid_out(tmp_path, ("training/tumor/tumor_111.tif",))
    assert (
        resolve_slide(tmp_path, "tumor_111", "images/tumor_111.tif") == old.parents[1] / "tumor/tumor_111.tif"
    )


def test_the_plain_path_wins_and_slides_copied_side_by_side_are_found(tmp_path: Path) -> None:
    laid_out(tmp_path, ("test_002.tif", "testing/images/test_002.tif", "mine/a.svs"))
    assert resolve_slide(tmp_path, "test_002", "test_002.tif") == tmp_path / "test_002.tif"
    assert (
        resolve_slide(tmp_path, "test_002", "images/test_002.tif") == tmp_path / "testing/images/test_002.tif"
    )
    assert resolve_slide(tmp_path, "a", "mine/a.svs") == tmp_path / "mine/a.svs"


def test_what_is_no_slide_is_not_taken_for_one(tmp_path: Path) -> None:
    laid_out(tmp_path, ("images/normal_001_mask.tif", "images/normal_1.tif", "images/normal_001.tif.part"))
    (tmp_path / "images" / "tumor_001.tif").mkdir()
    assert find_camelyon(tmp_path).slides == {}
    assert find_camelyon(tmp_path / "absent").slides == {}


def test_every_path_of_the_manifests_is_the_bucket_s(tmp_path: Path) -> None:
    for name in ("camelyon16", "camelyon17"):
        for row in shipped_rows(name):
            assert row["path"] == f"images/{row['slide_id']}.tif"
        laid_out(tmp_path / name.upper(), tuple(row["path"] for row in shipped_rows(name)))
    found = find_camelyon(tmp_path)
    assert len(found.slides) == 899


@pytest.mark.parametrize(
    ("names", "sixteen", "seventeen"),
    [
        (("evaluation/reference.csv", "stages.csv"), "evaluation/reference.csv", "stages.csv"),
        (
            ("CAMELYON16/testing/reference.csv", "CAMELYON17/training/stage_labels.csv"),
            "CAMELYON16/testing/reference.csv",
            "CAMELYON17/training/stage_labels.csv",
        ),
        (("reference.csv",), None, None),
    ],
)
def test_official_label_files(
    tmp_path: Path, names: tuple[str, ...], sixteen: str | None, seventeen: str | None
) -> None:
    found = find_camelyon(laid_out(tmp_path, names)).labels
    assert found.get("camelyon16") == (tmp_path / sixteen if sixteen else None)
    assert found.get("camelyon17") == (tmp_path / seventeen if seventeen else None)
