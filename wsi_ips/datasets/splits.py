"""Dividing slides by case, so that no patient is learned from and measured on."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsi_ips.datasets.manifest import SPLITS, SlideRecord
from wsi_ips.errors import ConfigError


def split_by_case(
    records: Sequence[SlideRecord], *, column: str = "label", fractions: Mapping[str, float], seed: int
) -> list[SlideRecord]:
    """Give every case to one split, in about these fractions for each label of ``column``, by ``seed``.

    A case counts under its rarest label. Raises :class:`ConfigError` where fractions do not sum to 1.
    """
    if set(fractions) - set(SPLITS) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"fractions {dict(fractions)} must name {', '.join(SPLITS)} and sum to 1")
    split_of: dict[str, str] = {}
    for cases in _shuffled_cases(records, column=column, seed=seed).values():
        start, share = 0, 0.0
        for split, fraction in fractions.items():
            share += fraction
            end = round(share * len(cases))
            split_of.update(dict.fromkeys(cases[start:end], split))
            start = end
    return [replace(record, split=split_of[record.case_id]) for record in records]


def folds_by_case(records: Sequence[SlideRecord], *, k: int, column: str | None, seed: int) -> list[int]:
    """The fold, 0 to ``k`` - 1, of each record: every case lies in one, by ``seed``.

    Each label of ``column`` is spread evenly (a case counts under its rarest label), and folds hold equally many
    cases, give or take one; without ``column`` only the latter. Raises :class:`ConfigError` where a label has
    fewer than ``k`` cases, so that a fold would lack it.
    """
    if k < 2:
        raise ConfigError(f"cross-validation needs 2 folds or more, not {k}")
    by_label = _shuffled_cases(records, column=column, seed=seed)
    for label, cases in by_label.items():
        # Cases without a label are dealt out as well, however few they are.
        if len(cases) < k and (label or column is None):
            what = f"{column} {label!r}" if column else "slides"
            fewer = f"take {len(cases)} folds or fewer, or " if len(cases) > 1 else ""
            raise ConfigError(f"{k} folds need {k} cases with {what}, found {len(cases)}; {fewer}add cases")
    # Dealt like cards, the next label going on where the last one stopped.
    dealt = [case for cases in by_label.values() for case in cases]
    fold_of = {case: place % k for place, case in enumerate(dealt)}
    return [fold_of[record.case_id] for record in records]


def set_aside_by_case(
    records: Sequence[SlideRecord], *, share: float, column: str | None, seed: int | str
) -> list[bool]:
    """Which records are set aside: about ``share`` of the cases of each label of ``column``, by ``seed``.

    Of a label with two cases or more at least one is set aside and one is not; a case counts under its rarest
    label. Without ``column`` labels are not looked at. Raises :class:`ConfigError` where either side would have
    slides of one label only, or none.
    """
    aside: set[str] = set()
    for cases in _shuffled_cases(records, column=column, seed=seed).values():
        if len(cases) > 1:
            aside.update(cases[: min(len(cases) - 1, max(1, round(share * len(cases))))])
    chosen = [record.case_id in aside for record in records]
    for side, name in ((True, "set aside"), (False, "left")):
        its = [record for record, one in zip(records, chosen, strict=True) if one is side]
        labels = {record.labels[column] for record in its} - {""} if column else set()
        if not its or (column is not None and len(labels) < 2):
            found = f"only {column} {labels.pop()!r}" if labels else "no slides"
            raise ConfigError(
                f"{len(records)} slides are too few to set some aside by case: {name} is {found}"
            )
    return chosen


def _shuffled_cases(
    records: Sequence[SlideRecord], *, column: str | None, seed: int | str
) -> dict[str, list[str]]:
    """{label: its cases, shuffled}, each case once under its rarest label; without column all under ''."""
    labels = ["" if column is None else record.labels[column] for record in records]
    by_case: dict[str, list[str]] = {}
    for record, label in zip(records, labels, strict=True):
        by_case.setdefault(record.case_id, []).append(label)
    by_label: dict[str, list[str]] = {}
    for case, case_labels in sorted(by_case.items()):
        known = [label for label in case_labels if label] or case_labels
        by_label.setdefault(min(known, key=lambda label: (labels.count(label), label)), []).append(case)
    for label, cases in by_label.items():
        random.Random(f"{seed}/{label}").shuffle(cases)  # noqa: S311 - not a secret
    return dict(sorted(by_label.items()))
