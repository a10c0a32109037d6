"""A pass hands the device its work chunk after chunk, and looks at nothing before the last one is handed over.

On simulated CUDA tensors: whatever would make the program wait for the device raises.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import SMALL_MODEL
from tests.streaming.simulated_card import Event, Stream
from wsi_ips.config import FinetuneConfig
from wsi_ips.errors import NotFinite
from wsi_ips.models.build import build_net
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.selection import memory as global_top
from wsi_ips.selection import memory as ips
from wsi_ips.selection.memory import Top, TopMBuffer
from wsi_ips.selection.score_store import ScoreStore
from wsi_ips.selection.slide_reading import score_part, select
from wsi_ips.streaming.patch_source import Chunk
from wsi_ips.units import PlaceKind

CHUNKS = 4


class Waited(Exception):
    pass


class Watch(TorchDispatchMode):
    """Raises where the program would wait for the card: a number that is looked at, and copies that block."""

    on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if self.on:
                raise Waited(str(func))
            return True  # simulated tensors have no values: all scores are finite
        result = func(*args, **(kwargs or {}))
        if self.on and self._waits(func, args, kwargs or {}, result):
            raise Waited(str(func))
        return result

    def _waits(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        aten = torch.ops.aten
        if func is aten._to_copy.default:
            return blocks(args[0], result, non_blocking=kwargs.get("non_blocking", False))
        if func is aten.copy_.default:
            return blocks(args[1], args[0], non_blocking=bool(args[2:] and args[2]))
        if func in (aten.index.Tensor, aten.index_put_.default):
            return len({t.device for t in tree_leaves(args) if isinstance(t, Tensor)}) > 1
        return False


def blocks(source: Tensor, target: Tensor, *, non_blocking: bool) -> bool:
    """A copy to the card from memory that it may not read itself is staged; one from the card is waited for."""
    return source.device != target.device and (source.is_cuda or not non_blocking)


@dataclass
class Source:
    """Patches that are on the card already."""

    watch: Watch
    chunks: int = 0

    def __iter__(self) -> Iterator[Chunk]:
        self.watch.on = True
        for _ in range(CHUNKS):
            self.chunks += 1
            yield self.read(torch.arange(4))
        self.watch.on = False

    def read(self, ids_n: Tensor) -> Chunk:
        pixels = torch.empty(len(ids_n), 3, 32, 32, dtype=torch.uint8, device="cuda")
        return Chunk(ids_n, torch.stack([ids_n, ids_n], dim=1), pixels)

    def places(self, ids_n: Tensor, kind: PlaceKind) -> Tensor:
        return ids_n if kind == "ids" else torch.stack([ids_n, ids_n], dim=1).double()


def on_card(config: FinetuneConfig) -> IPSNet:
    """A network whose weights are simulated ones on the card."""
    with unset_fake_temporarily():
        net = cast(IPSNet, build_net(config.model))
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, device="cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return net


@pytest.mark.parametrize("rule", ["buffer", "global"])
@pytest.mark.parametrize("positions", ["none", "raster", "slide"])
def test_a_pass_waits_for_nothing(
    rule: str, positions: str, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(store: ScoreStore, m: int) -> Top:
        """Values cannot be ranked where there are none."""
        return Top(store.ids()[:m], store.logits()[:m, 0, 0].double(), store.logits()[:m])

    monkeypatch.setattr(global_top, "global_top", first)
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    model = dict(cast(dict[str, Any], SMALL_MODEL["model"]))
    model["attention"] = {**model["attention"], "positions": positions}
    config = FinetuneConfig.model_validate({"model": model, "selection": {"m": 3, "i": 5, "rule": rule}})
    net = on_card(config)
    with Watch() as watch:
        source = Source(watch)
        store = ScoreStore()
        kept = select(net, source, config.selection, store=store)
        assert source.chunks == CHUNKS
        assert not watch.on
        assert kept.ids_M.device.type == store.logits().device.type == "cpu"
        assert len(store.ids()) == len(store.logits()) == 4 * CHUNKS
        assert score_part(net, Source(watch)).store.logits().device.type == "cpu"


def test_scores_that_are_not_finite_are_found_at_the_end_where_looking_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ips, "looking_waits", lambda device: True)
    buffer = TopMBuffer(m=1, i=2)
    for first in (0, 2, 4):
        logits = torch.full((2, 1, 1), torch.nan if first == 2 else 1.0)
        buffer.add(torch.arange(first, first + 2), torch.zeros(2, 3), logits)
    with pytest.raises(NotFinite):
        buffer.finish()
