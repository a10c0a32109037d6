"""In which precision an encoder computes, and whether it is compiled: :class:`Compute`. It needs no PyTorch.

:func:`settled` turns the setting ``precision`` into a precision. What it does to a network is in
:mod:`wsi_ips.models.encoders.network`. Source: ENCODERS.md section 4 (bf16, torch.compile).
"""

from dataclasses import dataclass
from typing import Literal

from wsi_ips.config.encoder import Precision
from wsi_ips.models.encoders.registry import entry_of

Settled = Literal["32", "bf16", "fp16"]
"""A precision, after ``auto`` has been decided."""


@dataclass(frozen=True, slots=True)
class Compute:
    """How an encoder computes.

    Attributes:
        precision: ``32``, ``bf16`` or ``fp16``.
        compiled_batch: Patches of a batch of the compiled encoder, 1 or more. Smaller batches are filled up with
            zeros and larger ones cut, so that PyTorch compiles once for each patch size. None: not compiled.
    """

    precision: Settled = "32"
    compiled_batch: int | None = None


def settled(asked: Precision, encoder: str, device_type: str) -> Settled:
    """The precision that the setting ``asked`` means for an encoder on a device.

    ``auto`` is the precision that the encoder is listed with on CUDA, except that it is float32 for bfloat16 on
    a card without it, and float32 on any other device. Whether the card has bfloat16 is asked of the first one.

    Args:
        asked: The setting ``precision``.
        encoder: Name of the encoder.
        device_type: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: The file or the package of the encoder does not load.
    """
    if asked != "auto":
        return asked
    entry = entry_of(encoder) if device_type == "cuda" else None
    if entry is None:
        return "32"
    import torch  # many ask that have no need of it

    if entry.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "32"
    return entry.precision
