"""From query tokens to labels: one linear layer per task, each on its own token.

Shape suffixes: B bags, T tasks (and query tokens), D width, C classes of a task.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from wsi_ips.config import TaskConfig, task_queries

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_BC: logits_BC.softmax(dim=-1),
    "sigmoid": Tensor.sigmoid,
    "linear": lambda outputs_BC: outputs_BC,
}


class Heads(nn.Module):
    """A task reads the token that its config names, or the one of its own place."""

    def __init__(self, dim: int, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.tokens = task_queries(tasks)
        """{task: the token that it reads}"""
        self.queries = queries_of(tasks)
        self.layers = nn.ModuleList(nn.Linear(dim, len(task.classes)) for task in tasks)

    def forward(self, tokens_BTD: Tensor) -> dict[str, Tensor]:
        """Task name to logits (B, C)."""
        return {
            task.name: layer(tokens_BTD[:, self.tokens[task.name]])
            for task, layer in zip(self._tasks, self.layers, strict=True)
        }

    def weights(self) -> dict[str, Tensor]:
        """Task name to its layer's weight (C, D)."""
        layers = zip(self._tasks, self.layers, strict=True)
        return {task.name: layer.weight for task, layer in layers if isinstance(layer, nn.Linear)}

    def probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task name to probabilities (B, C): softmax or sigmoid, as the task says; a linear task's own numbers."""
        return {task.name: _ACTIVATIONS[task.activation](logits[task.name]) for task in self._tasks}


def queries_of(tasks: Sequence[TaskConfig]) -> int:
    """How many query tokens the tasks read."""
    return max(task_queries(tasks).values()) + 1
