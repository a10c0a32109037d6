"""The folder of a search: whole files, resumed to the same end, refused to others."""

import csv
import json
from pathlib import Path

import pytest

from tests.search.small import SMALL, TINY, settings, share_of_residual
from wsi_ips.errors import ConfigError, ResultsError, TrainingError
from wsi_ips.models.spinenet.specification import Specification, load_specification
from wsi_ips.progress import silent
from wsi_ips.search.candidate import CandidateScore
from wsi_ips.search.run import SearchRecord, best_of, claimed, search

ALL = ("random", "evolution", "controller")
CONFIG = settings(strategies=ALL, candidates=8, evolution={"population": 3}, controller={"batch": 2})


class Killed(Exception):
    pass


class KilledAfter:
    """Scores so many candidates, then the search dies."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, specification: Specification, /) -> CandidateScore:
        if not self.left:
            raise Killed
        self.left -= 1
        return share_of_residual(specification)


def files_of(out: Path) -> dict[str, object]:
    """All that a search leaves, but for how long things took."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*.json")):
        found[str(path.relative_to(out))] = {**json.loads(path.read_text()), "seconds": 0}
    return found | {"best": (out / "best.yaml").read_text()}


def test_a_search_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    search(CONFIG, tmp_path / "alone", share_of_residual, silent)
    for kill_after in (3, 0, 7, 5):
        with pytest.raises(Killed):
            search(CONFIG, tmp_path / "killed", KilledAfter(kill_after), silent)
    search(CONFIG, tmp_path / "killed", share_of_residual, silent)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "alone")


def test_a_larger_budget_goes_on_from_a_smaller_one(tmp_path: Path) -> None:
    fewer = CONFIG.model_copy(update={"candidates": 3})
    search(fewer, tmp_path / "grown", share_of_residual, silent)
    search(CONFIG, tmp_path / "grown", share_of_residual, silent)
    search(CONFIG, tmp_path / "once", share_of_residual, silent)
    assert files_of(tmp_path / "grown") == files_of(tmp_path / "once")


def test_the_best_is_written_and_loads(tmp_path: Path) -> None:
    found = search(CONFIG, tmp_path, share_of_residual, silent)
    best = best_of(one for its in found.values() for one in its)
    assert best is not None
    assert load_specification(tmp_path / "best.yaml").blocks == best.specification.blocks
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == [name for name in ALL for _ in range(8)]
    assert max(float(row["best"]) for row in rows) == best.score


def test_a_failed_candidate_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    def fails_on_six(specification: Specification, /) -> CandidateScore:
        return (
            CandidateScore(None, "boom")
            if len(specification.blocks) < 8
            else share_of_residual(specification)
        )

    config = settings(strategies=ALL, candidates=6)
    found = search(config, tmp_path, fails_on_six, silent)
    failed = [one for its in found.values() for one in its if one.score is None]
    assert failed
    assert {one.error for one in failed} == {"boom"}
    assert all(len(its) == 6 for its in found.values())
    assert [one.error for one in SearchRecord(tmp_path / "random").read()] == [
        one.error for one in found["random"]
    ]


def test_nothing_but_failures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no candidate succeeded.*boom"):
        search(CONFIG, tmp_path, lambda _: CandidateScore(None, "boom"), silent)


def test_the_same_blocks_are_trained_once(tmp_path: Path) -> None:
    trained: list[Specification] = []

    def train(specification: Specification, /) -> CandidateScore:
        trained.append(specification)
        return share_of_residual(specification)

    found = search(settings(TINY, candidates=60), tmp_path, train, silent)
    assert len({one.specification.blocks for one in found["evolution"]}) == len(trained) < 60


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    with claimed(tmp_path, CONFIG, data="abc", device="cpu"):
        search(CONFIG, tmp_path, share_of_residual, silent)
    space = SMALL.model_copy(update={"window": 3})
    for changed, data, different in (
        ({"seed": 7}, "abc", "seed 0 there, 7 here"),
        ({}, "xyz", "data abc there, xyz here"),
        ({"space": space}, "abc", "space.window 5 there, 3 here"),
    ):
        other = CONFIG.model_copy(update=changed)
        with (
            pytest.raises(ConfigError, match=different),
            claimed(tmp_path, other, data=data, device="cpu"),
        ):
            pass
    more = CONFIG.model_copy(update={"candidates": 9, "timeout_s": 1.0})
    with claimed(tmp_path, more, data="abc", device="cpu"):
        pass


@pytest.mark.parametrize("damage", ["{", '{"number": 1}', '{"number": 0, "score": NaN}'])
def test_a_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    search(CONFIG, tmp_path, share_of_residual, silent)
    path = tmp_path / "evolution" / "000002.json"
    path.write_text(damage)
    with pytest.raises(ResultsError, match=r"000002\.json: is no candidate"):
        search(CONFIG, tmp_path, share_of_residual, silent)


def test_a_missing_candidate_is_named(tmp_path: Path) -> None:
    search(CONFIG, tmp_path, share_of_residual, silent)
    (tmp_path / "random" / "000003.json").unlink()
    with pytest.raises(ResultsError, match=r"000003\.json"):
        search(CONFIG, tmp_path, share_of_residual, silent)


def test_a_record_of_another_space_is_refused(tmp_path: Path) -> None:
    search(CONFIG, tmp_path, share_of_residual, silent)
    with pytest.raises(ResultsError, match="belongs to another search"):
        search(CONFIG.model_copy(update={"space": TINY}), tmp_path, share_of_residual, silent)
