"""Members of other packages that do not do what their kind has to do: one clear error that names them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.memory_bags import MemoryBag
from wsi_ips.config import FinetuneConfig, SelectionConfig
from wsi_ips.errors import ConfigError, ExtensionWrong
from wsi_ips.heatmaps.export import make_exporter
from wsi_ips.models.aggregators.base import Aggregated, Aggregator, EmbeddingOptions, Kind, plain_embedding
from wsi_ips.models.aggregators.registry import AGGREGATORS
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.registry import Registry
from wsi_ips.selection.reading import BAG_READERS, read_bag
from wsi_ips.testing.own_names import OwnNameContract, lives_in_wsi_ips

Offer = Callable[..., None]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Offers a member under a group and a name, as the package ``theirs`` would."""

    def offer(group: str | None, name: str, member: object) -> None:
        point = EntryPoint(name, f"theirs:{id(member)}", group or "")
        monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: [point] * (group == point.group))
        monkeypatch.setattr(EntryPoint, "load", lambda self: member)

    return offer


class Pooled(Aggregator):
    """The mean of the patches, with what a test spoils of the result."""

    def __init__(self, dim: int, spoil: Callable[[Aggregated], Any], scores: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.token_dim = dim
        self.score = nn.Linear(dim, 1)
        self._spoil, self._scores = spoil, scores

    def logits(self, x_nD: Tensor) -> Tensor:
        spoilt: Tensor = self._scores(self.score(x_nD)[:, None])
        return spoilt

    def read(
        self, x_BMD: Tensor, empty_BM: Tensor | None = None, places_BM: Tensor | None = None
    ) -> Aggregated:
        attention, logits = self.attended(self.score(x_BMD).transpose(1, 2)[:, None], empty_BM)
        out = Aggregated(torch.einsum("bhtm,bmd->btd", attention, x_BMD), attention, None, logits)
        spoilt: Aggregated = self._spoil(out)
        return spoilt

    def contributions(self, x_MD: Tensor, attention_HTM: Tensor, heads: Any) -> dict[str, Tensor]:
        return {"label": x_MD[:, :2]}


def net_with(
    offer: Offer,
    spoil: Callable[[Aggregated], Any] = lambda out: out,
    scores: Callable[[Tensor], Any] = lambda s: s,
) -> IPSNet:
    def build(options: object, dim: int, tasks: object) -> Aggregator:
        return Pooled(dim, spoil, scores)

    offer(AGGREGATORS.group, "pooled", Kind(EmbeddingOptions, build, plain_embedding, width=8))
    return build_net(features_config("pooled").model)


def features_config(aggregator: str) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {"model": {"encoder": {"name": "features", "features": 6}, "aggregator": aggregator}}
    )


def read(net: IPSNet) -> None:
    net.eval().read_bag(torch.rand(5, 8), torch.arange(5))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda out: replace(out, attention_BHTM=out.attention_BHTM[:, 0]),
            r"attention_BHTM of shape \(1, H, T, 5\), but it is of shape \(1, 1, 5\)",
        ),
        (
            lambda out: replace(out, attention_logits_BHTM=out.attention_logits_BHTM[..., :2]),
            r"attention_logits_BHTM of .*, \(1, 1, 1, 5\), but it is of shape \(1, 1, 1, 2\)",
        ),
        (
            lambda out: replace(out, tokens_BTE=out.tokens_BTE[:, 0]),
            r"tokens_BTE of shape \(1, 1, 8\).*, but tokens are of shape \(1, 8\)",
        ),
        (
            lambda out: replace(out, logits={"label": torch.zeros(2)}),
            r"logits by task, \{label: \(1, 2\)\}, but they are label: of shape \(2,\)",
        ),
        (
            lambda out: replace(out, logits={}),
            r"logits by task, \{label: \(1, 2\)\}, but they are of the tasks",
        ),
        (lambda out: None, "read to return an Aggregated, but it returned of type NoneType"),
    ],
)
def test_a_wrong_shape_of_an_aggregator_is_an_error_at_the_first_bag(
    offer: Offer, spoil: Callable[[Aggregated], Any], said: str
) -> None:
    with pytest.raises(ExtensionWrong, match=f"^aggregator pooled of the package theirs: expected {said}"):
        read(net_with(offer, spoil))


def test_right_ones_pass_and_are_checked_once(offer: Offer) -> None:
    bags: list[Aggregated] = []

    def spoil(out: Aggregated) -> Aggregated:
        bags.append(out)
        return replace(out, logits={"label": torch.zeros(1, 3)}) if len(bags) > 1 else out

    net = net_with(offer, spoil)
    read(net)
    read(net)
    assert len(bags) == 2
    assert net.logits(torch.rand(4, 8), torch.arange(4)).shape == (4, 1, 1)


def test_an_aggregator_without_token_dim_says_so(offer: Offer) -> None:
    net = net_with(offer)
    net.attention.token_dim = None  # as where a subclass forgets it
    with pytest.raises(ExtensionWrong, match=r"expected token_dim, .* it has neither; set self\.token_dim"):
        read(net)


def test_scores_of_two_axes_are_refused(offer: Offer) -> None:
    net = net_with(offer, scores=lambda scores: scores[:, 0])
    with pytest.raises(
        ExtensionWrong, match=r"scores of shape \(4, H, T\), but it returned of shape \(4, 1\)"
    ):
        net.logits(torch.rand(4, 8), torch.arange(4))


def test_an_aggregator_that_cannot_be_built_is_named(offer: Offer) -> None:
    def build(options: object, dim: int, tasks: object) -> Any:
        return nn.Linear(dim, 1) if dim == 8 else {}["no"]

    for width, said in ((8, "but its function built of type Linear"), (4, "it raised KeyError: 'no'")):
        offer(AGGREGATORS.group, "pooled", Kind(EmbeddingOptions, build, plain_embedding, width=width))
        with pytest.raises(ExtensionWrong, match=f"aggregator pooled of the package theirs: .*{said}"):
            build_net(features_config("pooled").model)


def selected(offer: Offer, member: object, net: Any) -> None:
    offer(BAG_READERS.group, "mine", member)
    settings = SelectionConfig.model_validate({"selector": "mine"})
    with MemoryBag("drawn", torch.zeros(3, 3, 4, 4, dtype=torch.uint8), {}).open(
        FinetuneConfig().streaming, torch.device("cpu")
    ) as source:
        read_bag(net, source, settings)


def test_a_wrong_selector_is_named(offer: Offer) -> None:
    net = build_net(features_config("mean").model)

    def returns_nothing(net: object, source: object, selection: object, *, through: object = iter) -> None:
        pass

    def reads_pixels(net: object, source: Any, selection: object, *, through: object = iter) -> None:
        next(iter(source)).pixels_n3PP.flatten(1).float().mean(dim=(1, 2, 3))

    def without_through(net: object, source: object, selection: object) -> None:
        pass

    for member, said in (
        (returns_nothing, "of the package theirs: expected a SlideReading, but it returned None"),
        (reads_pixels, "it raised IndexError: .*; on stored features the pixels of a chunk are features"),
        (
            without_through,
            r"theirs does not load: it cannot be called as \(net, source, selection, \*, through\)",
        ),
        ("text", "does not load: it is no function"),
    ):
        with pytest.raises(ConfigError, match=f"selector mine .*{said}"):
            selected(offer, member, net)


def test_a_wrong_exporter_is_named(offer: Offer) -> None:
    @dataclass(frozen=True)
    class Bare:
        needs_slide = False

        def write(self, path: Path, heat: object, slide: object) -> None:
            pass

    @dataclass(frozen=True)
    class Needy(Bare):
        decimals: int
        suffix = ".csv"

    for member, said in (
        (Bare, "it has no suffix"),
        (Needy, "its field decimals has no default, which every option needs"),
    ):
        offer("wsi_ips.exporters", "table", member)
        with pytest.raises(ConfigError, match=f"export table of the package theirs does not load: {said}"):
            make_exporter("table", {})


class Contract(OwnNameContract):
    def __init__(self, name: str) -> None:
        self.name = name

    def registry(self) -> Registry[Any]:
        return AGGREGATORS


def test_a_contract_does_not_pass_by_testing_another_member(
    offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lives_in_wsi_ips(Contract)
    Contract("abmil").test_its_name_is_its_own()
    offer(AGGREGATORS.group, "abmil", None)
    with pytest.raises(
        AssertionError, match="'abmil': what another package offers under this name is ignored"
    ):
        Contract("abmil").test_its_name_is_its_own()
    offer(AGGREGATORS.group, "mine", None)
    Contract("mine").test_its_name_is_its_own()
    monkeypatch.setattr("wsi_ips.testing.own_names.lives_in_wsi_ips", lambda test: False)
    with pytest.raises(AssertionError, match="'abmil' is wsi_ips' own"):
        Contract("abmil").test_its_name_is_its_own()
