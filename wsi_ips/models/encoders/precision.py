"""In which precision an encoder computes, and whether it is compiled: :class:`Compute` and
:class:`ComputingModule`.

An encoder computes in float32, or in bfloat16 or float16 under PyTorch's autocast: matrix products and
convolutions take half-precision numbers, and layers that need more (LayerNorm and softmax on CUDA) stay in
float32. Its features are float32 in any case. So are all computations behind it, for which :func:`float32_behind`
switches off an autocast that the training engine has switched on.

:func:`settled` turns the setting ``precision`` into a precision, :func:`compute_in` gives it to the encoder of a
network. Source: ENCODERS.md section 4 (bf16, torch.compile).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsi_ips.config.computing import Precision
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.models.encoders.registry import entry_of

Settled = Literal["32", "bf16", "fp16"]
"""A precision, after ``auto`` has been decided."""

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of the half precisions."""


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
    if entry.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "32"
    return entry.precision


def compute_in(net: nn.Module, compute: Compute) -> None:
    """Make the encoders within a network compute so. Stored features pass through in any case."""
    for module in net.modules():
        if isinstance(module, ComputingModule):
            module.compute_as(compute)


class ComputingModule(nn.Module):
    """Base class of encoders that compute as :meth:`compute_as` says. At first that is float32."""

    _compute = Compute()
    _compiled: Callable[[Tensor], Tensor] | None = None

    def compute_as(self, compute: Compute) -> None:
        """Compute so from now on. No weight is changed, and none is copied."""
        self._compute = compute
        self._compiled = None

    def computed(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``network(x)`` in the chosen precision, as float32.

        Args:
            network: Maps inputs (n, ...) to features (n, D), each input by itself. It is the same in every call.
            x: Inputs, float32.

        Raises:
            ConfigError: It is to be compiled, and this machine has no compiler for it.
        """
        if self._compute == Compute():
            return network(x)
        run = network
        if self._compute.compiled_batch is not None:
            if self._compiled is None:
                self._compiled = torch.compile(network, dynamic=False)
            run = self._in_batches
        if self._compute.precision == "32":
            return run(x)
        with torch.autocast(x.device.type, dtype=DTYPES[self._compute.precision]):
            features = run(x)
        return features.float()

    def _in_batches(self, x: Tensor) -> Tensor:
        """The compiled network on batches of one size, so that the last, smaller one does not compile anew."""
        size, run = self._compute.compiled_batch, self._compiled
        assert size is not None
        assert run is not None
        parts = []
        for part in x.split(size):
            count = len(part)
            if count < size:
                part = torch.cat([part, part.new_zeros(size - count, *part.shape[1:])])
                if x.is_contiguous(memory_format=torch.channels_last):
                    part = part.contiguous(memory_format=torch.channels_last)
            parts.append(_or_no_compiler(run, part)[:count])
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def check_compiles(device: torch.device) -> None:
    """Compile a small function, so that a missing compiler is told before any slide is read.

    Raises:
        ConfigError: PyTorch cannot compile for this device.
    """
    _or_no_compiler(torch.compile(_one_more, dynamic=False), torch.zeros(8, device=device))


def _one_more(x: Tensor) -> Tensor:
    return x * 2 + 1


def _or_no_compiler(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    from torch._dynamo.exc import TorchDynamoException

    failures: tuple[Any, ...] = (TorchDynamoException, ImportError, FileNotFoundError)
    try:
        return run(x)
    except failures as error:
        reason = one_line(f"{type(error).__name__}: {error}", most=160)
        raise ConfigError(
            f"compile: true: PyTorch cannot compile for {x.device.type} here ({reason}); install a C++ compiler "
            "(for a GPU: Triton), or leave compile out"
        ) from error


def float32_behind(device_type: str) -> torch.autocast:
    """Context manager that switches off an autocast of the training engine, so that only encoders, which switch
    on their own, compute in half precision.
    """
    return torch.autocast(device_type, enabled=False)
