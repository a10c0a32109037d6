"""How exactly, and how fast, an encoder computes where nothing is learned: :class:`Computing`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from wsi_ips.config.section import Section

Precision = Annotated[
    Literal["auto", "32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
]
"""``32`` is float32, ``bf16`` and ``fp16`` are mixed precision, ``auto`` is decided by encoder and device."""


class Computing(Section):
    """Settings of the jobs that run an encoder without learning, ``predict`` and ``features``."""

    precision: Precision = "auto"
    """What the encoder computes in; everything behind it stays float32. ``auto``: on a CUDA device the precision
    that ``wsi-ips encoders NAME`` states for a listed encoder, anywhere else and for any other encoder float32.
    ``bf16`` and ``fp16`` also run on CPUs without instructions for them, where they save no time.
    """
    compile: bool = False
    """Compile the encoder with ``torch.compile``, which takes a minute once and needs a C++ compiler (on a CPU)
    or Triton (on a GPU). Batches are filled up to ``streaming.batch``, so one program serves all of them.
    """
