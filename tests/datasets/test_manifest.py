from pathlib import Path

import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import SlideRecord, read_manifest, write_manifest
from wsi_ips.errors import ManifestError, SlideNotFound

CLASSES = ("normal", "tumor")
TASKS = [TaskConfig(classes=CLASSES)]
HEADER = "slide_id,case_id,label,split,path\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.tif").touch()
    return tmp_path


def manifest(folder: Path, lines: str, *, header: str = HEADER) -> Path:
    path = folder / "manifest.csv"
    path.write_text(header + lines, encoding="utf-8")
    return path


def test_records_come_in_file_order_with_paths_beside_the_manifest(folder: Path) -> None:
    lines = f"b,p1,tumor,train,b.tif\na,p2,normal,test,{folder / 'a.tif'}\n"
    read = read_manifest(manifest(folder, lines), tasks=TASKS)
    assert [record.slide_id for record in read.records] == ["b", "a"]
    assert read.records[0].path == folder / "b.tif"
    assert [record.slide_id for record in read.split("test")] == ["a"]


def test_spreadsheets_that_add_a_mark_and_columns_are_read(folder: Path) -> None:
    path = folder / "m.csv"
    path.write_text("\ufeffnote," + HEADER + "x,a,p1,tumor,train,a.tif\n", encoding="utf-8")
    assert read_manifest(path, tasks=TASKS).records[0].labels == {"label": "tumor"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a,p1,cancer,train,a.tif\n", "line 2: unknown label 'cancer'; known: normal, tumor"),
        ("a,p1,tumor,learn,a.tif\n", "line 2: unknown split 'learn'"),
        ("a,p1,tumor,train,a.tif\na,p1,tumor,train,b.tif\n", "'a' occurs twice"),
        ("a,p1,tumor,train,z.tif\n", "line 2: no slide at"),
        ("a,,tumor,train,a.tif\n", "line 2: case_id is empty"),
        ("a,p1,tumor\n", "line 2: split is empty"),
        ("../a,p1,tumor,train,a.tif\n", "is no file name"),
        ("a,p1,tumor,train,a.tif\nb,p1,tumor,test,b.tif\n", "case 'p1' lies in train and in test"),
        ("", "lists no slides"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, lines: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(manifest(folder, lines), tasks=TASKS)
    assert "manifest.csv" in str(caught.value)


def test_what_is_no_manifest_is_refused(folder: Path) -> None:
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    for path, message in ((folder / "binary.csv", "UTF-8"), (folder / "no.csv", "no such manifest")):
        with pytest.raises(ManifestError, match=message):
            read_manifest(path, tasks=TASKS)
    with pytest.raises(ManifestError, match="lacks the column label"):
        read_manifest(manifest(folder, "", header="slide_id,case_id,split,path\n"), tasks=TASKS)


def test_what_is_written_is_read(folder: Path) -> None:
    records = [SlideRecord("a", "p", {"label": "tumor"}, "val", folder / "a.tif")]
    write_manifest(folder / "w.csv", records)
    assert read_manifest(folder / "w.csv", tasks=TASKS).records == tuple(records)
    assert str(folder) not in (folder / "w.csv").read_text()


def test_every_task_reads_its_own_column(folder: Path) -> None:
    tasks = [
        TaskConfig(name="grade", classes=("low", "high")),
        TaskConfig(name="found", column="findings", classes=("necrosis", "mitosis"), activation="sigmoid"),
        TaskConfig(name="age", classes=("years",), activation="linear"),
    ]
    header = "slide_id,case_id,split,path,age,findings,grade\n"
    lines = "a,p,train,a.tif,61.5,mitosis,high\nb,q,train,b.tif,50,none,low\n"
    first, second = read_manifest(manifest(folder, lines, header=header), tasks=tasks).records
    assert first.targets(tasks) == {"grade": 1, "found": (0.0, 1.0), "age": (61.5,)}
    assert second.targets(tasks) == {"grade": 0, "found": (0.0, 0.0), "age": (50.0,)}
    (some,) = read_manifest(
        manifest(folder, "a,p,train,a.tif,61,,high\n", header=header), tasks=tasks
    ).records
    assert some.targets(tasks) == {"grade": 1, "age": (61.0,)}, "a missing label is no label, and no error"
    none = manifest(folder, "a,p,train,a.tif,,,\n", header=header)
    with pytest.raises(ManifestError, match=r"line 2: grade, findings, age are all empty; fill in a label"):
        read_manifest(none, tasks=tasks)
    assert read_manifest(none, tasks=tasks, need_labels=False).records[0].targets(tasks) == {}
    with pytest.raises(ManifestError, match="lacks the column age"):
        read_manifest(manifest(folder, "", header=header.replace(",age", "")), tasks=tasks)


def test_paths_below_another_root_in_camelyon_s_layouts_too(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "testing" / "images").mkdir(parents=True)
    (root / "testing" / "images" / "Test_001.tif").touch()
    (root / "mine.tif").touch()
    lines = "test_001,p,tumor,test,images/test_001.tif\nx,q,tumor,test,mine.tif\n"
    read = read_manifest(manifest(folder, lines), tasks=TASKS, root=root)
    assert [record.path for record in read.records] == [
        root / "testing/images/Test_001.tif",
        root / "mine.tif",
    ]
    with pytest.raises(SlideNotFound, match="no such folder of slides"):
        read_manifest(manifest(folder, lines), tasks=TASKS, root=root / "absent")


def test_all_missing_slides_are_one_error(folder: Path) -> None:
    lines = "a,p,tumor,train,a.tif\ny,q,tumor,train,y.tif\nz,r,tumor,train,z.tif\n"
    with pytest.raises(ManifestError, match=r"line 3: no slide at .*y.tif \(2 of 3 slides are missing\)"):
        read_manifest(manifest(folder, lines), tasks=TASKS)


def test_a_root_that_is_named_twice_is_told(folder: Path) -> None:
    (folder / "slides").mkdir()
    (folder / "slides" / "d.tif").touch()
    path = manifest(folder, "d,p1,tumor,train,slides/d.tif\n")
    with pytest.raises(ManifestError, match="it is there relative to the manifest: leave out --slides"):
        read_manifest(path, tasks=TASKS, root=folder / "slides")
    assert read_manifest(path, tasks=TASKS).records[0].path == folder / "slides" / "d.tif"
