"""From configuration to network: the only module that knows both. Start with :func:`build_selecting_net`.

What a network costs: its parameters, and the multiply-adds of its convolutions and linear layers.

Start with :func:`cost_of`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsi_ips.config import (
    AggregatorConfig,
    AttentionConfig,
    EncoderConfig,
    ModelConfig,
    ScorerConfig,
    SelectionConfig,
    task_queries,
)
from wsi_ips.errors import ConfigError
from wsi_ips.models.aggregators.base import Aggregator
from wsi_ips.models.aggregators.checked import CheckedAggregator, built_aggregator
from wsi_ips.models.aggregators.registry import AGGREGATORS, aggregator_kind, aggregator_options
from wsi_ips.models.attention import CrossAttention, DirectAttention
from wsi_ips.models.checkpoint_head import checkpoint_config
from wsi_ips.models.coarse import Coarse, ConvScorer, EncoderScorer
from wsi_ips.models.encoders.ats_encoders import MegapixelMnistEncoder, SpeedLimitsEncoder, as_keras
from wsi_ips.models.encoders.identity import FeaturesOrigin
from wsi_ips.models.encoders.projectors import PlainProjector, Projector, StandardisedProjector
from wsi_ips.models.encoders.timm_encoder import FeatureEncoder, TimmEncoder
from wsi_ips.models.heads import Heads, queries_of
from wsi_ips.models.ips_net import BagNet, IPSNet, Positions, RasterSinusoid, SlideSinusoid
from wsi_ips.models.sampling_net import (
    AttentionNet,
    MegapixelMnistAttention,
    SamplingNet,
    SpeedLimitsAttention,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Number of trainable parameters. The running statistics of BatchNorm do not count.
        macs: Multiply-adds of one forward pass.
    """

    parameters: int
    macs: int


def parameters_of(net: nn.Module) -> int:
    """The number of trainable parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def cost_of(net: nn.Module, run: Callable[[], object]) -> Cost:
    """The cost of ``net``, and of what ``run`` does with it. On the device "meta" nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        run()
    # The counter counts operations, and a multiply-add is two of them.
    return Cost(parameters_of(net), counter.get_total_flops() // 2)


ATS_ENCODERS: dict[str, type[MegapixelMnistEncoder | SpeedLimitsEncoder]] = {
    "ats_megapixel_mnist": MegapixelMnistEncoder,
    "ats_speed_limits": SpeedLimitsEncoder,
}
"""The encoders of the two published models of attention sampling, by ``encoder.name``."""
ATTENTION_NETS: dict[str, type[MegapixelMnistAttention | SpeedLimitsAttention]] = {
    "megapixel_mnist": MegapixelMnistAttention,
    "speed_limits": SpeedLimitsAttention,
}
"""The attention networks of these two models, by ``selection.coarse.scorer``."""


def build_selecting_net(model: ModelConfig, selection: SelectionConfig) -> BagNet:
    """The network that ``model`` describes, with the coarse scorer that the selector of ``selection`` needs, if
    any.

    Raises:
        ConfigError: The settings contradict each other, or name something unknown.
        CheckpointError: The weights of the encoder are missing or do not fit.
    """
    if selection.selector == "attention_sampling":
        return _sampling_net(model, selection)
    return build_net(model, selection)


def build_net(config: ModelConfig, selection: SelectionConfig | None = None) -> IPSNet:
    """The network for IPS that ``config`` describes, its encoder with the weights that it names.

    With a ``selection`` it is also checked that the aggregator has the scores that the selector needs, and the
    selector ``cascade`` gets its coarse scorer.

    Raises:
        ConfigError: The settings contradict each other, or name something unknown.
        CheckpointError: The weights of the encoder are missing or do not fit.
    """
    encoder, feature_dim = _encoder(config.encoder)
    dim, projector, attention = _aggregator(config, feature_dim)
    projector = _standardised(config.encoder, feature_dim, projector)
    scorer = None
    if selection is not None:
        if selection.scorer is not None:
            scorer = _scorer(selection.scorer, config, feature_dim)
        _check_scores(attention, config, selection)
    _check_tasks(attention, config)
    heads = Heads(attention.token_dim, config.tasks)
    positions = _positions(config.attention, dim)
    coarse = None
    if selection is not None and selection.selector == "cascade":
        coarse = _coarse(selection, config.encoder, feature_dim)
    checked = None
    if config.aggregator is not None and config.aggregator.name not in AGGREGATORS.members:
        checked = CheckedAggregator(config.aggregator.name, config.tasks)
    return IPSNet(
        encoder,
        attention,
        heads,
        projector=projector,
        positions=positions,
        coarse=coarse,
        checked=checked,
        scorer=scorer,
    )


def check_aggregator(config: ModelConfig, selection: SelectionConfig) -> None:
    """Check that the aggregator of ``config`` can learn its tasks with this selection, without any weights.

    A long preparation, such as finding tissue, need not come first. The state of torch's random numbers stays.

    Raises :class:`ConfigError` for an aggregator that is not known, settings that it does not have, tasks that it
    cannot learn, a selector that needs scores which it does not have, or a ``selection.scorer`` that cannot give
    them; :class:`CheckpointError` where the file of the scorer is missing or broken.
    """
    if selection.scorer is not None:
        with torch.random.fork_rng(devices=[]):
            _scorer(selection.scorer, config, config.encoder.features)
    if config.aggregator is None:
        return
    with torch.random.fork_rng(devices=[]):
        _, _, aggregator = _aggregator(config, feature_dim=1)
    _check_scores(aggregator, config, selection)
    _check_tasks(aggregator, config)


def scorer_model(scorer: ScorerConfig, feature_dim: int | None) -> ModelConfig:
    """The network of ``selection.scorer`` on features ``feature_dim`` wide (None: of any width), read from its
    checkpoint unless the configuration holds it already.

    Raises:
        CheckpointError: The checkpoint is missing or broken.
        ConfigError: It has no network that scores patches one by one, or learned from features of another width.
    """
    if scorer.model is not None:
        return scorer.model
    assert scorer.checkpoint is not None
    held = checkpoint_config(scorer.checkpoint)
    if held.selection.selector == "attention_sampling":
        raise ConfigError(
            f"selection.scorer: {scorer.checkpoint} was trained with attention sampling, which scores no patches "
            "that were encoded: take a model of selection.selector ips, such as abmil"
        )
    width = held.model.encoder.features
    if width is not None and feature_dim not in (None, width):
        raise ConfigError(
            f"selection.scorer: {scorer.checkpoint} reads features of width {width}, and those of this model are "
            f"{feature_dim} wide: take a model of the same features"
        )
    encoder = held.model.encoder.on_features(feature_dim or width or 1)
    origin = FeaturesOrigin.of_config(held.model.encoder)
    return held.model.model_copy(update={"encoder": origin.into(encoder)})


def _scorer(scorer: ScorerConfig, config: ModelConfig, feature_dim: int | None) -> IPSNet:
    """The network of ``selection.scorer``.

    Raises ConfigError if it does not score patches one by one, or has other tasks: the maps of this model are
    drawn from the rows of its tasks.
    """
    model = scorer_model(scorer, feature_dim)
    net = build_net(model)
    where = scorer.checkpoint or "its model"
    theirs_of, ours_of = (FeaturesOrigin.of_config(each.encoder) for each in (model, config))
    if (differs := ours_of.difference(theirs_of)) is not None:
        raise ConfigError(
            f"selection.scorer: {where} learned from features of {differs[0]}, and these are of {differs[1]}: "
            "take a model of the same features"
        )
    if not net.attention.scores_patches:
        name = "attention" if model.aggregator is None else model.aggregator.name
        raise ConfigError(
            f"selection.scorer: {where} is a {name}, which has no score for a single patch: take a model that "
            "has one, such as direct, abmil or abmilx"
        )
    theirs, ours = ([(task.name, task.classes) for task in each.tasks] for each in (model, config))
    if theirs != ours or task_queries(model.tasks) != task_queries(config.tasks):
        raise ConfigError(
            f"selection.scorer: {where} learned {_tasks_said(theirs)}, and this model learns {_tasks_said(ours)}: "
            "take a model of the same tasks"
        )
    return net


def _tasks_said(tasks: Sequence[tuple[str, Sequence[str]]]) -> str:
    return "; ".join(f"{name} ({', '.join(map(str, classes))})" for name, classes in tasks)


def complete_model(config: ModelConfig) -> ModelConfig:
    """The configuration with every setting of its aggregator written out, so that a stored configuration is
    complete.

    Raises:
        ConfigError: There is no such aggregator, or it has no such setting.
    """
    if config.aggregator is None:
        return config
    name = config.aggregator.name
    options = aggregator_options(name, config.aggregator.settings).model_dump(mode="json")
    project = config.encoder.project
    encoder = {"project": aggregator_kind(name).width if project is None else project}
    return config.model_copy(
        update={
            "aggregator": AggregatorConfig.model_validate({"name": name, **options}),
            "encoder": config.encoder.model_copy(update=encoder),
        }
    )


def _encoder(config: EncoderConfig) -> tuple[nn.Module, int]:
    """The encoder, and the width of its features."""
    if config.features is not None:
        return FeatureEncoder(config.features), config.features
    if config.name in ATS_ENCODERS:
        if config.weights not in ("timm", "none") or config.stage is not None:
            raise ConfigError(f"encoder {config.name} is learned from scratch: weights: none, and no stage")
        if config.lora is not None or config.drop_path:
            raise ConfigError(f"encoder {config.name} is learned from scratch: leave lora and drop_path out")
        kind = ATS_ENCODERS[config.name]
        return kind(config.in_channels), kind.dim
    encoder = TimmEncoder(config)
    return encoder, encoder.dim


def _aggregator(config: ModelConfig, feature_dim: int) -> tuple[int, nn.Module | None, Aggregator]:
    """The width of the embeddings, the projector that makes them (None: they are the features), and the
    aggregator.
    """
    if config.aggregator is None:
        dim = config.project or feature_dim
        return dim, _projector(config, feature_dim), _attention(config, dim)
    kind = aggregator_kind(config.aggregator.name)
    options = aggregator_options(config.aggregator.name, config.aggregator.settings)
    width = kind.width if config.encoder.project is None else config.encoder.project
    projector = kind.embedding(options, feature_dim, width) if width else None
    dim = width or feature_dim
    build = partial(kind.build, options, dim, config.tasks)
    return dim, projector, built_aggregator(config.aggregator.name, build)


def _projector(config: ModelConfig, feature_dim: int) -> nn.Module | None:
    if not config.project:
        return None
    if config.attention.block == "paper":
        return Projector(feature_dim, config.project)
    return PlainProjector(feature_dim, config.project, dropout=config.attention.dropout)


def _standardised(config: EncoderConfig, feature_dim: int, projector: nn.Module | None) -> nn.Module | None:
    if not config.standardise:
        return projector
    return StandardisedProjector(feature_dim, projector, each=config.standardise != "centre")


def _attention(config: ModelConfig, dim: int) -> CrossAttention | DirectAttention:
    attention, queries = config.attention, queries_of(config.tasks)
    if attention.value_dim is None or attention.inner_dim is None:
        return DirectAttention(
            dim,
            queries=queries,
            heads=attention.heads,
            key_dim=attention.key_dim,
            attention_dropout=attention.attention_dropout,
            layer_norm=bool(attention.layer_norm),
        )
    return CrossAttention(
        dim,
        queries=queries,
        heads=attention.heads,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        inner_dim=attention.inner_dim,
        attention_dropout=attention.attention_dropout,
        dropout=attention.dropout,
    )


def _positions(config: AttentionConfig, dim: int) -> Positions | None:
    """The encoding of places. Raises ConfigError for an embedding width that sines and cosines do not fill
    evenly.
    """
    if config.positions == "none":
        return None
    multiple = 2 if config.positions == "raster" else 4
    if dim % multiple:
        raise ConfigError(
            f"positions: {config.positions} needs an embedding width that is a multiple of {multiple}, not {dim}; "
            f"encoder.project sets the width"
        )
    if config.positions == "raster":
        return RasterSinusoid(dim)
    shortest_um, longest_um = config.wavelengths_um
    return SlideSinusoid(dim, shortest_um=shortest_um, longest_um=longest_um)


def _coarse(selection: SelectionConfig, encoder: EncoderConfig, feature_dim: int) -> Coarse:
    config = selection.coarse
    scorer = (
        EncoderScorer(feature_dim)
        if config.scorer == "encoder"
        else ConvScorer(config.channels, in_channels=encoder.in_channels)
    )
    return Coarse(scorer, share=config.share)


def _sampling_net(model: ModelConfig, selection: SelectionConfig) -> SamplingNet:
    encoder, feature_dim = _encoder(model.encoder)
    projector = Projector(feature_dim, model.encoder.project) if model.encoder.project else None
    heads = Heads(model.encoder.project or feature_dim, model.tasks)
    scorer = selection.coarse.scorer
    coarse: AttentionNet | Coarse
    if scorer in ATTENTION_NETS:
        coarse = ATTENTION_NETS[scorer](model.encoder.in_channels)
        as_keras(heads)
    else:
        coarse = _coarse(selection, model.encoder, feature_dim)
    return SamplingNet(
        encoder,
        coarse,
        heads,
        sampling=selection.sampling,
        projector=_standardised(model.encoder, feature_dim, projector),
    )


def _check_tasks(aggregator: Aggregator, config: ModelConfig) -> None:
    """Raise ConfigError for a task that needs a head of its own if the aggregator classifies by itself."""
    if aggregator.token_dim is not None or config.aggregator is None:
        return
    for task in config.tasks:
        if task.kind != "label":
            raise ConfigError(
                f"model.aggregator: {config.aggregator.name} classifies by itself, so it cannot learn task "
                f"{task.name}, which is of kind: {task.kind}; take an aggregator that heads read, such as direct, "
                "abmil or transmil"
            )


def _check_scores(aggregator: Aggregator, config: ModelConfig, selection: SelectionConfig) -> None:
    """Raise ConfigError if patches are to be selected by scores that the aggregator does not have."""
    if aggregator.scores_patches or selection.selector in ("all", "random") or selection.is_outside:
        return
    if selection.scorer is not None:
        return
    name = "attention" if config.aggregator is None else config.aggregator.name
    raise ConfigError(
        f"model.aggregator: {name} has no score for a single patch, so selection.selector: {selection.selector} "
        "cannot rank patches by it; set selection.selector=all, which reads every patch (best with encoder.name: "
        "features), or random, or selection.scorer=CHECKPOINT, a model whose scores fill the memory, or take an "
        "aggregator that scores patches, such as direct, abmil or abmilx"
    )
