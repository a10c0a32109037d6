"""The slides of public data sets that are not what their name or label says, in one table: :data:`IRREGULAR`.

Each entry says what is wrong with a slide, what this package does about it, and who says so. Only what a public
source states is here; what can be seen in a download alone (a mask that is missing, a file that is cut off) is
told by ``wsi-ips data verify`` and ``wsi-ips data manifest`` when they see it. The 653 slides of PANDA with pen
marks, without a mask, or with a mask that contradicts the grade are in ``panda_suspicious.csv`` beside this file.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Irregular:
    """A slide that is not as others are.

    Attributes:
        data_set: ``camelyon16``, ``camelyon_plus`` (slides of CAMELYON16 and 17) or ``panda``.
        slide_id: The slide's present name, or that of the first release where it is gone.
        what: What is the matter; it is the slide's note in the manifest.
        done: What this package does about it.
        source: Who says so.
    """

    data_set: str
    slide_id: str
    what: str
    done: str
    source: str


_README16 = "README of CAMELYON16; github.com/DIDSR/dldp"
_PLUS = (
    "second hand: the slide list of github.com/undercutspiky/big-layers, which takes CAMELYON+'s labels and has "
    "its 1,350 slides (doi 10.1038/s41597-025-05586-5)"
)
_COLLECTION = "Kaggle notebook 'Collection of Suspicious Slides' (PANDA, May 2020)"
_INVENTORY = "inventory of all 10,616 files, public notes of a PANDA repository (September 2026)"
_SECOND_PLACE = "github.com/DrHB/PANDA-2nd-place-solution, the second place of the competition"
_PART = "not exhaustively annotated: take no negatives from it"
_PART_DONE = "labelled tumor; in the slide AUC; left out of FROC (--partly-annotated judges it all the same)"
_TISSUE = "little tissue: a tissue threshold can lose it"

# fmt: off
_PARTLY = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
_PLUS_REMOVED = (
    "tumor_017", "tumor_051", "tumor_061", "tumor_063", "tumor_067", "tumor_077", "tumor_082", "tumor_097",
    "tumor_105", "tumor_106", "test_052", "test_055", "test_056",
    "patient_017_node_3", "patient_019_node_2", "patient_026_node_2", "patient_029_node_1", "patient_045_node_4",
    "patient_069_node_0", "patient_095_node_0", "patient_096_node_4", "patient_103_node_1", "patient_103_node_3",
    "patient_105_node_1", "patient_108_node_4", "patient_111_node_1", "patient_119_node_1", "patient_119_node_3",
    "patient_135_node_4", "patient_142_node_4", "patient_144_node_1", "patient_151_node_0", "patient_151_node_1",
    "patient_153_node_0", "patient_154_node_1", "patient_159_node_2", "patient_159_node_3", "patient_168_node_1",
    "patient_171_node_4", "patient_176_node_4", "patient_177_node_0", "patient_180_node_4", "patient_184_node_0",
    "patient_184_node_4", "patient_185_node_0", "patient_187_node_1", "patient_188_node_4", "patient_193_node_0",
    "patient_193_node_4",
)
# fmt: on
_PLUS_CHANGED = {
    "normal_034": ("normal", "tumour"),
    "test_037": ("normal", "tumour"),
    "tumor_012": ("tumor", "negative"),
    "tumor_024": ("tumor", "negative"),
    "tumor_047": ("tumor", "negative"),
}
_ALSO = {79: "; blurred tumour region", 92: "; blurred region on adjacent tissue"}
_BLANK_MASKS = (
    "4a2ca53f240932e46eaf8959cb3f490a",
    "aaa5732cd49bffddf0d2b7d36fbb0a83",
    "e4215cfc8c41ec04a55431cc413688a9",
)
_LITTLE_TISSUE = (
    "033e39459301e97e457232780a314ab7",
    "0b6e34bf65ee0810c1a4bf702b667c88",
    "3385a0f7f4f3e7e7b380325582b115c9",
    "5204134e82ce75b1109cc1913d81abc6",
    "a08e24cff451d628df797efc4343e13c",
)

_SUSPICIOUS = Path(__file__).with_name("panda_suspicious.csv")
_SUSPICIOUS_WORDS = {
    "marks": "pen marks on the slide",
    "no mask": "it has no mask",
    "no cancer in mask": "its mask shows no cancer, though its grade is 1 or more",
}


def _suspicious() -> Iterator[Irregular]:
    with _SUSPICIOUS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            what = "; ".join(_SUSPICIOUS_WORDS[word] for word in row["what"].split(" and "))
            yield Irregular(
                "panda",
                row["image_id"],
                what,
                "kept; the manifest notes it",
                f"{_COLLECTION}; {_SECOND_PLACE}",
            )


IRREGULAR: tuple[Irregular, ...] = (
    Irregular(
        "camelyon16", "normal_086", "mislabelled in the first release, now tumor_111",
        "in no manifest; a file of this name is read as tumor_111", _README16,
    ),
    Irregular(
        "camelyon16", "tumor_111", "was normal_086 in the first release, mislabelled",
        "labelled tumor; found under its old name too", _README16,
    ),
    Irregular(
        "camelyon16", "test_049", "a duplicate, removed by the organisers (129 test slides)",
        "in no manifest; data verify tells where the file lies there all the same", _README16,
    ),
    Irregular(
        "camelyon16", "test_114",
        "not exhaustively annotated: out of FROC but in the slide AUC; one of the challenge's 49 tumour test "
        "slides, though some label tables say normal",
        "labelled tumor; in the slide AUC; left out of FROC", f"{_README16}; github.com/baidu-research/NCRF",
    ),
    Irregular(
        "camelyon16", "normal_144",
        "black (0) background in places: some pipelines skip it or turn black to white first",
        "kept as it is", "several public pipelines",
    ),
    *(
        Irregular("camelyon16", f"normal_{number:03d}", _TISSUE, "kept; training says so where it finds no patch",
                  "github.com/invoker-LL/WSI-finetuning issue 7")
        for number in (27, 45)
    ),
    *(
        Irregular("camelyon16", f"tumor_{number:03d}", _PART + _ALSO.get(number, ""), _PART_DONE, _README16)
        for number in _PARTLY
    ),
    *(
        Irregular("camelyon_plus", slide_id, "removed by CAMELYON+", "left out", _PLUS)
        for slide_id in _PLUS_REMOVED
    ),
    *(
        Irregular("camelyon_plus", slide_id, f"CAMELYON16 says {old}, CAMELYON+ says {new}",
                  "the label of CAMELYON+ holds; the manifest notes both", _PLUS)
        for slide_id, (old, new) in _PLUS_CHANGED.items()
    ),
    Irregular(
        "panda", "3790f55cad63053e956fb73027179707", "blank: no tissue at all, and a blank mask",
        "left out of the manifest", f"{_COLLECTION}; {_INVENTORY}",
    ),
    Irregular(
        "panda", "b0a92a74cb53899311acc30b7405e101",
        "Gleason 4+3 is grade 3, train.csv says grade 2: one of the two is wrong",
        "kept with the grade of train.csv", f"{_INVENTORY}; train.csv itself",
    ),
    *(
        Irregular("panda", image_id, "its mask is blank", "kept; masks are not needed to learn", _COLLECTION)
        for image_id in _BLANK_MASKS
    ),
    *(
        Irregular("panda", image_id, "less than 3 % tissue", "kept; training says so where it finds no patch",
                  _COLLECTION)
        for image_id in _LITTLE_TISSUE
    ),
    Irregular(
        "panda", "0da0915a236f2fc98b299d6fdefe7b8b", "left out by the second place, which does not say why",
        "kept", _SECOND_PLACE,
    ),
    *_suspicious(),
)  # fmt: skip
"""Every irregular slide that a public source names."""

WITHOUT_MASK_IDS = frozenset(
    one.slide_id for one in IRREGULAR if one.data_set == "panda" and _SUSPICIOUS_WORDS["no mask"] in one.what
)
"""The 100 slides of PANDA, all of Radboud, that have no mask in the release."""

PARTLY_ANNOTATED = frozenset({"test_114", *(f"tumor_{number:03d}" for number in _PARTLY)})
"""CAMELYON16's slides with tumour outside their outlines (its README): a detection there is no false positive.

The organisers keep them in the slide-level AUC and leave them out of the FROC.
"""


def notes_of(data_set: str) -> Mapping[str, str]:
    """``{slide_id: what is the matter}`` of a data set, as its manifest notes it."""
    return MappingProxyType({one.slide_id: one.what for one in IRREGULAR if one.data_set == data_set})
