"""JPEG tiles decoded on the device, so that a tenth of the pixels' bytes go over the bus: :class:`DeviceDecoder`.

torchvision decodes with nvJPEG on CUDA and with libjpeg-turbo on the CPU, so that everything but the copy is
tested without a GPU. The decoders' pixels differ by a few grey levels, because they enlarge chroma in different
ways; it is therefore only done if the user asks for it (``streaming.decode``) and both decoders agree
(:func:`pays`, :func:`means_the_same`).

Shape suffixes: n patches, P pixels along a patch's side, C or 3 channels.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from wsi_ips.slides.base import WHITE
from wsi_ips.streaming.region_source import RegionSource
from wsi_ips.streaming.tile_source import TileSource
from wsi_ips.units import Size

logger = logging.getLogger(__name__)

MOST_DIFFERENCE = 2.0
"""Mean difference, in grey levels, up to which two decoders agree. Misread colours differ by tens."""


CHECKED = 8
"""Patches of a slide that both decoders decode before the device decodes all of them."""


class DecodingFailed(Exception):
    """The device cannot decode at least one of these JPEGs."""


@dataclass(frozen=True, slots=True)
class DeviceDecoder:
    """Decodes many JPEGs of ``side_px`` x ``side_px`` pixels at once on ``device``."""

    device: torch.device
    side_px: int

    def decode(self, jpegs: Sequence[bytes], insides: Sequence[Size]) -> Tensor:
        """Decode the JPEGs: (n, 3, P, P) uint8 on the device, channels last in memory.

        ``insides`` is the (width, height) of each JPEG that shows the slide; what lies beyond becomes white.
        Raises :class:`DecodingFailed` if torchvision decodes no images, or one of these cannot be decoded or has
        another size.
        """
        try:
            from torchvision.io import ImageReadMode, decode_jpeg
        except ImportError as error:
            raise DecodingFailed("this torchvision decodes no images; install torchvision<0.30") from error
        # A copy: torch warns of memory that it may not write to.
        encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
        try:
            with warnings.catch_warnings():
                # Deprecated since 0.29 for torchcodec, which would be one package more for this alone.
                warnings.simplefilter("ignore", DeprecationWarning)
                decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        except (RuntimeError, ValueError) as error:
            raise DecodingFailed(str(error)) from error
        wanted = (3, self.side_px, self.side_px)
        if any(tuple(each.shape) != wanted for each in decoded):
            raise DecodingFailed(f"a tile is not of {wanted[1]}x{wanted[2]} px")
        pixels_n3PP = torch.stack(decoded).contiguous(memory_format=torch.channels_last)
        for place, (width, height) in enumerate(insides):
            if (width, height) != (self.side_px, self.side_px):
                pixels_n3PP[place, :, height:] = WHITE
                pixels_n3PP[place, :, :, width:] = WHITE
        return pixels_n3PP

    def seconds(self, jpegs: Sequence[bytes], insides: Sequence[Size]) -> tuple[float, Tensor]:
        """Decode the JPEGs and measure it: the seconds until the pixels are there, and the pixels.

        The arguments, pixels and errors are those of :meth:`decode`.
        """
        started = perf_counter()
        pixels_n3PP = self.decode(jpegs, insides)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter() - started, pixels_n3PP


def pays(decoder: DeviceDecoder, source: TileSource | RegionSource, n: int, *, threads: int) -> bool:
    """Whether the device decodes the first ``n`` patches faster than the CPU, and to the same picture.

    The CPU decodes with ``threads`` threads.

    The second of two rounds is measured, for the first one loads what the decoders need.
    """
    ours_nPPC = np.empty((n, decoder.side_px, decoder.side_px, 3), np.uint8)
    theirs_s, ours_s = math.inf, 0.0
    for _ in range(2):
        stored = source.stored_jpegs(0, n)
        if stored is None:
            return False
        try:
            theirs_s, theirs_n3PP = decoder.seconds(stored.jpegs, stored.insides)
        except DecodingFailed as error:
            logger.warning("tiles are decoded on the CPU, the device cannot: %s", error)
            return False
        ours_s = source.fill(0, ours_nPPC).decode_s / threads
    return theirs_s < ours_s and same_pixels(theirs_n3PP, torch.from_numpy(ours_nPPC).permute(0, 3, 1, 2))


def means_the_same(decoder: DeviceDecoder, source: TileSource | RegionSource, n: int) -> bool:
    """Whether both decoders agree on a few of a slide's ``n`` patches, spread over all of them.

    False, with a warning, if the device misreads a tile's colours or cannot decode one. False as well if none of
    these patches is one JPEG of its own.
    """
    places = np.linspace(0, n - 1, min(n, CHECKED)).astype(int).tolist()
    found = [(place, stored) for place in places if (stored := source.stored_jpegs(place, 1)) is not None]
    if not found:
        return False
    ours_nPPC = np.empty((len(found), decoder.side_px, decoder.side_px, 3), np.uint8)
    for row, (place, _) in enumerate(found):
        source.fill(place, ours_nPPC[row : row + 1])
    try:
        theirs_n3PP = decoder.decode(
            [jpeg for _, stored in found for jpeg in stored.jpegs],
            [inside for _, stored in found for inside in stored.insides],
        )
    except DecodingFailed as error:
        logger.warning("tiles are decoded on the CPU, the device cannot: %s", error)
        return False
    return same_pixels(theirs_n3PP, torch.from_numpy(ours_nPPC).permute(0, 3, 1, 2))


def same_pixels(theirs_n3PP: Tensor, ours_n3PP: Tensor) -> bool:
    """Whether the pixels of two decoders, (n, 3, P, P) uint8, agree within ``MOST_DIFFERENCE``; warns if not."""
    difference = (theirs_n3PP.cpu().float() - ours_n3PP.cpu().float()).abs().mean().item()
    if difference > MOST_DIFFERENCE:
        logger.warning(
            "the device decodes tiles %.1f grey levels off: they are decoded on the CPU", difference
        )
    return difference <= MOST_DIFFERENCE
