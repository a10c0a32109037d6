"""The figures of one task with their intervals, for slides (:class:`Scored`) and for patients
(:func:`pool_cases`).

Which figures there are depends on the kind of the task::

    binary       two classes of which one is the positive, or one yes-or-no class
    multiclass   one class of several
    multilabel   several yes-or-no classes
    regression   numbers

Shape suffixes: N slides, C classes (or outputs of a regression).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import Target
from wsi_ips.evaluation import slide_level as level
from wsi_ips.evaluation.intervals import OUTSIDE_THE_COMMONEST, Interval, Picked, bootstrap
from wsi_ips.evaluation.slide_level import Reliability, brier, brier_of_classes, reliability, top_label
from wsi_ips.evaluation.staging import quadratic_kappa

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
"""The kind of a task, which decides its figures."""
Figures = dict[str, float]
"""``{name: value}``."""
Pooling = Literal["max", "mean", "noisy_or"]
"""How the slides of a case are pooled, see :func:`pool_cases`."""
THRESHOLD = 0.5
"""A class with a probability of its own is called if the probability is at least this."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What is known of the slides of one task. Cases in the place of slides are scored alike.

    Attributes:
        task: The task.
        output_NC: float64, probabilities or numbers.
        target_NC: float64, 0 or 1 for each class, or the numbers.
        case: The case of each slide.
        threshold: A class with a probability of its own is called if the probability is at least this.
    """

    task: TaskConfig
    output_NC: NDArray[np.float64]
    target_NC: NDArray[np.float64]
    case: Sequence[Hashable]
    threshold: float = THRESHOLD

    @classmethod
    def of(
        cls,
        task: TaskConfig,
        outputs: Sequence[Mapping[str, float]],
        targets: Sequence[Target],
        case: Sequence[Hashable],
        *,
        threshold: float = THRESHOLD,
    ) -> Self:
        """From the outputs and targets of slides.

        Args:
            task: The task.
            outputs: ``{class: probability}`` of each slide.
            targets: The target of each slide, see :mod:`wsi_ips.datasets.manifest`.
            case: The case of each slide.
            threshold: See :class:`Scored`.
        """
        output_NC = np.array([[one[name] for name in task.classes] for one in outputs], np.float64)
        rows = [np.eye(len(task.classes))[t] if isinstance(t, int) else t for t in targets]
        shape = (-1, len(task.classes))
        return cls(task, output_NC.reshape(shape), np.array(rows, float).reshape(shape), case, threshold)

    @property
    def kind(self) -> Kind:
        """The kind of the task."""
        return kind_of(self.task)

    @property
    def label(self) -> NDArray[np.int64]:
        """The index of the class of each slide, (N,). For one yes-or-no class, 0 or 1."""
        return _index(self.target_NC)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which slides are positive, (N,). Only for a binary task."""
        return np.asarray(self.target_NC[:, -1] > 0)

    @property
    def probability(self) -> NDArray[np.float64]:
        """The probability of the positive class, (N,). Only for a binary task."""
        return self.output_NC[:, -1]

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which classes are called, (N, C): the likeliest of several, otherwise each from the threshold on."""
        if self.kind == "multiclass":
            likeliest_N1 = self.output_NC.argmax(axis=1)[:, np.newaxis]
            return np.asarray(likeliest_N1 == np.arange(self.output_NC.shape[1]))
        if self.kind == "binary" and self.output_NC.shape[1] == 2:
            called_N = self.probability >= self.threshold
            return np.stack([~called_N, called_N], axis=1)
        return np.asarray(self.output_NC >= self.threshold)

    @property
    def called_class(self) -> NDArray[np.int64]:
        """The index of the called class, (N,). For one yes-or-no class, 0 or 1."""
        return _index(self.called)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the values of :attr:`label`."""
        name = self.task.classes[0]
        return self.task.classes if len(self.task.classes) > 1 else (f"not {name}", name)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The confusion matrix (C, C) of a binary or multi-class task. Rows are labels."""
        return level.confusion_matrix(self.label, self.called_class, len(self.class_names))

    @property
    def reliability(self) -> Reliability:
        """The reliability of the probability of the positive class; for several classes, of the likeliest one."""
        if self.kind == "multiclass":
            return reliability(*top_label(self.output_NC, self.label))
        if self.kind == "multilabel":
            return reliability(self.output_NC.ravel(), self.target_NC.ravel() > 0)
        return reliability(self.probability, self.positive)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which slides are called correctly, (N,). With several labels, all of them have to be."""
        return np.asarray((self.called == (self.target_NC > 0)).all(axis=1))

    @property
    def strata(self) -> list[int] | None:
        """The highest class of each slide's case, of which a resample keeps the numbers. None for several labels
        or numbers.
        """
        if self.kind in ("multilabel", "regression"):
            return None
        highest: dict[Hashable, int] = {}
        for case, label in zip(self.case, self.label.tolist(), strict=True):
            highest[case] = max(label, highest.get(case, 0))
        return [highest[case] for case in self.case]

    def pick(self, places: Picked) -> "Scored":
        """The slides at these places."""
        return Scored(
            self.task, self.output_NC[places], self.target_NC[places], range(len(places)), self.threshold
        )

    def figures(self) -> Figures:
        """Every figure of the kind of the task. NaN if these slides do not give it."""
        return _FIGURES[self.kind](self)

    def intervals(self, *, resamples: int, seed: int, stratified: bool = True) -> dict[str, Interval]:
        """The figures with their bootstrap intervals over cases. ``stratified``: each resample keeps the numbers
        of classes.
        """
        strata = self.strata if stratified else None
        return bootstrap(
            lambda places: self.pick(places).figures(),
            self.case,
            strata=strata,
            resamples=resamples,
            seed=seed,
            rarest=self.rarest,
            of=self.counted,
        )

    @property
    def rarest(self) -> int | dict[str, int]:
        """Cases of the smaller class of a binary task.

        For others, a number for each figure that a rare class decides: for the AUC of each class, cases with or
        without it, whichever are fewer; for means over classes (``auc_macro``, ``balanced_accuracy``,
        ``f1_macro``), those of the rarest class that is in the mean; for ``quadratic_kappa``, cases outside the
        most frequent class. The remaining figures are means over slides, or are of numbers.
        """
        if self.kind == "binary":
            highest = dict(zip(self.case, self.strata or (), strict=True))
            return int(np.bincount(list(highest.values()), minlength=2).min())
        if self.kind == "regression":
            return {}
        n_cases = len(set(self.case))
        with_it = [
            len({case for case, there in zip(self.case, column_N, strict=True) if there})
            for column_N in (self.target_NC > 0).T.tolist()
        ]
        either = [min(count, n_cases - count) for count in with_it]
        fewest = {f"auc_{name}": count for name, count in zip(self.task.classes, either, strict=True)}
        # A class that no case has, or that all have, has no AUC, and is not in the mean.
        fewest["auc_macro"] = min(filter(None, either), default=0)
        fewest["balanced_accuracy"] = fewest["f1_macro"] = min(filter(None, with_it), default=0)
        return fewest | (
            {"quadratic_kappa": self._outside_the_commonest} if self.kind == "multiclass" else {}
        )

    @property
    def _outside_the_commonest(self) -> int:
        """Cases with a slide of another class than the most frequent one. Only for a multi-class task."""
        commonest = int(np.bincount(self.label).argmax())
        return len(
            {case for case, label in zip(self.case, self.label.tolist(), strict=True) if label != commonest}
        )

    @property
    def counted(self) -> Mapping[str, str]:
        """What :attr:`rarest` counts, in words, for figures for which that is not cases of a class."""
        return {"quadratic_kappa": OUTSIDE_THE_COMMONEST}


def kind_of(task: TaskConfig) -> Kind:
    """The kind of a task, which decides its figures."""
    if task.activation == "linear":
        return "regression"
    if task.activation == "sigmoid":
        return "binary" if len(task.classes) == 1 else "multilabel"
    return "binary" if len(task.classes) == 2 else "multiclass"


def positive_class(task: TaskConfig) -> str:
    """The class that a binary task looks for, which is its last."""
    return task.classes[-1]


def _binary(scored: Scored) -> Figures:
    scores, positive = scored.probability, scored.positive
    confusion_CC = scored.confusion
    rates = level.ClassRates.of(confusion_CC)
    both = 0 < positive.sum() < len(positive)
    return {
        "auc": level.auc_or_nan(scores, positive),
        "average_precision": level.average_precision(scores, positive) if both else np.nan,
        "accuracy": level.accuracy(confusion_CC),
        "balanced_accuracy": level.mean_defined(rates.recall),
        "sensitivity": float(rates.recall[1]),
        "specificity": float(rates.recall[0]),
        "precision": float(rates.precision[1]),
        "f1": float(rates.f1[1]),
        "brier": brier(scores, positive),
        "ece": scored.reliability.ece,
    }


def _multiclass(scored: Scored) -> Figures:
    confusion_CC = scored.confusion
    rates = level.ClassRates.of(confusion_CC)
    aucs = level.one_vs_rest_aucs(scored.output_NC, scored.target_NC > 0)
    kappa = {"quadratic_kappa": _kappa(confusion_CC)} if scored.task.kind == "ordinal" else {}
    return {
        **kappa,
        "auc_macro": level.mean_defined(aucs),
        **{f"auc_{name}": float(auc) for name, auc in zip(scored.task.classes, aucs, strict=True)},
        "accuracy": level.accuracy(confusion_CC),
        "balanced_accuracy": level.mean_defined(rates.recall),
        "f1_macro": level.mean_defined(rates.f1),
        "brier": brier_of_classes(scored.output_NC, scored.label),
        "ece": scored.reliability.ece,
    }


def _kappa(confusion_CC: NDArray[np.int64]) -> float:
    """Cohen's kappa with quadratic weights between places in the order of the classes. NaN if it is
    not defined.
    """
    places = [str(place) for place in range(len(confusion_CC))]
    rows, columns = np.indices(confusion_CC.shape)
    label = np.repeat(rows.ravel(), confusion_CC.ravel()).astype(str).tolist()
    called = np.repeat(columns.ravel(), confusion_CC.ravel()).astype(str).tolist()
    try:
        return quadratic_kappa(label, called, order=places)
    except ValueError:
        return np.nan


def _multilabel(scored: Scored) -> Figures:
    present_NC, called_NC = scored.target_NC > 0, scored.called
    aucs = level.one_vs_rest_aucs(scored.output_NC, present_NC)
    rates = [_yes_or_no(present_NC[:, c], called_NC[:, c]) for c in range(present_NC.shape[1])]
    return {
        "auc_macro": level.mean_defined(aucs),
        **{f"auc_{name}": float(auc) for name, auc in zip(scored.task.classes, aucs, strict=True)},
        "exact_match": float(scored.correct.mean()),
        "accuracy_mean": float((present_NC == called_NC).mean()),
        "f1_macro": level.mean_defined(np.array([float(one.f1[1]) for one in rates])),
        "brier_mean": brier(scored.output_NC, present_NC),
        "ece": scored.reliability.ece,
    }


def _regression(scored: Scored) -> Figures:
    figures: Figures = {}
    for column, name in enumerate(scored.task.classes):
        predicted, label = scored.output_NC[:, column], scored.target_NC[:, column]
        end = f"_{name}" if len(scored.task.classes) > 1 else ""
        figures[f"mae{end}"] = float(np.abs(predicted - label).mean())
        figures[f"rmse{end}"] = float(np.sqrt(((predicted - label) ** 2).mean()))
        figures[f"r2{end}"] = level.r_squared(predicted, label)
        figures[f"spearman{end}"] = level.spearman(predicted, label)
    return figures


def _yes_or_no(present_N: NDArray[np.bool_], called_N: NDArray[np.bool_]) -> level.ClassRates:
    return level.ClassRates.of(level.confusion_matrix(present_N.astype(int), called_N.astype(int), 2))


_FIGURES = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _index(chosen_NC: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    if chosen_NC.shape[1] == 1:
        return np.asarray(chosen_NC[:, 0], np.int64)
    return np.asarray(chosen_NC.argmax(axis=1), np.int64)


def class_rows(scored: Scored) -> list[dict[str, str | int | float]]:
    """One row for each class: slides, recall, precision, specificity, F1, AUC. Empty for a regression."""
    if scored.kind == "regression":
        return []
    present_NC, called_NC = scored.target_NC > 0, scored.called
    aucs = level.one_vs_rest_aucs(scored.output_NC, present_NC)
    rows: list[dict[str, str | int | float]] = []
    for column, name in enumerate(scored.task.classes):
        rates = _yes_or_no(present_NC[:, column], called_NC[:, column])
        rows.append(
            {
                "class": name,
                "slides": int(rates.support[1]),
                "recall": float(rates.recall[1]),
                "precision": float(rates.precision[1]),
                "specificity": float(rates.recall[0]),
                "f1": float(rates.f1[1]),
                "auc": float(aucs[column]),
            }
        )
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class PooledCases:
    """Slides pooled by case.

    Attributes:
        scored: One entry for each case.
        slides: How many slides each case has.
        mixed: Cases that are left out, because they have no single label.
    """

    scored: Scored
    slides: tuple[int, ...]
    mixed: tuple[Hashable, ...]


def pool_cases(scored: Scored, how: Pooling = "max") -> PooledCases:
    """One probability and one label for each case, in the order of its first slide.

    If classes have probabilities of their own (the positive of two, each of several labels), a case has a class
    if one of its slides has it, and the probability is the ``max`` or the ``mean`` over the slides, or
    ``noisy_or``, 1 - Π(1 - p): the probability that any slide has it, if slides were independent. For one class
    of several, and for numbers, the mean is taken whatever ``how`` says; a case whose slides have different
    classes has no label then, is named in ``mixed``, and left out.
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
    """What the slides of one case say together: (N, C) to (C,). See :func:`pool_cases`."""
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
