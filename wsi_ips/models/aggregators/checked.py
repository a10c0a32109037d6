"""What is checked of another package's aggregator, once, at its first bag.

A tensor with the wrong axes often computes something all the same: attention (B, T, M) in place of (B, H, T, M)
trains and predicts, and its maps are wrong. :class:`CheckedAggregator` compares shapes where
:class:`wsi_ips.models.ips_net.IPSNet` uses the aggregator. Those that come with wsi_ips are not checked here,
since their tests do it.

Shape suffixes: see :mod:`wsi_ips.models.aggregators.base`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from wsi_ips.config import TaskConfig
from wsi_ips.errors import ExtensionWrong, WsiIpsError, one_line
from wsi_ips.models.aggregators.base import Aggregated, Aggregator
from wsi_ips.models.aggregators.registry import AGGREGATORS


def built_aggregator(name: str, build: Callable[[], Any]) -> Aggregator:
    """The aggregator that ``build`` makes.

    Raises:
        ExtensionWrong: It is another package's, and its function raised an exception or made something else.
    """
    if name in AGGREGATORS.members:
        ours: Aggregator = build()
        return ours
    try:
        made = build()
    except WsiIpsError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=200)
        raise _wrong(name, "its function to build a module", f"it raised {reason}") from error
    if not isinstance(made, Aggregator):
        raise _wrong(name, "a module that is a subclass of Aggregator", f"its function built {_said(made)}")
    if made.token_dim is not None and not isinstance(made.token_dim, int):
        raise _wrong(name, "token_dim to be a number or None", f"it is {made.token_dim!r}")
    return made


class CheckedAggregator:
    """Compares what an aggregator returns with what it has to return, until the first of each kind was right.

    Args:
        name: The aggregator, as ``model.aggregator`` names it.
        tasks: The tasks.
    """

    def __init__(self, name: str, tasks: Sequence[TaskConfig]) -> None:
        self._name = name
        self._classes = {task.name: len(task.classes) for task in tasks}
        self._right: set[str] = set()

    def read(self, aggregator: Aggregator, out: object, x_BMD: Tensor, *, rows: int) -> None:
        """Check the result of ``aggregator.read(x_BMD)``. ``rows`` is how many tokens the heads read.

        Raises:
            ExtensionWrong: It has another type or shape than it has to have.
        """
        if "read" in self._right:
            return
        if not isinstance(out, Aggregated):
            raise _wrong(self._name, "read to return an Aggregated", f"it returned {_said(out)}")
        n_bags, n_patches = x_BMD.shape[:2]
        attention = out.attention_BHTM
        if not _is(attention, 4) or (attention.shape[0], attention.shape[3]) != (n_bags, n_patches):
            wanted = f"attention_BHTM of shape ({n_bags}, H, T, {n_patches})"
            raise _wrong(self._name, wanted, f"it is {_said(attention)}")
        logits = out.attention_logits_BHTM
        if logits is not None and not (_is(logits, 4) and logits.shape == attention.shape):
            wanted = f"attention_logits_BHTM of the shape of attention_BHTM, {tuple(attention.shape)}"
            raise _wrong(self._name, wanted, f"it is {_said(logits)}")
        if out.logits is not None:
            self._check_by_task("logits", out.logits, n_bags)
        else:
            self._check_tokens(aggregator, out.tokens_BTE, n_bags, max(rows, 1), attention.shape[2])
        self._right.add("read")

    def _check_tokens(
        self, aggregator: Aggregator, tokens: object, n_bags: int, rows: int, drawn: int
    ) -> None:
        if aggregator.token_dim is None:
            raise _wrong(
                self._name,
                "token_dim, the width of its tokens, or logits in what it returns",
                "it has neither; set self.token_dim in __init__",
            )
        fits = (
            isinstance(tokens, Tensor)
            and tokens.ndim == 3
            and (tokens.shape[0], tokens.shape[2]) == (n_bags, aggregator.token_dim)
            and tokens.shape[1] >= rows
        )
        if not fits or drawn < rows:
            wanted = (
                f"tokens_BTE of shape ({n_bags}, {rows}, {aggregator.token_dim}), and a row of attention each"
            )
            raise _wrong(self._name, wanted, f"tokens are {_said(tokens)}, with {drawn} rows of attention")

    def _check_by_task(self, what: str, told: object, count: int, *, any_width: bool = False) -> None:
        if isinstance(told, Mapping) and self._classes.keys() <= told.keys():
            if all(
                _is(told[task], 2)
                and len(told[task]) == count
                and (any_width or told[task].shape[1] == classes)
                for task, classes in self._classes.items()
            ):
                return
            came = ", ".join(f"{task}: {_said(told[task])}" for task in self._classes)
        else:
            came = f"of the tasks {', '.join(map(str, told))}" if isinstance(told, Mapping) else _said(told)
        wanted = ", ".join(f"{task}: ({count}, {classes})" for task, classes in self._classes.items())
        raise _wrong(self._name, f"{what} by task, {{{wanted}}}", f"they are {came}")

    def scores(self, scores: Tensor, x_nD: Tensor) -> Tensor:
        """The result of ``aggregator.logits(x_nD)``, if it is (n, H, T).

        Raises:
            ExtensionWrong: It has another type or shape.
        """
        if "scores" not in self._right:
            if not _is(scores, 3) or len(scores) != len(x_nD):
                wanted = f"logits to return scores of shape ({len(x_nD)}, H, T)"
                raise _wrong(self._name, wanted, f"it returned {_said(scores)}")
            self._right.add("scores")
        return scores

    def contributions(self, told: dict[str, Tensor] | None, n_patches: int) -> dict[str, Tensor] | None:
        """The result of ``aggregator.contributions``, if it is None or (M, C) for each task.

        Raises:
            ExtensionWrong: It has another type or shape.
        """
        if told is not None and "contributions" not in self._right:
            # A survival task has as many outputs as its head.
            self._check_by_task("contributions", told, n_patches, any_width=True)
            self._right.add("contributions")
        return told


def _wrong(name: str, expected: str, came: str) -> ExtensionWrong:
    return ExtensionWrong("aggregator", name, AGGREGATORS.provider(name), expected, came)


def _is(value: object, axes: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == axes


def _said(value: object) -> str:
    return (
        f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
    )
