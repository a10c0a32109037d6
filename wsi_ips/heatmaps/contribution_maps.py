"""Contributions as maps: what each patch adds to an output of the network, and what that is in words.

A head that reads the mean of the patches' embeddings (``model.attention: direct``) makes each logit a sum over the
kept patches, so what one of them adds is exact. Attention says how much a patch weighs in that mean; its
contribution says which way it pulls, and how far. Patches that were not kept add exactly 0.

Shape suffixes: N patches, M kept patches, K outputs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.legend import short, signed
from wsi_ips.inference.results import SlideResult

NOT_TOLD = (
    "this model's head does not tell what a patch contributes "
    "(model.attention.block: direct does, in predictions of this version)"
)

Output = tuple[str, str]
"""(task, class)."""


def tells(result: SlideResult) -> bool:
    """Whether it is known what each patch contributes."""
    return result.kept_contributions_MK is not None


def outputs(result: SlideResult) -> list[Output]:
    """Every output of the network, tasks and classes in the model's order."""
    return [(task, name) for task, classes in result.probabilities.items() for name in classes]


def choose_output(result: SlideResult, *, task: str | None = None, class_name: str | None = None) -> Output:
    """The output that is meant; what is not named is chosen.

    Task: the first one that has the class. Class: of one or two the last, which is the one that a yes-or-no task
    looks for; of more the likeliest. Raises :class:`ConfigError` for a task or class that is not there.
    """
    slide_id, tasks = result.coords.slide_id, result.probabilities
    if task is not None and task not in tasks:
        raise ConfigError(f"task {task!r} is not there: {slide_id} has {', '.join(tasks)}")
    having = [name for name in tasks if class_name is None or class_name in tasks[name]]
    if task is None:
        task = next(iter(having), None)
    if task not in having:
        known = ", ".join(dict.fromkeys(name for _, name in outputs(result)))
        raise ConfigError(f"class {class_name!r} is not there: {slide_id} has {known}")
    classes = tasks[task]
    if class_name is None:
        likeliest = max(classes, key=lambda name: classes[name])
        class_name = likeliest if len(classes) > 2 else list(classes)[-1]
    return task, class_name


def contribution_map(result: SlideResult, output: Output) -> NDArray[np.float32]:
    """(N,) float32, logits: what each patch adds to this output.

    Raises :class:`ConfigError` where the head does not tell, or the output is not there.
    """
    if not tells(result):
        raise ConfigError(f"{result.coords.slide_id}: {NOT_TOLD}; use --map attention")
    if output not in outputs(result):
        raise ConfigError(f"{result.coords.slide_id} has no output {output[1]!r} of task {output[0]!r}")
    return result.contribution(*output)


def contribution_in_words(output: Output) -> str:
    """Whose contribution, and to what."""
    return f"Contribution to {output[1]}, task {output[0]}"


def spread_of_contributions(values_N: NDArray[np.floating], kept: int) -> str:
    """How many of the kept patches add to the output and how many take from it, how far, and the sum."""
    if not len(values_N):
        return "no patch"
    parts = [f"{_some(kept)} of {len(values_N)} kept"]
    for verb, side_n in (("add", values_N[values_N > 0]), ("take", -values_N[values_N < 0])):
        parts.append(
            f"{len(side_n)} {verb}" + (f" {short(float(side_n.max()))} at most" if len(side_n) else "")
        )
    total = signed(float(values_N.sum(dtype=np.float64)))
    return f"{', '.join(parts)}; together {total} logits; the others add nothing"


def _some(count: int) -> str:
    return "1 patch" if count == 1 else f"{count} patches"


def others_than(result: SlideResult, shown: Output | None) -> Sequence[Output]:
    """The outputs whose contributions are known beside the one that is shown."""
    return [output for output in outputs(result) if output != shown] if tells(result) else []
