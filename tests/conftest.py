"""Where the shared real files and golden arrays lie, and a small trained model that several tests use.

What takes long to import is imported where it is used: the process that hands out the tests to the others needs
none of it, and neither do many tests.
"""

import atexit
import gc
import os
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from wsi_ips.slides.base import RgbImage
    from wsi_ips.slides.tiff.layout import TiffReader

# Shared machines stall: a slow example is no failure. CI tries the same examples each time, so that a red run is
# about the change at hand; developers' runs look for new ones, and one that fails becomes an @example.
settings.register_profile("wsi_ips", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "wsi_ips")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected, a million objects, stays to the end: Python does not look through it for
    garbage, neither while it grows nor in the tests. That would take a third of the time of collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries look at their own garbage when Python ends, and complain


SHARED = Path(__file__).resolve().parents[2] / "shared"

# An untrained ConvNeXt of 0.1 million weights on 32-px patches: a second for a slide. It has no BatchNorm, which
# random weights could not be trained with in parts.
SMALL_MODEL = {
    "tiling": {"patch_px": 32, "patch_mpp": 2.0, "min_tissue": 0.2},
    "selection": {"m": 4, "i": 8},
    "model": {
        "encoder": {"name": "test_convnext", "weights": "none", "stage": 2},
        "attention": {"heads": 2, "key_dim": 8, "value_dim": 8, "inner_dim": 16},
    },
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and images (``WSI_IPS_TEST_DATA``, default ``../shared/data``)."""
    folder = Path(os.environ.get("WSI_IPS_TEST_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}; name its folder with WSI_IPS_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def cases_folder() -> Path:
    """The folder of inputs that once gave wrong results (``WSI_IPS_CASES``, default ``../shared/cases``)."""
    folder = Path(os.environ.get("WSI_IPS_CASES", SHARED / "cases"))
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}; name their folder with WSI_IPS_CASES")
    return folder


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The folder of golden arrays (``WSI_IPS_GOLDEN``, default ``../shared/golden``)."""
    folder = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden arrays at {folder}; name their folder with WSI_IPS_GOLDEN")
    return folder


@pytest.fixture
def same_threads() -> Iterator[None]:
    """PyTorch has as many threads after the test as before it: workers in this process set them."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors of the device "cuda" without a card: shapes, dtypes and devices, but no values.

    By PyTorch's FakeTensorMode. Autocast's rules for CUDA hold; looking at a value raises. A module is made with
    ``torch.device("cuda")``, since it cannot be moved.
    """
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    with FakeTensorMode():
        yield


@dataclass(frozen=True)
class SmallData:
    """A drawn data set of six small slides: its manifest and its folder of slides."""

    manifest: Path
    slides: Path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    from wsi_ips.drawn.config import SyntheticConfig
    from wsi_ips.drawn.synthetic import make_camelyon_like

    folder = tmp_path_factory.mktemp("drawn")
    config = SyntheticConfig(train=2, val=2, test=2, side_px=1400)
    manifest = make_camelyon_like(folder, config, processes=1)
    return SmallData(manifest, folder / "images")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained small network."""
    from wsi_ips.commands.finetune import FinetuneJob
    from wsi_ips.commands.recipe import make_job
    from wsi_ips.models.build import build_net
    from wsi_ips.models.checkpoint import save_checkpoint

    job = make_job({"command": "finetune", "manifest": "m", "out": "o", **SMALL_MODEL}, source="test")
    assert isinstance(job, FinetuneJob)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, build_net(job.model), job.pipeline)
    return path


@pytest.fixture
def torn_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile 8 of every level of every slide cannot be decoded by streams; tissue masks still see it."""
    from wsi_ips.errors import SlideReadError
    from wsi_ips.slides.tiff.layout import TiffReader

    decode_tile = TiffReader.decode_tile

    def torn(self: "TiffReader", level: int, number: int, data: memoryview, out: "RgbImage") -> None:
        if number == 8 and threading.current_thread().name.startswith("wsi_ips-decode"):
            raise SlideReadError(self.info.path, "tile 8 is torn")
        decode_tile(self, level, number, data, out)

    monkeypatch.setattr(TiffReader, "decode_tile", torn)
