"""From config to modules: the only place that knows both."""

from wsi_ips.config import ModelConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.cross_attention import CrossAttention
from wsi_ips.models.encoders.projector import Projector
from wsi_ips.models.encoders.timm_encoder import TimmEncoder
from wsi_ips.models.heads import Heads
from wsi_ips.models.ips_net import IPSNet
from wsi_ips.models.positions import RasterSinusoid


def build_net(config: ModelConfig) -> IPSNet:
    """The network that ``config`` describes, its encoder with the weights that it names.

    Raises :class:`ConfigError` or :class:`CheckpointError` where that cannot be.
    """
    encoder = TimmEncoder(config.encoder)
    projector = Projector(encoder.dim, config.encoder.project) if config.encoder.project else None
    dim = config.encoder.project or encoder.dim
    raster = config.attention.positions == "raster"
    if raster and dim % 2:
        raise ConfigError(f"positions: raster needs an even embedding width, {dim} is odd")
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
    positions = RasterSinusoid(dim) if raster else None
    return IPSNet(encoder, attention, heads, projector=projector, positions=positions)
