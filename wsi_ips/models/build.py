"""From config to modules: the only place that knows both."""

from wsi_ips.config import AttentionConfig, ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.cross_attention import CrossAttention
from wsi_ips.models.encoders.features import FeatureEncoder
from wsi_ips.models.encoders.projector import Projector
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.models.positions import Positions, RasterSinusoid, SlideSinusoid


def build_net(config: ModelConfig) -> IPSNet:
    """The network that ``config`` describes, its encoder with the weights that it names.

    Raises :class:`ConfigError` or :class:`CheckpointError` where that cannot be.
    """
    width = config.encoder.features
    encoder = TimmEncoder(config.encoder) if width is None else FeatureEncoder(width)
    projector = Projector(encoder.dim, config.encoder.project) if config.encoder.project else None
    dim = config.encoder.project or encoder.dim
    heads = Heads(dim, config.tasks)
    attention = CrossAttention(
        dim,
        queries=heads.queries,
        heads=config.attention.heads,
        key_dim=config.attention.key_dim,
        value_dim=config.attention.value_dim,
        inner_dim=config.attention.inner_dim,
        attention_dropout=config.attention.attention_dropout,
        dropout=config.attention.dropout,
    )
    positions = _positions(config.attention, dim)
    return IPSNet(encoder, attention, heads, projector=projector, positions=positions)


def _positions(config: AttentionConfig, dim: int) -> Positions | None:
    """Raises :class:`ConfigError` for an embedding width that sines and cosines do not fill evenly."""
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
