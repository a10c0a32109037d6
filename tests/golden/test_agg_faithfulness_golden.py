"""Attributions and flipping curves against the golden ``agg_faithfulness*`` arrays, float64, to 1e-8."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.golden.agg_cases import Case, cases, scoring_names
from tests.golden.test_agg_golden import Model
from wsi_ips.evaluation.faithfulness import (
    area_over,
    area_under,
    drop_one,
    flipping_curve,
    gradient_x_input,
    keep_one,
    relevance,
    squared_gradient,
    step_sizes,
)
from wsi_ips.models.aggregators.abmil import Abmil
from wsi_ips.models.aggregators.base import Embedding
from wsi_ips.models.heads import Heads

ORDERS = {"morf": "most_relevant_first", "morl": "least_relevant_first"}


@pytest.mark.parametrize("path", cases("faithfulness"))
def test_faithfulness(path: Path) -> None:
    case = Case.of(path)
    hidden, width = case.arrays["w_attn_V_weight"].shape
    shapes = [
        case.arrays[f"w_embed{number}_weight"].shape for number in range(int(case.arrays["cfg_layers"]))
    ]
    embed = nn.Sequential(*(Embedding(n_in, n_out) for n_out, n_in in shapes))
    aggregator = Abmil(width, queries=1, hidden=hidden, gated=case.has("w_attn_U_weight"))
    net = Model(embed, aggregator, Heads(width, [case.task(case.classes)]))
    names = scoring_names(case, "aggregator.scores") | case.linear("head", "heads.layers.0")
    for number in range(len(shapes)):
        names |= case.linear(f"embed{number}", f"embed.{number}.linear")
    case.load(net, names).requires_grad_(False)
    explained, features = int(case.arrays["cfg_class"]), case.features.detach()

    def logit(x_nC: Tensor) -> Tensor:
        return net(x_nC[None])[0][0, explained]

    def probability(x_nC: Tensor) -> Tensor:
        return net(x_nC[None])[0][0].softmax(dim=0)[explained]

    logits, out = net(features[None])
    attention_N = out.attention_BHTM[0, 0, 0]
    case.expect("out_logits", logits)
    case.expect("out_probabilities", logits.softmax(dim=1))
    case.expect("out_attribution_attention", attention_N)
    case.expect("out_attribution_gradient_x_input", gradient_x_input(logit, features))
    case.expect(
        "out_attribution_gradient_x_input", gradient_x_input(logit, features)
    )  # a second call is the same
    case.expect("out_attribution_squared_gradient", squared_gradient(logit, features))
    for name, predict in (("logit", logit), ("softmax", probability)):
        case.expect(f"out_attribution_keep_one_{name}", keep_one(predict, features))
        case.expect(f"out_attribution_drop_one_{name}", drop_one(predict, features))
    layers = [(layer.linear.weight, layer.linear.bias) for layer in embed]
    weight = net.heads.layers[0].weight[explained]
    found = {}
    for name, gamma in (("gamma0", 0.0), ("gamma", float(case.arrays["cfg_lrp_gamma"]))):
        found[name] = relevance(
            features, layers, attention_N, weight, logits[0, explained], gamma=gamma,
            epsilon=float(case.arrays["cfg_lrp_eps"]),
        )  # fmt: skip
        case.expect(f"out_attribution_lrp_{name}", found[name])
        assert float(found[name].sum()) == pytest.approx(float(logits[0, explained]), abs=1e-6)
    case.expect("out_step_sizes_tenths", torch.tensor(step_sizes(len(features), 10)))
    for mode in ("drop", "add"):
        for word, order in ORDERS.items():
            for name, steps in (("one_by_one", len(features)), ("tenths", 10)):
                curve = flipping_curve(
                    probability, features, found["gamma0"], steps=steps, order=order, mode=mode  # type: ignore[arg-type]
                )  # fmt: skip
                case.expect(f"out_curve_{mode}_{word}_{name}", curve)
                case.expect(f"out_aupc_{mode}_{word}_{name}", area_under(curve))
                case.expect(f"derived_aopc_{mode}_{word}_{name}", area_over(curve))
    case.all_seen()
