"""Aggregators against the golden ``agg_*`` arrays: logits, attention, losses and gradients, float64, to 1e-8."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden.agg_cases import Case, cases, scoring_names
from wsi_ips.models.aggregators.abmil import Abmil
from wsi_ips.models.aggregators.abmilx import Abmilx
from wsi_ips.models.aggregators.base import Aggregated, Aggregator, Embedding
from wsi_ips.models.aggregators.clam import Clam, ClamMultiBranch, ClamOptions
from wsi_ips.models.aggregators.dsmil import Dsmil, DsmilOptions
from wsi_ips.models.aggregators.max import Max
from wsi_ips.models.aggregators.mean import Mean
from wsi_ips.models.aggregators.transmil import TransMil
from wsi_ips.models.heads import Heads


class Model(nn.Module):
    """An embedding, an aggregator and heads, as a network has them behind its encoder."""

    def __init__(self, embed: nn.Module, aggregator: Aggregator, heads: Heads | None = None) -> None:
        super().__init__()
        self.embed = embed
        self.aggregator = aggregator
        self.heads = heads

    def forward(self, x_BNC: Tensor, empty_BN: Tensor | None = None) -> tuple[Tensor, Aggregated]:
        out = self.aggregator.read(self.embed(x_BNC), empty_BN)
        logits = out.logits if self.heads is None else self.heads(out.tokens_BTE)
        assert logits is not None
        return logits["label"], out


def embedding_of(case: Case, **more: object) -> Embedding:
    width, n_in = case.arrays["w_embed_weight"].shape
    return Embedding(n_in, width, bias=case.has("w_embed_bias"), **more)  # type: ignore[arg-type]


def width_of(case: Case) -> int:
    return int(case.arrays["w_embed_weight"].shape[0])


@pytest.mark.parametrize("path", cases("mean"))
def test_mean(path: Path) -> None:
    case = Case.of(path)
    heads = Heads(width_of(case), [case.task(case.classes)])
    activation = str(case.cfg("act", "relu"))
    net = Model(embedding_of(case, activation=activation), Mean(width_of(case), queries=1), heads)
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    case.load(net, names)
    logits, out = net(case.bags)
    case.expect("out_logits", logits)
    case.expect("out_loss", case.loss(logits))
    case.expect("out_instance_logits", heads.layers[0](net.embed(case.bags)))
    embedded = net.embed(case.bags)[0]
    told = net.aggregator.contributions(embedded, out.attention_BHTM[0], heads)
    assert told is not None
    torch.testing.assert_close(told["label"].sum(dim=0) + heads.layers[0].bias, logits[0])
    case.expect_gradients(case.loss(logits), net, names)
    case.all_seen()


@pytest.mark.parametrize("path", cases("max"))
def test_max(path: Path) -> None:
    case = Case.of(path)
    one_patch = case.has("out_instance_probabilities") or "top1" in path.stem
    tasks = [case.task(case.classes)]
    activation = str(case.cfg("act", "relu"))
    aggregator = Max(width_of(case), tasks, rule="one_patch" if one_patch else "per_class")
    net = Model(embedding_of(case, activation=activation), aggregator)
    names = case.linear("embed", "embed.linear") | case.linear("head", "aggregator.layers.0")
    case.load(net, names)
    logits, out = net(case.bags)
    critical_BC = out.attention_BHTM[:, 0].argmax(dim=-1)
    instance = aggregator.instance_logits(net.embed(case.bags))[0]
    case.expect("out_logits", logits)
    case.expect("out_loss", case.loss(logits))
    case.expect("out_instance_logits", instance)
    case.expect("out_instance_probabilities", instance[0].softmax(dim=-1))
    case.expect("out_critical_index", critical_BC[:, 0] if one_patch else critical_BC)
    if one_patch:  # the patch that decides is the one that selection would keep
        assert aggregator.logits(net.embed(case.bags)[0]).argmax() == critical_BC[0, 0]
    case.expect_gradients(case.loss(logits), net, names)
    case.all_seen()


@pytest.mark.parametrize("path", cases("abmil_", "patient"))
def test_abmil(path: Path) -> None:
    """Single bags, padded ones, and a patient's slides as one bag."""
    case = Case.of(path)
    hidden, width = case.arrays["w_attn_V_weight"].shape
    gated = case.has("w_attn_U_weight")
    binary = case.arrays["in_label"].dtype.kind == "f"
    heads = Heads(width, [case.task(case.classes, "sigmoid" if binary else "softmax")])
    net = Model(embedding_of(case), Abmil(width, queries=1, hidden=hidden, gated=gated), heads)
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    names |= scoring_names(case, "aggregator.scores")
    case.load(net, names)
    empty = case.tensor("in_mask") == 0 if case.has("in_mask") else None
    logits, out = net(case.bags, empty)
    attention_BM = out.attention_BHTM[:, 0, 0]
    probability = logits.sigmoid()
    loss = case.loss(logits)
    assert not binary or ((probability > 1e-5) & (probability < 1 - 1e-5)).all(), (
        "the reference's clamp binds"
    )
    case.expect("out_logits", logits)
    case.expect("out_probability", probability)
    case.expect("out_prediction", (probability >= 0.5).double())
    case.expect("out_attention", attention_BM)
    case.expect("out_bag_embedding", out.tokens_BTE[:, 0])
    case.expect("out_loss", loss)
    if case.has("in_slide_counts"):
        counts = case.arrays["in_slide_counts"].tolist()
        shares = [part.sum() for part in attention_BM[0].split(counts)]
        alone = [net(part[None])[0].sigmoid()[0, 0] for part in case.features.split(counts)]
        case.expect("out_slide_attention_share", torch.stack(shares))
        case.expect("out_probability_of_each_slide_alone", torch.stack(alone))
    case.expect_gradients(loss, net, names)
    if empty is not None:
        assert case.features.grad is not None
        assert not case.features.grad[empty].any()
    case.all_seen()


@pytest.mark.parametrize("path", cases("clam"))
def test_clam(path: Path) -> None:
    case = Case.of(path)
    hidden, width = case.arrays["w_attn_V_weight"].shape
    classes = sum(name.startswith("w_instance_class") and name.endswith("weight") for name in case.arrays)
    multi = bool(case.cfg("multi_branch"))
    options = ClamOptions(
        hidden=hidden, gated=case.has("w_attn_U_weight"), score_dropout=0,
        patches=int(case.arrays["cfg_k_sample"]), bag_weight=float(case.arrays["cfg_bag_weight"]),
        instance_loss="svm" if str(case.cfg("instance_loss")) == "smooth_svm" else "cross_entropy",
        subtyping=bool(case.cfg("subtyping")),
    )  # fmt: skip
    tasks = [case.task(classes)]
    aggregator = ClamMultiBranch(width, tasks, options) if multi else Clam(width, tasks, options)
    net = Model(embedding_of(case), aggregator, None if multi else Heads(width, tasks))
    names = case.linear("embed", "embed.linear") | scoring_names(case, "aggregator.scores")
    for number in range(classes):
        names |= case.linear(f"instance_class{number}", f"aggregator.instances.0.classifiers.{number}")
    if multi:
        for part in ("weight", "bias"):  # their layers of one output are our layer of several
            rows = [case.arrays[f"w_head_class{number}_{part}"] for number in range(classes)]
            grads = [case.arrays[f"grad_head_class{number}_{part}"] for number in range(classes)]
            case.arrays |= {
                f"w_heads_{part}": np.concatenate(rows),
                f"grad_heads_{part}": np.concatenate(grads),
            }
            for number in range(classes):
                del case.arrays[f"w_head_class{number}_{part}"]
                del case.arrays[f"grad_head_class{number}_{part}"]
        names |= case.linear("heads", "aggregator.layers.0")
    else:
        names |= case.linear("head", "heads.layers.0")
    case.load(net, names)
    logits, out = net(case.bags)
    assert out.auxiliary is not None
    label = case.tensor("in_label").tolist()
    instance = out.auxiliary({"label": label})["instances"]
    total = aggregator.bag_weight * case.loss(logits) + instance
    case.expect("out_logits", logits)
    case.expect("out_attention", out.attention_BHTM[0, 0])
    assert out.attention_logits_BHTM is not None
    case.expect("out_attention_logits", out.attention_logits_BHTM[0, 0])
    case.expect("out_attention_logits", aggregator.logits(net.embed(case.features)).squeeze(1).T)
    case.expect("out_bag_embedding", out.tokens_BTE[0])
    case.expect("out_loss_bag", case.loss(logits))
    case.expect("out_loss_instance", instance / (1 - aggregator.bag_weight))
    case.expect("out_loss", total)
    case.expect_gradients(total, net, names)
    # Which patches were taught what is pinned by the loss and its gradients.
    case.all_seen(but=("out_instance_targets", "out_instance_predictions"))


@pytest.mark.parametrize("path", cases("dsmil"))
def test_dsmil(path: Path) -> None:
    case = Case.of(path)
    classes, width = case.arrays["w_instance_weight"].shape
    softmax = case.arrays["in_label"].dtype.kind == "i"
    nonlinear = case.has("w_query2_weight")
    options = DsmilOptions(
        query_dim=case.arrays["w_query1_weight"].shape[0],
        nonlinear=nonlinear,
        values=case.has("w_value_weight"),
    )
    aggregator = Dsmil(width, [case.task(classes, "softmax" if softmax else "sigmoid")], options)
    net = Model(nn.Identity(), aggregator)
    names = case.linear("instance", "aggregator.instances.0") | case.linear("bag_conv", "aggregator.layers.0")
    names |= case.linear("query1", "aggregator.query.0" if nonlinear else "aggregator.query")
    names |= case.linear("query2", "aggregator.query.2") | case.linear("value", "aggregator.value.1")
    case.load(net, names)
    logits, out = net(case.bags)
    weight, largest = out.further_logits["max"]
    loss = aggregator.bag_weight * case.loss(logits) + weight * case.loss(largest["label"])
    instance = aggregator.instances[0](case.features)
    case.expect("out_logits", logits)
    case.expect("out_instance_logits", instance)
    case.expect("out_critical_index", instance.argmax(dim=0))
    case.expect("out_max_logits", largest["label"])
    case.expect("out_attention", out.attention_BHTM[0, 0])
    case.expect("out_bag_embedding", out.tokens_BTE[0])
    case.expect("out_loss_bag", case.loss(logits))
    case.expect("out_loss_max", case.loss(largest["label"]))
    case.expect("out_loss", loss)
    case.expect_gradients(loss, net, names)
    case.all_seen()


@pytest.mark.parametrize("path", cases("transmil"))
def test_transmil(path: Path) -> None:
    case = Case.of(path)
    width = width_of(case)
    aggregator = TransMil(
        width,
        queries=1,
        heads=int(case.arrays["cfg_heads"]),
        landmarks=int(case.arrays["cfg_landmarks"]),
        dropout=0,
    )
    for layer in aggregator.layers:
        layer._iterations = int(case.arrays["cfg_pinv_iterations"])  # type: ignore[assignment]
    net = Model(embedding_of(case), aggregator, Heads(width, [case.task(case.classes)]))
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    names |= case.linear("norm", "aggregator.norm") | {"cls_token": "aggregator.class_token"}
    for number in (1, 2):
        layer = f"aggregator.layers.{number - 1}"
        for theirs, ours in (("qkv", "query_key_value"), ("out", "out"), ("res_conv", "residual")):
            names |= case.linear(f"layer{number}_{theirs}", f"{layer}.{ours}")
        names |= case.linear(f"layer{number}_norm", f"aggregator.norms.{number - 1}")
    for number, size in enumerate((7, 5, 3)):
        names |= case.linear(f"ppeg{size}", f"aggregator.position.convolutions.{number}")
    case.load(net, names)
    after: dict[str, Tensor] = {}
    aggregator.position.register_forward_hook(
        lambda _, given, made: after.update(out_after_layer1=given[0], out_after_ppeg=made)
    )
    aggregator.layers[1].register_forward_hook(lambda _, given, made: after.update(cls=made[1]))
    logits, out = net(case.bags)
    for name in ("out_after_layer1", "out_after_ppeg"):
        case.expect(name, after[name])
    case.expect("out_attention_cls_layer2", after["cls"][:, 1:])
    case.expect("out_landmark_padding", torch.tensor(aggregator.layers[1].padding(after["cls"].shape[1])))  # type: ignore[operator]
    case.expect("out_logits", logits)
    case.expect("out_attention", out.attention_BHTM[0, :, 0].mean(dim=0))
    case.expect("out_loss", case.loss(logits))
    case.expect_gradients(case.loss(logits), net, names)
    case.all_seen()


@pytest.mark.parametrize("path", cases("abmilx"))
def test_abmilx(path: Path) -> None:
    case = Case.of(path)
    width, norm = width_of(case), case.has("w_bag_norm_weight")
    aggregator = Abmilx(
        width, queries=1, heads=int(case.arrays["cfg_heads"]), refine=bool(case.cfg("plus")), norm=norm,
        bias=case.has("w_proj_bias"),
    )  # fmt: skip
    embed = embedding_of(case, activation=str(case.cfg("act")), norm=case.has("w_input_norm_weight"))
    net = Model(embed, aggregator, Heads(width, [case.task(case.classes)]))
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    names |= case.linear("input_norm", "embed.norm") | case.linear("bag_norm", "aggregator.norm")
    names |= case.linear("attn_fc1", "aggregator.hidden") | case.linear("attn_fc2", "aggregator.score")
    names |= case.linear("plus_norm", "aggregator.refine_norm") | case.linear(
        "plus_qk", "aggregator.query_key"
    )
    names |= case.linear("plus_value", "aggregator.refine_scale") | case.linear("proj", "aggregator.project")
    case.load(net, names)
    logits, out = net(case.bags)
    local = torch.stack([aggregator.logits(bag)[..., 0].T for bag in net.embed(case.bags)])
    case.expect("out_local_logits", local)
    case.expect("out_attention", out.attention_BHTM[:, :, 0])
    case.expect("out_logits", logits)
    case.expect("out_loss", case.loss(logits))
    case.expect_gradients(case.loss(logits), net, names)
    case.all_seen()
