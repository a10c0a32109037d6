"""From a manifest's cell to what a task learns.

A target is an index or a tuple of numbers, so that data sets need no torch.
"""

import math

from wsi_ips.config import TaskConfig

NONE = "none"
"""What a cell says of a slide that has none of a sigmoid task's classes. Empty would read as forgotten."""

Target = int | tuple[float, ...]
"""softmax: the class's index. sigmoid: 0 or 1 per class. linear: the number per output."""


def target_of(task: TaskConfig, cell: str) -> Target:
    """The target that ``cell`` names.

    softmax: a class's name. sigmoid: the names of the classes that apply, with ``;`` between them, or
    ``none``; where there is one class, 1 and 0 too. linear: one finite number per output, with ``;``.
    Raises ``ValueError`` with the problem and the mend.
    """
    if not cell:
        raise ValueError(f"{task.column_name} is empty; fill it in, or leave the line out")
    if task.activation == "softmax":
        return _class(task, cell)
    parts = [part.strip() for part in cell.split(";")]
    if task.activation == "linear":
        return _numbers(task, parts)
    if len(task.classes) == 1 and cell in ("0", "1"):
        return (float(cell),)
    present = set() if parts == [NONE] else {_class(task, part) for part in parts}
    return tuple(float(index in present) for index in range(len(task.classes)))


def _class(task: TaskConfig, name: str) -> int:
    if name not in task.classes:
        known = ", ".join((*task.classes, *([NONE] if task.activation == "sigmoid" else [])))
        raise ValueError(f"unknown {task.column_name} {name!r}; known: {known}")
    return task.classes.index(name)


def _numbers(task: TaskConfig, parts: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) != len(task.classes) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(
            f"{task.column_name} {';'.join(parts)!r} is not {len(task.classes)} finite number(s); "
            f"write one per output ({', '.join(task.classes)}), with ';' between them"
        )
    return numbers
