"""Golden cases of aggregators: found by their prefix, their weights put into our modules, and compared.

Every array ``out_*`` and ``grad_*`` of a case is compared by somebody, or the test fails: a case that holds more
than we know of is not half checked.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tests.conftest import SHARED
from wsi_ips.config import TaskConfig

FOLDER = Path(os.environ.get("WSI_IPS_GOLDEN", SHARED / "golden"))
EXACT = {"rtol": 0, "atol": 1e-8}


def cases(*prefixes: str) -> list[object]:
    """One parameter for each file whose name begins with ``agg_`` and one of these."""
    found = sorted({path for prefix in prefixes for path in FOLDER.glob(f"agg_{prefix}*.npz")})
    reason = f"no golden arrays agg_{prefixes[0]}* at {FOLDER}; name their folder with WSI_IPS_GOLDEN"
    return [pytest.param(path, id=path.stem) for path in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason=reason))
    ]


@dataclass
class Case:
    """A file's arrays, the input as a tensor with gradients, and which of the expected arrays were compared."""

    arrays: dict[str, np.ndarray]
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        features = torch.from_numpy(self.arrays["in_features"]).double()
        self.features = features.requires_grad_()

    @classmethod
    def of(cls, path: Path) -> "Case":
        with np.load(path) as arrays:
            held = dict(arrays)
        if "w_head_weight" in held and "w_head_bias" not in held:  # our heads have one
            held["w_head_bias"] = np.zeros(len(held["w_head_weight"]))
        return cls(held)

    @property
    def bags(self) -> Tensor:
        """With a bag axis."""
        return self.features if self.features.ndim == 3 else self.features[None]

    def has(self, name: str) -> bool:
        return name in self.arrays

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def cfg(self, name: str, default: object = None) -> object:
        value = self.arrays.get(f"cfg_{name}")
        return default if value is None else value.item()

    def expect(self, name: str, ours: Tensor) -> None:
        """Compare with the array of this name, where the case has it."""
        if name not in self.arrays:
            return
        self.seen.add(name)
        theirs = self.tensor(name)
        assert ours.numel() == theirs.numel(), f"{name}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        torch.testing.assert_close(
            ours.detach().reshape(theirs.shape).double(),
            theirs.double(),
            **EXACT,
            msg=lambda m: f"{name}: {m}",
        )

    def expect_gradients(self, loss: Tensor, net: nn.Module, names: Mapping[str, str]) -> None:
        """Compare the gradients of the loss with respect to all named weights and the features."""
        loss.backward()
        weights = dict(net.named_parameters())
        for theirs, ours in names.items():
            if self.has(f"grad_{theirs}"):
                weight = weights[ours]  # without a gradient where the loss does not use it
                self.expect(
                    f"grad_{theirs}", torch.zeros_like(weight) if weight.grad is None else weight.grad
                )
        assert self.features.grad is not None
        self.expect("grad_features", self.features.grad)

    def all_seen(self, *, but: tuple[str, ...] = ()) -> None:
        """Fail for an expected array that nobody compared."""
        wanted = {name for name in self.arrays if name.startswith(("out_", "grad_"))}
        assert not wanted - self.seen - set(but), sorted(wanted - self.seen - set(but))

    def load(self, net: nn.Module, names: Mapping[str, str]) -> nn.Module:
        """Put the file's weights into ``net`` ({their name: ours}), all of both; returns it in float64."""
        state = net.double().state_dict()
        given = {
            ours: self.tensor(f"w_{theirs}").reshape(state[ours].shape) for theirs, ours in names.items()
        }
        assert set(given) == set(state), sorted(set(given) ^ set(state))
        unused = {name for name in self.arrays if name.startswith("w_")} - {f"w_{name}" for name in names}
        assert not unused, sorted(unused)
        net.load_state_dict(given)
        return net.train()

    def linear(self, theirs: str, ours: str) -> dict[str, str]:
        """Names of a layer's weight and, where it has one, its bias."""
        parts = ("weight", "bias")
        return {f"{theirs}_{part}": f"{ours}.{part}" for part in parts if self.has(f"w_{theirs}_{part}")}

    @property
    def classes(self) -> int:
        """Of the one task."""
        return int(self.arrays["w_head_weight"].shape[0])

    def task(self, classes: int, activation: str = "softmax") -> TaskConfig:
        names = tuple(str(number) for number in range(classes))
        return TaskConfig(name="label", classes=names, activation=activation)  # type: ignore[arg-type]

    def loss(self, logits_BC: Tensor) -> Tensor:
        """Cross entropy for class indices, binary cross entropy for anything else."""
        label = self.tensor("in_label")
        if label.dtype == torch.int64:
            return cross_entropy(logits_BC, label)
        return binary_cross_entropy_with_logits(logits_BC, label.double().reshape(logits_BC.shape))


Names = Callable[[Case], dict[str, str]]


def scoring_names(case: Case, prefix: str) -> dict[str, str]:
    """The names of ABMIL's scoring network."""
    pairs = (("attn_V", "tanh"), ("attn_U", "gate"), ("attn_w", "score"))
    return {k: v for theirs, ours in pairs for k, v in case.linear(theirs, f"{prefix}.{ours}").items()}
