"""Attention entropy, hidden top patches and the anchor against the golden ``agg_*`` arrays, float64, to 1e-8."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from tests.golden.agg_cases import Case, cases, scoring_names
from tests.golden.test_agg_golden import Model, embedding_of, width_of
from wsi_ips.models.aggregators.abmil import Abmil
from wsi_ips.models.heads import Heads
from wsi_ips.training.losses import Anchor, HideTopPatches, anchor_loss, anchor_target, negative_entropy


def abmil_of(case: Case, rows: int) -> Abmil:
    hidden, width = case.arrays["w_attn_V_weight"].shape
    return Abmil(width, queries=rows, hidden=hidden, gated=case.has("w_attn_U_weight"))


@pytest.mark.parametrize("path", cases("aem"))
def test_attention_entropy(path: Path) -> None:
    case = Case.of(path)
    rows = case.arrays["w_attn_w_weight"].shape[0]
    heads = Heads(width_of(case), [case.task(case.classes)])
    net = Model(embedding_of(case), abmil_of(case, rows), heads)
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    names |= scoring_names(case, "aggregator.scores")
    case.load(net, names)
    logits, out = net(case.bags)
    assert out.attention_logits_BHTM is not None
    penalty = negative_entropy(out.attention_logits_BHTM)
    loss = case.loss(logits) + float(case.arrays["cfg_lambda"]) * penalty
    case.expect("out_logits", logits)
    case.expect("out_attention", out.attention_BHTM)
    case.expect("out_negative_entropy", penalty)
    case.expect("out_loss_bag", case.loss(logits))
    case.expect("out_loss", loss)
    case.expect_gradients(loss, net, names)
    case.all_seen()


@pytest.mark.parametrize("path", cases("stkim"))
def test_hidden_top_patches(path: Path) -> None:
    """ACMIL: branches of gated attention, each with a head, and a slide head on their mean attention."""
    case = Case.of(path)
    rows = case.arrays["w_attn_w_weight"].shape[0]
    aggregator, width = abmil_of(case, rows), width_of(case)
    branches = nn.ModuleList(nn.Linear(width, case.classes) for _ in range(rows))
    net = Model(embedding_of(case), aggregator, Heads(width, [case.task(case.classes)]))
    net.branches = branches
    names = case.linear("embed", "embed.linear") | case.linear("head", "heads.layers.0")
    names |= scoring_names(case, "aggregator.scores")
    for number in range(rows):
        names |= case.linear(f"branch{number}", f"branches.{number}")
    case.load(net, names)
    hide = HideTopPatches(int(case.arrays["cfg_top"]), float(case.arrays["cfg_drop"]))
    aggregator.masking = lambda logits: hide(logits, case.tensor("in_uniform")[None, None])
    embedded = net.embed(case.bags)

    def slide_logits(attention_KN: Tensor) -> Tensor:
        return net.heads.layers[0](attention_KN.mean(dim=0, keepdim=True) @ embedded[0])

    out = aggregator.read(embedded)
    attention_KN = out.attention_BHTM[0, 0]
    assert out.attention_logits_BHTM is not None
    of_branches = torch.cat(
        [head(token) for head, token in zip(branches, out.tokens_BTE[0].split(1), strict=True)]
    )
    label = case.tensor("in_label")
    branch_loss = torch.stack([cross_entropy(row[None], label) for row in of_branches]).mean()
    pairs = [(i, j) for i in range(rows) for j in range(i + 1, rows)]
    alike = torch.stack([cosine_similarity(attention_KN[i], attention_KN[j], dim=0) for i, j in pairs]).mean()
    logits = slide_logits(attention_KN)
    loss = branch_loss + case.loss(logits) + alike
    case.expect("out_masked", (out.attention_logits_BHTM[0, 0] == -torch.inf).double())
    case.expect("out_attention_branches", attention_KN)
    case.expect("out_attention", attention_KN.mean(dim=0))
    case.expect("out_branch_logits", of_branches)
    case.expect("out_logits", logits)
    case.expect("out_loss_branches", branch_loss)
    case.expect("out_loss_bag", case.loss(logits))
    case.expect("out_loss_similarity", alike)
    case.expect("out_loss", loss)
    case.expect_gradients(loss, net, names)
    net.eval()
    case.expect("out_logits_eval", slide_logits(aggregator.read(embedded).attention_BHTM[0, 0]))
    case.all_seen()


class _Block(nn.Module):
    """One learned token reads patches: multi-head attention, then a LayerNorm. ASMIL's, written down here because
    only its anchor is ours."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def logits(self, token_1D: Tensor, x_ND: Tensor) -> Tensor:
        query, key = (part.unflatten(-1, (self.heads, -1)) for part in (self.query(token_1D), self.key(x_ND)))
        return torch.einsum("thk,nhk->hn", query, key) / key.shape[-1] ** 0.5

    def forward(self, attention_HN: Tensor, x_ND: Tensor) -> Tensor:
        value_NHK = self.value(x_ND).unflatten(-1, (self.heads, -1))
        return self.norm(self.out(torch.einsum("hn,nhk->hk", attention_HN, value_NHK).flatten()[None]))


class _Tokens(nn.Module):
    def __init__(self, embed: nn.Module, dim: int, *, tokens: int, heads: int) -> None:
        super().__init__()
        self.embed = embed
        self.tokens = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(tokens))

    def logits(self, x_ND: Tensor) -> Tensor:
        """(H, T, N)."""
        found = [
            block.logits(token, x_ND)
            for block, token in zip(self.blocks, self.tokens[0].split(1), strict=True)
        ]
        return torch.stack(found, dim=1)


@pytest.mark.parametrize("path", cases("asmil"))
def test_anchor(path: Path) -> None:
    case = Case.of(path)
    width, heads, tokens = width_of(case), int(case.arrays["cfg_heads"]), int(case.arrays["cfg_tokens"])
    net = _Tokens(embedding_of(case), width, tokens=tokens, heads=heads)
    net.bag = _Block(width, heads)
    net.bag_query = nn.Parameter(torch.zeros(1, 1, width))
    net.head = nn.Linear(width, case.classes)
    parts = ("query", "key", "value", "out", "norm")
    names = case.linear("embed", "embed.linear") | case.linear("head", "head")
    names |= {"tokens": "tokens", "bag_query": "bag_query"}
    names |= {k: v for part in parts for k, v in case.linear(f"bag_{part}", f"bag.{part}").items()}
    for number in range(tokens):
        for part in parts:
            names |= case.linear(f"token{number}_{part}", f"blocks.{number}.{part}")
    theirs_of_anchor = {
        name: case.arrays.pop(name) for name in list(case.arrays) if name.startswith("w_anchor_")
    }
    case.load(net, names)
    anchor = Anchor(net, momentum=float(case.arrays["cfg_ema_momentum"]))
    anchored = {f"w_anchor_{theirs}": ours for theirs, ours in names.items()}
    weights = dict(anchor.module.named_parameters())
    for theirs, value in theirs_of_anchor.items():
        weights[anchored[theirs]].data = torch.from_numpy(value)

    x_ND = net.embed(case.features)
    logits_HKN = net.logits(x_ND)
    attention_HKN = logits_HKN.softmax(dim=-1)
    kept = sorted(case.arrays["in_token_permutation"][int(case.arrays["cfg_drop"]) :].tolist())
    read = torch.cat([net.blocks[number](attention_HKN[:, number], x_ND) for number in kept])
    attended_HK = net.bag.logits(net.bag_query[0], read).softmax(dim=-1)
    bag_logits = net.head(net.bag(attended_HK, read))
    with torch.no_grad():
        asked_HKN = anchor.module.logits(anchor.module.embed(case.features))
        target_HKN = anchor_target(asked_HKN, temperature=float(case.arrays["cfg_temperature"]))
    # The reference takes the mean over patches, which is a division by N; ours is the sum over them.
    theirs = anchor_loss(logits_HKN[None], target_HKN[None]) / len(x_ND)
    loss = case.loss(bag_logits) + theirs
    case.expect("out_anchor_logits", asked_HKN)
    case.expect("out_anchor_attention", target_HKN)
    case.expect("out_attention_branches", attention_HKN)
    case.expect("out_attention", attention_HKN.mean(dim=(0, 1)))
    case.expect("out_logits", bag_logits)
    case.expect("out_loss_bag", case.loss(bag_logits))
    case.expect("out_loss_anchor", theirs)
    case.expect("out_loss", loss)
    case.expect_gradients(loss, net, names)
    anchor.follow(net)
    for theirs_name, ours in names.items():
        case.expect(f"derived_anchor_after_step_{theirs_name}", weights[ours])
    followed = {name for name in case.arrays if name.startswith("derived_anchor_after_step_")}
    assert followed <= case.seen
    case.all_seen()
