"""Reads a bag's label by the selector that its configuration names; prediction, validation, scoring share it."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from wsi_ips.config import SelectionConfig
from wsi_ips.registry import Registry
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.streaming.patch_source import Chunk, PatchSource


class BagReader(Protocol):
    """How a selector reads a bag, without gradients and in eval mode.

    net: the network, whose own mode is restored. source: the bag's patches, or whatever this selector reads.
    through: shown every chunk of patches on its way, where a selector has such chunks. Raises ``ValueError``
    without patches, :class:`SlideReadError` for a slide that cannot be read, :class:`NotFinite` for a network
    whose numbers are not finite, and :class:`ConfigError` for a source that this selector cannot read.
    """

    def __call__(
        self,
        net: Any,
        source: Any,
        selection: SelectionConfig,
        *,
        through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
    ) -> SlideReading: ...


BAG_READERS: Registry[BagReader] = Registry(
    "selector",
    {
        "ips": "wsi_ips.selection.slide_reading:read_slide",
        "attention_sampling": "wsi_ips.selection.coarse_to_fine:read_sampled",
        "all": "wsi_ips.selection.all_patches:read_all",
        "cascade": "wsi_ips.selection.coarse_to_fine:read_cascade",
        "image_attention": "wsi_ips.images.bags:read_views",
    },
    group="wsi_ips.selectors",
)
"""How a bag is read, by :attr:`SelectionConfig.way`. Another package adds a selector under the entry point group
``wsi_ips.selectors``: its name, and a function that is a :class:`BagReader`. How it is learned from is
:data:`wsi_ips.training.methods.METHODS`."""


def read_bag(
    net: Any,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read a bag's label as ``selection`` says. Arguments and errors: see :class:`BagReader`."""
    return BAG_READERS.load(selection.way)(net, source, selection, through=through)
