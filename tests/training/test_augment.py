import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.training.augment import quarter_turns_and_flips


def patches(n: int) -> torch.Tensor:
    return torch.arange(n * 3 * 4 * 4, dtype=torch.float32).reshape(n, 3, 4, 4)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_a_patch_is_turned_the_same_way_whatever_chunk_it_comes_in(order: list[int], cut: int) -> None:
    ids, pixels = torch.arange(12) * 1000, patches(12)
    together = quarter_turns_and_flips(pixels, ids, key="0/3/slide")
    rows = torch.tensor(order)
    parts = [quarter_turns_and_flips(pixels[r], ids[r], key="0/3/slide") for r in (rows[:cut], rows[cut:])]
    assert torch.equal(torch.cat(parts), together[rows])


def test_another_epoch_turns_patches_another_way() -> None:
    ids, pixels = torch.arange(64), patches(64)
    first = quarter_turns_and_flips(pixels, ids, key="0/0/slide")
    assert not torch.equal(first, quarter_turns_and_flips(pixels, ids, key="0/1/slide"))


def test_all_eight_symmetries_occur_about_equally_often() -> None:
    corner = torch.zeros(8000, 3, 2, 2)
    corner[:, :, 0, 0], corner[:, :, 0, 1] = 1, 2
    turned = quarter_turns_and_flips(corner, torch.arange(8000), key="0/0/slide")
    kinds, counts = turned[:, 0].flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 850


def test_no_pixel_is_lost() -> None:
    pixels = patches(10)
    turned = quarter_turns_and_flips(pixels, torch.arange(10), key="k")
    assert torch.equal(turned.flatten(1).sort().values, pixels.flatten(1).sort().values)
