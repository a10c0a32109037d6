import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.selection.drawn import in_parts, logits_NHT, stored
from wsi_ips.selection.memory import Top, global_top, select_over_parts
from wsi_ips.selection.score_store import Normalisers, ScoreStore


def assert_same(ours: Top, whole: Top) -> None:
    assert torch.equal(ours.ids_M, whole.ids_M)
    assert torch.equal(ours.scores_M, whole.scores_M)
    assert torch.equal(ours.logits_MHT, whole.logits_MHT)


@settings(max_examples=50)
@given(logits_NHT(), st.integers(1, 70), st.data())
def test_merged_parts_are_the_whole_slide_to_the_bit(logits: Tensor, m: int, data: st.DataObject) -> None:
    stores = data.draw(in_parts(logits))
    whole = stored(torch.arange(len(logits)), logits)
    merged = select_over_parts(stores, m)
    assert_same(merged.top, global_top(whole, m))
    assert torch.equal(merged.store.ids(), torch.arange(len(logits)))
    assert torch.equal(merged.store.logits(), logits)
    assert torch.equal(merged.attention_NHT, whole.attention())


@settings(max_examples=50)
@given(logits_NHT(), st.integers(1, 70), st.data())
def test_nothing_of_the_slide_s_size_has_to_travel(logits: Tensor, m: int, data: st.DataObject) -> None:
    """Normalisers up, their sum down, M candidates up: the same bits."""
    stores = [store for store in data.draw(in_parts(logits)) if len(store.ids())]
    whole = stored(torch.arange(len(logits)), logits)
    normalisers = Normalisers.merged([store.normalisers() for store in stores])
    tops = [global_top(store, m, normalisers) for store in stores]
    assert all(len(top.ids_M) <= m for top in tops)
    assert_same(Top.merged(tops, m), global_top(whole, m))
    shares = torch.cat([store.attention(normalisers) for store in stores])
    assert torch.equal(shares[torch.cat([store.ids() for store in stores]).argsort()], whole.attention())


def test_a_part_s_own_scores_cannot_tell_what_is_kept() -> None:
    """Patch 0 is the best of head A, patch 1 of head B, and from inside the part 1 looks better. Elsewhere head B
    is flooded, so head A decides: a part that sent its own best would send the wrong patch."""
    part = torch.tensor([[3.0, 0.0], [0.0, 4.0], [2.0, 0.0]])[..., None]
    rest = torch.tensor([[-9.0, 9.0]] * 50)[..., None]
    stores = [stored(torch.arange(3), part), stored(torch.arange(3, 53), rest)]
    assert global_top(stores[0], 1).ids_M.tolist() == [1]
    assert select_over_parts(stores, 1).top.ids_M.tolist() == [0]


@settings(max_examples=50)
@given(logits_NHT(most=25), st.integers(1, 12), st.data())
def test_what_is_at_least_as_good_for_every_head_and_query_is_never_left_out_instead(
    logits: Tensor, m: int, data: st.DataObject
) -> None:
    """The only thing that a part could know without the others, and of equals the lower id."""
    kept = select_over_parts(data.draw(in_parts(logits)), m).top.ids_M.tolist()
    left_out = set(range(len(logits))) - set(kept)
    for patch in kept:
        assert not any((logits[other] >= logits[patch]).all() and other < patch for other in left_out)


def test_a_store_comes_through_pickle_without_its_spare_room() -> None:
    store = stored(torch.arange(10), torch.randn(10, 8, 4), cut=3)
    sent = pickle.dumps(store)
    assert len(sent) < 5_000
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.logits(), store.logits())
    arrived.add(torch.tensor([99]), torch.zeros(1, 8, 4))
    assert arrived.ids().tolist() == [*range(10), 99]
    normalisers = pickle.loads(pickle.dumps(store.normalisers()))
    assert torch.equal(normalisers.scores(store.logits()), store.normalisers().scores(store.logits()))


def test_a_patch_in_two_parts_is_refused() -> None:
    """It would weigh twice in every normaliser."""
    stores = [stored(torch.arange(5), torch.zeros(5, 1, 1)), stored(torch.arange(4, 8), torch.zeros(4, 1, 1))]
    with pytest.raises(ValueError, match=r"patches \[4\] are in more than one part"):
        select_over_parts(stores, 3)


def test_parts_of_different_networks_are_refused() -> None:
    stores = [stored(torch.arange(2), torch.zeros(2, 8, 1)), stored(torch.arange(2, 4), torch.zeros(2, 4, 2))]
    with pytest.raises(ValueError, match="different networks"):
        select_over_parts(stores, 3)
    with pytest.raises(ValueError, match="cannot be merged"):
        Normalisers.merged([store.normalisers() for store in stores])


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no patches"):
        select_over_parts([ScoreStore(), ScoreStore()], 3)


def test_a_slide_of_many_blocks_is_merged_to_the_bit() -> None:
    """More patches than are worked on at a time, one after the other and in a thousand parts."""
    logits = torch.randn(5000, 8, 4, generator=torch.Generator().manual_seed(0)) * 5
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    whole = stored(torch.arange(5000), logits)
    merged = select_over_parts([stored(ids, logits[ids]) for ids in order.split(5)], 300)
    assert_same(merged.top, global_top(whole, 300))
    assert torch.equal(merged.attention_NHT, whole.attention())
    normalisers = Normalisers.merged([stored(ids, logits[ids]).normalisers() for ids in order.split(5)])
    assert torch.equal(normalisers.scores(logits), whole.normalisers().scores(logits))
