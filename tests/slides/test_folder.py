from pathlib import Path

import pytest

from wsi_ips.errors import ConfigError, SlideNotFound
from wsi_ips.slides import find_slides, slide_id, unique_slide_ids


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root):
    return [path.relative_to(root).as_posix() for path in find_slides(root)]


def test_slides_at_any_depth_sorted_by_path(tmp_path):
    touch(
        tmp_path,
        "b/normal_002.tif",
        "a.SVS",
        "b/c/d.ndpi",
        "b/normal_001.tiff",
        "z.ome.tif",
        "x.scn",
        "y.bif",
    )
    assert found(tmp_path) == [
        "a.SVS", "b/c/d.ndpi", "b/normal_001.tiff", "b/normal_002.tif", "x.scn", "y.bif", "z.ome.tif",
    ]  # fmt: skip


def test_what_is_no_slide_is_left_out(tmp_path):
    touch(
        tmp_path,
        "a.tif",
        "a.xml",
        "a_mask.tif",
        "masks/b_Mask.tif",
        ".hidden.tif",
        ".cache/c.tif",
        "d.csv",
        "e.jpg",
    )
    assert found(tmp_path) == ["a.tif"]


def test_a_mirax_data_folder_is_not_a_folder_of_slides(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Data0000.dat", "m/Slidedat.ini", "m/preview.tif", "n/real.tif")
    assert found(tmp_path) == ["m.mrxs", "n/real.tif"]


def test_a_folder_of_dicom_files_is_one_slide(tmp_path):
    touch(tmp_path, "case1/level-0.dcm", "case1/level-1.DCM", "case2/x.dcm", "case2/more/y.dcm", "plain.svs")
    assert found(tmp_path) == ["case1", "case2", "case2/more", "plain.svs"]
    assert find_slides(tmp_path / "case1") == [tmp_path / "case1"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "real/a.svs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "data")
    assert found(tmp_path / "data") == ["link/a.svs"]


def test_a_file_stands_for_itself(tmp_path):
    touch(tmp_path, "odd.name")
    assert find_slides(tmp_path / "odd.name") == [tmp_path / "odd.name"]


def test_nothing_there(tmp_path):
    with pytest.raises(SlideNotFound, match="check the path"):
        find_slides(tmp_path / "none")
    touch(tmp_path, "notes.txt")
    with pytest.raises(SlideNotFound, match=r"known suffixes: .*\.svs"):
        find_slides(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tumor_001.tif", "tumor_001"),
        ("TCGA-AA-0001-01Z-00-DX1.5f3a.svs", "TCGA-AA-0001-01Z-00-DX1.5f3a"),
        ("slide.ome.tif", "slide"),
        ("slide.OME.TIFF", "slide"),
        ("slide.ome.svs", "slide.ome"),
        ("plain", "plain"),
    ],
)
def test_slide_id(name, expected):
    assert slide_id(Path("folder.x") / name) == expected
    assert slide_id(name) == expected


def test_a_folders_id_is_its_whole_name(tmp_path):
    (tmp_path / "case.1").mkdir()
    assert slide_id(tmp_path / "case.1") == "case.1"


def test_two_slides_never_share_an_id(tmp_path):
    paths = [tmp_path / "a.svs", tmp_path / "b.svs"]
    assert unique_slide_ids(paths) == {"a": paths[0], "b": paths[1]}
    with pytest.raises(ConfigError, match=r"share the id a: .*a\.svs and .*center_1.*a\.tif"):
        unique_slide_ids([*paths, tmp_path / "center_1" / "a.tif"])
