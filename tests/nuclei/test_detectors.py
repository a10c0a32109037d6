"""Detectors: counts as published, a BatchNorm of its own for each level, learning, and their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsi_ips.errors import CheckpointError, ConfigError, DatasetError
from wsi_ips.models.build import cost_of, parameters_of
from wsi_ips.nuclei.config import DetectorConfig, DetectorTrainingConfig
from wsi_ips.nuclei.data import OutlinedImage
from wsi_ips.nuclei.models import (
    METADATA_KEY,
    LevelNormRpnHead,
    build_detector,
    build_mask_rcnn,
    build_pyramid,
    build_retinanet,
    load_detector,
    retina_head,
    save_detector,
    set_score_threshold,
)
from wsi_ips.nuclei.training import detect_in_image, random_crop, train_detector

# Backbone, its E where that is another, head channels and convolutions, side in px; parameters, the head's,
# GMACs, published GMACs.
RETINANETS = [
    ("spinenet49s", None, 128, 4, 640, 11_265_942, 2_176_727, 30.779, None),
    ("spinenet49s", 256, 128, 4, 640, 11_944_598, 2_471_639, 33.745, 33.8),
    ("spinenet49", None, 256, 4, 640, 28_543_383, 6_711_895, 85.282, 85.4),
    ("spinenet49", None, 256, 4, 896, 28_543_383, 6_711_895, 167.152, 167.4),
    ("spinenet96", None, 256, 4, 1024, 42_974_871, 6_711_895, 265.024, 265.4),
    ("spinenet143", None, 256, 4, 1280, 66_959_511, 6_711_895, 523.338, 524.0),
    ("spinenet190", None, 512, 7, 1280, 163_637_351, 37_049_687, 1881.660, 1885.0),
    ("r0_sp53", None, 256, 4, 640, 26_056_215, 6_711_895, 94.770, None),
    ("r23_sp30", None, 256, 4, 640, 26_510_871, 6_711_895, 95.482, None),
]
COCO = 91


@pytest.mark.parametrize("row", RETINANETS, ids=lambda row: f"{row[0]}-{row[1] or ''}-{row[4]}")
@pytest.mark.slow
def test_retinanets_have_the_published_counts(row: tuple[object, ...]) -> None:
    name, endpoints, channels, convs, side, parameters, of_head, gmacs, published = row
    own = {} if endpoints is None else {"endpoint_channels": endpoints}
    with torch.device("meta"):
        features = timm.create_model(str(name), features_only=True, **own)  # type: ignore[arg-type]
        config = DetectorConfig(head_channels=channels, head_convs=convs)  # type: ignore[arg-type]
        head = retina_head(config, n_in=features.feature_info.channels()[0], classes=COCO)
        pixels = torch.empty(1, 3, side, side)  # type: ignore[arg-type]
        cost = cost_of(nn.ModuleList([features, head]), lambda: head(features(pixels)))
    assert (cost.parameters, parameters_of(head)) == (parameters, of_head)
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)
    if published is not None:
        assert cost.macs / 1e9 == pytest.approx(published, rel=5e-3)


SMALL = DetectorConfig(backbone="spinenet49s", head_channels=16, head_convs=1, anchor_base=2.0)


def test_each_level_has_its_own_batch_norm_and_all_share_convolutions() -> None:
    head = retina_head(SMALL, n_in=8, classes=2)
    tower = head.classification_head.tower
    assert (len(tower.convs), len(tower.norms)) == (1, 5)
    maps = [torch.rand(2, 8, side, side) for side in (16, 8, 4, 2, 1)]
    before = head(maps)["cls_logits"]
    assert before.shape == (2, 9 * (256 + 64 + 16 + 4 + 1), 2)
    with torch.no_grad():
        tower.norms[1].bias.add_(1.0)
    changed = (head(maps)["cls_logits"] != before).any(dim=2)[0]
    assert not changed[: 9 * 256].any()
    assert changed[9 * 256 : 9 * 320].any()
    assert not changed[9 * 320 :].any()


@pytest.mark.parametrize("name", ["spinenet49s", "resnet18"])
def test_a_pyramid_has_five_maps_of_equal_channels(name: str) -> None:
    pyramid = build_pyramid(DetectorConfig(backbone=name, pyramid_channels=24)).eval()
    maps = pyramid(torch.rand(1, 3, 128, 128))
    assert [tuple(found.shape[1:]) for found in maps.values()] == [
        (pyramid.out_channels, side, side) for side in (16, 8, 4, 2, 1)
    ]


@pytest.mark.parametrize("name", ["resnet19", "vit_tiny_patch16_224", "hf-hub:a/b"])
def test_a_backbone_without_a_pyramid_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"detector\.backbone"):
        build_pyramid(DetectorConfig(backbone=name))


def discs(side: int = 128, count: int = 6, seed: int = 0) -> OutlinedImage:
    """Dark discs of radius 10 on a pale ground, apart from each other."""
    rng = np.random.default_rng(seed)
    rgb = np.full((side, side, 3), 230, np.uint8)
    y, x = np.mgrid[:side, :side]
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outlines = []
    for cell in rng.choice((side // 32) ** 2, count, replace=False).tolist():
        centre = np.array([cell % (side // 32), cell // (side // 32)]) * 32 + 16
        rgb[np.hypot(x - centre[0], y - centre[1]) <= 10] = (90, 40, 120)
        outlines.append(centre + 10 * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return OutlinedImage(f"discs{seed}", rgb, tuple(outlines))


@pytest.mark.slow
def test_a_step_lowers_the_loss_and_the_seed_decides_all() -> None:
    config = DetectorTrainingConfig(steps=4, crops_per_step=2, crop_px=128, lr=2e-3, warmup_share=0.0)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(list(train_detector(build_retinanet(SMALL), [discs()], config)))
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0]
    with pytest.raises(DatasetError, match="smaller than a crop"):
        list(train_detector(build_retinanet(SMALL), [discs(side=64, count=1)], config))


@pytest.mark.parametrize("seed", range(8))
def test_boxes_turn_with_their_pixels(seed: int) -> None:
    """Whatever way a crop is turned and mirrored, the dark pixels are those inside the boxes."""
    config = DetectorTrainingConfig(crop_px=128, colour_jitter=0.0)
    pixels, target = random_crop(discs(side=192, count=9, seed=seed), config, np.random.default_rng(seed))
    dark = pixels.mean(dim=0) < 0.6
    assert len(target["boxes"]) > 1
    for left, top, right, bottom in target["boxes"].tolist():
        inside = dark[round(top) : round(bottom), round(left) : round(right)]
        assert inside.float().mean() > 0.6
    assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert "masks" not in target


@pytest.mark.parametrize("seed", range(8))
def test_masks_turn_with_their_pixels(seed: int) -> None:
    """A mask is the dark pixels of its own disc, whatever way the crop is turned and wherever it is cut."""
    config = DetectorTrainingConfig(crop_px=128, colour_jitter=0.0)
    image = discs(side=192, count=9, seed=seed)
    pixels, target = random_crop(image, config, np.random.default_rng(seed), masks=True)
    dark = pixels.mean(dim=0) < 0.6
    assert len(target["masks"]) == len(target["boxes"]) > 1
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    for mask, (left, top, right, bottom) in zip(
        target["masks"].bool(), target["boxes"].tolist(), strict=True
    ):
        within = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
        assert not (mask & ~within).any()
        # The outline is drawn half a pixel inside the disc that is filled.
        assert (mask & dark).sum() / (mask | (dark & within)).sum() > 0.85


@pytest.mark.parametrize(
    ("backbone", "millions"), [("spinenet49", 40.8), ("spinenet96", 55.2), ("spinenet143", 79.2)]
)
def test_mask_rcnns_have_the_published_number_of_weights(backbone: str, millions: float) -> None:
    """Du et al. 2020, on COCO. Its convolutions have biases before their norms, torchvision's have not."""
    classes = tuple(f"c{n}" for n in range(COCO - 1))
    with torch.device("meta"):
        net = build_mask_rcnn(DetectorConfig(model="mask_rcnn", backbone=backbone, classes=classes))
    biases = 2 * 4 * 256
    assert round((parameters_of(net) + biases) / 1e6, 1) == millions


def test_each_level_s_proposals_have_their_own_batch_norm() -> None:
    head = LevelNormRpnHead(8, levels=3, anchors=3)
    maps = [torch.rand(2, 8, side, side) for side in (8, 4, 2)]
    before, _ = head(maps)
    assert [tuple(each.shape) for each in before] == [(2, 3, 8, 8), (2, 3, 4, 4), (2, 3, 2, 2)]
    with torch.no_grad():
        head.norms[1].bias.add_(1.0)
    after, _ = head(maps)
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_mask_rcnn_runs_on_spinenet() -> None:
    torch.manual_seed(0)
    net = build_mask_rcnn(SMALL.model_copy(update={"most_per_image": 5}))
    image = discs()
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
    boxes = torch.from_numpy(image.boxes_N4[:2])
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    pixels = torch.from_numpy(image.rgb_HWC).permute(2, 0, 1).float() / 255
    target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "masks": masks}
    losses = net.train()([pixels, pixels], [target, target])
    assert {"loss_mask", "loss_classifier", "loss_objectness"} <= losses.keys()
    sum(losses.values()).backward()
    # P7 has a pixel an image and few regions: what is asked is that the backbone learns.
    assert net.backbone.features.model.stem[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        (found,) = net.eval()([pixels])
    # Each over its own box: pasted into the image, a thousand would take gigabytes.
    assert found["box_masks"].shape == (len(found["boxes"]), 1, 28, 28)
    assert "masks" not in found


@pytest.mark.parametrize("model", ["retinanet", "mask_rcnn"])
def test_a_detector_s_file_reads_back(tmp_path: Path, model: str) -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"model": model, "score_threshold": 0.0, "most_per_image": 7})
    detector = build_detector(config).eval()
    save_detector(tmp_path / "d.safetensors", detector, config)
    read, read_config = load_detector(tmp_path / "d.safetensors")
    assert read_config == config
    expected, found = (detect_in_image(net, discs().rgb_HWC) for net in (detector, read))
    assert len(expected[0]) == 7
    assert np.array_equal(expected[0], found[0])
    assert np.array_equal(expected[1], found[1])


def test_a_file_that_is_no_detector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(CheckpointError, match="no such detector"):
        load_detector(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a detector of wsi_ips"):
        load_detector(path)
    save_file({"a": torch.zeros(1)}, path, metadata={METADATA_KEY: json.dumps({"config": {"backbone": 3}})})
    with pytest.raises(CheckpointError, match="config that cannot be read"):
        load_detector(path)
    held = {METADATA_KEY: json.dumps({"config": SMALL.model_dump(mode="json")})}
    save_file({"a": torch.zeros(1)}, path, metadata=held)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_detector(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_detector(path)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(build_retinanet(SMALL).state_dict())


def test_a_detector_from_before_there_was_a_choice_of_models_is_a_retinanet(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    held = SMALL.model_dump(mode="json")
    del held["model"]
    metadata = {METADATA_KEY: json.dumps({"version": "0.1.0", "config": held, "notes": {}})}
    save_file(weights, tmp_path / "old.safetensors", metadata=metadata)
    assert load_detector(tmp_path / "old.safetensors")[1] == SMALL


@pytest.mark.parametrize("change", [{"head_channels": 4096, "head_convs": 16}, {"backbone": "no_such_net"}])
def test_a_detector_with_another_network_s_config_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path, change: dict[str, object]
) -> None:
    held = {**SMALL.model_dump(mode="json"), **change}
    metadata = {METADATA_KEY: json.dumps({"config": held})}
    save_file(weights, tmp_path / "d.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"another architecture|cannot be built"):
        load_detector(tmp_path / "d.safetensors")


@pytest.mark.parametrize("model", ["retinanet", "mask_rcnn"])
def test_the_threshold_decides_what_comes_out(model: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(SMALL.model_copy(update={"model": model, "most_per_image": 9})).eval()
    counts = []
    for threshold in (0.0, 1.0):
        set_score_threshold(detector, threshold)
        counts.append(len(detect_in_image(detector, discs().rgb_HWC)[1]))
    assert counts == [9, 0]


@pytest.mark.parametrize("training", [True, False])
def test_images_keep_their_resolution(training: bool) -> None:
    """torchvision would enlarge a patch to 800 px, in eval mode whatever it was told."""
    detector = build_retinanet(SMALL).train(training)
    images, _ = detector.transform([torch.rand(3, 128, 200)])
    assert images.tensors.shape == (1, 3, 128, 256)
    assert images.image_sizes == [(128, 200)]
