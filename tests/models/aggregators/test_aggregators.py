"""What every registered aggregator must do, whatever it computes."""

import math
from functools import partial
from importlib.metadata import EntryPoint

import pytest
import torch
from pydantic import ValidationError

from wsi_ips.config import AgainstCollapseConfig, ModelConfig, TaskConfig
from wsi_ips.config.survival import SurvivalConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregator
from wsi_ips.models.aggregators.registry import AGGREGATORS, aggregator_kind, aggregator_options
from wsi_ips.models.attention import CrossAttention, DirectAttention
from wsi_ips.models.heads import Heads
from wsi_ips.testing.aggregators import DIM, TASKS, AggregatorContract, build, logits_of

SMALL = {
    "abmil": {"hidden": 5},
    "clam_sb": {"hidden": 5},
    "clam_mb": {"hidden": 5},
    "dsmil": {"query_dim": 6},
}
TELLS = ("mean", "max", "abmil", "clam_sb", "clam_mb", "dsmil")
PARAMETERS = {  # of 1024 features and two classes, as counted in the reference implementations
    ("mean", 512): 525_826,
    ("max", 512): 525_826,
    ("abmil", 512): 788_739,
    ("clam_sb", 512): 790_791,
    ("clam_mb", 512): 791_048,
    ("dsmil", 0): 153_860,
    ("transmil", 512): 2_672_146,
    ("abmilx", 512): 801_473 + 2,  # our classifier has a bias
}


def made(name: str, *, seed: int = 0, **given: object) -> tuple[Aggregator, Heads]:
    aggregator = build(name, {**SMALL.get(name, {}), **given}, seed=seed)
    return aggregator, Heads(aggregator.token_dim, TASKS).double()


class TestOurs(AggregatorContract):
    @pytest.fixture(params=list(AGGREGATORS.members))
    def aggregator(self, request: pytest.FixtureRequest) -> Aggregator:
        return build(request.param, SMALL.get(request.param, {}))


class TestAttentionOfModelAttention(AggregatorContract):
    """``direct`` and ``paper``, which are settings of ``model.attention``."""

    @pytest.fixture(params=["direct", "direct with a LayerNorm", "paper"])
    def aggregator(self, request: pytest.FixtureRequest) -> Aggregator:
        torch.manual_seed(0)
        made = (
            partial(CrossAttention, value_dim=4, inner_dim=8, dropout=0.2)
            if request.param == "paper"
            else partial(DirectAttention, layer_norm=request.param != "direct")
        )
        return made(DIM, queries=2, heads=2, key_dim=4, attention_dropout=0.2).double().eval()


@pytest.mark.parametrize("name", TELLS)
def test_contributions_and_bias_are_the_logits(name: str) -> None:
    aggregator, heads = made(name)
    x = torch.randn(6, DIM).double()
    out = aggregator.read(x[None])
    told = aggregator.contributions(x, out.attention_BHTM[0], heads)
    assert told is not None
    layers = heads.layers if out.logits is None else aggregator.layers
    for task, layer in zip(TASKS, layers, strict=True):
        assert told[task.name].shape == (6, len(task.classes))
        torch.testing.assert_close(
            told[task.name].sum(dim=0) + layer.bias, logits_of(out, heads)[task.name][0]
        )


@pytest.mark.parametrize(("name", "width"), PARAMETERS)
def test_the_number_of_weights_is_the_reference_s(name: str, width: int) -> None:
    task = TaskConfig(name="label", classes=("no", "yes"))
    kind, options = aggregator_kind(name), aggregator_options(name, {})
    assert kind.width == width
    with torch.device("meta"):
        aggregator = kind.build(options, width or 1024, [task])
        parts = [aggregator, Heads(aggregator.token_dim, [task])]
        parts += [kind.embedding(options, 1024, width)] if width else []
    assert sum(weight.numel() for part in parts for weight in part.parameters()) == PARAMETERS[name, width]


def test_transmil_reads_patches_in_the_order_of_their_places() -> None:
    aggregator, _ = made("transmil")
    x = torch.randn(11, DIM).double()
    shuffled = torch.randperm(11)
    um = torch.stack([shuffled % 4, shuffled // 4], dim=1).double()  # (x, y): four in a row
    right = aggregator.read(x[None])
    for places in (shuffled, um):
        again = aggregator.read(x[shuffled][None], places_BM=places[None])
        torch.testing.assert_close(again.tokens_BTE, right.tokens_BTE)
        torch.testing.assert_close(again.attention_BHTM, right.attention_BHTM[..., shuffled])
    unordered = aggregator.read(x[shuffled][None])
    assert not torch.allclose(unordered.tokens_BTE, right.tokens_BTE)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_the_instance_loss_copes_with_few_patches_missing_labels_and_padding(name: str) -> None:
    aggregator, _ = made(name, patches=3)
    bags = [torch.randn(count, DIM).double() for count in (5, 1, 8)]
    padded = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=torch.nan)
    out = aggregator.read(padded, padded.isnan().any(dim=2))
    assert out.auxiliary is not None

    def loss(labels: list[int | None], others: list[int | None]) -> float:
        assert out.auxiliary is not None
        return float(out.auxiliary({"label": labels, "tumor.grade": others})["instances"].detach())

    unlabelled: list[int | None] = [None, None, None]
    first, last = loss([0, None, None], unlabelled), loss([None, None, 2], unlabelled)
    assert first > 0
    assert last > 0
    assert loss(unlabelled, unlabelled) == 0
    assert loss([None, 1, None], unlabelled) == 0  # one patch cannot be both the best and the worst
    assert loss([0, 1, 2], unlabelled) == pytest.approx(first + last)


@pytest.mark.parametrize(
    ("name", "activation"), [("clam_sb", "sigmoid"), ("clam_mb", "linear"), ("dsmil", "linear")]
)
def test_tasks_that_cannot_be_learned_are_refused(name: str, activation: str) -> None:
    task = TaskConfig(name="age", classes=("years",), activation=activation)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"{name} cannot learn task age"):
        aggregator_kind(name).build(aggregator_options(name, {}), DIM, [task])


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb", "dsmil"])
def test_survival_is_refused_by_its_name(name: str) -> None:
    its = SurvivalConfig(time="months", event="died", at=(6.0,))
    task = TaskConfig(name="death", kind="survival", survival=its)
    with pytest.raises(ConfigError, match=rf"{name} cannot learn task death \(survival\)"):
        aggregator_kind(name).build(aggregator_options(name, {}), DIM, [task])


def test_unknown_names_and_settings_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no 'abmli'; known: direct, paper, mean"):
        aggregator_kind("abmli")
    with pytest.raises(ConfigError, match=r"abmil: hiden: .*its settings: dropout, gated, hidden"):
        aggregator_options("abmil", {"hiden": 3})
    with pytest.raises(ConfigError, match=r"hidden: .*greater than 0"):
        aggregator_options("abmil", {"hidden": 0})


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("abmil", "hidden"), ("clam_sb", "hidden"), ("clam_mb", "hidden"), ("dsmil", "query_dim"),
        ("transmil", "heads"), ("transmil", "landmarks"), ("abmilx", "heads"),
    ],
)  # fmt: skip
def test_a_width_that_no_memory_holds_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}: .*less than or equal to 65536"):
        aggregator_options(name, {setting: 99_999_999_999})


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": {"project": 10**11}}, {"attention": {"heads": 10**11}}, {"attention": {"key_dim": 10**11}},
        {"attention": {"block": "paper", "value_dim": 10**11}},
        {"attention": {"block": "paper", "inner_dim": 10**11}},
    ],
)  # fmt: skip
def test_a_width_of_the_network_that_no_memory_holds_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        ModelConfig.model_validate(settings)


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
@pytest.mark.parametrize("setting", ["entropy", "anchor", "anchor_temperature"])
def test_a_weight_that_makes_every_loss_infinite_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValidationError, match=setting):
        AgainstCollapseConfig.model_validate({setting: value})


@pytest.mark.parametrize("given", [["abmil"], 3, True])
def test_an_aggregator_that_is_no_name_is_told_how_to_write_one(given: object) -> None:
    with pytest.raises(ValidationError, match=r"write a name, such as abmil, or {name: abmil, hidden: 128}"):
        ModelConfig.model_validate({"aggregator": given})


def test_another_package_can_offer_an_aggregator(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("theirs", "wsi_ips.models.aggregators.mean:KIND", AGGREGATORS.group),
        EntryPoint("broken", "there_is_no_such_module:KIND", AGGREGATORS.group),
        EntryPoint("other", "math:pi", AGGREGATORS.group),
    ]
    monkeypatch.setattr(
        "wsi_ips.registry.entry_points", lambda *, group: entries * (group == AGGREGATORS.group)
    )
    assert aggregator_kind("theirs") is aggregator_kind("mean")
    with pytest.raises(ConfigError, match="does not load"):
        aggregator_kind("broken")
    with pytest.raises(ConfigError, match="of type float, no Kind"):
        aggregator_kind("other")
