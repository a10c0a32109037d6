"""Tensors by name from the files that others' training leaves: plain, wrapped, under prefixes, in shards.

Nothing in a file is run. Beside tensors a file may hold plain values, the settings of an ``argparse`` command line
and numpy's numbers; a file of any other class is refused by that class's name.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType
from safetensors.torch import load_file
from torch import Tensor

from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.location import is_file_name
from wsi_ips.outside_causes import system_cause

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")
"""Where trainers keep a network's tensors beside other things; of DINO's two networks the teacher is meant."""

PREFIXES = ("module.", "model.", "backbone.", "teacher.", "encoder.", "_orig_mod.")
"""What trainers put before a network's names, also one behind the other."""
MOST_PREFIXES = 4

INDEX_SUFFIX = ".index.json"
LARGEST_INDEX_BYTES = 2**24
MOST_SHARDS = 1000

_scalar: Any = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [
    argparse.Namespace,
    PosixPath,
    np.dtype,
    BoolDType,
    Float32DType,
    Float64DType,
    Int32DType,
    Int64DType,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
"""Classes that hold values and run nothing."""

_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed global|class `?([\w.]+)`? .*was not an allowed")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, .pth, .pt, .ckpt or .bin, or from the shards of ``*.index.json``.

    Names stay as the file has them, see :func:`without_prefix`. Raises :class:`CheckpointError`.
    """
    if not path.is_file():
        raise CheckpointError(path, "no such file", "check encoder.weights: timm, none, pypi:... or a path")
    content = _shards(path) if path.name.endswith(INDEX_SUFFIX) else _content(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            path, f"holds a {type(content).__name__}, not names and tensors", "save model.state_dict()"
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            what = f"holds a {type(value).__name__} as {str(name)[:80]!r}"
            raise CheckpointError(
                path, f"is not a state dict (names to tensors): it {what}", "save model.state_dict()"
            )
    if not content:
        raise CheckpointError(path, "is not a state dict: it is empty", "save model.state_dict()")
    return {str(name): tensor for name, tensor in content.items()}


def without_prefix(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which ``state`` has every tensor of ``wanted`` in its shape, and what stands there.

    Where none has, the prefix that comes closest. Raises ``ValueError`` where two do and differ: nobody knows
    which is meant.
    """
    candidates = {prefix: _below(state, prefix) for prefix in _prefixes(state)}
    fitting = [prefix for prefix, below in candidates.items() if _count(below, wanted) == len(wanted)]
    if len(fitting) > 1 and "" not in fitting:
        first, second = (candidates[prefix] for prefix in fitting[:2])
        if any(not torch.equal(first[name], second[name]) for name in wanted):
            raise ValueError(f"holds two such networks, under {fitting[0]!r} and {fitting[1]!r}")
    best = fitting[0] if fitting else max(candidates, key=lambda each: _count(candidates[each], wanted))
    return best, candidates[best]


def _prefixes(state: Mapping[str, Tensor]) -> Iterator[str]:
    found = [""]
    for _ in range(MOST_PREFIXES + 1):
        yield from found
        found = [
            longer
            for prefix in found
            for longer in (prefix + more for more in PREFIXES)
            if any(name.startswith(longer) for name in state)
        ]


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _count(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> int:
    return sum(name in given and given[name].shape == tensor.shape for name, tensor in wanted.items())


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            with path.open(
                "rb"
            ):  # whatever keeps safetensors from opening it, it says that there is no such file
                pass
            return load_file(path)
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a hostile file may raise anything; none of it may run
        if isinstance(error, OSError) and (cause := system_cause(error)):
            raise CheckpointError(path, cause.problem, cause.mend) from None
        forbidden = _FORBIDDEN.search(str(error))
        if forbidden:
            raise CheckpointError(
                path,
                f"holds no weights that can be read safely: it holds a {forbidden[1] or forbidden[2]}, whose code "
                "would be run",
                "where it comes from, save the tensors alone: torch.save(model.state_dict(), FILE)",
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(
                path,
                "holds no weights that can be read safely: it is a whole TorchScript model",
                "save its tensors alone: torch.save(torch.jit.load(FILE).state_dict(), OTHER)",
            ) from None
        reason = one_line(error, most=200)
        raise CheckpointError(path, f"holds no weights that can be read safely ({reason})") from None


def _shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index of Hugging Face's names; they lie beside it."""
    mend = "name the index beside its files"
    if path.stat().st_size > LARGEST_INDEX_BYTES:
        raise CheckpointError(path, f"is larger than {LARGEST_INDEX_BYTES} bytes", mend)
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path, f"is no index of weights ({one_line(error, most=120)})", mend) from None
    if not 1 <= len(names) <= MOST_SHARDS or not all(map(is_file_name, names)):
        raise CheckpointError(path, "names no files, or files elsewhere", mend)
    tensors: dict[str, Any] = {}
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(path, f"names {name}, which is not beside it", "download all of its files")
        content = _content(path.parent / name)
        if not isinstance(content, Mapping):
            raise CheckpointError(path.parent / name, "holds no names and tensors", mend)
        tensors.update(content)
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise CheckpointError(
            path, f"names {lacking[0]}, which none of its files holds", "download them again"
        )
    return tensors
