"""The direct block: each head's mean of the patches, and what every patch contributes to a logit."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from wsi_ips.config import AttentionConfig, ModelConfig, PipelineConfig
from wsi_ips.models.attention import CrossAttention, DirectAttention
from wsi_ips.models.build import build_net
from wsi_ips.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_ips.models.encoders.projectors import PlainProjector, Projector
from wsi_ips.models.ips_net import IPSNet

WIDTH, HEADS, PATCHES = 6, 3, 5
TASKS = [{"name": "label", "classes": ["a", "b", "c"]}, {"name": "tumor", "classes": ["no", "yes"]}]


def model_of(**attention: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "encoder": {"name": "features", "features": WIDTH, "project": 4},
            "attention": {"heads": HEADS, "key_dim": 2, **attention},
            "tasks": TASKS,
        }
    )


def net_of(**attention: object) -> IPSNet:
    torch.manual_seed(3)
    return build_net(model_of(**attention)).double().eval()


def test_a_token_is_each_head_s_mean_of_the_embeddings() -> None:
    torch.manual_seed(0)
    attention = DirectAttention(4, queries=2, heads=HEADS, key_dim=2).double()
    x_MD = torch.randn(PATCHES, 4, dtype=torch.float64)
    tokens_BTD, attention_BHTM = attention(x_MD[None])
    query_THK = (attention.query_tokens[0] @ attention.query.weight.T).view(2, HEADS, 2)
    key_MHK = (x_MD @ attention.key.weight.T).view(PATCHES, HEADS, 2)
    for query in range(2):
        for head in range(HEADS):
            share_M = (key_MHK[:, head] @ query_THK[query, head] / 2**0.5).softmax(dim=0)
            assert torch.allclose(attention_BHTM[0, head, query], share_M)
            assert torch.allclose(tokens_BTD[0, query].view(HEADS, 4)[head], share_M @ x_MD)


def test_contributions_sum_to_the_logits_exactly() -> None:
    net = net_of()
    x_ND, places_N = torch.randn(PATCHES, WIDTH, dtype=torch.float64), torch.arange(PATCHES)
    with torch.no_grad():
        reading = net.read_bag(net.projector(x_ND), places_N)
    assert reading.contributions is not None
    for task, layer in zip(("label", "tumor"), net.heads.layers, strict=True):
        summed_C = reading.contributions[task].sum(dim=0) + layer.bias
        assert torch.allclose(summed_C, reading.logits[task][0], atol=1e-12)
    assert reading.contributions["label"].shape == (PATCHES, 3)


def test_a_layer_norm_scales_each_head_s_mean_and_contributions_stay_exact() -> None:
    torch.manual_seed(0)
    plain = DirectAttention(4, queries=2, heads=HEADS, key_dim=2).double()
    normed = DirectAttention(4, queries=2, heads=HEADS, key_dim=2, layer_norm=True).double()
    normed.load_state_dict(plain.state_dict())
    x_MD = torch.randn(PATCHES, 4, dtype=torch.float64)
    means_TD, tokens_TD = (each(x_MD[None])[0][0].unflatten(-1, (HEADS, 4)) for each in (plain, normed))
    expected = (means_TD - means_TD.mean(dim=-1, keepdim=True)) / means_TD.std(
        dim=-1, correction=0, keepdim=True
    )
    assert torch.allclose(tokens_TD, expected, atol=1e-4)
    net = net_of(layer_norm=True)
    with torch.no_grad():
        x_ND = net.projector(torch.randn(PATCHES, WIDTH, dtype=torch.float64))
        once, larger = (net.read_bag(scale * x_ND, torch.arange(PATCHES)) for scale in (1, 3))
    assert once.contributions is not None
    summed_C = once.contributions["label"].sum(dim=0) + net.heads.layers[0].bias
    assert torch.allclose(summed_C, once.logits["label"][0], atol=1e-12)
    assert larger.logits["label"].abs().max() < 2 * once.logits["label"].abs().max()


def test_a_patch_without_its_contribution_leaves_the_rest_of_the_logit() -> None:
    """Taking the embedding of a patch out of the means, attention as it was, takes its contribution out."""
    net = net_of()
    assert isinstance(net.attention, DirectAttention)
    x_MD = net.projector(torch.randn(PATCHES, WIDTH, dtype=torch.float64)).detach()
    reading = net.read_bag(x_MD, torch.arange(PATCHES))
    assert reading.contributions is not None
    x_MD[2] = 0
    tokens_TD = torch.einsum("htm,md->thd", reading.attention_BHTM[0], x_MD).flatten(1)
    without = net.heads(tokens_TD[None])["tumor"][0]
    with_it = reading.logits["tumor"][0]
    assert torch.allclose(with_it - without, reading.contributions["tumor"][2], atol=1e-12)


def test_padding_changes_nothing_and_other_bags_neither() -> None:
    net = net_of()
    x_KC = torch.randn(PATCHES + 2, WIDTH, dtype=torch.float64)
    together = net.read_features(x_KC, torch.arange(PATCHES + 2), [PATCHES, 2])
    alone = net.read_features(x_KC[PATCHES:], torch.arange(2), [2])
    assert torch.allclose(together.logits["label"][1:], alone.logits["label"], atol=1e-12)
    assert (together.attention_BHTM[1, :, :, 2:] == 0).all()


def test_the_block_is_named_alone_or_with_its_settings() -> None:
    assert AttentionConfig().block == "direct"
    assert ModelConfig.model_validate({"attention": "paper"}).attention == AttentionConfig(block="paper")
    paper = AttentionConfig(block="paper")
    assert (paper.heads, paper.key_dim, paper.value_dim, paper.inner_dim) == (8, 64, 64, 2048)
    assert (paper.attention_dropout, paper.dropout) == (0.1, 0.1)
    with pytest.raises(ValidationError, match="only block: paper has this"):
        AttentionConfig(block="direct", inner_dim=16)
    with pytest.raises(ValidationError, match="layer_norm: only block: direct has this"):
        AttentionConfig(block="paper", layer_norm=True)


@pytest.mark.parametrize(
    "attention", [{"block": "paper"}, {"block": "direct"}, {"layer_norm": True}, {"layer_norm": False}]
)
def test_a_written_configuration_is_read_as_the_same(attention: dict[str, object]) -> None:
    """One that says nothing of ``layer_norm`` is written as by versions that did not know it."""
    model = ModelConfig.model_validate({"attention": {"heads": 2, **attention}})
    assert ("layer_norm" in model.model_dump()["attention"]) is ("layer_norm" in attention)
    assert ModelConfig.model_validate_json(model.model_dump_json()) == model


def test_the_projector_goes_with_the_block() -> None:
    plain, papers = net_of().projector, net_of(block="paper").projector
    assert isinstance(plain, PlainProjector)
    assert isinstance(papers, Projector)
    narrow = ModelConfig.model_validate({"encoder": {"name": "features", "features": WIDTH}})
    assert build_net(narrow).projector.dim == 256
    bare = narrow.model_copy(update={"encoder": narrow.encoder.model_copy(update={"project": 0})})
    assert build_net(bare).encode(torch.zeros(2, WIDTH)).shape == (2, WIDTH)


def test_a_checkpoint_of_before_is_of_the_paper_s_block(tmp_path: Path) -> None:
    """Its settings know of no block; they name what only the paper's has."""
    net, path = net_of(block="paper").float(), tmp_path / "model.safetensors"
    save_checkpoint(path, net, PipelineConfig(model=model_of(block="paper")))
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
    held = json.loads(metadata["wsi_ips"])
    del held["config"]["model"]["attention"]["block"]
    save_file(tensors, path, metadata={"wsi_ips": json.dumps(held)})
    loaded, pipeline = load_checkpoint(path)
    assert pipeline.model.attention.block == "paper"
    assert isinstance(loaded, IPSNet)
    assert isinstance(loaded.attention, CrossAttention)
