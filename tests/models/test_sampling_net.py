"""Attention sampling's networks: the published sizes, one call for features, attention and patches."""

from pathlib import Path

import pytest
import torch

from wsi_ips.commands.recipe import load_recipe, make_job, shipped_recipe
from wsi_ips.config import PipelineConfig, SelectionConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.images.command import ImagesJob
from wsi_ips.models.build import build_selecting_net
from wsi_ips.models.checkpoint import begin_from, load_checkpoint, save_checkpoint
from wsi_ips.models.coarse import STEPS, Coarse, ConvScorer
from wsi_ips.models.encoders.ats_encoders import padded_same
from wsi_ips.models.ips_net import BagNet
from wsi_ips.models.sampling import expectation
from wsi_ips.models.sampling_net import SamplingNet


def net_of(recipe: str, *overrides: str) -> SamplingNet:
    job = make_job(load_recipe(shipped_recipe(recipe), overrides), source=recipe)
    assert isinstance(job, ImagesJob)
    torch.manual_seed(0)
    net = build_selecting_net(job.model, job.selection)
    assert isinstance(net, SamplingNet)
    return net


def count(net: torch.nn.Module | None) -> int:
    assert net is not None
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(
    ("recipe", "attention", "features", "heads", "total"),
    [
        ("ats_megapixel_mnist", 737, 29_344, 330, 30_411),
        ("ats_speed_limits", 6_321, 59_680, 132, 66_133),
    ],
)
def test_the_recipes_build_the_published_networks(
    recipe: str, attention: int, features: int, heads: int, total: int
) -> None:
    net = net_of(recipe)
    assert (count(net.coarse), count(net.encoder), count(net.heads)) == (attention, features, heads)
    assert count(net) == total


def test_features_attention_and_patches_come_from_one_call() -> None:
    """Megapixel MNIST's sizes, a tenth of the canvas; the features are the estimate of exactly these patches."""
    net = net_of("ats_megapixel_mnist").eval()
    small, image = torch.rand(2, 1, 18, 18), torch.rand(2, 1, 150, 150)
    generator = torch.Generator().manual_seed(1)
    features_BD, attention_Bhw, patches_BNCPP = net(small, image, patch_px=50, generator=generator)
    assert features_BD.shape == (2, 32)
    assert attention_Bhw.shape == (2, 18, 18)
    assert patches_BNCPP.shape == (2, 10, 1, 50, 50)
    torch.testing.assert_close(attention_Bhw.sum(dim=(1, 2)), torch.ones(2))
    found = net.encode(patches_BNCPP.flatten(0, 1)).unflatten(0, (2, 10))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 10))
    # Near even attention (an untrained network's) makes every weight nearly 1 / N.
    assert features_BD.norm(dim=-1).min() > 0.9
    assert net.reading(features_BD, attention_Bhw.flatten(1)).probabilities["majority"].shape == (2, 10)


def test_gradients_reach_the_attention_network_and_the_encoder() -> None:
    net = net_of("ats_megapixel_mnist")
    found = net(torch.rand(2, 1, 18, 18), torch.rand(2, 1, 150, 150), patch_px=50)
    net.reading(found.features_BD, found.attention_Bhw.flatten(1)).probabilities["majority"][
        :, 0
    ].sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in net.parameters())


def test_speed_limits_map_and_receptive_field_are_the_published_ones() -> None:
    net = net_of("ats_speed_limits").eval()
    assert net.coarse(torch.zeros(1, 3, 288, 384)).shape == (1, 35, 47)  # type: ignore[misc]
    found = net(
        torch.zeros(1, 3, 288, 384, dtype=torch.uint8),
        torch.full((1, 3, 960, 1280), 255, dtype=torch.uint8),
        patch_px=100,
    )
    assert found.patches_BNCPP.shape == (1, 5, 3, 100, 100)
    assert net.encoder(torch.zeros(2, 3, 100, 100)).shape == (2, 32)


def test_more_samples_than_positions_name_both_numbers_and_the_mend() -> None:
    net = net_of("ats_megapixel_mnist", "selection.sampling.samples=5")
    with pytest.raises(ConfigError, match=r"samples 5 is more than the 4 positions.*take 4 or fewer"):
        net(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 50, 50), patch_px=50)
    again = net_of(
        "ats_megapixel_mnist", "selection.sampling.samples=5", "selection.sampling.replacement=true"
    )
    assert again(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 50, 50), patch_px=50).patches_BNCPP.shape[1] == 5


def test_a_slide_with_fewer_patches_than_samples_is_sampled_whole() -> None:
    net = net_of("ats_megapixel_mnist")
    attention_K, samples = net.draw(torch.tensor([1.0, 2.0, 3.0]), generator=torch.Generator())
    assert sorted(samples.index_BN[0].tolist()) == [0, 1, 2]
    features = torch.randn(3, 32)
    read = net.read_samples(features, [samples.attention_BN[0]], encoded=True)
    exact = expectation(samples.attention_BN, features[None], replacement=False)
    torch.testing.assert_close(read.tokens_BTD[:, 0], exact)
    assert attention_K.shape == (3,)


def test_tensorflow_s_same_padding() -> None:
    """Even sides at stride 2 get their one row of zeros at the bottom right."""
    padded = padded_same(torch.ones(1, 1, 4, 5), 3, 2)
    assert padded.shape[-2:] == (5, 7)
    assert padded[0, 0, -1].sum() == 0
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_a_window_s_score_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    scorer = ConvScorer((4, 8))
    torch.nn.init.normal_(scorer.last.weight)
    windows = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    together = scorer(windows)
    torch.testing.assert_close(together[3:4], scorer(windows[3:4]))
    assert together.std() > 0


def test_a_share_is_chosen_for_a_recall_and_recall_is_read_between_steps() -> None:
    coarse = Coarse(ConvScorer((4,)), share=0.3)
    assert coarse.recall_at(0.5) is None
    curve = torch.linspace(0, 1, STEPS).sqrt()
    coarse.calibrate(curve, target=None)
    assert float(coarse.share) == pytest.approx(0.3)
    coarse.calibrate(curve, target=0.9)
    assert float(coarse.share) == pytest.approx(0.81)
    assert coarse.recall_at(0.255) == pytest.approx(0.255**0.5, abs=1e-3)
    assert coarse.recall_at(1.0) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"selection": {"selector": "attention_sampling", "coarse": {"mpp": 0.25}}},
            r"selection\.coarse\.mpp 0\.25 is finer than the patches' tiling\.patch_mpp 0\.5",
        ),
        (
            {"selection": {"selector": "attention_sampling", "coarse": {"scorer": "encoder"}}},
            "goes with selector",
        ),
        (
            {"selection": {"selector": "cascade", "coarse": {"scorer": "speed_limits"}}},
            "has conv and encoder",
        ),
        (
            {
                "selection": {"selector": "cascade"},
                "model": {"encoder": {"name": "features", "features": 8}},
            },
            "stored features",
        ),
        (
            {
                "selection": {"selector": "attention_sampling"},
                "model": {"attention": {"positions": "slide"}},
            },
            "uses no positions",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PipelineConfig.model_validate(changes)


def test_every_selector_builds_what_it_needs() -> None:
    def built(selector: str, scorer: str) -> BagNet:
        selection = SelectionConfig.model_validate({"selector": selector, "coarse": {"scorer": scorer}})
        pipeline = PipelineConfig.model_validate(
            {"model": {"encoder": {"name": "resnet10t", "weights": "none"}}}
        )
        return build_selecting_net(pipeline.model, selection)

    assert built("ips", "conv").coarse is None
    shared = built("cascade", "encoder")
    assert shared.coarse_logits(torch.zeros(2, 3, 32, 32)).shape == (2,)
    own = built("cascade", "conv")
    assert count(own.coarse) != count(shared.coarse)


def test_a_cascade_begins_from_ips_s_weights(tmp_path: Path) -> None:
    """All but the coarse scorer, which stays as it was built; a checkpoint of another width is still refused."""
    model = {"encoder": {"name": "resnet10t", "weights": "none", "stage": 0}}
    plain = PipelineConfig.model_validate({"model": model})
    cascade = PipelineConfig.model_validate({"model": model, "selection": {"selector": "cascade"}})
    torch.manual_seed(1)
    ips = build_selecting_net(plain.model, plain.selection)
    save_checkpoint(tmp_path / "ips.safetensors", ips, plain)
    torch.manual_seed(2)
    net = build_selecting_net(cascade.model, cascade.selection)
    scorer = {name: weight.clone() for name, weight in net.looks_from_afar.state_dict().items()}
    begin_from(net, tmp_path / "ips.safetensors")
    for name, weight in ips.state_dict().items():
        assert torch.equal(net.state_dict()[name], weight)
    for name, weight in net.looks_from_afar.state_dict().items():
        assert torch.equal(weight, scorer[name])
    save_checkpoint(tmp_path / "cascade.safetensors", net, cascade)
    loaded, _ = load_checkpoint(tmp_path / "cascade.safetensors")
    assert float(loaded.looks_from_afar.share) == cascade.selection.coarse.share
    with pytest.raises(CheckpointError, match="does not fit"):
        begin_from(ips, tmp_path / "cascade.safetensors")
