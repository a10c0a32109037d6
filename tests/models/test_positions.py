import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from wsi_ips.config import AttentionConfig, EncoderConfig, ModelConfig, TaskConfig, TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.attention import CrossAttention
from wsi_ips.models.build import build_net
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet, Positions, RasterSinusoid, SlideSinusoid
from wsi_ips.tiling.grid import PatchCoords, PatchGrid
from wsi_ips.units import Mpp

DIM = 32
WAVES = {"shortest_um": 256.0, "longest_um": 100_000.0}
millimetres = st.floats(0, 99)


def encoding(x_um: float, y_um: float) -> Tensor:
    return SlideSinusoid(DIM, **WAVES)(torch.tensor([[x_um, y_um]], dtype=torch.float64))[0]


@given(millimetres, millimetres, st.integers(0, DIM // 4 - 1))
def test_every_number_is_a_wave_of_its_own_length(x_mm: float, y_mm: float, wave: int) -> None:
    """By hand, at any place of a slide: to 1e-9 100 mm from the corner, which float32 angles would miss."""
    length_um = 256 * (100_000 / 256) ** (wave / (DIM // 4 - 1))
    found = encoding(x_mm * 1000, y_mm * 1000)
    for half, um in ((found[: DIM // 2], x_mm * 1000), (found[DIM // 2 :], y_mm * 1000)):
        expected = [math.sin(2 * math.pi * um / length_um), math.cos(2 * math.pi * um / length_um)]
        assert half[2 * wave : 2 * wave + 2].tolist() == pytest.approx(expected, abs=1e-9)


def test_half_the_width_follows_x_and_half_y() -> None:
    here, right, below = encoding(1000, 2000), encoding(1300, 2000), encoding(1000, 2300)
    assert torch.equal(right[DIM // 2 :], here[DIM // 2 :])
    assert torch.equal(below[: DIM // 2], here[: DIM // 2])
    assert (right[: DIM // 2] - here[: DIM // 2]).abs().max() > 0.5
    assert torch.equal(encoding(2000, 1000), torch.cat([here[DIM // 2 :], here[: DIM // 2]]))


def test_no_two_patches_of_a_large_slide_share_an_encoding() -> None:
    """Every 128 µm along 99 mm: neighbours and the far end alike."""
    um_n2 = torch.arange(0, 99_000, 128, dtype=torch.float64)[:, None].expand(-1, 2)
    distances = torch.cdist(*[SlideSinusoid(DIM, **WAVES)(um_n2)] * 2).fill_diagonal_(9)
    assert distances.min() > 0.5


def scan(*, mpp: float, l0_size: tuple[int, int], patch_px: int = 256, patch_mpp: float = 0.5,
         overlap_px: int = 0) -> PatchCoords:  # fmt: skip
    """Every patch of a slide."""
    tiling = TilingConfig(patch_px=patch_px, patch_mpp=patch_mpp, overlap_px=overlap_px)
    grid = PatchGrid.cover(l0_size, slide_mpp=Mpp(mpp), tiling=tiling)
    ids_N = np.arange(grid.g_cols * grid.g_rows, dtype=np.int64)
    return PatchCoords.on_grid(grid, ids_N, slide_id="drawn", l0_size=l0_size, slide_mpp=Mpp(mpp),
                               tiling=tiling, tissue_N=np.ones(len(ids_N), np.float32))  # fmt: skip


@given(
    st.floats(0.1, 0.6), st.floats(0.1, 0.6), st.integers(9_000, 20_000), st.integers(0, 3), st.integers(0, 3)
)
def test_the_same_tissue_has_the_same_encoding_on_two_scans(
    fine: float, coarse: float, width: int, column: int, row: int
) -> None:
    """At another resolution, cut out of another size: the cells' ids differ, the places do not."""
    scans = [scan(mpp=fine, l0_size=(width, 9000)), scan(mpp=coarse, l0_size=(9000, 12_000))]
    encodings = [
        SlideSinusoid(DIM, **WAVES)(
            torch.from_numpy(coords.um_centres(np.array([row * coords.g_size[0] + column])))
        )
        for coords in scans
    ]
    torch.testing.assert_close(*encodings, rtol=0, atol=1e-9)


def test_the_same_place_has_the_same_encoding_with_and_without_overlap() -> None:
    """Every second patch of a half-overlapping grid lies where one of the plain grid lies."""
    plain = scan(mpp=0.5, l0_size=(2560, 2560))
    dense = scan(mpp=0.5, l0_size=(2560, 2560), overlap_px=128)
    here = plain.um_centres(np.array([3 * plain.g_size[0] + 2]))
    assert here.tolist() == [[2.5 * 128, 3.5 * 128]]
    assert dense.um_centres(np.array([6 * dense.g_size[0] + 4])).tolist() == here.tolist()


def net(positions: Positions | None, *, dim: int = DIM) -> IPSNet:
    torch.manual_seed(0)
    attention = CrossAttention(dim, queries=1, heads=2, key_dim=8, value_dim=8, inner_dim=32,
                               attention_dropout=0.0, dropout=0.0)  # fmt: skip
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3, dim))
    return IPSNet(encoder, attention, Heads(dim, [TaskConfig()]), positions=positions)


def left_or_right(seed: int, bags: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags of 6 patches on a slide of 20 mm, one of them bright: the label says on which half it lies."""
    generator = torch.Generator().manual_seed(seed)
    um = torch.rand(bags, 6, 2, generator=generator, dtype=torch.float64) * 20_000
    pixels = torch.rand(bags, 6, 3, 1, 1, generator=generator) * 0.2
    pixels[:, 0] += 1
    return pixels, um, (um[:, 0, 0] > 10_000).long()


def fitted(positions: Positions | None) -> float:
    """Share of unseen bags that a small net labels rightly after 100 steps."""
    model = net(positions)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    pixels, um, target = left_or_right(0, 120)
    for _ in range(100):
        logits = model(pixels.flatten(0, 1), um.flatten(0, 1), [6] * 120).logits["label"]
        loss = nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pixels, um, target = left_or_right(1, 200)
    with torch.no_grad():
        logits = model(pixels.flatten(0, 1), um.flatten(0, 1), [6] * 200).logits["label"]
    return (logits.argmax(1) == target).float().mean().item()


def test_a_network_with_positions_learns_left_from_right_and_one_without_cannot() -> None:
    assert fitted(SlideSinusoid(DIM, **WAVES)) > 0.9
    assert fitted(None) < 0.65


def test_a_mirrored_slide_reads_otherwise_only_with_positions() -> None:
    pixels, um, _ = left_or_right(3, 1)
    mirrored = um * torch.tensor([-1.0, 1.0]) + torch.tensor([20_000.0, 0])
    for positions, same in ((SlideSinusoid(DIM, **WAVES), False), (None, True)):
        model = net(positions)
        here, there = (model(pixels[0], places[0], [6]).tokens_BTD for places in (um, mirrored))
        assert torch.allclose(here, there, atol=1e-6) == same


def config(positions: str, *, width: int | None = None) -> ModelConfig:
    encoder = EncoderConfig(name="resnet10t", weights="none", stage=0, project=width)
    attention = AttentionConfig(heads=1, key_dim=2, value_dim=2, inner_dim=4, positions=positions)  # type: ignore[arg-type]
    return ModelConfig(encoder=encoder, attention=attention)


def test_the_config_names_the_encoding_and_its_wavelengths() -> None:
    assert build_net(config("none")).place_kind is None
    assert build_net(config("raster")).place_kind == "ids"
    built = build_net(config("slide", width=DIM))
    assert built.place_kind == "um"
    um = torch.rand(5, 2, dtype=torch.float64) * 5e4
    assert torch.equal(built.positions(um), SlideSinusoid(DIM, **WAVES)(um))
    assert not list(built.positions.state_dict())


@pytest.mark.parametrize(("positions", "width"), [("raster", 7), ("slide", 6)])
def test_a_width_that_waves_do_not_fill_is_refused(positions: str, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{positions} needs an embedding width that is a multiple of"):
        build_net(config(positions, width=width))
    with pytest.raises(ValueError, match="multiple of 4"):
        SlideSinusoid(6, **WAVES)


@pytest.mark.parametrize("wavelengths", [(300.0, 300.0), (500.0, 20.0), (0.0, 5.0), (5.0,)])
def test_wavelengths_that_do_not_rise_are_refused(wavelengths: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="wavelengths_um"):
        AttentionConfig(wavelengths_um=wavelengths)  # type: ignore[arg-type]


def test_the_raster_encoding_is_the_paper_s() -> None:
    ids = torch.tensor([0, 1, 449, 250_000])
    expected = [
        [f(p * 10_000 ** (-2 * j / 8)) for j in range(4) for f in (math.sin, math.cos)] for p in ids.tolist()
    ]
    torch.testing.assert_close(RasterSinusoid(8)(ids), torch.tensor(expected, dtype=torch.float64))
