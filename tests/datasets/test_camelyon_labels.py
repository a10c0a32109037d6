from pathlib import Path

import pytest

from wsi_ips.datasets.camelyon import read_reference, read_stages
from wsi_ips.errors import DatasetError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reference_without_and_with_header(tmp_path: Path) -> None:
    expected = {"test_001": "tumor", "test_003": "normal"}
    plain = "test_001,Tumor,IDC,Macro\nTest_003,Normal,None,None\n"
    assert read_reference(written(tmp_path, plain)) == expected
    headed = "image,class,type,center\ntest_001.tif,macro,IDC,0\ntest_003.tif,negative,,1\n"
    assert read_reference(written(tmp_path, headed)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test_001,Tumour\n", "line 1: unknown class 'Tumour'; known: normal, negative"),
        ("test_001,Tumor\ntest_001,Tumor\n", "line 2: test_001 occurs twice"),
        ("slide_1,Tumor\n", "'slide_1' is no slide of CAMELYON16"),
        ("test_001\n", "line 1: lacks the class"),
        ("image,type\ntest_001.tif,x\n", "no column class"),
        ("", "is empty"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_reference(written(tmp_path, text))


def stage_lines(**changed: str) -> str:
    rows = {"patient_020.zip": "pN1"} | {f"patient_020_node_{node}.tif": "negative" for node in range(5)}
    rows |= {name.replace("__", "."): value for name, value in changed.items()}
    return "patient,stage\n" + "".join(f"{name},{value}\n" for name, value in rows.items() if value)


def test_stages_of_both_layouts(tmp_path: Path) -> None:
    text = stage_lines(patient_020_node_1__tif="macro")
    stages = read_stages(written(tmp_path, text))
    assert stages.patients == {"patient_020": "pN1"}
    assert stages.nodes["patient_020_node_1"] == "macro"
    assert len(stages.nodes) == 5
    head, *lines = text.splitlines()
    with_center = "\n".join([f"{head},center", *(f"{line},1" for line in lines)])
    assert read_stages(written(tmp_path, with_center)) == stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (stage_lines(patient_020__zip="pn1"), "line 2: unknown value 'pn1'; known: pN0, "),
        (stage_lines(patient_020_node_3__tif="macro "), ""),
        (stage_lines(patient_020_node_3__tif="Macro"), "line 6: unknown value 'Macro'"),
        (stage_lines(patient_020_node_3__tif=""), "patient_020 lacks"),
        (stage_lines(patient_020__zip=""), "patient_020 lacks its stage"),
        (stage_lines(patient_020_node_7__tif="itc"), "no patient or slide"),
        (stage_lines() + "patient_020.zip,pN1\n", "occurs twice"),
        (stage_lines() + "patient_021.zip\n", "has 1 fields, not 2"),
        ("patient,stage,center\npatient_020.zip,pN1,2\n", "patient_020 is not of centre '2'"),
        ("name,stage\n", "expected patient,stage"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    if not message:  # a blank at the end is no other class
        assert read_stages(written(tmp_path, text)).nodes["patient_020_node_3"] == "macro"
        return
    with pytest.raises(DatasetError, match=message):
        read_stages(written(tmp_path, text))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    for read in (read_reference, read_stages):
        with pytest.raises(DatasetError, match="UTF-8"):
            read(tmp_path / "b.csv")
        with pytest.raises(DatasetError, match="no such label file"):
            read(tmp_path / "absent.csv")


def test_the_published_stages(real_data: Path) -> None:
    stages = read_stages(real_data / "camelyon" / "camelyon17_stages.csv")
    assert (len(stages.patients), len(stages.nodes)) == (100, 500)
