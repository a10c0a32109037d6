"""Coarse-to-fine: windows where the patches are, the share let through, labels from the rest."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SMALL_MODEL
from wsi_ips.config import CoarseConfig, PipelineConfig, StreamingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.ips_net import BagNet, IPSNet
from wsi_ips.models.sampling_net import SamplingNet
from wsi_ips.selection.coarse_to_fine import let_through, look, read_cascade, read_sampled
from wsi_ips.selection.reading import read_bag
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.tiling.patches import window_coords
from wsi_ips.units import Mpp

CPU = torch.device("cpu")
SIDE = 1280


def picture() -> np.ndarray:
    """Grey, darker to the right and to the bottom, with one red square at (640..768, 256..384)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    rgb = np.repeat((230 - (x + 2 * y) / SIDE * 30)[..., None], 3, axis=2).astype(np.uint8)
    rgb[256:384, 640:768] = (200, 20, 20)
    return rgb


def slide(levels: int) -> MemoryReader:
    return MemoryReader(picture(), mpp=Mpp(0.5), levels=[2**k for k in range(levels)])


def pipeline(selector: str, **selection: Any) -> PipelineConfig:
    coarse = {"mpp": 8.0, "channels": (4, 8), **selection.pop("coarse", {})}
    return PipelineConfig.model_validate(
        {**SMALL_MODEL, "selection": {"selector": selector, "m": 4, "i": 8, "coarse": coarse, **selection}}
    )


def coords(config: PipelineConfig) -> PatchCoords:
    """Every cell of the grid: 10 x 10 patches of 32 px at 2 µm, 128 level-0 pixels."""
    grid = PatchGrid.cover((SIDE, SIDE), slide_mpp=Mpp(0.5), tiling=config.tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows)
    return PatchCoords.on_grid(
        grid,
        ids_N,
        slide_id="drawn",
        l0_size=(SIDE, SIDE),
        slide_mpp=Mpp(0.5),
        tiling=config.tiling,
        tissue_N=np.ones(len(ids_N), np.float32),
    )


def stream(config: PipelineConfig, levels: int = 5, **streaming: Any) -> PatchStream:
    return PatchStream(slide(levels), coords(config), config=StreamingConfig(**streaming))


def net_of(config: PipelineConfig, *, red: bool = True) -> BagNet:
    """An untrained network; ``red``: its scorer likes red windows."""
    torch.manual_seed(0)
    net = build_selecting_net(config.model, config.selection).eval()
    if red:
        net.looks_from_afar.scorer = _Redness()  # type: ignore[assignment]
    return net


class _Redness(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        mean = windows.float().mean(dim=(2, 3))
        return (mean[:, 0] - mean[:, 1]) / 10


RED = 2 * 10 + 5
"""The patch that the red square fills."""


@pytest.mark.parametrize(("scorer", "context"), [("conv", 0), ("conv", 3), ("encoder", 0)])
def test_windows_show_what_lies_under_their_patches(scorer: str, context: int) -> None:
    """The mean colour of a window is that of its area on the slide."""
    config = pipeline("cascade", coarse={"scorer": scorer, "context_px": context})
    windows = stream(config).windows(config.selection.coarse)
    all_windows = torch.cat([chunk.pixels_n3PP for chunk in windows.source]).float()
    corners, window_N = window_coords(coords(config), config.selection.coarse)
    assert torch.equal(windows.window_N, torch.from_numpy(window_N))
    assert len(all_windows) == len(corners) == {"conv": 100, "encoder": 9}[scorer]
    whole = picture().astype(float)
    for number, (x, y) in enumerate(corners.l0_xy_N2.tolist()):
        side = round(corners.l0_patch)
        if x < 0 or y < 0 or max(x, y) + side > SIDE:
            continue  # white beyond the slide
        area = whole[y : y + side, x : x + side]
        torch.testing.assert_close(
            all_windows[number].mean(dim=(1, 2)), torch.tensor(area.mean(axis=(0, 1))).float(), atol=8, rtol=0
        )
    # Every patch lies in its own window.
    centres = coords(config).l0_xy_N2 + 64
    corner_N2 = corners.l0_xy_N2[window_N]
    assert ((corner_N2 <= centres) & (centres < corner_N2 + corners.l0_patch)).all()


def test_only_some_windows_and_patches_are_streamed_when_asked() -> None:
    config = pipeline("cascade")
    source = stream(config, batch=7)
    wanted = torch.tensor([93, 4, 5, 60])
    narrowed = [chunk.ids_n for chunk in source.only(wanted)]
    assert torch.cat(narrowed).tolist() == [4, 5, 60, 93]
    windows = source.windows(config.selection.coarse).source.only(torch.tensor([99, 3]))
    assert torch.cat([chunk.ids_n for chunk in windows]).tolist() == [3, 99]
    with pytest.raises(KeyError):
        source.only(torch.tensor([100]))


@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 99))
def test_the_share_let_through_is_exact_and_holds_the_best(
    n: int, share: float, explore: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_N = torch.randn(n, generator=generator)
    rows = let_through(logits_N, share, explore=explore, generator=generator)
    count = max(1, int(np.ceil(round(share * n, 6))))
    assert len(rows.unique()) == len(rows) == count
    assert torch.equal(rows, rows.sort().values)
    best = logits_N.argsort(descending=True)[: count - int(explore * count)]
    assert set(best.tolist()) <= set(rows.tolist())


def test_attention_sampling_reads_closely_only_what_it_drew() -> None:
    config = pipeline("attention_sampling", sampling={"samples": 6, "smoothing": 0.01})
    net, source = net_of(config), stream(config)
    assert isinstance(net, SamplingNet)
    reading = read_sampled(net, source, config.selection)
    assert reading.coarse is not None
    assert (reading.coarse.patches, reading.coarse.let_through, reading.coarse.windows) == (100, 6, 100)
    # 100 windows and 6 patches; no patch more.
    assert source.telemetry.patches == 106
    assert reading.kept.ids_M[0] == RED
    attention = reading.store.attention()[:, 0, 0]
    torch.testing.assert_close(attention.sum(), torch.tensor(1.0))
    assert int(attention.argmax()) == RED
    again = read_sampled(net, stream(config, batch=9), config.selection)
    assert torch.equal(again.kept.ids_M, reading.kept.ids_M)
    torch.testing.assert_close(
        again.bag.probabilities["label"], reading.bag.probabilities["label"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_more_samples_than_patches(replacement: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Without replacement: all of them, each once. With: so many draws, each patch read once."""
    config = pipeline("attention_sampling", sampling={"samples": 150, "replacement": replacement})
    net = net_of(config)
    assert isinstance(net, SamplingNet)
    reading = read_sampled(net, stream(config), config.selection)
    assert len(reading.kept.ids_M) == (150 if replacement else 100)
    said = "100 patches are fewer than selection.sampling.samples 150: all of them are read"
    assert (said in caplog.text) is not replacement
    assert reading.coarse is not None
    assert reading.coarse.let_through == len(reading.kept.ids_M.unique())


@pytest.mark.parametrize("scorer", ["conv", "encoder"])
@pytest.mark.parametrize("rule", ["buffer", "global"])
def test_the_cascade_reads_closely_only_its_share(scorer: str, rule: str) -> None:
    config = pipeline("cascade", rule=rule, coarse={"scorer": scorer, "share": 0.23})
    net, source = net_of(config, red=scorer == "conv"), stream(config)
    assert isinstance(net, IPSNet)
    seen = []
    reading = read_cascade(
        net, source, config.selection, through=lambda chunks: (seen.append(len(c)) or c for c in chunks)
    )
    report = reading.coarse
    assert report is not None
    assert (report.patches, report.let_through, report.saved) == (100, 23, 77)
    assert report.encoder_windows == {"conv": 0, "encoder": 9}[scorer]
    assert report.recall is None
    assert sum(seen) == len(reading.store.ids()) == 23
    if scorer == "conv":
        assert RED in reading.store.ids()
        net.looks_from_afar.calibrate(torch.linspace(0, 1, 101), target=None)
        again = read_cascade(net, stream(config), config.selection).coarse
        assert again is not None
        assert again.recall == pytest.approx(0.23)


def test_letting_everything_through_is_ips() -> None:
    config = pipeline("cascade", coarse={"share": 1.0})
    net = net_of(config)
    assert isinstance(net, IPSNet)
    cascade = read_cascade(net, stream(config), config.selection)
    ips = config.selection.model_copy(update={"selector": "ips"})
    plain = read_bag(net, stream(config), ips)
    assert torch.equal(cascade.kept.ids_M, plain.kept.ids_M)
    assert torch.equal(cascade.store.logits(), plain.store.logits())
    assert torch.equal(cascade.bag.tokens_BTD, plain.bag.tokens_BTD)


def test_a_slide_with_one_level_is_looked_at_all_the_same_and_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = pipeline("attention_sampling", sampling={"samples": 3})
    net = net_of(config)
    with caplog.at_level(logging.WARNING):
        one = look(net, stream(config, levels=1), config.selection.coarse)
    assert "has no level between 2 and 8 µm per pixel" in caplog.text
    assert "averaged from level 0" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        many = look(net, stream(config), config.selection.coarse)
    assert not caplog.text
    assert int(one.logits_W.argmax()) == int(many.logits_W.argmax()) == RED


def test_patches_that_cannot_be_seen_from_afar_are_one_line() -> None:
    config = pipeline("cascade")

    class Plain:
        """A source that has patches and nothing else."""

    with pytest.raises(ConfigError, match="needs coarse windows, which these patches do not have"):
        read_bag(net_of(config), Plain(), config.selection)  # type: ignore[arg-type]
    images = pipeline("attention_sampling", coarse={"scorer": "megapixel_mnist"})
    with pytest.raises(ConfigError, match="reads images, not slides"):
        read_bag(net_of(images, red=False), stream(images), images.selection)


def test_windows_of_patches_that_others_laid_out_are_theirs(tmp_path: Path) -> None:
    """Corners off the grid: the window is centred on the patch as it lies."""
    config = pipeline("cascade")
    laid_out = replace(coords(config), l0_xy_N2=coords(config).l0_xy_N2 + 37)
    corners, _ = window_coords(laid_out, CoarseConfig(mpp=8.0))
    assert np.array_equal(corners.l0_xy_N2, laid_out.l0_xy_N2)
