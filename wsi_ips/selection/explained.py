"""Gradient times input of the patches that were kept: :func:`kept_gradients`."""

from torch import Tensor

from wsi_ips.config import PipelineConfig
from wsi_ips.errors import ConfigError
from wsi_ips.models.ips_net import IPSNet, scoring
from wsi_ips.selection.slide_reading import SlideReading, places_for
from wsi_ips.streaming.patch_source import PatchSource


def kept_gradients(net: IPSNet, source: PatchSource, reading: SlideReading) -> dict[str, Tensor]:
    """Gradient times input of each kept patch for each task, (M, classes), in eval mode.

    The mode of ``net`` is restored. The definition is that of :meth:`wsi_ips.models.ips_net.IPSNet.gradients`.
    Memory: what reading the kept patches with gradients takes; no pixel is read again.

    Args:
        net: The network.
        source: The patches of the bag, which say where they lie.
        reading: What the network read of them.
    """
    with scoring(net):
        return net.gradients(reading.emb_MD, places_for(net, source, reading.kept.ids_M))


def check_explained(pipeline: PipelineConfig) -> None:
    """Raise :class:`ConfigError` for a model without an aggregator to take gradients through, and for one that
    reads all slides of a case as one bag.
    """
    if pipeline.bag == "case":
        raise ConfigError(
            "--explain gradient reads one slide at a time, and this model reads all slides of a case as one bag "
            "(bag: case): leave it out"
        )
    if pipeline.selection.selector == "attention_sampling":
        raise ConfigError(
            "--explain gradient needs an aggregator that reads the kept patches, and attention sampling has none: "
            "leave it out"
        )
