"""Survival and grades need a head that reads a token; aggregators that classify by themselves have none."""

import pytest
import torch

from wsi_ips.config import ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.build import build_net

SURVIVAL = {
    "name": "os", "kind": "survival", "survival": {"time": "months", "event": "died", "at": [12, 24]},
}  # fmt: skip
GRADE = {"name": "grade", "kind": "ordinal", "classes": ["1", "2", "3"]}


def model(aggregator: str, task: dict[str, object]) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "encoder": {"name": "features", "features": 12, "project": 8},
            "aggregator": aggregator,
            "tasks": [task],
        }
    )


@pytest.mark.parametrize(
    ("aggregator", "task"),
    [("max", SURVIVAL), ("max", GRADE), ("clam_mb", SURVIVAL), ("clam_mb", GRADE), ("dsmil", SURVIVAL),
     ("dsmil", GRADE), ("clam_sb", SURVIVAL)],
)  # fmt: skip
def test_an_aggregator_that_cannot_learn_a_task_refuses_it(aggregator, task):
    with pytest.raises(ConfigError, match=f"{aggregator}.* cannot learn task"):
        build_net(model(aggregator, task))


@pytest.mark.parametrize("task", [SURVIVAL, GRADE], ids=["survival", "grade"])
@pytest.mark.parametrize("aggregator", ["direct", "mean", "abmil", "transmil", "abmilx"])
def test_the_others_learn_them(aggregator, task):
    net = build_net(model(aggregator, task)).train()
    embeddings_BMD = (
        net.projected(torch.randn(14, 12))[None] if hasattr(net, "projected") else torch.randn(1, 14, 8)
    )
    read = net.attention.read(embeddings_BMD)
    logits = net.heads(read.tokens_BTE)
    said = net.heads.probabilities(logits)[str(task["name"])]
    # Before the baseline hazard is known there is a risk, and no probability of survival.
    assert (said[:, :1] if task is SURVIVAL else said).isfinite().all()


def test_probabilities_of_an_aggregator_without_head_layers():
    net = build_net(model("clam_mb", {"name": "label", "classes": ["benign", "tumor"]})).eval()
    read = net.attention.read(torch.randn(1, 14, 8))
    assert read.logits is not None
    said_BC = net.heads.probabilities(read.logits)["label"]
    torch.testing.assert_close(said_BC.sum(dim=-1), torch.ones(1))
