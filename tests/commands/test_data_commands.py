"""``wsi-ips data``: what it says of a whole data set, of a damaged one, of half a download."""

import csv
import hashlib
from pathlib import Path

import pytest

from tests.commands.console import Console
from tests.conftest import SMALL_MODEL, SmallData
from wsi_ips.commands.finetune import FinetuneJob
from wsi_ips.commands.recipe import make_job
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.download_faults import missing_lines
from wsi_ips.datasets.manifest import read_manifest

SLIDES = ("images/normal_001.tif", "images/tumor_001.tif", "images/test_114.tif")


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    folder = tmp_path / "CAMELYON16"
    lines = ""
    for name in SLIDES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        lines += f"{hashlib.md5(name.encode()).hexdigest()}  {name}\n"
    (folder / "checksums.md5").write_text(lines)
    return folder


def test_verify_a_whole_data_set(console: Console, data_set: Path) -> None:
    said = console("data", "verify", data_set)
    assert said.code == 0
    assert said.out.splitlines() == ["3 of 3 listed files are as listed", "0 files are in no list"]


def test_verify_names_what_is_bad_and_exits_with_3(console: Console, data_set: Path) -> None:
    (data_set / SLIDES[0]).write_text("altered")
    (data_set / SLIDES[1]).unlink()
    (data_set / "extra.tif").touch()
    said = console("data", "verify", data_set.parent)
    assert said.code == 3
    altered, missing, summary, unlisted = said.out.splitlines()
    assert altered.startswith(f"altered: {data_set / SLIDES[0]} (md5 ")
    assert missing == f"missing: {data_set / SLIDES[1]}"
    assert summary == "1 of 3 listed files are as listed"
    assert unlisted == f"1 file is in no list, the first {data_set / 'extra.tif'}"


def test_a_file_that_two_lists_find_altered_is_one_bad_file(console: Console, data_set: Path) -> None:
    sha256 = hashlib.sha256(SLIDES[0].encode()).hexdigest()
    (data_set / "checksums.txt").write_text(f"{sha256}  {SLIDES[0]}\n")
    assert console("data", "verify", data_set).code == 0
    (data_set / SLIDES[0]).write_text("altered")
    said = console("data", "verify", data_set)
    assert "; sha256 " in said.out.splitlines()[0]
    assert "2 of 3 listed files are as listed" in said.out


def test_verify_looks_for_the_slides_of_a_manifest(console: Console, data_set: Path) -> None:
    said = console("data", "verify", data_set, "--manifest", "camelyon16")
    assert said.code == 3
    missing = [line for line in said.out.splitlines() if line.startswith("missing: ")]
    assert [line.partition(" of ")[0] for line in missing] == [
        "missing: 158 slides normal_*", "missing: 110 slides tumor_*", "missing: 128 slides test_*",
    ]  # fmt: skip
    assert "normal_002 to normal_085, normal_087 to normal_160" in missing[0]
    assert said.out.splitlines()[-1] == "3 of 399 slides of camelyon16 are there"
    own = data_set / "own.csv"
    own.write_text("slide_id,path\nnormal_001,images/normal_001.tif\n")
    (data_set / "checksums.md5").unlink()
    said = console("data", "verify", data_set, "--manifest", own)
    assert (said.code, said.out) == (0, f"1 of 1 slide of {own} is there\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["data", "verify", "{tmp}/absent"], "no such folder"),
        (["data", "verify", "{tmp}"], "holds no checksums.md5 or checksums.txt"),
        (["data", "verify", "{tmp}", "--manifest", "{tmp}/no.csv"], "no such manifest"),
        (["data", "verify", "{tmp}", "--manifest", "{tmp}/bad.csv"], "lacks the column path"),
        (["data", "manifest", "{tmp}/absent", "--out", "{tmp}/m.csv"], "no such folder"),
        (["data", "manifest", "{tmp}", "--out", "{tmp}/m.csv"], "holds no slide of camelyon16 or camelyon17"),
        (["data", "manifest", "{tmp}", "--out", "{tmp}/m.csv", "--name", "camelyon"], "known manifests are"),
    ],
)
def test_bad_input_is_one_line(
    console: Console, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "bad.csv").write_text("slide_id\na\n")
    said = console(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert said.code == 2
    assert complaint in said.complaint
    assert not (tmp_path / "m.csv").exists()


def test_manifest_lists_what_is_there_and_can_be_read(console: Console, data_set: Path) -> None:
    out = data_set.parent / "here.csv"
    said = console("data", "manifest", data_set.parent, "--out", out)
    assert said.code == 0
    wrong, summary = said.out.splitlines()
    assert wrong.startswith("2 of 2 tumour slides have no outlines")
    assert summary == f"3 of 399 slides of camelyon16 in {out} (train 1, val 1, test 1); 396 missing"
    read = read_manifest(out, tasks=[TaskConfig()])
    assert [record.path for record in read.records] == [
        data_set / name for name in ("images/normal_001.tif", "images/tumor_001.tif", "images/test_114.tif")
    ]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"CAMELYON16/{name}" for name in SLIDES]
    assert "out of FROC" in rows[2]["notes"]


def test_a_manifest_elsewhere_has_absolute_paths(console: Console, data_set: Path) -> None:
    out = data_set.parent / "lists" / "here.csv"
    assert console("data", "manifest", data_set, "--out", out, "--name", "camelyon16").code == 0
    with out.open(newline="") as file:
        assert next(csv.DictReader(file))["path"] == str(data_set / SLIDES[0])


def test_labels_that_the_official_file_has_otherwise_are_named(console: Console, data_set: Path) -> None:
    reference = data_set / "evaluation" / "reference.csv"
    reference.parent.mkdir()
    reference.write_text(
        "image,class,type,center\ntest_114.tif,negative,,0\ntumor_001.tif,macro,IDC,0\ntest_001.tif,negative,,0\n"
    )
    said = console("data", "manifest", data_set, "--out", data_set / "m.csv")
    assert said.code == 0
    assert said.out.splitlines()[0] == f"test_114 is tumor in the manifest, normal in {reference}"
    assert " is tumor in " not in said.out.partition("\n")[2]
    reference.write_text("image,class\ntest_114.tif,perhaps\n")
    said = console("data", "manifest", data_set, "--out", data_set / "m.csv")
    assert said.code == 0
    assert said.out.startswith(f"labels were not compared: {reference}: line 2: unknown class 'perhaps'")


def test_two_data_sets_below_one_root_have_to_be_told_apart(console: Console, data_set: Path) -> None:
    slide = data_set.parent / "CAMELYON17" / "training" / "center_0" / "patient_000_node_1.tif"
    slide.parent.mkdir(parents=True)
    slide.touch()
    out = data_set.parent / "m.csv"
    said = console("data", "manifest", data_set.parent, "--out", out)
    assert (said.code, out.exists()) == (2, False)
    assert "say which with --name" in said.complaint
    assert "1 of 500" in console("data", "manifest", data_set.parent, "-o", out, "--name", "camelyon17").out
    with out.open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["slide_id"], row["center"], row["stage"]) == ("patient_000_node_1", "0", "pN0")


def test_finetune_says_how_many_slides_are_missing(console: Console, data_set: Path, tmp_path: Path) -> None:
    manifest = Path(__file__).resolve().parents[2] / "data_manifests" / "camelyon16.csv"
    said = console("finetune", manifest, "--out", tmp_path / "run", "--slides", data_set)
    assert said.code == 2
    assert (
        f"no slide at {data_set / 'images/normal_002.tif'} (396 of 399 slides are missing)" in said.complaint
    )
    assert "wsi-ips data manifest" in said.complaint
    said = console("finetune", manifest, "--out", tmp_path / "run", "--slides", tmp_path / "absent")
    assert "no such folder of slides" in said.complaint
    assert not (tmp_path / "run").exists()


def test_finetune_learns_from_slides_below_another_root(
    console: Console, small_data: SmallData, tmp_path: Path
) -> None:
    """The manifest lies elsewhere and names a path that only CAMELYON's other layout has."""
    slides = tmp_path / "data"
    (slides / "training" / "normal").mkdir(parents=True)
    manifest = tmp_path / "lists" / "m.csv"
    manifest.parent.mkdir()
    lines = "slide_id,case_id,label,split,path\n"
    originals = sorted(small_data.slides.glob("*.tif"))
    for number, original in enumerate(originals, 1):
        (slides / "training" / "normal" / f"normal_{number:03d}.tif").symlink_to(original)
        split, _, label = original.stem.split("_")
        lines += f"normal_{number:03d},c{number},{label},{split},images/normal_{number:03d}.tif\n"
    manifest.write_text(lines)
    recipe = tmp_path / "r.yaml"
    job = {"command": "finetune", "manifest": "m", "out": "o", **SMALL_MODEL, "slides_root": str(slides)}
    made = make_job(job, source="test")
    assert isinstance(made, FinetuneJob)
    assert made.slides_root == slides
    recipe.write_text(made.model_dump_json())
    said = console("finetune", manifest, "--out", tmp_path / "run", "--recipe", recipe,
                   "--set", "training.epochs=1", "--set", "training.warmup_epochs=0")  # fmt: skip
    assert said.code == 0, said.err
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_downloads_that_are_not_finished_and_links_to_nowhere_are_told(
    console: Console, data_set: Path
) -> None:
    images = data_set / "images"
    (images / "tumor_002.tif.part").touch()
    (data_set / "annotations.zip.crdownload").touch()
    (images / "tumor_003.tif").symlink_to(data_set / "other_disk" / "tumor_003.tif")
    (data_set / "loop").symlink_to(data_set, target_is_directory=True)
    for command in (["verify", data_set, "--manifest", "camelyon16"],
                    ["manifest", data_set, "--out", data_set / "m.csv"]):  # fmt: skip
        said = console("data", *command)
        assert "2 downloads are not finished, the first annotations.zip.crdownload: " in said.out
        assert "1 links lead nowhere, the first images/tumor_003.tif to " in said.out
    assert said.code == 0
    for path in images.glob("*.tif"):
        path.unlink()
    said = console("data", "manifest", data_set, "--out", data_set / "m.csv")
    assert said.code == 2
    assert "2 downloads are not finished" in said.complaint


def test_slides_are_found_under_any_suffix_of_tiff(console: Console, data_set: Path) -> None:
    (data_set / SLIDES[0]).rename(data_set / "images" / "normal_001.TIFF")
    said = console("data", "manifest", data_set, "--out", data_set / "m.csv")
    assert "normal_001.TIFF" in (data_set / "m.csv").read_text()
    assert "first release" not in said.out


def test_the_list_of_the_challenges_page_is_one_too(console: Console, data_set: Path) -> None:
    (data_set / "checksums.md5").rename(data_set / "camelyon16_checksums.md5")
    assert console("data", "verify", data_set).out.startswith("3 of 3 listed files are as listed\n")


def test_without_a_list_slides_are_opened(console: Console, data_set: Path) -> None:
    """The slides of this test are text."""
    (data_set / "checksums.md5").unlink()
    said = console("data", "verify", data_set, "--manifest", "camelyon16")
    assert said.code == 3
    assert said.out.startswith(
        "no checksums.md5 or checksums.txt: contents were not compared; each slide was "
    )
    assert sum(line.startswith("cannot be opened: ") for line in said.out.splitlines()) == 3


def test_missing_slides_are_told_in_rows() -> None:
    ids = ["normal_001", "normal_003", *(f"patient_{n:03d}_node_{k}" for n in range(4) for k in range(5))]
    ids.remove("patient_002_node_3")
    assert missing_lines("it", [(name, "images/") for name in ids]) == [
        "missing: 2 slides normal_* of it: normal_001, normal_003",
        "missing: 19 slides patient_* of it: patient_000 to patient_001, patient_003, patient_002_node_0, "
        "patient_002_node_1, patient_002_node_2, patient_002_node_4",
    ]
    assert missing_lines("it", [("test_001", "images/test_001.tif")]) == [
        "missing: test_001 of it (images/test_001.tif)"
    ]


def test_a_name_that_is_nearly_one_is_answered_with_those_that_are_known(
    console: Console, data_set: Path
) -> None:
    said = console("data", "verify", data_set, "--manifest", "camelyon61")
    assert said.code == 2
    assert "known by name are camelyon16, camelyon17, camelyon_plus, panda, tcga_brca" in said.complaint
    assert "did you mean" in said.complaint.lower()
