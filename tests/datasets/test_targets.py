import pytest

from wsi_ips.config import TaskConfig
from wsi_ips.datasets.manifest import target_of

GRADE = TaskConfig(name="grade", classes=("low", "middle", "high"))
FOUND = TaskConfig(name="found", classes=("a", "b", "c"), activation="sigmoid")
TUMOR = TaskConfig(name="tumor", classes=("tumor",), activation="sigmoid")
AGE = TaskConfig(name="age", classes=("years", "days"), activation="linear")


@pytest.mark.parametrize(
    ("task", "cell", "target"),
    [
        (GRADE, "middle", 1),
        (FOUND, "c; a", (1.0, 0.0, 1.0)),
        (FOUND, "none", (0.0, 0.0, 0.0)),
        (TUMOR, "tumor", (1.0,)),
        (TUMOR, "1", (1.0,)),
        (TUMOR, "0", (0.0,)),
        (AGE, "61.5; -3", (61.5, -3.0)),
    ],
)
def test_a_cell_names_its_target(task: TaskConfig, cell: str, target: object) -> None:
    assert target_of(task, cell) == target


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        (GRADE, "", "grade is empty; fill it in"),
        (GRADE, "huge", "unknown grade 'huge'; known: low, middle, high"),
        (FOUND, "a;none", "unknown found 'none'"),
        (FOUND, "1", "known: a, b, c, none"),
        (AGE, "61", "is not 2 finite"),
        (AGE, "61;nan", "is not 2 finite"),
        (AGE, "61;old", "write one per output"),
    ],
)
def test_another_cell_is_refused_with_the_mend(task: TaskConfig, cell: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_of(task, cell)
