"""Drawn twins of public data sets, to run a whole table without the slides: :func:`make_twin`.

A twin lies in folders, is named, labelled and contained as the download is: Philips TIFF with missing tiles for
CAMELYON, five nodes a patient for CAMELYON17, three levels and masks for PANDA, SVS in the GDC's folders for TCGA.
It is small: some tens of slides of about a thousand pixels a side. Slide names, labels and splits are the real
ones where the official tables have them, so that a twin goes through exactly the code that the data set goes
through. What is drawn has nothing to do with the slide of that name; figures on a twin say that everything runs,
and nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field, NonNegativeInt
from shapely.affinity import scale

from wsi_ips.config import Section
from wsi_ips.datasets.annotations import write_asap
from wsi_ips.datasets.camelyon import Row, center_of, shipped_rows
from wsi_ips.datasets.checksums import claim, make_all
from wsi_ips.datasets.panda import GRADES, PROVIDERS
from wsi_ips.drawn.containers import PHILIPS_TILE_PX, write_panda, write_panda_mask, write_philips, write_svs
from wsi_ips.drawn.synthetic import DrawnSlide, draw_slide
from wsi_ips.progress import Progress, silent
from wsi_ips.storage.files import whole_file
from wsi_ips.units import Mpp

DRAWN_UM = 1800
"""µm across which a slide is drawn, so that a small picture holds tissue and lesions. Files state the resolution
of the data set's scanner."""
MAGNIFIED = 4
"""How much CAMELYON16's slides are magnified, so that lesions are larger than isolated tumour cells by the stated
resolution, and FROC has something to find."""
CAMELYON_MPP = Mpp(0.243)
"""Of CAMELYON's level 0 (Radboud's scanner)."""
PANDA_MPP = {"radboud": (Mpp(0.4862),), "karolinska": (Mpp(0.4520), Mpp(0.5032))}
"""Of PANDA's level 0, by provider (inventories of its files)."""
TCGA_MPP = Mpp(0.2525)
"""Of TCGA-BRCA's level 0: an Aperio scanner at 40x."""

CAMELYON16 = (
    "normal_001", "normal_002", "normal_003", "tumor_002", "tumor_003", "tumor_111",
    "normal_010", "normal_013", "tumor_001", "tumor_005",
    "test_001", "test_002", "test_003", "test_005", "test_006", "test_114",
)  # fmt: skip
"""Slides of CAMELYON16's twin, with the renamed one and a partly annotated one."""
CAMELYON17_PATIENTS = ("train", 10), ("val", 5)
"""How many patients of each split CAMELYON17's twin has, of as many stages as there are."""
PER_GRADE = 6
"""Biopsies of each provider and grade in PANDA's twin: the fewest that give each split one."""
PLUS_TEST_PATIENTS = (100, 150)
"""Test patients of CAMELYON+'s twin, with a node of each class."""
TCGA_PATIENTS = 20
"""Patients of TCGA-BRCA's twin, half of them ILC."""

TwinName = Literal["camelyon16", "camelyon17", "camelyon_plus", "panda", "tcga_brca"]


class TwinConfig(Section):
    """What is drawn."""

    data_set: TwinName
    side_px: int = Field(default=896, ge=512, le=8192)
    """About the side of a slide; sizes vary so that nothing divides evenly."""
    seed: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class _Slide:
    """A slide to draw.

    Attributes:
        path: Its file.
        kind: The container.
        tumor: Whether it has lesions.
        mpp: The resolution that the file states.
        outlines: Where the lesions' outlines are written, or None.
        mask: Where a mask of PANDA is written, and the value of its lesions and of other tissue.
        number: Seeds its random numbers, whichever process draws it.
        magnified: How many pixels become of each that is drawn, along each side.
    """

    path: Path
    kind: Literal["philips", "panda", "svs"]
    tumor: bool
    mpp: Mpp
    outlines: Path | None
    mask: tuple[Path, int, int] | None
    number: int
    config: TwinConfig
    magnified: int = 1


@dataclass(frozen=True, slots=True)
class _Order:
    """The slides of a twin, and its other files, which are written when the slides are there."""

    slides: Sequence[_Slide]
    finish: Callable[[], None]


def make_twin(out: Path, config: TwinConfig, *, processes: int = 1, progress: Progress = silent) -> int:
    """Draw the twin of a data set into ``out``, and return how many slides it has.

    The same config gives the same bytes. Slides of an earlier, interrupted call are kept. Raises
    :class:`ConfigError` if ``out`` holds another twin.
    """
    claim(
        out / "twin.json",
        config,
        holds="a twin drawn with other settings",
        content={"config": config.model_dump(mode="json")},
    )
    order = _ORDERS[config.data_set](out, config)
    missing = [slide for slide in order.slides if not slide.path.exists()]
    make_all(missing, _draw, processes=processes, what="Drawing slides", progress=progress)
    order.finish()
    return len(order.slides)


def _draw(slide: _Slide) -> str:
    rng = np.random.default_rng(np.random.SeedSequence([slide.config.seed, slide.number]))
    width, height = (int(slide.config.side_px * rng.uniform(0.9, 1.1)) | 1 for _ in range(2))
    drawn = draw_slide((width, height), mpp=Mpp(DRAWN_UM / slide.config.side_px), tumor=slide.tumor, rng=rng)
    if slide.outlines is not None and drawn.lesions.geoms:
        grown = scale(drawn.lesions, slide.magnified, slide.magnified, origin=(0, 0))
        write_asap(slide.outlines, list(grown.geoms))
    if slide.mask is not None:
        path, lesion, tissue = slide.mask
        write_panda_mask(path, _mask(drawn, lesion=lesion, tissue=tissue), mpp=slide.mpp)
    image = np.asarray(
        Image.fromarray(drawn.rgb_HWC).resize((width * slide.magnified, height * slide.magnified))
    )
    if slide.kind == "philips":  # glass beside the scanned area, whose tiles are missing
        image = np.pad(image, ((0, PHILIPS_TILE_PX), (0, PHILIPS_TILE_PX), (0, 0)), constant_values=255)
    write = {"philips": write_philips, "panda": write_panda, "svs": write_svs}[slide.kind]
    # The slide comes last: while it is missing, the slide counts as not drawn.
    write(slide.path, image, mpp=slide.mpp)
    return slide.path.name


def _mask(drawn: DrawnSlide, *, lesion: int, tissue: int) -> NDArray[np.uint8]:
    height, width = drawn.rgb_HWC.shape[:2]
    inside = Image.new("L", (width, height))
    for polygon in drawn.lesions.geoms:
        ImageDraw.Draw(inside).polygon(list(polygon.exterior.coords), fill=1)
    is_tissue = drawn.rgb_HWC[..., 1] < 200
    return np.where(is_tissue, np.where(np.asarray(inside) > 0, lesion, tissue), 0).astype(np.uint8)


def _camelyon16(out: Path, config: TwinConfig) -> _Order:
    """GigaDB's layout."""
    labels = {row["slide_id"]: row["label"] for row in shipped_rows("camelyon16")}
    folders = {"normal": "training/normal", "tumor": "training/tumor", "test": "testing/images"}
    slides = []
    for number, slide_id in enumerate(CAMELYON16):
        kind = slide_id.partition("_")[0]
        path = out / folders[kind] / f"{slide_id}.tif"
        part = "testing" if kind == "test" else "training"
        outlines = out / part / "lesion_annotations" / f"{slide_id}.xml"
        tumor = labels[slide_id] == "tumor"
        one = _camelyon_slide(path, number, config, outlines if tumor else None, tumor=tumor)
        slides.append(replace(one, magnified=MAGNIFIED))

    def finish() -> None:
        tests = {name: label for name, label in labels.items() if name.startswith("test")}
        lines = [f"{name},{label.capitalize()}" for name, label in sorted(tests.items())]
        _write_text(out / "testing" / "reference.csv", lines)
        _write_sums(out)

    return _Order(slides, finish)


def _camelyon_slide(
    path: Path, number: int, config: TwinConfig, outlines: Path | None, *, tumor: bool
) -> _Slide:
    return _Slide(path, "philips", tumor, CAMELYON_MPP, outlines, None, number, config)


def _patients(rows: Sequence[Row], split: str, count: int) -> list[str]:
    """Patients of a split, those of different stages first."""
    stage_of = {row["case_id"]: row["stage"] for row in rows if row["split"] == split}
    by_stage: dict[str, list[str]] = {}
    for patient, stage in stage_of.items():
        by_stage.setdefault(stage, []).append(patient)
    turns = max(map(len, by_stage.values()))
    dealt = [its[turn] for turn in range(turns) for its in by_stage.values() if turn < len(its)]
    return dealt[:count]


def _camelyon17(out: Path, config: TwinConfig) -> _Order:
    """GigaDB's layout, with the archives unpacked side by side."""
    rows = shipped_rows("camelyon17")
    chosen = {patient for split, count in CAMELYON17_PATIENTS for patient in _patients(rows, split, count)}
    slides = [
        _camelyon_slide(
            out / "training" / f"center_{center_of(row['case_id'])}" / f"{row['slide_id']}.tif",
            number,
            config,
            None,
            tumor=row["label"] != "negative",
        )
        for number, row in enumerate(row for row in rows if row["case_id"] in chosen)
    ]

    def finish() -> None:
        stages = {row["case_id"]: row["stage"] for row in rows}
        lines = ["patient,stage"]
        for patient, stage in stages.items():
            lines.append(f"{patient}.zip,{stage}")
            lines += [f"{row['slide_id']}.tif,{row['label']}" for row in rows if row["case_id"] == patient]
        _write_text(out / "training" / "stage_labels.csv", lines)
        _write_sums(out)

    return _Order(slides, finish)


def _camelyon_plus(out: Path, config: TwinConfig) -> _Order:
    """Both sets as in the bucket, side by side, with the table of CAMELYON+; one label is corrected by it."""
    plus = {row["slide_id"]: ("macro" if row["label"] == "tumor" else "negative")
            for row in shipped_rows("camelyon16") if row["slide_id"] in CAMELYON16}  # fmt: skip
    rows = shipped_rows("camelyon17")
    for split, count in (("train", 3), ("val", 2)):
        patients = _patients([row for row in rows if row["label"] != "negative"], split, count)
        plus |= {row["slide_id"]: row["label"] for row in rows if row["case_id"] in patients}
    for patient in PLUS_TEST_PATIENTS:
        for node, label in enumerate(("negative", "itc", "micro", "macro", "negative")):
            plus[f"patient_{patient}_node_{node}"] = label
    plus["tumor_005"] = "micro"
    plus["normal_002"] = "itc"
    slides = []
    for number, (slide_id, label) in enumerate([*plus.items(), ("tumor_017", "macro")]):
        folder = out / ("CAMELYON17" if slide_id.startswith("patient") else "CAMELYON16")
        outlines = folder / "annotations" / f"{slide_id}.xml"
        tumor = label != "negative"
        path = folder / "images" / f"{slide_id}.tif"
        slides.append(_camelyon_slide(path, number, config, outlines if tumor else None, tumor=tumor))

    def finish() -> None:
        _write_workbook(out / "Camelyon+(4-classes).xlsx", [("slide", "label"), *sorted(plus.items())])

    return _Order(slides, finish)


def _panda(out: Path, config: TwinConfig) -> _Order:
    """Kaggle's layout. One slide of Radboud has no mask, as 100 of the release have none."""
    gleason = {"0": ("negative", "0+0"), "1": ("3+3",), "2": ("3+4",), "3": ("4+3",), "4": ("4+4", "3+5", "5+3"),
               "5": ("4+5", "5+4", "5+5")}  # fmt: skip
    slides: list[_Slide] = []
    lines = []
    for number in range(len(PROVIDERS) * len(GRADES) * PER_GRADE):
        provider = PROVIDERS[number % 2]
        grade = GRADES[number // 2 % len(GRADES)]
        turn = number // (2 * len(GRADES))
        scores = gleason[grade]
        score = scores[0 if provider == "radboud" else -1] if grade == "0" else scores[turn % len(scores)]
        image_id = hashlib.md5(f"{config.seed}/{number}".encode(), usedforsecurity=False).hexdigest()
        mpps = PANDA_MPP[provider]
        values = (max(3, int(score[0])), 1) if provider == "radboud" and grade != "0" else (2, 1)
        mask = (out / "train_label_masks" / f"{image_id}_mask.tiff", *values)
        path = out / "train_images" / f"{image_id}.tiff"
        slides.append(
            _Slide(
                path,
                "panda",
                grade != "0",
                mpps[turn % len(mpps)],
                None,
                mask if number else None,
                number,
                config,
            )
        )
        lines.append(f"{image_id},{provider},{grade},{score}")

    def finish() -> None:
        _write_text(out / "train.csv", ["image_id,data_provider,isup_grade,gleason_score", *sorted(lines)])
        _write_text(out / "test.csv", ["image_id,data_provider"])
        _write_text(out / "sample_submission.csv", ["image_id,isup_grade"])

    return _Order(slides, finish)


def _tcga_brca(out: Path, config: TwinConfig) -> _Order:
    """What gdc-client leaves: a folder for each file. A frozen section and normal tissue are among the files."""
    names: dict[str, bool] = {}
    subtypes: dict[str, str] = {}
    for number in range(TCGA_PATIENTS):
        patient = f"TCGA-{('A2', 'E2', 'BH', 'AR')[number % 4]}-A{number:03X}"
        subtypes[patient] = ("Infiltrating duct carcinoma, NOS", "Lobular carcinoma, NOS")[number % 2]
        more = {
            1: "01Z-00-DX2",
            2: "01A-01-TS1",
            3: "11A-01-DX1",
        }  # a second slide, a frozen one, normal tissue
        for part in ("01Z-00-DX1", *([more[number]] if number in more else [])):
            uuid = _uuid(f"{config.seed}/{patient}/{part}").upper()
            names[f"{patient}-{part}.{uuid}.svs"] = number % 2 == 1
    slides = [
        _Slide(out / _uuid(name) / name, "svs", lobular, TCGA_MPP, None, None, number, config)
        for number, (name, lobular) in enumerate(names.items())
    ]

    def finish() -> None:
        lines = ["id\tfilename\tmd5\tsize\tstate"]
        for slide in slides:
            content = slide.path.read_bytes()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            lines.append(f"{slide.path.parent.name}\t{slide.path.name}\t{digest}\t{len(content)}\treleased")
            _write_text(slide.path.parent / "logs" / f"{slide.path.name}.parcel", [""])
        _write_text(out / "gdc_manifest.2026-11-01.txt", lines)
        table = ["case_submitter_id\tproject_id\tprimary_diagnosis"]
        table += [f"{patient}\tTCGA-BRCA\t{subtype}" for patient, subtype in subtypes.items()]
        _write_text(out / "clinical.tsv", table)

    return _Order(slides, finish)


_ORDERS: Mapping[str, Callable[[Path, TwinConfig], _Order]] = {
    "camelyon16": _camelyon16,
    "camelyon17": _camelyon17,
    "camelyon_plus": _camelyon_plus,
    "panda": _panda,
    "tcga_brca": _tcga_brca,
}


def _uuid(text: str) -> str:
    """A name in the form of a UUID that follows from ``text``."""
    digits = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _write_text(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_sums(out: Path) -> None:
    """``checksums.md5`` of every file but the twin's own."""
    lines = []
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in ("checksums.md5", "twin.json"):
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            lines.append(f"{digest}  {path.relative_to(out).as_posix()}")
    _write_text(out / "checksums.md5", lines)


def _write_workbook(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """A workbook with one sheet of texts, the least that spreadsheet programs open (ECMA-376)."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    packages = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    cells = "".join(_sheet_rows(rows))
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{packages}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{packages}/relationships"><Relationship Id="r1" '
        f'Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{packages}/relationships"><Relationship Id="r1" '
        f'Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {space} xmlns:r="{relations}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/worksheets/sheet1.xml": f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>",
    }
    with whole_file(path) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as book:
        for name, text in parts.items():
            book.writestr(ZipInfo(name), head + text)


def _sheet_rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for line, row in enumerate(rows, 1):
        cells = "".join(
            f'<c r="{column}{line}" t="inlineStr"><is><t>{escape(cell)}</t></is></c>'
            for column, cell in zip("AB", row, strict=True)
        )
        yield f'<row r="{line}">{cells}</row>'
