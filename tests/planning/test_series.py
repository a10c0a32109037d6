"""Tables and comparisons: which trainings they are, and what these cost together, with rates that are plain."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.planning.small_table import JOB, PEAKS, RATES, ROWS, table
from wsi_ips.commands.recipe import make_job
from wsi_ips.errors import ConfigError
from wsi_ips.planning.cost import cost_of
from wsi_ips.planning.series import Series, imagined_splits, series_of
from wsi_ips.planning.series_cost import Known, cost_of_series, series_halvings
from wsi_ips.planning.survey import SplitSurvey, Survey, SurveyedSlide


@pytest.fixture(scope="module")
def series() -> Iterator[Series]:
    with series_of(make_job(table(Path("none")), source="test"), imagined=20) as made:
        yield made


def known(series: Series, **jobs: Any) -> Known:
    one = SurveyedSlide("a", "train", 100, 10, 10, 1.0, 1.0, 0.5, 0.5, coarser=True)
    survey = Survey(
        {split: SplitSurvey(count, (one,)) for split, count in {"train": 14, "val": 3, "test": 3}.items()},
        {}, 20, 20,
    )  # fmt: skip
    names = [part.name for part in series.parts]
    reading = [one.name for one in series.stored] + [row.name for row in series.rows if row.stored is None]
    return Known(
        dict.fromkeys(names, survey),
        dict.fromkeys(reading, RATES),
        {row.name: JOB.model_copy(update=jobs) for row in series.rows},
        dict.fromkeys(names, PEAKS),
    )


def test_rows_on_the_same_features_count_them_once(series: Series) -> None:
    (stored,) = series.stored
    assert stored.rows == ("frozen + ABMIL", "frozen + IPS")
    cost = cost_of_series(series, known(series))
    (features,) = cost.stored
    # 20 slides of 100 patches, float32 of width 512 in two files, whatever the number of rows.
    assert features.disk_mb == pytest.approx(20 * 100 * (2 * 512 * 4 + 28) / 1e6)
    assert features.seconds == pytest.approx(2 + 20 * 0.5 + 20 * 100 * 0.01)
    rows = {row.name: row for row in cost.rows}
    each = [row.once.seconds for row in cost.rows]
    assert cost.seconds == pytest.approx(3 + features.seconds + 3 * sum(each))
    assert cost.disk_mb == pytest.approx(features.disk_mb + sum(row.disk_mb for row in cost.rows))
    # A start, five epochs of 17 bags, three slides labelled and scored.
    assert rows["frozen + ABMIL"].once.seconds == pytest.approx(3 + 2 + 5 * (1 + 17 * 0.1) + 3 * 0.2 + 5.3)
    assert rows["frozen + IPS"].once.seconds == pytest.approx(3 + 2 + 2 * (1 + 17 * 0.1) + 3 * 0.2 + 5.3)
    assert cost.ram_mb == pytest.approx(1000, abs=1)
    assert cost.starter_mb == 400
    assert cost.vram_mb is None


def test_another_encoder_or_other_patches_are_features_of_their_own() -> None:
    rows = {**ROWS, "coarse": {"frozen": True, "settings": {"tiling.patch_mpp": 1.0}}}
    job = make_job(table(Path("none"), rows=rows), source="test")
    with series_of(job, imagined=20) as series:
        assert [one.rows for one in series.stored] == [("frozen + ABMIL", "frozen + IPS"), ("coarse",)]


def test_a_row_is_its_training_and_the_labels_of_the_test_slides(series: Series) -> None:
    held = known(series)
    row = next(row for row in series.rows if row.name == "end to end")
    alone = cost_of(row.work, held.surveys[row.name].only("train", "val"), RATES, PEAKS)
    once = next(part for part in cost_of_series(series, held).rows if part.name == "end to end").once
    assert once.stages[: len(alone.stages)] == alone.stages
    after = {stage.name: stage.seconds for stage in once.stages[len(alone.stages) :]}
    assert after == pytest.approx(
        {"finding tissue of test slides": 1.5, "labelling test slides": 3.0,
         "storing and drawing of test slides": 1.5, "figures": 5.3}
    )  # fmt: skip
    assert once.ram_mb == alone.ram_mb


def test_what_is_not_known_is_said_and_left_out_of_the_sum(series: Series) -> None:
    cost = cost_of_series(series, known(series, head=None, label_s=None, score_s=None))
    assert cost.not_known == ("learning on features", "labelling test slides", "figures")
    rows = {part.name: part.once.not_known for part in cost.rows}
    assert rows["frozen + IPS"] == cost.not_known
    assert rows["end to end"] == ("figures",)
    unread = known(series)
    blind = {
        name: rates.model_copy(update={"peak_mb": None, "base_mb": None})
        for name, rates in unread.rates.items()
    }
    assert cost_of_series(series, replace(unread, rates=blind)).ram_mb is None


def test_what_a_process_needs_to_end_is_counted_for_each_job(series: Series) -> None:
    plain, ending = (cost_of_series(series, known(series, end_s=end_s)) for end_s in (0.0, 2.0))
    # The program, the features, and three seeds of four rows.
    assert ending.seconds - plain.seconds == pytest.approx(2 * (1 + 1 + 3 * 4))
    together = cost_of_series(replace(series, isolate=False), known(series, end_s=2.0))
    assert not any(stage.name == "ending" for part in together.parts for stage in part.once.stages)


def test_in_one_process_the_program_starts_once(series: Series) -> None:
    together, apart = (
        cost_of_series(replace(series, isolate=isolate), known(series)) for isolate in (False, True)
    )
    # Features, and three seeds of two rows of each kind.
    assert apart.seconds - together.seconds == pytest.approx(2 + 3 * (2 * 3 + 2 * 2))
    assert together.starter_mb is None


def test_a_setting_is_tried_on_all_rows_at_once(series: Series) -> None:
    found = {halving.setting: halving for halving in series_halvings(series, known(series))}
    coarse = found["tiling.patch_mpp=1"].time
    assert coarse is not None
    assert 0.3 < coarse < 1
    assert found["tiling.patch_mpp=1"].changes
    assert not any(setting.startswith("wsi-ips features") for setting in found), "the table has such rows"


def test_imagined_slides_are_split_as_the_data_set_is() -> None:
    def job(name: str, **more: Any) -> Any:
        return make_job(table(Path("none"), data_set=name, **more), source="test")

    assert imagined_splits("camelyon16", 399, job("camelyon16")) == {"train": 216, "val": 54, "test": 129}
    assert imagined_splits("panda", 100, job("panda")) == {"train": 70, "val": 15, "test": 15}
    # CAMELYON17's validation patients are the test, and a fifth of the training patients chooses the epoch.
    held = job("camelyon17", held_out="val", inner_val=0.2)
    assert imagined_splits("camelyon17", 500, held) == {"train": 320, "val": 80, "test": 100}
    assert imagined_splits("camelyon_plus", 1398, job("camelyon_plus"))["test"] == 629


def test_a_row_that_cannot_be_trained_is_refused() -> None:
    rows = {"wrong": {"settings": {"model.aggregator": "nonsense"}}}
    with (
        pytest.raises(ConfigError, match="nonsense"),
        series_of(make_job(table(Path("none"), rows=rows), source="test"), imagined=3),
    ):
        pass
