import tracemalloc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.selection.drawn import logits_NHT, stored
from wsi_ips.errors import NotFinite
from wsi_ips.selection.memory import TopMBuffer, global_top
from wsi_ips.selection.score_store import ScoreStore

ms = st.integers(1, 70)
SMALLEST_NORMAL = torch.finfo(torch.float64).tiny


def brute_force(logits: Tensor) -> tuple[list[int], Tensor]:
    """Every id, best first, and its score: one softmax in float64, nothing clever."""
    scores_N = logits.double().softmax(0).mean(dim=(1, 2))
    return sorted(range(len(logits)), key=lambda i: (-scores_N[i].item(), i)), scores_N


@given(logits_NHT(), ms)
def test_scores_are_those_of_one_softmax_in_float64(logits: Tensor, m: int) -> None:
    top = global_top(stored(torch.arange(len(logits)), logits), m)
    _, scores_N = brute_force(logits)
    assert len(top.ids_M) == min(m, len(logits))
    torch.testing.assert_close(top.scores_M, scores_N[top.ids_M], rtol=1e-11, atol=1e-290)
    assert torch.equal(top.logits_MHT, logits[top.ids_M])


@given(logits_NHT(), ms)
@example(torch.tensor([0.0, -742.0, -744.0, -743.5]).view(4, 1, 1), 2)
def test_the_kept_are_the_best_of_brute_force(logits: Tensor, m: int) -> None:
    """None that is left out has a higher score, but for float64's last digits.

    Scores below float64's normal numbers count as equal: some of torch's kernels flush them to zero.
    """
    ids = global_top(stored(torch.arange(len(logits)), logits), m).ids_M
    _, scores_N = brute_force(logits)
    left_out = torch.ones(len(logits), dtype=torch.bool)
    left_out[ids] = False
    if left_out.any():
        assert scores_N[left_out].max() <= scores_N[ids].min() * (1 + 1e-11) + SMALLEST_NORMAL


@given(st.integers(0, 10**6), ms)
def test_ids_are_those_of_brute_force_where_no_two_scores_are_close(seed: int, m: int) -> None:
    logits = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(seed)) * 3
    best, _ = brute_force(logits)
    assert global_top(stored(torch.arange(50), logits), m).ids_M.tolist() == best[:m]


@given(logits_NHT(), ms, st.integers(1, 40), st.data())
def test_neither_order_nor_chunks_change_a_bit(logits: Tensor, m: int, cut: int, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(logits)))), dtype=torch.int64)
    straight = global_top(stored(torch.arange(len(logits)), logits), m)
    shuffled = global_top(stored(order, logits[order], cut=cut), m)
    assert torch.equal(straight.ids_M, shuffled.ids_M)
    assert torch.equal(straight.scores_M, shuffled.scores_M)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_with_one_head_and_one_query_it_keeps_what_the_paper_s_memory_keeps(
    n: int, m: int, i: int, seed: int
) -> None:
    """Ties too, where the stream is in grid order: first come and lowest id are then the same."""
    drawn = torch.randint(-40, 40, (n, 1, 1), generator=torch.Generator().manual_seed(seed)) / 8
    buffer = TopMBuffer(m=m, i=i)
    buffer.add(torch.arange(n), torch.zeros(n, 1), drawn)
    assert set(global_top(stored(torch.arange(n), drawn), m).ids_M.tolist()) == set(
        buffer.finish().ids_M.tolist()
    )


def test_with_several_heads_it_keeps_better_patches_than_the_paper_s_memory() -> None:
    """The memory's iterations disagree with the slide's own softmax: why the rule exists."""
    differ = 0
    for seed in range(20):
        logits = torch.randn(40, 4, 4, generator=torch.Generator().manual_seed(seed)) * 4
        buffer = TopMBuffer(m=5, i=8)
        buffer.add(torch.arange(40), torch.zeros(40, 1), logits)
        _, scores_N = brute_force(logits)
        best, theirs = global_top(stored(torch.arange(40), logits), 5).ids_M, buffer.finish().ids_M
        assert scores_N[best].sum() >= scores_N[theirs].sum()
        differ += set(best.tolist()) != set(theirs.tolist())
    assert differ > 5


def test_of_equal_patches_the_lowest_ids_win_whatever_came_first() -> None:
    logits = torch.zeros(200, 2, 1)
    logits[150] = 1
    top = global_top(stored(torch.arange(200).flip(0), logits.flip(0), cut=33), 7)
    assert top.ids_M.tolist() == [150, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused(broken: float) -> None:
    """A NaN would otherwise be the best score of all."""
    logits = torch.zeros(9, 2, 2)
    logits[4, 1, 0] = broken
    with pytest.raises(NotFinite, match="attention logits are not finite: the network"):
        global_top(stored(torch.arange(9), logits), 3)


def test_no_patches_and_no_m_are_refused() -> None:
    with pytest.raises(ValueError, match="no patches"):
        global_top(ScoreStore(), 3)
    with pytest.raises(ValueError, match="M is 1 or more"):
        global_top(stored(torch.arange(2), torch.zeros(2, 1, 1)), 0)


@settings(max_examples=30)
@given(logits_NHT())
def test_the_attention_map_is_that_of_one_softmax_in_float64(logits: Tensor) -> None:
    attention = stored(torch.arange(len(logits)), logits).attention()
    torch.testing.assert_close(attention, logits.double().softmax(0).float(), rtol=2e-7, atol=1e-40)


def test_ranking_a_large_slide_takes_little_memory_beside_its_logits() -> None:
    """NumPy's share, which does the work; a softmax in float64 alone would be four times the logits."""
    logits = torch.randn(60_000, 8, 4)
    store = stored(torch.arange(len(logits)), logits)
    tracemalloc.start()
    top = global_top(store, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.8 * logits.numel() * 4
    assert len(top.ids_M) == 64
