"""How exactly a device calculates, and whether it gives the same bits each time.

PyTorch's defaults on NVIDIA cards: matrix products in float32, convolutions in TF32 (10 bits of mantissa instead
of 23, several times faster), and algorithms that may add up in another order each time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wsi_ips.errors import ConfigError

WORKSPACE = ":4096:8"
"""What cuBLAS needs to be told, in the environment, before it adds up in one order."""


def numerics(*, deterministic: bool = False) -> dict[str, bool]:
    """What holds in this process, or would under :func:`calculating`, for a run's description: TF32 in
    convolutions and in matrix products, and whether only deterministic algorithms are used."""
    with calculating(deterministic=deterministic):
        return {
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }


@contextmanager
def calculating(*, deterministic: bool) -> Iterator[None]:
    """For the time of the block, with ``deterministic``, the same bits each time on the same kind of card.

    No TF32, no search for the fastest convolution, deterministic algorithms only; it takes longer. Otherwise
    everything is left as it is. Raises :class:`ConfigError` where the network needs an operation that has no
    deterministic algorithm.
    """
    if not deterministic:
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        cudnn.allow_tf32,
        matmul.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise ConfigError(f"deterministic: true cannot be kept ({reason}); set it to false") from error
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before[:3]
        torch.use_deterministic_algorithms(before[3])
