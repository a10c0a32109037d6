"""A patient's slides, streamed as one bag, against the golden ``agg_patient_*`` arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden.agg_cases import Case, cases, scoring_names
from tests.training.memory_bags import MemoryBag
from wsi_ips.config import SelectionConfig, StreamingConfig
from wsi_ips.inference.predict import SlideOfCase, slides_of_case
from wsi_ips.models.aggregators.abmil import Abmil
from wsi_ips.models.aggregators.base import Embedding
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection.reading import read_bag
from wsi_ips.training.bags import CaseBag

NAMES = ["a", "b", "c", "d", "e", "f"]


def net_of(case: Case) -> IPSNet:
    width, n_in = case.arrays["w_embed_weight"].shape
    hidden = len(case.arrays["w_attn_V_weight"])
    heads = Heads(width, [case.task(case.classes, "sigmoid")])
    aggregator = Abmil(width, queries=1, hidden=hidden, gated=case.has("w_attn_U_weight"))
    embed = Embedding(n_in, width, bias=case.has("w_embed_bias"))
    net = IPSNet(nn.Identity(), aggregator, heads, projector=embed)
    names = case.linear("embed", "projector.linear") | case.linear("head", "heads.layers.0")
    case.load(net, names | scoring_names(case, "attention.scores"))
    return net.eval()


def read(case: Case, order: list[int], selection: dict[str, object]) -> tuple[float, dict[str, SlideOfCase]]:
    """The probability of the patient, and each slide by its name, when slides are streamed in this order."""
    features = case.features.detach().split(case.arrays["in_slide_counts"].tolist())
    bag = CaseBag("p", tuple(MemoryBag(NAMES[k], features[k], {}) for k in order), {})
    config = SelectionConfig.model_validate(selection)
    names = [NAMES[k] for k in order]
    with bag.open(StreamingConfig(batch=4), torch.device("cpu")) as source:
        reading = read_bag(net_of(case), source, config)
        parts = slides_of_case(reading, source, case_id="p", slide_ids=names)
    return reading.bag.probabilities["label"].item(), dict(zip(names, parts, strict=True))


@pytest.mark.parametrize(
    "selection", [{"selector": "all"}, {"rule": "global", "m": 999, "i": 8}], ids=["all", "ips"]
)
@pytest.mark.parametrize("path", cases("patient_"))
def test_all_slides_are_one_bag(path: Path, selection: dict[str, object]) -> None:
    case = Case.of(path)
    slides = range(len(case.arrays["in_slide_counts"]))
    probability, parts = read(case, list(slides), selection)
    assert probability == pytest.approx(case.arrays["out_probability"].item(), abs=1e-6)
    attention = [one.reading.store.attention(one.normalisers).mean(dim=(1, 2)) for one in parts.values()]
    np.testing.assert_allclose(np.concatenate(attention), case.arrays["out_attention"][0], atol=1e-6)
    share = [one.part.share for one in parts.values()]
    np.testing.assert_allclose(share, case.arrays["out_slide_attention_share"], atol=1e-6)
    assert sum(share) == pytest.approx(1, abs=1e-9)
    alone = [read(case, [k], selection)[0] for k in slides]
    np.testing.assert_allclose(alone, case.arrays["out_probability_of_each_slide_alone"], atol=1e-6)


@pytest.mark.parametrize("path", cases("patient_"))
def test_the_order_of_slides_does_not_matter_under_the_global_rule(path: Path) -> None:
    case = Case.of(path)
    order = list(range(len(case.arrays["in_slide_counts"])))
    selection = {"rule": "global", "m": 6, "i": 4}
    probability, parts = read(case, order, selection)
    again, others = read(case, order[::-1], selection)
    assert again == pytest.approx(probability, abs=1e-9)
    for name in NAMES[: len(order)]:
        one, other = parts[name].reading, others[name].reading
        assert one.kept.ids_M.tolist() == other.kept.ids_M.tolist()
        assert parts[name].part.share == pytest.approx(others[name].part.share, abs=1e-12)
        assert torch.equal(one.store.ids(), other.store.ids())
    assert sum(len(one.reading.kept.ids_M) for one in parts.values()) == 6
