"""From slides to patients.

Shape suffixes: N slides, C classes.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.evaluation.task_scores import Kind, Scored

Pooling = Literal["max", "mean", "noisy_or"]


@dataclass(frozen=True, slots=True, eq=False)
class PooledCases:
    """scored: one entry per case. slides: how many each has. mixed: cases without one label of their own."""

    scored: Scored
    slides: tuple[int, ...]
    mixed: tuple[Hashable, ...]


def pool_cases(scored: Scored, how: Pooling = "max") -> PooledCases:
    """One probability and one label per case, in the order of its first slide.

    A case has a class of its own probability (the positive of two, each of several labels) where one of its
    slides has it; that probability is the slides' ``max``, ``mean`` or ``noisy_or``, 1 - Π(1 - p): the chance
    that any slide has it, were slides independent. Of one class of several, and of numbers, the mean is taken
    whatever ``how`` says; there, a case whose slides have different classes has no label: it is named in
    ``mixed`` and left out.
    """
    places: dict[Hashable, list[int]] = {}
    for place, case in enumerate(scored.case):
        places.setdefault(case, []).append(place)
    outputs, targets, cases, sizes, mixed = [], [], [], [], []
    for case, slides in places.items():
        output_NC, target_NC = scored.output_NC[slides], scored.target_NC[slides]
        if scored.kind == "multiclass" and (target_NC != target_NC[0]).any():
            mixed.append(case)
            continue
        outputs.append(pool_outputs(scored.kind, output_NC, how))
        targets.append(_case_target(scored, target_NC))
        cases.append(case)
        sizes.append(len(slides))
    shape = (-1, scored.output_NC.shape[1])
    return PooledCases(
        Scored(
            scored.task,
            np.array(outputs, np.float64).reshape(shape),
            np.array(targets, np.float64).reshape(shape),
            cases,
            scored.threshold,
        ),
        tuple(sizes),
        tuple(mixed),
    )


def pool_outputs(kind: Kind, output_NC: NDArray[np.float64], how: Pooling) -> NDArray[np.float64]:
    """What (N, C) slides of one case say together, (C,). See :func:`pool_cases`."""
    if kind in ("multiclass", "regression"):
        return np.asarray(output_NC.mean(axis=0), np.float64)
    if kind == "binary":
        positive = float(_pool(output_NC[:, -1:], how)[0])
        return np.array([1 - positive, positive][-output_NC.shape[1] :])
    return _pool(output_NC, how)


def _pool(probability_NC: NDArray[np.float64], how: Pooling) -> NDArray[np.float64]:
    if how == "max":
        return np.asarray(probability_NC.max(axis=0), np.float64)
    if how == "mean":
        return np.asarray(probability_NC.mean(axis=0), np.float64)
    return np.asarray(1 - (1 - probability_NC).prod(axis=0), np.float64)


def _case_target(scored: Scored, target_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    if scored.kind in ("multiclass", "regression"):
        return np.asarray(target_NC.mean(axis=0), np.float64)
    if scored.kind == "binary" and target_NC.shape[1] == 2:
        positive = float(target_NC[:, 1].max())
        return np.array([1 - positive, positive])
    return np.asarray(target_NC.max(axis=0), np.float64)
