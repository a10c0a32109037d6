"""CAMELYON17: from the classes of a patient's lymph nodes to the pN stage (:func:`pn_stage`), and how stages are
scored.

Rules: camelyon17.grand-challenge.org. :func:`score_submission` repeats the challenge's evaluate.py: Cohen's
kappa with quadratic weights over the patients of the reference.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsi_ips.datasets.camelyon import NODE_CLASSES, STAGES, Stages
from wsi_ips.errors import ResultsError
from wsi_ips.storage.files import check_size, whole_file

COLUMNS = ("patient", "stage")
"""Columns of a table of stages."""
PATIENT_SUFFIX, NODE_SUFFIX = ".zip", ".tif"
"""What the names of patients and of slides end with in a table of stages."""
MOST_POSITIVE = 9
"""Most positive nodes of a stage of the challenge."""
LARGEST_BYTES = 2**26
"""Largest table of stages that is read."""


def pn_stage(nodes: Sequence[str]) -> str:
    """The stage of a patient with these nodes, each one of :data:`NODE_CLASSES`.

    Isolated tumour cells do not make a node positive.

    Raises:
        ValueError: There are no nodes, a class is unknown, or more than nine nodes are positive, which is pN3
            and not part of the challenge.
    """
    unknown = [node for node in nodes if node not in NODE_CLASSES]
    if unknown or not nodes:
        what = f"unknown node class {unknown[0]!r}" if unknown else "a patient without nodes has no stage"
        raise ValueError(f"{what}; known: {', '.join(NODE_CLASSES)}")
    positive = sum(node in ("micro", "macro") for node in nodes)
    if positive > MOST_POSITIVE:
        raise ValueError(f"{positive} positive nodes: pN3 is not one of {', '.join(STAGES)}")
    if "macro" in nodes:
        return "pN1" if positive < 4 else "pN2"
    if positive:
        return "pN1mi"
    return "pN0(i+)" if "itc" in nodes else "pN0"


def quadratic_kappa(first: Sequence[str], second: Sequence[str], *, order: Sequence[str] = STAGES) -> float:
    """Cohen's kappa with quadratic weights between two lists of labels of the same items.

    It is 1 - sum(w O) / sum(w E), where w_ij = (i - j)^2, O is the confusion matrix, and E is the outer product
    of its marginals over n.

    Raises:
        ValueError: A label is not in ``order``, there are no items, or both lists hold one and the same label
            throughout, so that kappa is not defined.
    """
    places = {label: place for place, label in enumerate(order)}
    for label in (*first, *second):
        if label not in places:
            raise ValueError(f"unknown label {label!r}; known: {', '.join(order)}")
    observed = np.zeros((len(order), len(order)))
    for one, other in zip(first, second, strict=True):
        observed[places[one], places[other]] += 1
    weights = np.subtract.outer(np.arange(len(order)), np.arange(len(order))) ** 2
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / max(observed.sum(), 1)
    by_chance = float((weights * expected).sum())
    if by_chance == 0:
        raise ValueError(f"kappa of {len(first)} items with one label is not defined")
    return float(1 - (weights * observed).sum() / by_chance)


def read_submission(path: Path) -> Stages:
    """Read a submission or a reference in the challenge's form ``patient,stage``.

    Rows are ``patient_100.zip,pN1`` and ``patient_100_node_0.tif,micro``. Labels are taken as they are written,
    unlike those of the official table (:func:`wsi_ips.datasets.camelyon.read_stages`), and further columns are
    ignored. Raises :class:`ResultsError` for a missing file, no such columns, a row without a name, or one that
    occurs twice.
    """
    if not path.is_file():
        raise ResultsError(path, "no such table of stages", f"write a CSV with {','.join(COLUMNS)}")
    check_size(path, ResultsError, most=LARGEST_BYTES, fix="is it a table of stages?")
    patients: dict[str, str] = {}
    nodes: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            if tuple(rows.fieldnames or ())[:2] != COLUMNS:
                raise ResultsError(path, "does not start with the columns patient,stage", "add the header")
            for row in rows:
                name, stage = (row["patient"] or "").strip(), (row["stage"] or "").strip()
                table = patients if name.endswith(PATIENT_SUFFIX) else nodes
                key = name.removesuffix(PATIENT_SUFFIX if table is patients else NODE_SUFFIX)
                if key in table or not key:
                    why = "occurs twice" if key else "has no name"
                    raise ResultsError(path, f"line {rows.line_num}: {name!r} {why}", "correct the line")
                table[key] = stage
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(path, f"is not a CSV in UTF-8 ({error})", "save it as CSV") from None
    return Stages(patients, nodes)


def write_submission(path: Path, nodes: Mapping[str, Mapping[str, str]]) -> None:
    """Write the CSV of the challenge: the stage of each patient, then the patient's nodes.

    ``nodes`` is ``{patient: {slide: class}}``. Raises ``ValueError`` if a patient has no stage, see
    :func:`pn_stage`, before anything is written.
    """
    rows = []
    for patient, classes in sorted(nodes.items()):
        rows.append((patient + PATIENT_SUFFIX, pn_stage(list(classes.values()))))
        rows += [(slide + NODE_SUFFIX, classes[slide]) for slide in sorted(classes)]
    _write(path, rows)


def write_stages(path: Path, stages: Mapping[str, str]) -> None:
    """Write the CSV of the challenge with the rows of patients alone, which are the ones that it scores.

    ``stages`` is ``{patient: stage}``.
    """
    _write(path, [(patient + PATIENT_SUFFIX, stage) for patient, stage in sorted(stages.items())])


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def score_submission(submission: Path, reference: Path) -> float:
    """The score of the challenge for a submission: kappa over the patients of the reference.

    Only the rows of patients count, and not those of patients that the reference lacks.

    Raises:
        ResultsError: A stage in either file is unknown (capitals count), or the submission lacks a patient.
    """
    ours, theirs = read_submission(submission).patients, read_submission(reference).patients
    if not theirs:
        raise ResultsError(reference, "names no patient", "its rows are patient_100.zip,pN1")
    for patient, stage in theirs.items():
        if stage not in STAGES:
            raise _unknown(reference, patient, stage)
        if patient not in ours:
            raise ResultsError(submission, f"lacks patient {patient!r}", "every patient must have a stage")
        if ours[patient] not in STAGES:
            raise _unknown(submission, patient, ours[patient])
    try:
        return quadratic_kappa(list(theirs.values()), [ours[patient] for patient in theirs])
    except ValueError as error:
        raise ResultsError(submission, str(error)) from None


def _unknown(path: Path, patient: str, stage: str) -> ResultsError:
    return ResultsError(path, f"unknown stage {stage!r} of {patient!r}", f"known: {', '.join(STAGES)}")
