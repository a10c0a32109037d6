"""Twins lie and are named, labelled and contained as downloads are, and are listed by the data sets' rules."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.commands.console import Console, make_console
from wsi_ips.datasets.annotations import lesion_area
from wsi_ips.datasets.checksums import verify_folder
from wsi_ips.datasets.known_sets import Listed, look
from wsi_ips.drawn import twins
from wsi_ips.drawn.twins import TwinConfig, make_twin
from wsi_ips.slides import open_slide


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return make_console(monkeypatch, capsys)


def twin(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """A twin of few slides, listed."""
    monkeypatch.setattr(
        twins, "CAMELYON16", ("normal_001", "tumor_002", "normal_010", "test_001", "test_003")
    )
    monkeypatch.setattr(twins, "CAMELYON17_PATIENTS", (("train", 1), ("val", 1)))
    monkeypatch.setattr(twins, "PER_GRADE", 1)
    monkeypatch.setattr(twins, "PLUS_TEST_PATIENTS", (150,))
    monkeypatch.setattr(twins, "TCGA_PATIENTS", 4)
    make_twin(folder, TwinConfig.model_validate({"data_set": name, "side_px": 512}))
    return look(name, folder)


@pytest.mark.slow
def test_camelyon16_is_philips_with_missing_tiles_outlines_and_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = twin(tmp_path, "camelyon16", monkeypatch)
    assert {row["slide_id"]: row["split"] for row in listed.rows} == {
        "normal_001": "train", "normal_010": "val", "tumor_002": "train", "test_001": "test", "test_003": "test",
    }  # fmt: skip
    assert (listed.told, listed.wrong) == ([], [])
    assert [slide_id for slide_id, _ in listed.outlines] == ["tumor_002", "test_001"]
    assert lesion_area(dict(listed.outlines)["test_001"]).area > 0
    found = verify_folder(tmp_path)
    assert (found.bad, len(found.unlisted)) == ([], 1)
    path = tmp_path / "training" / "tumor" / "tumor_002.tif"
    with tifffile.TiffFile(path) as file:
        assert 0 in file.pages[0].databytecounts  # type: ignore[union-attr]
    with open_slide(path) as slide:
        assert (slide.info.vendor, float(slide.info.mpp_xy[0])) == ("philips", pytest.approx(0.243))
        assert {name for name, _ in slide.info.associated} == {"label", "macro"}
        corner = slide.read((slide.info.levels[0].size[0] - 20, 5), level=0, size_px=(10, 10))
        assert (corner == 255).all()


def test_camelyon17_has_five_nodes_a_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = twin(tmp_path, "camelyon17", monkeypatch)
    assert list(Counter(row["case_id"] for row in listed.rows).values()) == [5, 5]
    assert {row["split"] for row in listed.rows} == {"train", "val"}
    assert listed.told == [], "stage_labels.csv says what the manifest says"
    assert (tmp_path / "training" / "stage_labels.csv").is_file()


def test_panda_has_three_levels_and_masks_of_both_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = twin(tmp_path, "panda", monkeypatch)
    assert Counter(row["label"] for row in listed.rows) == dict.fromkeys("012345", 2)
    assert listed.wrong == []
    masks = {path.name.partition("_")[0]: path for path in (tmp_path / "train_label_masks").iterdir()}
    assert len(masks) == 11, "one slide of Radboud has none"
    for row in listed.rows:
        with open_slide(Path(row["path"])) as slide:
            assert [round(level.downsample) for level in slide.info.levels] == [1, 4, 16]
            assert float(slide.info.mpp_xy[0]) == pytest.approx(
                {"radboud": 0.4862}.get(row["provider"], 0.452)
            )
            size = slide.info.levels[0].size
        if row["slide_id"] in masks:
            mask = tifffile.imread(masks[row["slide_id"]])
            assert mask.shape == (size[1], size[0], 3)
            lesion = {"radboud": int(row["gleason"][0]) if row["label"] != "0" else 0}.get(row["provider"], 2)
            assert set(np.unique(mask[..., 0])) <= {0, 1, lesion}
            assert (row["label"] == "0") or lesion in mask[..., 0]


@pytest.mark.slow
def test_camelyon_plus_corrects_and_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = twin(tmp_path, "camelyon_plus", monkeypatch)
    by_split = {
        split: {row["label"] for row in listed.rows if row["split"] == split} for split in ("train", "test")
    }
    assert by_split["test"] == {"negative", "itc", "micro", "macro"}
    assert any("removed them: tumor_017" in line for line in listed.told)
    assert (tmp_path / "CAMELYON17" / "images" / "patient_150_node_3.tif").is_file()


def test_tcga_lies_in_the_folders_of_the_gdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = twin(tmp_path, "tcga_brca", monkeypatch)
    assert len(listed.rows) == 5
    assert len({row["case_id"] for row in listed.rows}) == 4
    found = verify_folder(tmp_path)
    assert (found.checked, found.bad) == (7, [])
    with open_slide(Path(listed.rows[0]["path"])) as slide:
        assert (slide.info.vendor, float(slide.info.mpp_xy[0])) == ("aperio", pytest.approx(0.2525))
        assert {name for name, _ in slide.info.associated} == {"label", "macro", "thumbnail"}


def test_the_command_draws_the_same_bytes_again(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "CAMELYON16", ("normal_001", "tumor_002"))
    for folder in ("a", "b"):
        said = console("data", "twin", "camelyon16", "--out", tmp_path / folder, "--side-px", "512")
        assert said.code == 0, said.err
        assert "2 drawn slides" in said.out
    sums = [hashlib.md5((tmp_path / folder / "checksums.md5").read_bytes()).hexdigest() for folder in "ab"]
    assert sums[0] == sums[1]
    for arguments, complaint in (
        (["brca"], "known data sets are camelyon16"),
        (["panda", "--side-px", "10"], "side_px"),
        (["panda"], "holds a twin drawn with other settings"),
    ):
        said = console("data", "twin", *arguments, "--out", tmp_path / "a")
        assert (said.code, complaint in said.complaint) == (2, True), said.err
