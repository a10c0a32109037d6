"""The public data sets by name: what is there, what is left out and why, and what a broken layout is told."""

import csv
import hashlib
from collections import Counter
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from tests.commands.console import Console
from wsi_ips.config import TaskConfig
from wsi_ips.datasets.camelyon import STAGES, camelyon16_rows
from wsi_ips.datasets.irregular import IRREGULAR, PARTLY_ANNOTATED, WITHOUT_MASK_IDS, notes_of
from wsi_ips.datasets.known_sets import KNOWN_SETS, look
from wsi_ips.datasets.label_table import read_label_table
from wsi_ips.datasets.manifest import read_manifest
from wsi_ips.datasets.panda import BLANK, GRADES, WITHOUT_MASK
from wsi_ips.datasets.tcga import Barcode
from wsi_ips.errors import ConfigError, DatasetError

ROOT = Path(__file__).resolve().parents[2]
WRONG_GRADE = "b0a92a74cb53899311acc30b7405e101"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def image_id(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def panda(folder: Path, *, slides: int = 40, noise: bool = False) -> Path:
    """Half of Radboud, half of Karolinska, all grades; the blank slide and the one with two grades among them."""
    lines = ["image_id,data_provider,isup_grade,gleason_score" + ",noise_ratio_10" * noise]
    scores = {"0": ("negative", "0+0"), "1": ("3+3",) * 2, "2": ("3+4",) * 2, "3": ("4+3",) * 2,
              "4": ("4+4", "3+5"), "5": ("4+5", "5+5")}  # fmt: skip
    for number in range(slides):
        provider, grade = ("radboud", "karolinska")[number % 2], GRADES[number // 2 % 6]
        its = image_id(number)
        lines.append(f"{its},{provider},{grade},{scores[grade][number % 2]}" + f",{int(number > 3)}" * noise)
        touch(folder / "train_images" / f"{its}.tiff", folder / "train_label_masks" / f"{its}_mask.tiff")
    for its, row in ((BLANK, "karolinska,0,0+0"), (WRONG_GRADE, "karolinska,2,4+3")):
        lines.append(f"{its},{row}" + ",1" * noise)
        touch(folder / "train_images" / f"{its}.tiff", folder / "train_label_masks" / f"{its}_mask.tiff")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


def plus(folder: Path, labels: dict[str, str]) -> Path:
    """Slides of CAMELYON16 and 17 side by side, and the table of CAMELYON+ as a workbook."""
    for slide_id in (*labels, "tumor_017"):
        set_ = "CAMELYON17" if slide_id.startswith("patient") else "CAMELYON16"
        touch(folder / set_ / "images" / f"{slide_id}.tif")
    workbook(folder / "Camelyon+(4-classes).xlsx", [("slide", "label"), *labels.items()])
    return folder


def workbook(path: Path, rows: list[tuple[str, ...]]) -> None:
    """A workbook as spreadsheet programs write it: texts are shared, and a number among them."""
    texts = sorted({cell for row in rows for cell in row})
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    cells = "".join(
        f'<row r="{line}">'
        + "".join(
            f'<c r="{"ABC"[at]}{line}" t="s"><v>{texts.index(cell)}</v></c>' for at, cell in enumerate(row)
        )
        + "</row>"
        for line, row in enumerate(rows, 1)
    )
    with ZipFile(path, "w", ZIP_DEFLATED) as book:
        shared = "".join(f"<si><r><t>{text[:1]}</t></r><r><t>{text[1:]}</t></r></si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
        book.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>"
        )


LABELS = {
    "normal_001": "Negative", "normal_034": "micro", "tumor_001": "Macro", "tumor_012": "negative",
    "test_001": "itc",
    "patient_004_node_4": "itc", "patient_000_node_1": "negative", "patient_150_node_0": "macro",
}  # fmt: skip


def tcga(folder: Path) -> Path:
    uuid = "AC4901DE-4B6D-4185-BB9F-156033839828"
    sums = ["id\tfilename\tmd5\tsize\tstate"]
    for number in range(12):
        patient = f"TCGA-A2-A0{number:02d}"
        for name in (f"{patient}-01Z-00-DX1.{uuid}.svs", f"{patient}-01A-01-TS1.{uuid}.svs"):
            file_id = f"{number:08d}-{'dx' if 'DX' in name else 'ts'}"
            touch(folder / file_id / name, folder / file_id / "logs" / f"{name}.parcel")
            sums.append(f"{file_id}\t{name}\t{hashlib.md5(name.encode()).hexdigest()}\t{len(name)}\treleased")
    (folder / "gdc_manifest.2026-11-01.txt").write_text("\n".join(sums) + "\n")
    kinds = ("Infiltrating duct carcinoma, NOS", "Lobular carcinoma, NOS")
    lines = ["case_submitter_id\tprimary_diagnosis"]
    lines += [f"TCGA-A2-A0{number:02d}\t{kinds[number % 2]}" for number in range(11)] + [
        "TCGA-A2-A011\tMucinous"
    ]
    (folder / "clinical.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_irregular_slides_are_one_table_and_each_has_a_source() -> None:
    assert len({(one.data_set, one.slide_id) for one in IRREGULAR}) == len(IRREGULAR)
    assert all(one.what and one.done and one.source and one.data_set in KNOWN_SETS for one in IRREGULAR)
    noted = {row["slide_id"]: row["notes"] for row in camelyon16_rows() if row["notes"]}
    gone = {"normal_086", "test_049"}
    assert noted == {name: what for name, what in notes_of("camelyon16").items() if name not in gone}
    assert set(noted) >= PARTLY_ANNOTATED
    page = (ROOT / "docs" / "data_sets.md").read_text()
    suspicious = (ROOT / "wsi_ips" / "datasets" / "panda_suspicious.csv").read_text()
    for one in IRREGULAR:
        if one.slide_id in suspicious:
            continue
        assert one.slide_id in page or one.slide_id.replace("tumor_", "") in page, one.slide_id


def test_counts_of_irregular_slides_are_those_that_their_sources_state() -> None:
    plus = [one for one in IRREGULAR if one.data_set == "camelyon_plus" and one.done == "left out"]
    assert len(plus) == 1399 - 1350
    assert sum(one.slide_id.startswith("patient_0") for one in plus) == 8
    assert sum(one.slide_id.startswith("patient_1") for one in plus) == 28
    assert len(WITHOUT_MASK_IDS) == WITHOUT_MASK
    what = Counter(part for text in notes_of("panda").values() for part in text.split("; "))
    assert what["pen marks on the slide"] == 475
    assert what["its mask shows no cancer, though its grade is 1 or more"] == 85


def test_camelyon_stages_are_read_in_one_place() -> None:
    defined = [path for path in (ROOT / "wsi_ips").rglob("*.py") if "def read_stages(" in path.read_text()]
    assert [path.name for path in defined] == ["camelyon.py"]


def test_panda_has_grades_providers_and_a_split_of_each_grade(tmp_path: Path) -> None:
    listed = look("panda", panda(tmp_path / "panda", slides=240).parent)
    assert listed.total == 242
    assert Counter(row["label"] for row in listed.rows) == {**dict.fromkeys(GRADES, 40), "2": 41}
    assert BLANK not in {row["slide_id"] for row in listed.rows}
    splits = Counter((row["provider"], row["label"], row["split"]) for row in listed.rows)
    assert splits["radboud", "3", "train"] == 14
    assert splits["karolinska", "5", "val"] == splits["karolinska", "5", "test"] == 3
    assert any(f"{WRONG_GRADE}: Gleason 4+3 is grade 3, the table says 2" in line for line in listed.told)
    assert any("the release has 10616" in line for line in listed.told)
    assert any("give --labels" in line for line in listed.told)
    assert listed.wrong == []
    assert look("panda", tmp_path / "panda").rows == listed.rows, (
        "the folder and the one above it are the same"
    )


def test_slides_of_panda_that_are_thought_wrong_are_left_out(tmp_path: Path) -> None:
    listed = look("panda", panda(tmp_path, noise=True))
    assert len(listed.rows) == 37
    assert any(line.startswith("4 slides are left out, as noise_ratio_10") for line in listed.told)


def test_tables_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    root = panda(tmp_path / "data")
    splits = tmp_path / "splits"
    splits.mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 13))):
        lines = ["FILENAME,isup_grade", *(f"{image_id(number)},0" for number in numbers)]
        (splits / f"{split}.csv").write_text("\n".join(lines) + "\n")
    listed = look("panda", root, splits=splits)
    assert Counter(row["split"] for row in listed.rows) == {"train": 8, "val": 2, "test": 3}
    assert any(line.startswith("28 slides are left out, as the tables of splits") for line in listed.told)
    with (splits / "test.csv").open("a") as file:
        file.write(f"{image_id(0)},0\n")
    with pytest.raises(DatasetError, match=r"is in train\.csv too"):
        look("panda", root, splits=splits)


def test_a_mask_that_is_missing_is_told_by_provider(tmp_path: Path) -> None:
    root = panda(tmp_path)
    for number in (0, 1):
        (root / "train_label_masks" / f"{image_id(number)}_mask.tiff").unlink()
    (line,) = look("panda", root).wrong
    assert line.startswith(
        f"1 slides of Karolinska have no mask, the first {image_id(1)}: expected train_label_masks/"
    )
    (root / "train_label_masks").rename(root / "masks")
    (line,) = look("panda", root).wrong
    assert "expected" in line
    assert "masks/, train.csv, train_images/" in line


def test_in_the_release_it_is_known_which_slides_of_radboud_have_no_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = panda(tmp_path)
    its = sorted(WITHOUT_MASK_IDS)[0]
    touch(root / "train_images" / f"{its}.tiff")
    with (root / "train.csv").open("a") as file:
        file.write(f"{its},radboud,1,3+3\n")
    monkeypatch.setattr("wsi_ips.datasets.panda.SLIDES", 43)
    listed = look("panda", root)
    assert listed.wrong == []
    assert {row["slide_id"]: row["notes"] for row in listed.rows}[its] == "it has no mask"
    (root / "train_label_masks" / f"{image_id(0)}_mask.tiff").unlink()
    (line,) = look("panda", root).wrong
    assert line.startswith(f"1 slides of Radboud have no mask, the first {image_id(0)}: expected")
    assert "are others" in line


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("0005,radboud,1,3+3", "an image_id is 32 hexadecimal digits"),
        (f"{image_id(99)},umc,1,3+3", "known providers: radboud, karolinska"),
        (f"{image_id(99)},radboud,6,3+3", "an ISUP grade is 0 to 5"),
        (f"{image_id(99)},radboud,1,2+2", "known Gleason scores"),
        (f"{image_id(3)},radboud,1,3+3", "occurs twice"),
    ],
)
def test_a_line_of_train_csv_that_cannot_be_is_named(tmp_path: Path, row: str, complaint: str) -> None:
    with (panda(tmp_path) / "train.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DatasetError, match="line 44") as caught:
        look("panda", tmp_path)
    assert complaint in str(caught.value)


def test_camelyon_plus_keeps_the_official_splits_and_tells_what_it_corrects(tmp_path: Path) -> None:
    listed = look("camelyon_plus", plus(tmp_path, LABELS))
    rows = {row["slide_id"]: row for row in listed.rows}
    assert {name: (row["label"], row["split"], row["case_id"]) for name, row in rows.items()} == {
        "normal_001": ("negative", "train", "normal_001"),
        "normal_034": ("micro", "train", "normal_034"),
        "tumor_001": ("macro", "val", "tumor_001"),
        "tumor_012": ("negative", "val", "tumor_012"),
        "test_001": ("itc", "test", "test_001"),
        "patient_004_node_4": ("itc", "train", "patient_004"),
        "patient_000_node_1": ("negative", rows["patient_000_node_1"]["split"], "patient_000"),
        "patient_150_node_0": ("macro", "test", "patient_150"),
    }
    assert [name for name, row in rows.items() if row["notes"]] == ["normal_034", "tumor_012"]
    assert rows["tumor_012"]["notes"] == "corrected: CAMELYON16 says tumor"
    assert listed.told == [
        f"{tmp_path / 'Camelyon+(4-classes).xlsx'} has 8 slides; the release has 1350",
        "1 slides are left out, as CAMELYON+ removed them: tumor_017",
        "2 labels are corrected by CAMELYON+: normal_034, tumor_012",
    ]


def test_slides_of_the_table_that_are_not_there_are_told(console: Console, tmp_path: Path) -> None:
    root = plus(tmp_path / "plus", LABELS)
    (root / "CAMELYON17" / "images" / "patient_150_node_0.tif").unlink()
    said = console("data", "verify", root, "--manifest", "camelyon_plus")
    assert said.code == 3
    assert "1 slides of " in said.out
    assert "are not there, the first: expected CAMELYON17/images/patient_150_node_0.tif" in said.out
    root = panda(tmp_path / "panda")
    said = console("data", "verify", root, "--manifest", "panda")
    assert said.out.count("cannot be opened: ") == 41, "without checksums slides are opened; these are text"
    (root / "train_images" / f"{image_id(7)}.tiff").unlink()
    said = console("data", "verify", root, "--manifest", "panda")
    assert said.code == 3
    assert f"are not there, the first: expected train_images/{image_id(7)}.tiff" in said.out


def test_labels_of_camelyon_plus_that_cannot_be(tmp_path: Path) -> None:
    root = plus(tmp_path, LABELS)
    for lines, complaint in (
        (["normal_001,mikro"], "line 2: unknown class 'mikro'; known: negative, itc, micro, macro"),
        (["normal_001,itc", "Normal_001.tif,itc"], "line 3: normal_001 occurs twice"),
        (["normal_300,itc"], "'normal_300' is no slide of CAMELYON16 or 17"),
    ):
        (tmp_path / "l.csv").write_text("\n".join(["slide,label", *lines]) + "\n")
        with pytest.raises(DatasetError) as caught:
            look("camelyon_plus", root, labels=tmp_path / "l.csv")
        assert complaint in str(caught.value)
    (root / "Camelyon+(4-classes).xlsx").rename(root / "labels.xlsx")
    with pytest.raises(DatasetError, match=r"expected Camelyon\+\(4-classes\)\.xlsx.*it holds CAMELYON16/"):
        look("camelyon_plus", root)


def test_tcga_takes_diagnostic_slides_of_primary_tumours_by_patient(tmp_path: Path) -> None:
    listed = look("tcga_brca", tcga(tmp_path))
    assert Counter(row["label"] for row in listed.rows) == {"IDC": 6, "ILC": 5}
    assert all(row["slide_id"].startswith(f"{row['case_id']}-01Z-00-DX1.") for row in listed.rows)
    assert listed.told == [
        "12 frozen sections (TS, MS, BS) are left out",
        "1 slides of other types than IDC and ILC are left out: Mucinous 1",
    ]
    assert {row["split"] for row in listed.rows} == {"train", "val", "test"}
    touch(tmp_path / "x" / "TCGA-A2-A0CM-01Z-00-DX1.AC49.svs.partial", tmp_path / "x" / "annotations.txt")
    again = look("tcga_brca", tmp_path)
    assert "1 downloads are not finished" in again.wrong[0]
    assert "the GDC has annotations of 1 files" in again.told[-1]


def test_barcodes() -> None:
    name = "TCGA-A2-A0CM-01Z-00-DX1.AC4901DE-4B6D-4185-BB9F-156033839828.svs"
    assert Barcode.of(name) == Barcode("TCGA-A2-A0CM", "01", "DX")
    normal = Barcode.of("TCGA-A2-A0CM-11A-02-BSB.ac49.svs")
    assert normal is not None
    assert not normal.is_taken
    assert Barcode.of("slide.svs") is None


def test_the_sums_of_the_gdc_are_checked(console: Console, tmp_path: Path) -> None:
    tcga(tmp_path)
    said = console("data", "verify", tmp_path, "--manifest", "tcga_brca")
    assert said.code == 0, said.out
    assert "24 of 24 listed files are as listed" in said.out
    assert "11 of 11 slides of tcga_brca are there" in said.out
    next((tmp_path / "00000003-dx").glob("*.svs")).write_text("cut off")
    assert "altered: " in console("data", "verify", tmp_path, "--manifest", "tcga_brca").out


@pytest.mark.parametrize("name", ["panda", "camelyon_plus", "tcga_brca"])
def test_a_manifest_is_written_that_training_takes(console: Console, tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    task = {
        "panda": lambda: (panda(root), GRADES),
        "camelyon_plus": lambda: (plus(root, LABELS), ("negative", "itc", "micro", "macro")),
        "tcga_brca": lambda: (tcga(root), ("IDC", "ILC")),
    }[name]()[1]
    said = console("data", "manifest", root, "--out", tmp_path / "m.csv", "--name", name)
    assert said.code == 0, said.err
    assert f"slides of {name} in {tmp_path / 'm.csv'} (train " in said.out
    manifest = read_manifest(tmp_path / "m.csv", tasks=[TaskConfig(classes=task)])
    assert all(record.path.is_file() for record in manifest.records)
    with (tmp_path / "m.csv").open(newline="") as file:
        assert all(row["path"].startswith("data/") for row in csv.DictReader(file))
    if name != "camelyon_plus":
        found = console("data", "manifest", root, "--out", tmp_path / "n.csv")
        assert found.code == 0, found.err
        assert (tmp_path / "n.csv").read_bytes() == (tmp_path / "m.csv").read_bytes()


def camelyon(root: Path) -> Path:
    touch(
        root / "training/normal/normal_001.tif",
        root / "training/tumor/tumor_001.tif",
        root / "testing/images/test_001.tif",
        root / "training/lesion_annotations/tumor_001.xml",
        root / "testing/lesion_annotations/test_001.xml",
    )
    return root


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"training/lesion_annotations/tumor_001.xml": None},
            "1 of 2 tumour slides have no outlines, the first tumor_001: expected annotations/tumor_001.xml",
        ),
        (
            {"training/tumor": "training/tumour"},
            "training/tumour/tumor_001.tif: expected in training/tumor/ or images/",
        ),
        (
            {"training/normal/normal_001.tif": "training/normal/Normal_086.tif"},
            "Normal_086.tif is read as tumor_111",
        ),
        (
            {"testing/images/test_001.tif": "testing/images/Test_049.tif"},
            "test_049 was removed (a duplicate)",
        ),
    ],
)
def test_what_is_not_as_camelyon_has_it_is_told(
    console: Console, tmp_path: Path, change: dict[str, str | None], told: str
) -> None:
    root = camelyon(tmp_path)
    before = console("data", "verify", root, "--manifest", "camelyon16")
    assert told not in before.out
    for old, new in change.items():
        (root / old).rename(root / new) if new else (root / old).unlink()
    said = console("data", "verify", root, "--manifest", "camelyon16")
    assert said.code == 3
    assert told in said.out


def test_a_manifest_of_the_first_release_is_told(console: Console, tmp_path: Path) -> None:
    root = camelyon(tmp_path)
    touch(root / "training/normal/Normal_086.tif")
    (root / "old.csv").write_text("slide_id,path\nNormal_086,training/normal/Normal_086.tif\n")
    said = console("data", "verify", root, "--manifest", root / "old.csv")
    assert said.code == 3
    assert "is of CAMELYON16's first release: normal_086 is tumor_111 now" in said.out


@pytest.mark.parametrize(
    ("name", "make", "rename", "complaint"),
    [
        (
            "panda",
            panda,
            ("train_images", "images"),
            "expected train_images/<image_id>.tiff; it holds images/",
        ),
        ("panda", panda, ("train.csv", "labels.csv"), "expected train.csv with image_id,data_provider"),
        ("tcga_brca", tcga, ("clinical.tsv", "notes.tsv"), "expected clinical.tsv (GDC)"),
        ("camelyon16", camelyon, ("training", "train"), "expected in testing/images/ or images/"),
    ],
)
def test_a_renamed_folder_or_table_is_one_line_that_says_what_was_expected(
    console: Console, tmp_path: Path, name: str, make: object, rename: tuple[str, str], complaint: str
) -> None:
    assert callable(make)
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    (root / rename[0]).rename(root / rename[1])
    if name == "camelyon16":
        (root / "testing").rename(root / "test")
    said = console("data", "manifest", root, "--out", tmp_path / "m.csv", "--name", name)
    assert said.code == 2
    assert complaint in said.complaint
    assert not (tmp_path / "m.csv").exists()


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for name, given in (
        ("camelyon16", {"labels": tmp_path}),
        ("camelyon_plus", {"splits": tmp_path}),
        ("brca", {}),
    ):
        with pytest.raises(ConfigError):
            look(name, tmp_path, **given)


def test_stages_are_of_the_challenge() -> None:
    assert STAGES[1] == "pN0(i+)"


def test_a_workbook_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "l.xlsx"
    path.write_bytes(b"PK\x03\x04 no workbook")
    with pytest.raises(DatasetError, match="is no workbook"):
        read_label_table(path)
    with ZipFile(path, "w", ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", b" " * 40_000_000)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read_label_table(path)
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet><row><c><v>&a;</v></c></row></worksheet>'
    with ZipFile(path, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", bomb)
    with pytest.raises(DatasetError, match="is no workbook"):
        read_label_table(path)
    with ZipFile(path, "w") as book:
        book.writestr(
            "xl/worksheets/sheet1.xml", '<worksheet><row><c r="A1" t="s"><v>7</v></c></row></worksheet>'
        )
    with pytest.raises(DatasetError, match="names a text that is not there"):
        read_label_table(path)
    with ZipFile(path, "w", ZIP_DEFLATED) as book:
        rows = '<row><c r="ALL1"><v>1</v></c></row>' * 2_100
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet>{rows}</worksheet>")
    with pytest.raises(DatasetError, match="has more than 2000000 cells"):
        read_label_table(path)
    with ZipFile(path, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", '<?xml version="1.0" encoding="UTFE8"?><worksheet/>')
    with pytest.raises(DatasetError, match="is no workbook"):
        read_label_table(path)
