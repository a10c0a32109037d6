"""The versions that a result was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

RECORDED = ("wsi_ips", "torch", "torchvision", "timm", "lightning", "openslide-python", "openslide-bin",
            "tifffile", "imagecodecs", "simplejpeg", "numpy", "scikit-image", "h5py")  # fmt: skip


def versions() -> dict[str, str]:
    """Package name to version, for the packages that can change a result, and Python's own."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
