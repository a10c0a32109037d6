"""A made-up MNIST in torchvision's folder: noise for digits, every class equally often."""

from pathlib import Path

import numpy as np


def write_small_mnist(root: Path, *, train: int, test: int) -> Path:
    """``root`` as ``torchvision.datasets.MNIST`` wants it (idx files, unpacked)."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(1, 256, (count, 28, 28)).astype(np.uint8)
        images[:, :4] = 0
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([0x801, count], ">i4").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return root
