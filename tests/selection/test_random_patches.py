"""Random patches: drawn uniformly and reproducibly, and only those are read."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.memory_bags import MemoryBag
from tests.training.test_head_start import CPU, WIDTH, features_bag
from wsi_ips.config import FinetuneConfig, SelectionConfig
from wsi_ips.models.build import build_net
from wsi_ips.selection.baselines import read_random, some_of
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.testing.selectors import PatchesInMemory
from wsi_ips.training.kept_patches import PatchKeeper


def config(aggregator: str = "transmil", **selection: Any) -> FinetuneConfig:
    model = {"encoder": {"name": "features", "features": WIDTH, "project": 16}, "aggregator": aggregator}
    return FinetuneConfig.model_validate(
        {"model": model, "selection": {"selector": "random", "m": 6, **selection}}
    )


def features(count: int) -> MemoryBag:
    torch.manual_seed(count)
    return MemoryBag(f"bag of {count}", torch.randn(count, WIDTH), {"label": 0})


def drawn(seed: int, count: int = 40) -> list[int]:
    settings = config(seed=seed)
    torch.manual_seed(0)
    with features(count).open(settings.streaming, CPU) as source:
        return read_random(build_net(settings.model), source, settings.selection).kept.ids_M.tolist()


def test_the_seed_decides_the_draw() -> None:
    draws = [drawn(seed) for seed in range(5)]
    assert drawn(3) == draws[3]
    assert len({tuple(each) for each in draws}) == 5


def test_every_patch_is_drawn_equally_often() -> None:
    """5000 draws of 3 out of 12: the count of each patch is within 5 standard deviations of 1250."""
    counts = np.zeros(12)
    for number in range(5000):
        counts[some_of(torch.arange(12), 3, f"{number}").numpy()] += 1
    assert np.abs(counts - 1250).max() < 5 * np.sqrt(5000 * 0.25 * 0.75)


@given(st.integers(1, 80), st.integers(1, 80), st.text(max_size=5))
def test_a_draw_has_no_patch_twice(count: int, most: int, key: str) -> None:
    ids_M = some_of(torch.arange(count) * 7, most, key)
    assert len(ids_M) == min(most, count)
    assert (ids_M.diff() > 0).all()


def test_only_the_drawn_patches_are_read_and_the_others_are_counted() -> None:
    settings, seen = config(), []

    def through(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            seen.extend(chunk.ids_n.tolist())
            yield chunk

    with features(40).open(settings.streaming, CPU) as source:
        reading = read_random(build_net(settings.model), source, settings.selection, through=through)
    assert seen == reading.kept.ids_M.tolist() == reading.store.ids().tolist()
    assert reading.coarse is not None
    assert (reading.coarse.patches, reading.coarse.let_through, reading.coarse.saved) == (40, 6, 34)
    sums = reading.store.attention().sum(dim=0)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


def test_a_source_that_can_be_narrowed_is() -> None:
    source = PatchesInMemory(count=50, order=list(reversed(range(50))), batch=4)
    assert source.only(torch.tensor([3, 9])).ids().tolist() == [9, 3]


def test_training_draws_anew_in_every_epoch_and_the_same_again() -> None:
    settings, bag = config(), features_bag(1)
    keeper = PatchKeeper(build_net(settings.model), settings)
    first, second, again = (keeper.keep(bag, epoch=e, device=CPU).ids_M.tolist() for e in (0, 1, 0))
    assert first == again != second
    assert len(first) == 6
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": 7})})
    assert PatchKeeper(build_net(other.model), other).keep(bag, epoch=0, device=CPU).ids_M.tolist() != first


def test_settings_of_earlier_versions_are_stored_as_they_were() -> None:
    assert "seed" not in SelectionConfig().model_dump()
    assert SelectionConfig(seed=3).model_dump(mode="json")["seed"] == 3


@pytest.mark.parametrize("count", [1, 5])
def test_small_bags_are_read_whole(count: int) -> None:
    assert drawn(0, count) == list(range(count))
