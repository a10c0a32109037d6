"""A learned segmenter of the user's: tiny networks that look at one channel, so that what is tissue is known."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiling.onnx_file import identity_onnx
from wsi_ips.config import READ_NO_FILE, TilingConfig, TissueConfig
from wsi_ips.config.slides import read_tissue_model
from wsi_ips.errors import ConfigError, NoTissue, SegmenterError
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.tiling import segmenter
from wsi_ips.tiling.patches import PatchesInTissue
from wsi_ips.tiling.tissue import find_tissue
from wsi_ips.units import Mpp

PLAIN = {"mpp": 8.0, "tile_px": 64, "overlap_px": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "channel": 0,
         "activation": "none", "threshold": 0.5}  # fmt: skip


class RedIsTissue(torch.nn.Module):
    """(1, 2, h, w): how red each pixel is, and the rest; at a half of the resolution as many networks are."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        red = batch[:, :1, ::2, ::2]
        return torch.cat([red, 1 - red], dim=1)


def saved(folder: Path, module: torch.nn.Module, **description: object) -> Path:
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))
    (folder / "model.json").write_text(json.dumps(PLAIN | description))
    return path


def red_slide(width: int = 1500, height: int = 1100) -> MemoryReader:
    """At 2 µm; red where the truth is: a rectangle across many tiles, and the slide's far corner."""
    rgb_HWC = np.zeros((height, width, 3), np.uint8)
    rgb_HWC[200:700, 300:1000] = (250, 0, 0)
    rgb_HWC[-160:, -200:] = (250, 0, 0)
    return MemoryReader(rgb_HWC, mpp=Mpp(2.0))


def truth(shape: tuple[int, int], l0_per_px: float) -> np.ndarray:
    y, x = ((np.arange(length) + 0.5) * l0_per_px for length in shape)
    box = ((y > 200) & (y < 700))[:, None] & ((x > 300) & (x < 1000))
    return np.asarray(box | ((y > 1100 - 160)[:, None] & (x > 1500 - 200)))


@pytest.mark.parametrize("mpp", [3.0, 8.0, 20.0])
def test_the_model_decides_at_its_own_resolution(tmp_path: Path, mpp: float) -> None:
    config = TissueConfig(model=saved(tmp_path, RedIsTissue(), mpp=mpp))
    mask = find_tissue(red_slide(), config)
    assert mask.l0_per_px[0] == max(8.0, mpp) / 2
    expected = truth(mask.mask_HW.shape, mask.l0_per_px[0])
    assert (mask.mask_HW == expected).mean() > 0.97
    assert mask.mask_HW[expected].mean() > 0.93


def test_tiles_make_no_difference(tmp_path: Path) -> None:
    whole = find_tissue(red_slide(), TissueConfig(model=saved(tmp_path, RedIsTissue(), tile_px=512)))
    tiled = find_tissue(red_slide(), TissueConfig(model=saved(tmp_path, RedIsTissue(), tile_px=64)))
    assert (whole.mask_HW == tiled.mask_HW).mean() > 0.995


def test_normalisation_channel_and_activation(tmp_path: Path) -> None:
    """(red - 0.5) / 0.1 as logits of two channels: the other channel is everything else."""
    logits = {"mean": [0.5] * 3, "std": [0.1] * 3, "activation": "softmax", "threshold": 0.9}
    red = find_tissue(red_slide(), TissueConfig(model=saved(tmp_path, RedIsTissue(), channel=0, **logits)))
    other = find_tissue(red_slide(), TissueConfig(model=saved(tmp_path, RedIsTissue(), channel=1, **logits)))
    assert (red.mask_HW ^ other.mask_HW).mean() > 0.99
    assert 0.2 < red.mask_HW.mean() < 0.3


def test_an_onnx_file_does_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra segmenter is not installed")
    path = tmp_path / "model.onnx"
    path.write_bytes(identity_onnx())
    (tmp_path / "model.onnx.yaml").write_text(json.dumps(PLAIN))
    mask = find_tissue(red_slide(), TissueConfig(model=path))
    expected = truth(mask.mask_HW.shape, mask.l0_per_px[0])
    assert (mask.mask_HW == expected).mean() > 0.99


def test_without_onnxruntime_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(identity_onnx())
    (tmp_path / "model.json").write_text(json.dumps(PLAIN))
    with pytest.raises(ConfigError, match=r"pip install 'wsi_ips\[segmenter\]'"):
        find_tissue(red_slide(), TissueConfig(model=path))


def test_a_slide_without_tissue_names_the_model(tmp_path: Path) -> None:
    black = MemoryReader(np.zeros((900, 900, 3), np.uint8), mpp=Mpp(2.0))
    config = TilingConfig(patch_mpp=2.0, tissue=TissueConfig(model=saved(tmp_path, RedIsTissue())))
    with pytest.raises(NoTissue, match=r"model\.pt \(tiling\.tissue\.model\)"):
        PatchesInTissue(config)(black, slide_id="s", mpp=None)


def test_the_config_holds_the_contents_digest_and_another_file_is_refused(tmp_path: Path) -> None:
    config = TissueConfig(model=saved(tmp_path, RedIsTissue()))
    held = TissueConfig.model_validate_json(config.model_dump_json(), context=READ_NO_FILE)
    assert held == config
    assert held.model is not None
    with held.model.file.open("ab") as file:
        file.write(b"another")
    with pytest.raises(SegmenterError, match="another tissue model"):
        find_tissue(red_slide(), held)
    held.model.file.unlink()
    with pytest.raises(SegmenterError, match="no such tissue model"):
        find_tissue(red_slide(), held)


def test_a_checkpoint_names_no_file_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="description"):
        TissueConfig.model_validate({"model": str(saved(tmp_path, RedIsTissue()))}, context=READ_NO_FILE)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"tile_px": 8}, "tile_px"),
        ({"overlap_px": 40}, "half of tile_px"),
        ({"std": [1, 0, 1]}, "std"),
        ({"threshold": 2}, "threshold"),
        ({"mpp": None}, "mpp"),
        ({"colour": "bgr"}, "colour"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, written: dict[str, object], told: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    (tmp_path / "model.json").write_text(json.dumps(PLAIN | written))
    with pytest.raises(ConfigError, match=rf"model\.json.*{told}"):
        read_tissue_model(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_tissue_model(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="needs a description beside it"):
        read_tissue_model(tmp_path / "model.pt")


class Fails(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.reshape(7, 11)


class Flat(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(2, 3))


class NotFinite(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch / (batch * 0)


@pytest.mark.parametrize(
    ("module", "description", "told"),
    [
        (Fails(), {}, "does not run on"),
        (Flat(), {}, "shape"),
        (NotFinite(), {}, "not finite"),
        (RedIsTissue(), {"channel": 2}, "gives 2 channels"),
        (RedIsTissue(), {"mpp": 0.001}, "tiles"),
    ],
)
def test_a_network_that_does_not_fit_fails_in_one_line(
    tmp_path: Path, module: torch.nn.Module, description: dict[str, object], told: str
) -> None:
    config = TissueConfig(model=saved(tmp_path, module, **description))
    with pytest.raises(SegmenterError, match=told) as caught:
        find_tissue(red_slide(), config)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, RedIsTissue())
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(SegmenterError, match="neither TorchScript nor ONNX"):
        find_tissue(red_slide(), TissueConfig(model=path))


def test_memory_is_a_tile_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    window = segmenter.slide_window

    def watched(*args: object, **kwargs: object) -> object:
        out = window(*args, **kwargs)  # type: ignore[arg-type]
        read.append(max(out.shape[:2]))
        return out

    monkeypatch.setattr(segmenter, "slide_window", watched)
    find_tissue(red_slide(), TissueConfig(model=saved(tmp_path, RedIsTissue())))
    assert max(read) == 64
    assert len(read) == 8 * 6
