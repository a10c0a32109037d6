"""The patches of a slide, batch by batch: :func:`stream`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.api.patches import Patches, patch_finder
from wsi_ips.api.slide import AnySlide, place_of, reading
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.config.section import section_of
from wsi_ips.errors import ConfigError, ResultsError
from wsi_ips.inference.slide_work import unreadable
from wsi_ips.slides.folder import slide_id
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.streaming.device import pick_device
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.tiling.grid import PatchCoords

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A batch of patches of one slide.

    Attributes:
        pixels: (n, 3, px, px) uint8 RGB tensor on the device that was asked for, in the form that encoders take
            (channels last in memory).
        xy: (n, 2) int64 tensor on the CPU, top-left corners (x, y) in level-0 pixels.
        ids: (n,) int64 tensor on the CPU, raster indices in the grid of the slide.
        slide_id: What results call the slide.

    >>> import wsi_ips as wi
    >>> batch = next(iter(wi.stream("slide.svs", px=64, mpp=1.0, batch=16)))
    >>> batch.pixels.shape, batch.pixels.dtype, batch.xy.shape, batch.slide_id
    (torch.Size([16, 3, 64, 64]), torch.uint8, torch.Size([16, 2]), 'slide')
    >>> batch.images.shape  # for matplotlib
    (16, 64, 64, 3)
    """

    pixels: Tensor
    xy: Tensor
    ids: Tensor
    slide_id: str

    @property
    def images(self) -> NDArray[np.uint8]:
        """(n, px, px, 3) uint8: the same pixels as an array, in the form that plotting libraries take."""
        return self.pixels.permute(0, 2, 3, 1).cpu().numpy()


class Stream:
    """The patches of one slide, one :class:`wsi_ips.Batch` after another. Made by :func:`wsi_ips.stream`.

    It can be iterated any number of times; ``len`` is the number of batches. Memory does not grow with the
    slide: three batches are decoded ahead, and a slow consumer stops the decoders. ``bad_tiles`` names the tiles
    that the latest pass could not decode and gave as white.
    """

    def __init__(
        self, slide: AnySlide, coords: PatchCoords, streaming: StreamingConfig, *, device: str = "cpu"
    ) -> None:
        self._slide = slide
        self._streaming = streaming
        self._device = pick_device(device)
        self.coords = coords
        self.bad_tiles: tuple[str, ...] = ()

    @property
    def n_patches(self) -> int:
        """How many patches all batches have together."""
        return len(self.coords)

    def __len__(self) -> int:
        return -(-len(self.coords) // self._streaming.batch)

    def __iter__(self) -> Iterator[Batch]:
        with reading(self._slide) as reader:
            _check_same_slide(reader.info.l0_size, self.coords, reader.info.path)
            patches = PatchStream(reader, self.coords, config=self._streaming, device=self._device)
            try:
                for chunk in patches:
                    yield Batch(chunk.pixels_n3PP, chunk.l0_xy_n2, chunk.ids_n, self.coords.slide_id)
            finally:
                self.bad_tiles = tuple(patches.telemetry.bad_tiles)
                if self.bad_tiles:
                    logger.warning("%s", unreadable(self.coords.slide_id, self.bad_tiles))

    def __repr__(self) -> str:
        px, mpp = self.coords.patch_px, self.coords.patch_mpp
        return (
            f"Stream({self.coords.slide_id!r}, {self.n_patches} patches of {px} px at {mpp:.4g} µm/px "
            f"in {len(self)} batches)"
        )


def stream(
    slide: AnySlide,
    *,
    px: int | None = None,
    mpp: float | None = None,
    mag: float | None = None,
    batch: int = 64,
    overlap: int | None = None,
    min_tissue: float | None = None,
    patches: Patches | Path | str | None = None,
    slide_mpp: float | None = None,
    allow_upsampling: bool = False,
    tiling: TilingConfig | None = None,
    device: str = "cpu",
    threads: int = 2,
) -> Stream:
    """Every patch of a slide that holds tissue, in batches, in memory that does not grow with the slide.

    The tissue is found here, so a slide without any raises here and not while iterating.

    Args:
        slide: The slide.
        px: Side of a patch in pixels (256).
        mpp: Resolution of a patch in µm per pixel (0.5).
        mag: The resolution as a magnification instead; ``mag=20`` is ``mpp=0.5``.
        batch: Patches in a batch. The last one may have fewer.
        overlap: Pixels that neighbouring patches share (0).
        min_tissue: Share of a patch that has to be tissue (0.25).
        patches: Those that :func:`wsi_ips.tile` found, or a folder of coordinates (CLAM, TRIDENT, ``wsi-ips
            tile``), used instead of a search for tissue. They state px and mpp themselves.
        slide_mpp: Resolution of the slide in µm per pixel, used instead of what the file states.
        allow_upsampling: Enlarge a slide that is more than 10 % coarser than mpp.
        tiling: All settings of the patches and the tissue at once. The other arguments override it.
        device: Where the pixels go.
        threads: How many threads decode.

    Raises:
        ConfigError: Settings are not possible.
        NoTissue: No patch is left.
        MissingResolution: The file does not state its resolution, and ``slide_mpp`` is not given.
        TooCoarse: The slide has less detail than the patches need.
        SlideReadError: While iterating: more than 1 % of the tiles of the slide cannot be decoded. Fewer are
            white, with a warning.
        FileError: The slide cannot be opened or read; the error is that of the reader.

    >>> import wsi_ips as wi
    >>> encoder = wi.Encoder("resnet18", weights=None, device="cpu")
    >>> for batch in wi.stream("slide.svs", px=224, mpp=0.5, batch=64):
    ...     features = encoder(batch.pixels)
    ...     print(features.shape, batch.xy.shape)
    torch.Size([14, 512]) torch.Size([14, 2])
    """
    streaming = section_of(StreamingConfig, "wsi_ips.stream", batch=batch, threads=threads)
    sizes: dict[str, Any] = {"px": px, "mpp": mpp, "mag": mag, "overlap": overlap, "min_tissue": min_tissue}
    if isinstance(patches, Patches):
        given = {**sizes, "slide_mpp": slide_mpp, "tiling": tiling}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise ConfigError(f"wsi_ips.stream: {beside[0]} is stated by patches: leave it out")
        return Stream(slide, patches.coords, streaming, device=device)
    find = patch_finder("wsi_ips.stream", patches, tiling=tiling, allow_upsampling=allow_upsampling, **sizes)
    name = slide_id(place_of(slide))
    with reading(slide) as reader:
        coords = find(reader, slide_id=name, mpp=SlideMpp(slide_mpp)(name))
    return Stream(slide, coords, streaming, device=device)


def _check_same_slide(l0_size: tuple[int, int], coords: PatchCoords, path: Any) -> None:
    """Raise ResultsError for the patches of another slide."""
    if tuple(l0_size) != tuple(coords.l0_size):
        raise ResultsError(
            path,
            f"is {l0_size[0]}x{l0_size[1]} pixels, but the patches are of a slide of "
            f"{coords.l0_size[0]}x{coords.l0_size[1]}",
            "give the patches of this slide",
        )
