"""What kept patches contribute, from a network's pass over a drawn slide to the stored file and back."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import SMALL_MODEL, SmallData
from tests.inference.test_results import assert_equal, result_of
from wsi_ips.config import PipelineConfig, StreamingConfig
from wsi_ips.errors import ResultsError
from wsi_ips.inference.predict import Predictor
from wsi_ips.inference.results import SlideResult, read_result, write_result
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet

TASKS = [
    {"name": "label", "classes": ["normal", "itc", "tumor"], "token": 1},
    {"name": "grade", "classes": ["necrosis", "fat"], "token": 0, "activation": "sigmoid"},
    {"name": "age", "classes": ["years"], "token": 0, "activation": "linear"},
]


def predicted(data: SmallData, attention: object, *, rule: str = "buffer") -> tuple[IPSNet, SlideResult]:
    pipeline = PipelineConfig.model_validate(
        {
            **SMALL_MODEL,
            "selection": {"rule": rule, "m": 9, "i": 8},
            "model": {**SMALL_MODEL["model"], "attention": attention, "tasks": TASKS},  # type: ignore[dict-item]
        }
    )
    torch.manual_seed(1)
    net = build_net(pipeline.model)
    assert isinstance(net, IPSNet)
    for layer in net.heads.layers:
        torch.nn.init.normal_(layer.weight, std=2)
        torch.nn.init.normal_(layer.bias)
    predictor = Predictor(net, pipeline, streaming=StreamingConfig(), device=torch.device("cpu"))
    return net, predictor.predict(sorted(data.slides.iterdir())[0], slide_id="drawn")


@pytest.mark.parametrize("rule", ["buffer", "global"])
@pytest.mark.parametrize("positions", ["none", "slide"])
def test_contributions_and_bias_add_up_to_what_the_label_was_read_from(
    small_data: SmallData, rule: str, positions: str
) -> None:
    net, result = predicted(small_data, {"block": "direct", "positions": positions}, rule=rule)
    biases = dict(zip([str(task["name"]) for task in TASKS], net.heads.layers, strict=True))

    def added(task: str) -> np.ndarray:
        names = list(result.probabilities[task])
        sums_C = np.array([result.contribution(task, name).sum(dtype=np.float64) for name in names])
        bias_C = biases[task].bias.detach().double().numpy()
        return sums_C + bias_C

    said = {task: np.array(list(classes.values())) for task, classes in result.probabilities.items()}
    label = added("label")  # its contributions are centred, which no softmax sees
    np.testing.assert_allclose(np.exp(label) / np.exp(label).sum(), said["label"], rtol=1e-4)
    assert sum(result.contribution("label", name) for name in result.probabilities["label"]) == (
        pytest.approx(0, abs=1e-5)
    )
    np.testing.assert_allclose(1 / (1 + np.exp(-added("grade"))), said["grade"], rtol=1e-4)
    np.testing.assert_allclose(added("age"), said["age"], rtol=1e-4)
    assert max(abs(label)) > 0.1, "nothing to tell apart"


def test_only_kept_patches_contribute_and_each_stands_in_its_own_place(small_data: SmallData) -> None:
    _, result = predicted(small_data, "direct")
    assert result.kept_contributions_MK is not None
    assert result.kept_contributions_MK.shape == (9, 6)
    values_N = result.contribution("label", "tumor")
    assert values_N.dtype == np.float32
    for patch_id, value in zip(result.coords.ids_N.tolist(), values_N.tolist(), strict=True):
        place = np.flatnonzero(result.kept_ids_M == patch_id)
        assert value == (result.kept_contributions_MK[place[0], 2] if len(place) else 0)
    with pytest.raises(KeyError, match="no output 'tumor' of task 'grade'"):
        result.contribution("grade", "tumor")


def test_the_paper_s_block_tells_nothing(small_data: SmallData) -> None:
    _, result = predicted(small_data, "paper")
    assert result.kept_contributions_MK is None
    with pytest.raises(KeyError, match="does not tell"):
        result.contribution("label", "tumor")


def told() -> SlideResult:
    return replace(result_of(), kept_contributions_MK=np.array([[-1, 1, 2], [0.5, -0.5, 4]], np.float32))


def test_contributions_come_back_exactly_and_are_found_by_id(tmp_path: Path) -> None:
    """The kept ids are 9 and 7, the last row and the one before it."""
    write_result(tmp_path / "a.h5", told())
    result = read_result(tmp_path / "a.h5")
    assert_equal(told(), result)
    assert result.contribution("label", "tumor").tolist() == [0, 0, 0, -0.5, 1]
    write_result(tmp_path / "b.h5", result_of())
    assert read_result(tmp_path / "b.h5").kept_contributions_MK is None


def test_a_file_whose_patches_are_in_another_order_is_read_right() -> None:
    coords = result_of().coords
    turned = replace(coords, ids_N=coords.ids_N[::-1], l0_xy_N2=coords.l0_xy_N2[::-1])
    result = replace(told(), coords=turned)
    assert result.contribution("label", "tumor").tolist() == [1, -0.5, 0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (np.zeros((2, 2), np.float32), "contributions"),
        (np.zeros((3, 3), np.float32), "contributions"),
        (np.zeros(6, np.float32), "contributions"),
    ],
)
def test_contributions_that_do_not_fit_are_refused(tmp_path: Path, wrong: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(told(), kept_contributions_MK=wrong)
    write_result(tmp_path / "a.h5", told())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["kept_contributions"]
        file["kept_contributions"] = wrong
    with pytest.raises(ResultsError, match=problem):
        read_result(tmp_path / "a.h5")


def test_a_patch_that_is_kept_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="kept twice"):
        replace(told(), kept_ids_M=np.array([7, 7]))
