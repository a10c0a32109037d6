"""The list of encoders: complete metadata, and architectures of the published size."""

import dataclasses
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wsi_ips.config import EncoderConfig
from wsi_ips.errors import CheckpointError, ConfigError
from wsi_ips.models.checkpoint import Unfilled
from wsi_ips.models.encoders import registry
from wsi_ips.models.encoders.entry import EncoderEntry, OwnArchitecture, TimmArchitecture
from wsi_ips.models.encoders.listing import describe_encoder, list_encoders
from wsi_ips.models.encoders.network import network_of
from wsi_ips.models.encoders.registry import ENCODERS, check_code_allowed, entry_of, named
from wsi_ips.models.encoders.timm_encoder import TimmEncoder

PUBLISHED = {
    "uni": (303_350_784, 1024),
    "uni2-h": (681_394_176, 1536),
    "virchow": (631_229_184, 2560),
    "virchow2": (631_239_424, 2560),
    "h-optimus-0": (1_134_774_272, 1536),
    "h-optimus-1": (1_134_774_272, 1536),
    "h0-mini": (85_739_520, 768),
    "gigapath": (1_134_953_984, 1536),
    "gpfm": (303_227_904, 1024),
    "phikon": (85_798_656, 768),
    "phikon-v2": (303_350_784, 1024),
    "hibou-b": (85_727_232, 768),
    "hibou-l": (303_230_976, 1024),
    "midnight-12k": (1_134_769_664, 3072),
    "openmidnight": (1_134_774_272, 1536),
    "kaiko-vits16": (21_665_664, 384),
    "kaiko-vits8": (21_670_272, 384),
    "kaiko-vitb16": (85_798_656, 768),
    "kaiko-vitb8": (85_807_872, 768),
    "kaiko-vitl14": (304_370_688, 1024),
    "lunit-vits16": (21_665_664, 384),
    "lunit-vits8": (21_670_272, 384),
    "ctranspath": (27_520_038, 768),
    "retccl": (23_508_032, 2048),
    "resnet50-stage3": (8_543_296, 1024),
}
"""Parameters and widths as ../shared/specs/ENCODERS.md has them (1b, 1c), and nothing else's."""

OWN_READ = {"conch-v1": (86_250_240, 512), "conch-v1.5": (303_952_896, 768), "keep": (303_350_784, 768)}
"""The parameters of the trunk, which were published, and the width."""


def test_every_encoder_is_held_against_published_figures() -> None:
    assert PUBLISHED.keys() | OWN_READ.keys() == ENCODERS.keys()
    assert len(ENCODERS) >= 20


@pytest.mark.parametrize("name", ENCODERS)
def test_the_network_has_the_published_size_and_gives_the_published_width(name: str) -> None:
    """On the meta device: no weights, no memory."""
    entry = ENCODERS[name]
    with torch.device("meta"):
        with Unfilled():
            whole = network_of(entry, EncoderConfig(name=name))
            encoder = TimmEncoder(EncoderConfig(name=name, weights="none")).eval()
        total = sum(parameter.numel() for parameter in whole.parameters())
        # A picture of the network's own size, so that nothing is resized.
        pixels = torch.empty(2, 3, entry.transform.resize, entry.transform.resize)
        embedding = encoder(pixels)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    if name in OWN_READ:
        trunk = whole.visual if name == "keep" else whole.trunk
        assert (sum(each.numel() for each in trunk.parameters()), entry.width) == OWN_READ[name]
        assert total == entry.parameters
    else:
        assert (parameters, entry.width) == PUBLISHED[name]
    assert parameters == entry.parameters
    assert embedding.shape == (2, entry.width)
    assert getattr(whole, "num_prefix_tokens", entry.prefix_tokens) == entry.prefix_tokens


def test_a_field_that_is_missing_is_an_error_when_the_entry_is_made() -> None:
    given = {field.name: getattr(ENCODERS["uni"], field.name) for field in dataclasses.fields(EncoderEntry)}
    for name in ("name", "licence", "architecture", "patch_px", "mean", "std", "width", "parameters"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            EncoderEntry(**{field: value for field, value in given.items() if field != name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Uni"}, "name is 'Uni', but has to be in lower case"),
        ({"std": (0.1, 0.0, 0.1)}, r"std \(0.1, 0.0, 0.1\), but each has three values, and std is above 0"),
        ({"mpp": ()}, r"mpp_basis is 'magnification' and mpp \(\), but 'none' goes with no mpp"),
        ({"width": 0}, "^width is 0, but has to be above 0$"),
        ({"prefix_tokens": 0}, "output is 'cls', but prefix_tokens is 0"),
        ({"files": ()}, "and files .., but one goes with the other"),
    ],
)
def test_an_impossible_entry_says_what_is_wrong_where_it_is(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    entry = dataclasses.replace(ENCODERS["uni"], **change)  # type: ignore[arg-type]
    assert not ENCODERS["uni"].problem
    assert re.search(message, entry.problem)
    offered = [EntryPoint("theirs", "wsi_ips:theirs", "wsi_ips.encoders")]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: offered)
    monkeypatch.setattr(EntryPoint, "load", lambda self: entry)
    said = f"encoder theirs of the package wsi_ips does not load: .*{message.strip('^')}"
    with pytest.raises(ConfigError, match=said):
        entry_of("theirs")


def test_an_encoder_without_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function brings them, or a file does; random ones are never taken for them."""
    own = EncoderEntry(
        name="own",
        licence="ours",
        architecture=OwnArchitecture(lambda: WithWeights()),
        patch_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        mpp=(0.5,),
        mpp_basis="stated",
        width=3,
        parameters=3,
    )
    bare = dataclasses.replace(own, name="bare", architecture=TimmArchitecture("resnet18", {}), width=512)
    members = {"own": own, "bare": bare}
    offered = [EntryPoint(name, f"theirs:{name}", "wsi_ips.encoders") for name in members]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: offered)
    monkeypatch.setattr(EntryPoint, "load", lambda self: members[self.name])
    encoder = TimmEncoder(EncoderConfig(name="own"))
    assert encoder(torch.full((1, 3, 32, 32), 0.75)).tolist() == [[7.0, 7.0, 7.0]], "(0.75 - 0.5) / 0.25 * 7"
    with pytest.raises(
        CheckpointError, match=r"bare: has no published weights; set encoder\.weights to their file"
    ):
        TimmEncoder(EncoderConfig(name="bare"))
    assert TimmEncoder(EncoderConfig(name="bare", weights="none")).dim == 512
    assert describe_encoder("own", as_json=False)[-1] == "  weights: its package loads them"
    assert "licence: ours" in describe_encoder("own", as_json=False)[-3]
    assert list_encoders(as_json=False)[-1].startswith(f"{len(ENCODERS) + 2} encoders")


class WithWeights(nn.Module):
    """The mean colour times a weight that it brings."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 7.0))

    def forward(self, pixels_n3PP: Tensor) -> Tensor:
        return pixels_n3PP.mean(dim=(2, 3)) * self.weight


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("resnet18", "timm's"),
        ("resnet18.a1_in1k", "timm's"),
        ("r0_sp53", "wsi_ips' own"),
        ("ats_speed_limits", "wsi_ips' own"),
        ("hf-hub:timm/resnet18.a1_in1k", "kept for files and for models of the hub"),
    ],
)
def test_no_package_replaces_an_encoder_of_timm(
    monkeypatch: pytest.MonkeyPatch, name: str, whose: str
) -> None:
    offered = [EntryPoint(name, "theirs_of_enc:it", "wsi_ips.encoders")]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: offered)
    with pytest.raises(
        ConfigError, match=f"this name is {whose}, and the package theirs_of_enc offers another"
    ):
        TimmEncoder(EncoderConfig(name=name, weights="none"))
    assert registry.ENCODER_REGISTRY.ignored() == [
        f"encoder {name} of the package theirs_of_enc is ignored: the name is {whose}"
    ]
    monkeypatch.undo()
    assert isinstance(named("resnet18"), type(None))


MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    dim = 4
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
    def forward(self, pixels):
        return self.linear(pixels.mean(dim=(2, 3)))

def build():
    torch.manual_seed(5)
    return Mine()

def broken():
    raise RuntimeError("no such layer")

number = 3
"""


def test_a_function_in_a_file_of_the_user_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    encoder = TimmEncoder(EncoderConfig(name=f"{path}:build")).eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    plain = named(f"{path}:build")
    assert encoder.dim == 4
    assert torch.allclose(encoder(pixels), plain(pixels.float() / 255), atol=1e-6)
    normalised = TimmEncoder(EncoderConfig(name=f"{path}:build", mean=[0.5] * 3, std=[0.25] * 3))
    assert torch.allclose(normalised(pixels), plain((pixels / 255 - 0.5) / 0.25), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "has no absent"),
        ("broken", "no such layer"),
        ("number", "is of type int, neither a function"),
    ],
)
def test_a_file_that_gives_no_encoder_is_one_line(tmp_path: Path, function: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    with pytest.raises(ConfigError, match=message):
        TimmEncoder(EncoderConfig(name=f"{path}:{function}"))
    with pytest.raises(ConfigError, match="there is no file"):
        TimmEncoder(EncoderConfig(name=f"{tmp_path / 'other.py'}:build"))


def test_code_in_a_file_is_run_only_where_the_user_has_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit('it ran')")
    monkeypatch.delenv(registry.ALLOWED_CODE, raising=False)
    assert entry_of(f"{path}:build") is None, "metadata is looked up without running anything"
    with pytest.raises(ConfigError, match=f"{registry.ALLOWED_CODE}={path}:build"):
        check_code_allowed(f"{path}:build")
    monkeypatch.setenv(registry.ALLOWED_CODE, f"{path}:build")
    check_code_allowed(f"{path}:build")
    path.write_text(
        "from wsi_ips.models.encoders.registry import ENCODERS\nbuild, other = ENCODERS['uni'], ENCODERS['keep']"
    )
    assert entry_of(f"{path}:build") is ENCODERS["uni"]
    assert entry_of(f"{path}:other") is None
    with pytest.raises(ConfigError, match="would be run"):
        check_code_allowed(f"{path}:other")


def test_another_package_adds_an_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs_of_enc.py").write_text(
        "import dataclasses\n"
        "from wsi_ips.models.encoders.registry import ENCODERS\n"
        "theirs = dataclasses.replace(ENCODERS['kaiko-vits16'], name='theirs')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("theirs", "theirs_of_enc:theirs", "wsi_ips.encoders"),
        EntryPoint("uni", "theirs_of_enc:theirs", "wsi_ips.encoders"),
        EntryPoint("absent", "no_such_module_of_enc:theirs", "wsi_ips.encoders"),
    ]
    monkeypatch.setattr("wsi_ips.registry.entry_points", lambda group: points)
    assert entry_of("theirs").width == 384  # type: ignore[union-attr]
    assert entry_of("uni") is ENCODERS["uni"], "a name of ours stays ours"
    assert registry.known_names()[-2:] == ["absent", "theirs"]
    with pytest.raises(ConfigError, match=r"encoder absent .* does not load"):
        named("absent")
    with torch.device("meta"):
        assert TimmEncoder(EncoderConfig(name="theirs", weights="none")).dim == 384
    sys.modules.pop("theirs_of_enc", None)
