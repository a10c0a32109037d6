"""The choice of a selector: :func:`read_bag` reads a bag with the one that the configuration names.

Prediction, validation and scoring all go through it. :data:`BAG_READERS` lists the selectors.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from wsi_ips.config import SelectionConfig
from wsi_ips.registry import Registry
from wsi_ips.selection.slide_reading import SlideReading
from wsi_ips.streaming.patch_source import Chunk, PatchSource


class BagReader(Protocol):
    """How a selector reads a bag. It works in eval mode and without gradients, and restores the mode of ``net``.

    Args:
        net: The network.
        source: The patches of the bag, or whatever this selector reads.
        selection: The settings of the selector.
        through: A function that every chunk of patches passes on its way, where the selector has such chunks.

    Raises:
        ValueError: The bag has no patches.
        SlideReadError: The slide cannot be read.
        NotFinite: The network computed NaN or infinity.
        ConfigError: This selector cannot read this kind of source.
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
        "all": "wsi_ips.selection.baselines:read_all",
        "random": "wsi_ips.selection.baselines:read_random",
        "cascade": "wsi_ips.selection.coarse_to_fine:read_cascade",
        "image_attention": "wsi_ips.images.bags:read_views",
    },
    group="wsi_ips.selectors",
)
"""How a bag is read, by the name of its way, :attr:`SelectionConfig.way`.

Another package adds a selector under the entry point group ``wsi_ips.selectors``: its name, and a function that
is a :class:`BagReader`. How it is learned from is in :data:`wsi_ips.training.module.METHODS`.
"""


def read_bag(
    net: Any,
    source: PatchSource,
    selection: SelectionConfig,
    *,
    through: Callable[[Iterable[Chunk]], Iterable[Chunk]] = iter,
) -> SlideReading:
    """Read the label of a bag with the selector that ``selection`` names.

    Arguments and errors are those of :class:`BagReader`.
    """
    return BAG_READERS.load(selection.way)(net, source, selection, through=through)
