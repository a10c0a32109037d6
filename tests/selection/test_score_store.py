import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.selection.score_store import FIRST_CAPACITY, ScoreStore


@given(
    sizes=st.lists(st.sampled_from([1, 5, 700, FIRST_CAPACITY, 3 * FIRST_CAPACITY]), min_size=1, max_size=5)
)
def test_what_was_added_comes_back_in_stream_order(sizes: list[int]) -> None:
    store = ScoreStore()
    ids = list(torch.arange(sum(sizes)).split(sizes))
    logits = [torch.randn(n, 2, 1) for n in sizes]
    for ids_n, logits_nHT in zip(ids, logits, strict=True):
        store.add(ids_n, logits_nHT)
    assert torch.equal(store.ids(), torch.cat(ids))
    assert torch.equal(store.logits(), torch.cat(logits))
    assert torch.allclose(store.attention().sum(dim=0), torch.ones(2, 1), atol=1e-4)


def test_memory_follows_the_logits_alone() -> None:
    """Twice what is held at most, however small the chunks."""
    store = ScoreStore()
    for start in range(0, 20_000, 10):
        store.add(torch.arange(start, start + 10), torch.zeros(10, 1, 1))
    assert store._logits_CHT.numel() <= 2 * 20_000
