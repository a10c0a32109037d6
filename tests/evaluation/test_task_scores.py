import math

import numpy as np
import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.evaluation.task_scores import Scored, class_rows, kind_of, pool_cases

BINARY = TaskConfig()
SEVERAL = TaskConfig(classes=("benign", "adeno", "squamous"))
GRADES = TaskConfig(name="grade", kind="ordinal", classes=("low", "middle", "high"))
YES_OR_NO = TaskConfig(classes=("msi",), activation="sigmoid")
LABELS = TaskConfig(classes=("er", "pr"), activation="sigmoid")
NUMBER = TaskConfig(name="age", classes=("age",), activation="linear")


def binary(*slides: tuple[str, float, int], threshold: float = 0.5) -> Scored:
    """Slides (case, probability of tumour, label)."""
    outputs = [{"normal": 1 - p, "tumor": p} for _, p, _ in slides]
    return Scored.of(BINARY, outputs, [label for *_, label in slides], [case for case, *_ in slides],
                     threshold=threshold)  # fmt: skip


def test_each_task_has_its_kind() -> None:
    kinds = [kind_of(task) for task in (BINARY, YES_OR_NO, SEVERAL, LABELS, NUMBER)]
    assert kinds == ["binary", "binary", "multiclass", "multilabel", "regression"]


def test_the_threshold_decides_what_is_called() -> None:
    slides = (("a", 0.9, 1), ("b", 0.4, 1), ("c", 0.35, 0), ("d", 0.1, 0))
    strict, loose = binary(*slides).figures(), binary(*slides, threshold=0.35).figures()
    assert (strict["sensitivity"], strict["specificity"], strict["accuracy"]) == (0.5, 1, 0.75)
    assert (loose["sensitivity"], loose["specificity"], loose["balanced_accuracy"]) == (1, 0.5, 0.75)
    assert strict["auc"] == loose["auc"] == 1
    assert binary(*slides, threshold=0.35).correct.tolist() == [True, True, False, True]


def test_one_yes_or_no_class_is_scored_as_two_classes_are() -> None:
    slides = [("a", 0.9, 1), ("b", 0.4, 1), ("c", 0.6, 0), ("d", 0.1, 0)]
    two = binary(*slides)
    one = Scored.of(
        YES_OR_NO, [{"msi": p} for _, p, _ in slides], [(float(y),) for *_, y in slides], two.case
    )
    assert one.figures() == pytest.approx(two.figures())
    assert np.array_equal(one.confusion, two.confusion)
    assert one.class_names == ("not msi", "msi")


def test_several_classes_by_hand() -> None:
    outputs = [
        dict(zip(SEVERAL.classes, row, strict=True))
        for row in ([0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7])
    ]
    scored = Scored.of(SEVERAL, outputs, [0, 1, 1, 2], "abcd")
    figures = scored.figures()
    assert (figures["accuracy"], figures["balanced_accuracy"]) == pytest.approx((0.75, 2.5 / 3))
    assert (figures["auc_benign"], figures["auc_adeno"], figures["auc_squamous"]) == (1, 1, 1)
    assert scored.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    rows = class_rows(scored)
    assert [row["slides"] for row in rows] == [1, 2, 1]
    assert [row["precision"] for row in rows] == [0.5, 1, 1]


def test_several_labels_by_hand() -> None:
    outputs = [{"er": 0.9, "pr": 0.6}, {"er": 0.2, "pr": 0.7}, {"er": 0.4, "pr": 0.1}]
    scored = Scored.of(LABELS, outputs, [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)], "abc")
    figures = scored.figures()
    assert (figures["exact_match"], figures["accuracy_mean"]) == pytest.approx((1 / 3, 4 / 6))
    assert (figures["auc_er"], figures["auc_pr"], figures["auc_macro"]) == (1, 1, 1)
    assert figures["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_numbers_by_hand() -> None:
    scored = Scored.of(NUMBER, [{"age": 1.0}, {"age": 2.0}, {"age": 6.0}], [(1.0,), (3.0,), (5.0,)], "abc")
    figures = scored.figures()
    assert figures == pytest.approx({"mae": 2 / 3, "rmse": math.sqrt(2 / 3), "r2": 0.75, "spearman": 1})
    assert class_rows(scored) == []


def test_what_cannot_be_told_is_nan_and_the_rest_stands() -> None:
    figures = binary(("a", 0.9, 1), ("b", 0.4, 1)).figures()
    assert math.isnan(figures["auc"])
    assert math.isnan(figures["specificity"])
    assert figures["sensitivity"] == 0.5


def test_intervals_hold_their_figures_and_keep_classes_when_stratified() -> None:
    rng = np.random.default_rng(0)
    scored = binary(*((str(n // 2), float(rng.random()), n // 2 % 2) for n in range(60)))
    stratified = scored.intervals(resamples=100, seed=0)
    assert stratified["auc"].value == scored.figures()["auc"]
    assert all(one.low <= one.high for one in stratified.values())
    assert all(one.undefined == 0 for one in stratified.values())
    some = binary(*((str(n), 0.4, int(n < 5)) for n in range(50)))
    assert some.intervals(resamples=500, seed=0, stratified=False)["auc"].undefined > 0
    few = binary(*((str(n), 0.4, int(n < 4)) for n in range(50)))
    assert few.intervals(resamples=10, seed=0)["auc"].why_none == "4 cases of a class, and 5 are needed"


def test_a_case_with_a_positive_slide_is_positive_by_any_of_three_rules() -> None:
    scored = binary(("a", 0.5, 0), ("b", 0.2, 0), ("a", 0.8, 1), ("b", 0.1, 0))
    for how, expected in (("max", 0.8), ("mean", 0.65), ("noisy_or", 0.9)):
        pooled = pool_cases(scored, how)  # type: ignore[arg-type]
        assert pooled.scored.case == ["a", "b"]
        assert pooled.scored.probability[0] == pytest.approx(expected)
        assert pooled.scored.output_NC.sum(axis=1) == pytest.approx([1, 1])
        assert pooled.scored.positive.tolist() == [True, False]
        assert pooled.slides == (2, 2)


def test_a_case_of_one_class_of_several_must_agree_with_itself() -> None:
    outputs = [{"benign": 0.6, "adeno": 0.4, "squamous": 0.0}] * 3
    pooled = pool_cases(Scored.of(SEVERAL, outputs, [0, 1, 2], ["a", "a", "b"]))
    assert pooled.mixed == ("a",)
    assert pooled.scored.case == ["b"]
    assert pooled.scored.label.tolist() == [2]


def test_labels_and_numbers_of_a_case() -> None:
    labels = Scored.of(
        LABELS, [{"er": 0.5, "pr": 0.1}, {"er": 0.2, "pr": 0.3}], [(1.0, 0.0), (0.0, 0.0)], "aa"
    )
    pooled = pool_cases(labels, "max").scored
    assert pooled.output_NC.tolist() == [[0.5, 0.3]]
    assert pooled.target_NC.tolist() == [[1, 0]]
    numbers = pool_cases(Scored.of(NUMBER, [{"age": 1.0}, {"age": 3.0}], [(2.0,), (4.0,)], "aa")).scored
    assert (numbers.output_NC.tolist(), numbers.target_NC.tolist()) == ([[2]], [[3]])


def graded(*counts: int, task: TaskConfig = GRADES) -> Scored:
    """So many cases of each grade, most of them called right."""
    labels = [grade for grade, count in enumerate(counts) for _ in range(count)]
    outputs = []
    for number, label in enumerate(labels):
        called = label if number % 4 else (label + 1) % 3
        outputs.append(
            {
                name: 0.8 - 0.001 * number if place == called else 0.1
                for place, name in enumerate(task.classes)
            }
        )
    return Scored.of(task, outputs, labels, range(len(labels)))


OVER_CLASSES = ("auc_macro", "balanced_accuracy", "f1_macro")


def test_a_mean_over_classes_has_no_interval_where_one_of_them_is_rare() -> None:
    rare = graded(20, 15, 4).intervals(resamples=50, seed=0)
    for name in (*OVER_CLASSES, "auc_high"):
        assert rare[name].why_none == "4 cases of a class, and 5 are needed", name
        assert math.isnan(rare[name].low)
        assert math.isfinite(rare[name].value)
    for name in ("auc_low", "quadratic_kappa", "accuracy", "brier", "ece"):
        assert not rare[name].why_none, name
        assert rare[name].low < rare[name].high, name
    enough = graded(20, 15, 5).intervals(resamples=50, seed=0)
    assert all(enough[name].low < enough[name].high for name in (*OVER_CLASSES, "quadratic_kappa"))


def test_a_class_that_nobody_has_is_not_in_the_mean() -> None:
    found = graded(20, 15, 0).intervals(resamples=50, seed=0)
    assert math.isnan(found["auc_high"].value)
    assert all(not found[name].why_none for name in OVER_CLASSES)


def test_kappa_needs_cases_outside_the_most_frequent_class() -> None:
    why = "4 cases outside the most frequent class, and 5 are needed"
    assert graded(30, 2, 2).intervals(resamples=20, seed=0)["quadratic_kappa"].why_none == why
    assert not graded(30, 3, 2).intervals(resamples=20, seed=0)["quadratic_kappa"].why_none


def test_of_several_labels_the_rarest_decides_for_the_means_too() -> None:
    outputs = [{"er": (number % 7) / 7, "pr": (number % 5) / 5} for number in range(30)]
    targets = [(float(number % 2), float(number < 4)) for number in range(30)]
    found = Scored.of(LABELS, outputs, targets, range(30)).intervals(resamples=50, seed=0)
    for name in ("auc_macro", "f1_macro", "auc_pr"):
        assert found[name].why_none == "4 cases of a class, and 5 are needed", name
    assert not found["auc_er"].why_none
    assert not found["exact_match"].why_none
