"""The choice of a selector: :func:`read_bag` reads a bag with the one that the configuration names.

Prediction, validation and scoring all go through it. :data:`BAG_READERS` lists the selectors.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from torch import OutOfMemoryError

from wsi_ips.config import SelectionConfig
from wsi_ips.errors import ExtensionWrong, WsiIpsError, one_line
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


def _problem(member: object) -> str:
    """What is wrong with the function of another package; "" for nothing."""
    if not callable(member):
        return "it is no function"
    try:
        inspect.signature(member).bind("net", "source", "selection", through=iter)
    except TypeError as error:
        return f"it cannot be called as (net, source, selection, *, through): {error}"
    except ValueError:  # a function without a signature, of a compiled module
        return ""
    return ""


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
    problem=_problem,
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
    reader = BAG_READERS.load(selection.way)
    if selection.way in BAG_READERS.members:
        return reader(net, source, selection, through=through)
    return _read_by_other(selection.way, partial(reader, net, source, selection, through=through), net)


def _read_by_other(name: str, read: Callable[[], object], net: Any) -> SlideReading:
    """What the selector of another package read.

    Raises :class:`ExtensionWrong` where it raised an exception that is no error of wsi_ips, or returned something
    else than a :class:`SlideReading`. What memory and files are to blame for is passed on as it is.
    """
    whose = ("selector", name, BAG_READERS.provider(name), "a SlideReading")
    try:
        reading = read()
    except (WsiIpsError, OSError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        came = f"it raised {one_line(f'{type(error).__name__}: {error}', most=200)}"
        if type(net.encoder).__name__ == "FeatureEncoder":
            came += (
                "; on stored features the pixels of a chunk are features (n, C), which it may not be made for"
            )
        raise ExtensionWrong(*whose, came) from error
    if not isinstance(reading, SlideReading):
        raise ExtensionWrong(*whose, f"it returned {'None' if reading is None else type(reading).__name__}")
    return reading
