"""Parameters and multiply-adds against the published ones, on the device "meta": nothing is computed."""

import pytest
import timm
import torch

import wsi_ips.models.spinenet  # noqa: F401  (registers the models)
from wsi_ips.models.build import cost_of, parameters_of

# name: backbone with endpoints, with 1001 classes, BatchNorm statistics, GMACs, the published GMACs.
CLASSIFIERS = {
    "spinenet49s": (9_089_215, 9_218_344, 57_136, 1.516, None),
    "spinenet49": (21_831_488, 22_088_745, 88_704, 3.478, 3.5),
    "spinenet96": (36_262_976, 36_520_233, 122_752, 5.724, 5.7),
    "spinenet143": (60_247_616, 60_504_873, 166_272, 9.087, 9.1),
    "spinenet143l": (100_796_257, 101_053_514, 214_836, 15.111, None),
    "spinenet190": (126_587_664, 127_101_177, 261_552, 19.112, 19.1),
    "r0_sp53": (None, 19_601_577, None, 4.632, None),
    "r23_sp30": (None, 20_056_233, None, 4.72, None),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_the_published_counts(name: str) -> None:
    backbone, whole, statistics, gmacs, published = CLASSIFIERS[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1001).eval()
        cost = cost_of(model, lambda: model(torch.empty(1, 3, 224, 224)))
    assert cost.parameters == whole
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)
    if published is not None:
        assert round(cost.macs / 1e9, 1) == published
    if backbone is not None:
        assert cost.parameters - parameters_of(model.get_classifier()) == backbone
        running = [tensor.numel() for key, tensor in model.named_buffers() if "running" in key]
        assert sum(running) == statistics


def test_inaturalist_s_classes() -> None:
    with torch.device("meta"):
        assert parameters_of(timm.create_model("spinenet49", num_classes=5089)) == 23_139_361


def test_nothing_permuted_is_resnet_50() -> None:
    """Of the same size as timm's, which is torchvision's."""
    with torch.device("meta"):
        ours, theirs = (timm.create_model(name, num_classes=1000) for name in ("r50_sp0", "resnet50"))
        costs = [cost_of(model, lambda m=model: m(torch.empty(1, 3, 224, 224))) for model in (ours, theirs)]  # type: ignore[misc]
    assert costs[0] == costs[1]


def test_nothing_permuted_computes_what_resnet_50_does() -> None:
    """timm's ResNet-50 with the same weights; max-pooling pads elsewhere, so that one is taken over."""
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50", num_classes=3).eval()
    ours = timm.create_model("r50_sp0", num_classes=3).eval()
    weights = list(theirs.state_dict().values())
    # timm lists a block's projection last, as we do; the order of all tensors is the same.
    assert [w.shape for w in weights] == [w.shape for w in ours.state_dict().values()]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    pixels = torch.rand(1, 3, 61, 61)  # odd at every scale, where both pad alike
    with torch.no_grad():
        assert torch.allclose(ours(pixels), theirs(pixels), atol=1e-4)
