"""The model of what a run costs, with rates that make the arithmetic plain."""

from dataclasses import replace

import pytest

from wsi_ips.config import FinetuneConfig, SelectionConfig, TilingConfig
from wsi_ips.planning.cost import Cost, cost_of, halvings, pass_over
from wsi_ips.planning.rates import HeadRates, Rates
from wsi_ips.planning.simulated import Peaks
from wsi_ips.planning.survey import SplitSurvey, Survey, SurveyedSlide
from wsi_ips.planning.work import Work
from wsi_ips.tiling.patches import PatchesInTissue

MB = 2**20
PEAKS = Peaks(selection=100 * MB, step=300 * MB, weights=1_000_000, learning=1_000_000, width=512)
RATES = Rates(
    device="a card", how="given", cores=4, megapixel_s=0.01, forward_s=0.01, learn_s=0.05, device_gb=80,
    base_mb=500, head=HeadRates(bag_s=0.1, epoch_s=0.0, start_s=0.0),
)  # fmt: skip


def config(**training: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "selection": {"m": 50},
            "streaming": {"threads": 2},
            "model": {"encoder": {"name": "resnet18"}},
            "training": {
                "epochs": 4,
                "flips": False,
                "slides_per_step": 2,
                "head_start": {"epochs": 0},
                **training,
            },
        }
    )


def work(settings: FinetuneConfig | None = None, **others: object) -> Work:
    made = Work("finetune", settings or config(), (), PatchesInTissue(TilingConfig()))
    return replace(made, **others)  # type: ignore[arg-type]


def slides(split: str, count: int, patches: int = 1000, megapixels: float = 100.0) -> SplitSurvey:
    one = SurveyedSlide("a", split, patches, 200, 200, megapixels, 5.0, 2.0, 2.0, coarser=True)
    return SplitSurvey(count, (one,) * count)


SURVEY = Survey({"train": slides("train", 6), "val": slides("val", 2)}, {}, 8, 8)


def seconds(cost: Cost) -> dict[str, float | None]:
    return {stage.name: stage.seconds for stage in cost.stages}


@pytest.mark.parametrize(("hidden", "expected"), [(0.0, 6 * (10 + 0.5)), (1.0, 6 * 10), (0.5, 6 * 10.25)])
def test_a_pass_takes_the_longer_part_and_what_is_not_hidden_of_the_other(
    hidden: float, expected: float
) -> None:
    rates = RATES.model_copy(update={"hidden": hidden})
    one = pass_over(SURVEY, rates, config(), "train")
    assert one.seconds == pytest.approx(expected)
    assert one.does == "encoding"


def test_threads_decode_as_far_as_there_are_cores() -> None:
    slow = RATES.model_copy(update={"megapixel_s": 1.0, "hidden": 1.0, "cores": 1})
    assert pass_over(SURVEY, slow, config(), "train").seconds == pytest.approx(600)
    assert pass_over(SURVEY, slow, config(), "train").does == "decoding"
    more = slow.model_copy(update={"cores": 2})
    assert pass_over(SURVEY, more, config(), "train").seconds == pytest.approx(300)


def test_a_training_is_selection_learning_and_validation_in_every_epoch() -> None:
    cost = cost_of(work(), SURVEY, RATES.model_copy(update={"hidden": 1.0}), PEAKS)
    assert seconds(cost) == pytest.approx(
        {"finding tissue": 16, "selecting": 4 * 60, "learning from kept patches": 4 * 6 * 50 * 0.05,
         "validating": 4 * 20}
    )  # fmt: skip
    assert cost.epoch_seconds == pytest.approx(60 + 15 + 20)
    assert cost.passes_per_epoch == 6000 + 2000 + 2 * 300
    assert cost.passes == 4 * cost.passes_per_epoch
    assert cost.dominating is not None
    assert cost.dominating.name == "selecting"


def test_selecting_in_every_other_epoch_halves_the_selection_and_reads_kept_patches_twice() -> None:
    rates = RATES.model_copy(update={"hidden": 1.0})
    cost = cost_of(work(config(select_every=2)), SURVEY, rates, PEAKS)
    assert seconds(cost)["selecting"] == pytest.approx(2 * 60)
    assert seconds(cost)["learning from kept patches"] == pytest.approx(4 * 300 * (0.05 + 0.01))


def test_the_head_start_looks_at_every_patch_in_each_view_and_stores_that() -> None:
    settings = config(head_start={"epochs": 10, "views": 4})
    cost = cost_of(work(settings), SURVEY, RATES.model_copy(update={"hidden": 1.0}), PEAKS)
    assert seconds(cost)["features for the head start"] == pytest.approx(6 * 40 + 2 * 10)
    assert seconds(cost)["head start on features"] == pytest.approx(10 * 8 * 0.1)
    assert cost.scratch_mb == pytest.approx((6000 * 4 + 2000) * 512 * 2 / 1e6)
    unknown = cost_of(work(settings), SURVEY, RATES.model_copy(update={"head": None}), PEAKS)
    assert unknown.not_known == ("head start on features",)


def test_folds_train_once_each_and_do_not_read_the_kept_more_than_once() -> None:
    once, thrice = (cost_of(work(folds=folds), SURVEY, RATES, PEAKS) for folds in (1, 3))
    assert thrice.passes == 3 * once.passes
    assert thrice.disk_mb == 3 * once.disk_mb


def test_memory_is_what_was_measured_or_what_was_simulated() -> None:
    simulated = cost_of(work(), SURVEY, RATES, PEAKS)
    assert simulated.vram_mb is not None
    assert simulated.vram_mb > 300
    assert simulated.ram_mb is not None
    assert simulated.ram_mb > 500
    measured = cost_of(work(), SURVEY, RATES.model_copy(update={"peak_mb": 2000.0}), PEAKS)
    assert measured.ram_mb == pytest.approx(2000, abs=10)
    nothing = cost_of(work(), SURVEY, RATES.model_copy(update={"base_mb": None}), PEAKS)
    assert nothing.ram_mb is None, "what is not known is not made up"


def test_an_unknown_rate_leaves_its_stages_unknown() -> None:
    cost = cost_of(work(), SURVEY, RATES.model_copy(update={"forward_s": None}), PEAKS)
    assert set(cost.not_known) == {"selecting", "validating"}


@pytest.mark.parametrize("kind", ["predict", "features"])
def test_labels_and_features_are_one_pass(kind: str) -> None:
    cost = cost_of(work(kind=kind), SURVEY, RATES.model_copy(update={"hidden": 1.0}), PEAKS)
    assert cost.seconds == pytest.approx(16 + 80)
    assert cost.passes == 8000
    if kind == "features":
        assert cost.disk_mb == pytest.approx(8000 * (512 * 4 + 28) / 1e6)


def test_kept_patches_in_four_orientations_are_read_again_and_encoded_four_times() -> None:
    """50 of each slide's 1,000 patches: of all 8 slides in labelling, of 2 in each of 4 epochs of validation."""
    turned = config().model_copy(update={"selection": SelectionConfig(memory_size=50, turns=4)})
    assert RATES.forward_s is not None
    each = 4 * RATES.forward_s + RATES.reread_s
    for kind, read in (("predict", 8 * 50), ("finetune", 4 * 2 * 50)):
        once, again = (
            cost_of(work(settings, kind=kind), SURVEY, RATES, PEAKS) for settings in (config(), turned)
        )
        assert once.seconds is not None
        assert again.seconds == pytest.approx(once.seconds + read * each)
        assert again.passes == once.passes + read * 4


def test_other_settings_are_asked_of_the_same_model() -> None:
    asked: list[FinetuneConfig] = []

    def peaks(settings: FinetuneConfig) -> Peaks:
        asked.append(settings)
        half = settings.training.micro_batch == 16
        return replace(PEAKS, step=PEAKS.step // 2) if half else PEAKS

    found = {halving.setting: halving for halving in halvings(work(), SURVEY, RATES, peaks)}
    assert found["training.micro_batch=16"].time == pytest.approx(1)
    micro = found["training.micro_batch=16"].memory
    assert micro is not None
    assert micro < 0.6
    coarse = found["tiling.patch_mpp=1"].time
    assert coarse is not None
    assert coarse < 0.4
    assert found["selection.iteration_size=32"].time == pytest.approx(1)
    frozen = found["wsi-ips features once, then finetune --features"]
    # One pass over 8 slides and its tissue, then 4 epochs of 8 bags.
    assert frozen.time == pytest.approx(
        (16 + 80 + 8 * 0.5 + 4 * 8 * 0.1) / cost_of(work(), SURVEY, RATES, PEAKS).seconds, rel=0.01
    )
    assert len({settings.training.micro_batch for settings in asked}) == 2
