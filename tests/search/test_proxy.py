"""The proxy task: data, scores, and candidates of both kinds in processes of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.drawn.drawn_textures import draw_textures
from tests.search.drawn_nuclei import draw_nuclei
from tests.search.small import SMALL
from wsi_ips.errors import DatasetError, ManifestError
from wsi_ips.search.candidate import ProxyTask
from wsi_ips.search.config import ProxyConfig, SearchConfig, SearchSpaceConfig
from wsi_ips.search.proxy import digest, outlined_images, prepare, proxy_score, read_arrays, write_arrays
from wsi_ips.search.space import decode

SPECIFICATION = decode(SMALL, lambda name, choices: 0)
FIVE_OUTPUTS = decode(SearchSpaceConfig(intermediate={4: 1}), lambda name, choices: 0)
TINY_NET = {"width": 0.1, "alpha": 0.25, "endpoint_channels": 8, "head_channels": 8, "head_convs": 1}


def textures(folder: Path, **changed: object) -> ProxyConfig:
    given = {
        "data": "textures",
        "folder": folder,
        "side_px": 32,
        "steps": 3,
        "batch": 4,
        **TINY_NET,
        **changed,
    }
    return ProxyConfig.model_validate(given)


def nuclei(folder: Path, **changed: object) -> ProxyConfig:
    given = {
        "data": "nuclei",
        "folder": folder,
        "side_px": 128,
        "steps": 2,
        "batch": 2,
        **TINY_NET,
        **changed,
    }
    return ProxyConfig.model_validate(given)


def test_held_back_textures_are_of_other_sources(tmp_path: Path) -> None:
    arrays = prepare(textures(draw_textures(tmp_path)))
    shown = {part: {x.tobytes() for x in arrays[f"{part}_pixels"]} for part in ("train", "held_back")}
    assert arrays["train_pixels"].shape[1:] == (32, 32, 3)
    assert not shown["train"] & shown["held_back"]
    assert set(arrays["held_back_labels"].tolist()) == {0, 1, 2}


def test_nuclei_come_back_from_the_arrays_with_their_boxes(tmp_path: Path) -> None:
    truth = draw_nuclei(tmp_path / "d")
    arrays = prepare(nuclei(tmp_path / "d"))
    write_arrays(tmp_path / "a.npz", arrays)
    again = read_arrays(tmp_path / "a.npz")
    assert digest(again) == digest(arrays)
    images = [*outlined_images(again, "train"), *outlined_images(again, "held_back")]
    assert len(images) == len(truth)
    for image, boxes in zip(images, truth, strict=True):
        np.testing.assert_allclose(image.boxes_N4, boxes)


def test_a_score_depends_on_blocks_data_and_settings_alone(tmp_path: Path) -> None:
    config = textures(draw_textures(tmp_path))
    arrays = prepare(config)
    write_arrays(tmp_path / "a.npz", arrays)
    here = proxy_score(SPECIFICATION, arrays, config, torch.device("cpu"))
    torch.manual_seed(99)
    apart = ProxyTask(config, tmp_path / "a.npz", "cpu", 120)(SPECIFICATION)
    assert apart.score == pytest.approx(here, abs=1e-6)
    other = config.model_copy(update={"seed": 1})
    assert proxy_score(SPECIFICATION, arrays, other, torch.device("cpu")) != here


def test_more_steps_learn_more(tmp_path: Path) -> None:
    config = textures(draw_textures(tmp_path), lr=0.01, batch=16)
    arrays = prepare(config)
    few, many = (
        proxy_score(SPECIFICATION, arrays, config.model_copy(update={"steps": steps}), torch.device("cpu"))
        for steps in (1, 60)
    )
    # Chance is -1.10; over four seeds, 60 steps reach -0.53 to -0.32. With four pictures a step rounding decides:
    # 120 steps reach -0.90 on one processor and -1.17 on another.
    assert many > few + 0.3


def test_a_detector_of_the_candidate_is_scored_by_f1(tmp_path: Path) -> None:
    draw_nuclei(tmp_path)
    config = nuclei(tmp_path)
    score = proxy_score(FIVE_OUTPUTS, prepare(config), config, torch.device("cpu"))
    assert 0 <= score <= 1


def test_a_detector_needs_the_five_levels_of_its_anchors(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="outputs 3 to 7, not 3, 4, 5"):
        SearchConfig(space=SMALL, proxy=nuclei(tmp_path))


def test_data_that_are_not_there_or_too_few_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        prepare(textures(tmp_path / "nowhere"))
    with pytest.raises(ManifestError, match="no such manifest"):
        prepare(textures(tmp_path))
    draw_textures(tmp_path)
    with pytest.raises(DatasetError, match="too few sources"):
        prepare(textures(tmp_path, held_back=0.01))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no \*\.png"):
        prepare(nuclei(tmp_path / "empty"))
