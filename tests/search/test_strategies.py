"""Every strategy fills the same decisions, repeats itself, and goes on from a record."""

import statistics

import pytest

from tests.search.small import SMALL, settings, share_of_residual
from wsi_ips.search.config import EvolutionConfig, SearchSpaceConfig, StrategyName
from wsi_ips.search.run import new_candidates, retell
from wsi_ips.search.space import replay
from wsi_ips.search.strategy import ControllerSearch, OptunaSearch, build_strategy, labels_of

STRATEGIES: tuple[StrategyName, ...] = ("random", "evolution", "controller")
KINDS_ONLY = SearchSpaceConfig(intermediate={3: 1, 4: 1}, outputs=(3, 4), adjust_levels=False)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_proposal_is_the_network_of_its_answers(name: StrategyName) -> None:
    for candidate in new_candidates(build_strategy(name, settings()), 5, share_of_residual):
        assert replay(SMALL, candidate.answers) == candidate.specification


@pytest.mark.parametrize("name", STRATEGIES)
def test_told_its_record_a_strategy_goes_on_as_if_never_stopped(name: StrategyName) -> None:
    config = settings(evolution={"population": 4, "sample": 2}, controller={"batch": 3})
    whole = [one.answers for one in new_candidates(build_strategy(name, config), 12, share_of_residual)]
    for cut in (0, 1, 5, 10):
        before = list(new_candidates(build_strategy(name, config), cut, share_of_residual))
        again = build_strategy(name, config)
        retell(again, before)
        after = list(new_candidates(again, 12, share_of_residual, past=before))
        assert [one.answers for one in (*before, *after)] == whole


@pytest.mark.parametrize("name", STRATEGIES)
def test_seeds_differ(name: StrategyName) -> None:
    drawn = [
        [
            one.answers
            for one in new_candidates(build_strategy(name, settings(seed=seed)), 3, share_of_residual)
        ]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


def test_random_search_draws_every_choice_alike() -> None:
    strategy = OptunaSearch(KINDS_ONLY, seed=0)
    residual = []
    for number in range(150):
        proposal = strategy.propose(number)
        residual.append(proposal.answers["kind.0"])
        strategy.tell(proposal.answers, 0.0)
    assert 50 < sum(residual) < 100


def mean_of_last(name: StrategyName, count: int, **changed: object) -> float:
    config = settings(KINDS_ONLY, **changed)
    found = list(new_candidates(build_strategy(name, config), count, share_of_residual))
    return statistics.fmean(one.score or 0.0 for one in found[-20:])


def test_the_controller_learns_a_toy_score_that_chance_does_not() -> None:
    learned = mean_of_last("controller", 200, controller={"hidden": 16, "lr": 0.02})
    assert mean_of_last("random", 60) < 0.65
    assert learned > 0.85


def test_evolution_climbs_a_toy_score() -> None:
    assert mean_of_last("evolution", 80, evolution={"population": 10, "sample": 5}) > 0.75


def test_evolution_forgets_the_oldest_however_good_it_was() -> None:
    """The best of all is drawn from only while it is among the latest P."""
    strategy = OptunaSearch(KINDS_ONLY, seed=0, evolution=EvolutionConfig(population=3, sample=50))
    answers = []
    for number in range(12):
        proposal = strategy.propose(number)
        answers.append(dict(proposal.answers))
        # The first is the best by far, the others are worse the later they come.
        strategy.tell(proposal.answers, 1.0 if number == 0 else -float(number))

    def distance(one: int, other: int) -> int:
        """How many labels differ: one, or two where two blocks of a permutation changed places."""
        mine, theirs = labels_of(KINDS_ONLY, answers[one]), labels_of(KINDS_ONLY, answers[other])
        return sum(mine[name] != theirs[name] for name in mine if "order" not in name)

    assert distance(3, 0) <= 1  # the population is 0, 1, 2: its best is 0
    # From 4 on the oldest of the latest three is the best of them; 0 is gone.
    for number in range(4, 12):
        assert distance(number, number - 3) <= 1


def test_a_child_differs_from_its_parent_in_one_decision_or_two_blocks_changed_places() -> None:
    strategy = OptunaSearch(SMALL, seed=3, evolution=EvolutionConfig(population=2, sample=50))
    drawn = []
    for number in range(30):
        proposal = strategy.propose(number)
        drawn.append(labels_of(SMALL, proposal.answers))
        strategy.tell(proposal.answers, -float(number))
    swaps = 0
    for number in range(2, 30):
        # Single choices are asked of nobody: the last of a permutation is not among the labels.
        changed = [name for name in drawn[number] if drawn[number][name] != drawn[number - 2][name]]
        orders = [name for name in changed if "order" in name]
        assert 1 <= len(changed) <= 2
        assert len(changed) == 1 or len(orders) == 2
        swaps += len(orders) == 2
    assert swaps


def test_failed_candidates_are_no_parents_and_teach_nothing() -> None:
    strategy = OptunaSearch(KINDS_ONLY, seed=0, evolution=EvolutionConfig(population=2, sample=2))
    for number in range(6):
        proposal = strategy.propose(number)
        strategy.tell(proposal.answers, None)
    controller = ControllerSearch(KINDS_ONLY, settings().controller.model_copy(update={"batch": 1}), seed=0)
    before = [parameter.clone() for parameter in controller.policy.parameters()]
    controller.tell(controller.propose(0).answers, None)
    assert all((b == a).all() for b, a in zip(before, controller.policy.parameters(), strict=True))


def test_the_controller_places_each_block_once() -> None:
    controller = ControllerSearch(SMALL, settings().controller, seed=1)
    for number in range(10):
        labels = labels_of(SMALL, controller.propose(number).answers)
        order = [label for name, label in labels.items() if name.startswith("order")]
        assert len(set(order)) == len(order) == 4
