"""The patches of many slides as a data set for torch's ``DataLoader``: :class:`PatchDataset`."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from wsi_ips.api.patches import patch_finder
from wsi_ips.api.slide import Slide
from wsi_ips.config import StreamingConfig, TilingConfig
from wsi_ips.config.section import section_of
from wsi_ips.errors import ConfigError, SlideFailed, count
from wsi_ips.inference.slide_work import unreadable
from wsi_ips.slides.base import failure_in_words
from wsi_ips.slides.folder import find_slides, unique_slide_ids
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.storage.location import Location
from wsi_ips.streaming.stream import PatchStream
from wsi_ips.units import Mpp

logger = logging.getLogger(__name__)

DECODED_TOGETHER = 64
"""How many patches are decoded at a time. No result depends on it."""


class Patch(NamedTuple):
    """One patch, or a batch of patches from a ``DataLoader``, with the same names.

    In a batch of n, each field has n rows, and ``slide_id`` is a list of n texts.

    Attributes:
        pixels: (3, px, px) uint8 RGB, or what the ``transform`` of the data set made of it.
        xy: (2,) int64, the top-left corner (x, y) in level-0 pixels.
        ids: () int64, the raster index in the grid of the slide.
        slide_id: What results call the slide.
    """

    pixels: Any
    xy: Tensor
    ids: Tensor
    slide_id: str


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the patches that falls to one process: number ``index`` of ``count``."""

    index: int
    count: int

    def part(self, n: int, *, slide: int) -> range:
        """Which of ``n`` patches in a row belong to this share.

        All shares together have each patch exactly once, and their sizes differ by one at most. The larger parts
        move on from slide to slide, so that no share gets them all.
        """
        place = (self.index + slide) % self.count
        return range(n * place // self.count, n * (place + 1) // self.count)


class PatchDataset(IterableDataset[Patch]):
    """Every patch with tissue of one slide or many, for ``torch.utils.data.DataLoader``.

    Items are :class:`Patch`, slide by slide in grid order. The workers of the ``DataLoader`` and the ranks of a
    distributed run share the patches: together they give each patch exactly once, so the numbers of patches of
    ranks may differ (by one per slide at most with ``share="patches"``). Each process searches its slides for
    tissue anew in every epoch, which takes about a second per slide. If that matters, write the coordinates once
    with ``wsi-ips tile`` and give their folder as ``patches``.

    >>> import wsi_ips as wi
    >>> from torch.utils.data import DataLoader
    >>> dataset = wi.PatchDataset("slides", px=64, mpp=1.0)
    >>> for batch in DataLoader(dataset, batch_size=32):
    ...     print(batch.pixels.shape, batch.xy.shape, sorted(set(batch.slide_id)))
    torch.Size([32, 3, 64, 64]) torch.Size([32, 2]) ['a']
    torch.Size([32, 3, 64, 64]) torch.Size([32, 2]) ['a', 'b']
    torch.Size([17, 3, 64, 64]) torch.Size([17, 2]) ['b']
    """

    def __init__(
        self,
        slides: Path | str | Slide | Iterable[Path | str | Slide],
        *,
        px: int | None = None,
        mpp: float | None = None,
        mag: float | None = None,
        overlap: int | None = None,
        min_tissue: float | None = None,
        patches: Path | str | None = None,
        slide_mpp: float | Mapping[str, float] | None = None,
        allow_upsampling: bool = False,
        tiling: TilingConfig | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        share: Literal["patches", "slides"] = "patches",
        rank: int | None = None,
        ranks: int | None = None,
        threads: int = 2,
    ) -> None:
        """Find the slides and check the settings.

        Args:
            slides: A slide, a folder that is searched for slides, or several of either.
            px: Side of a patch in pixels (256).
            mpp: Resolution of a patch in µm per pixel (0.5).
            mag: The resolution as a magnification instead; ``mag=20`` is ``mpp=0.5``.
            overlap: Pixels that neighbouring patches share (0).
            min_tissue: Share of a patch that has to be tissue (0.25).
            patches: A folder of coordinates (CLAM, TRIDENT, ``wsi-ips tile``), which state px and mpp
                themselves.
            slide_mpp: The resolution of all slides, or ``{slide_id: resolution}``, used instead of what the
                files state.
            allow_upsampling: Enlarge slides that are more than 10 % coarser than mpp.
            tiling: All settings of the patches and the tissue at once. The other arguments override it.
            transform: Applied to the pixels of each patch.
            on_error: ``raise`` the error of a bad slide, or ``skip`` the rest of the slide, with a warning in
                each process that meets it.
            share: How workers and ranks divide the work: ``patches`` of every slide, which is even, or whole
                ``slides``, where no slide is opened and searched for tissue by more than one process.
            rank, ranks: The number of this process in a distributed run, and how many there are. By default
                those of torch.distributed, otherwise those in torchrun's environment.
            threads: How many threads decode in each process.

        Raises:
            ConfigError: Settings are not possible, or two slides have the same id.
            SlideNotFound: A slide does not exist.
            SlideFailed: While iterating with ``skip``: no slide at all could be read. With ``raise``, iterating
                raises the errors of bad slides, see :func:`wsi_ips.stream`.
        """
        self._slides = unique_slide_ids(chain.from_iterable(map(_found, _several(slides))))
        self._find = patch_finder(
            "wsi_ips.PatchDataset", patches, tiling=tiling, px=px, mpp=mpp, mag=mag, overlap=overlap,
            min_tissue=min_tissue, allow_upsampling=allow_upsampling,
        )  # fmt: skip
        self._slide_mpp = _given_mpp(slide_mpp, self._slides)
        self._streaming = section_of(
            StreamingConfig, "wsi_ips.PatchDataset", batch=DECODED_TOGETHER, threads=threads
        )
        self._transform = transform
        for name, value, known in (
            ("on_error", on_error, ("raise", "skip")),
            ("share", share, ("patches", "slides")),
        ):
            if value not in known:
                raise ConfigError(f"wsi_ips.PatchDataset: {name} is {' or '.join(known)}, not {value!r}")
        self._skips = on_error == "skip"
        self._whole_slides = share == "slides"
        self._rank = _given_rank(rank, ranks) or _known_rank()

    @property
    def slides(self) -> dict[str, Location]:
        """``{slide_id: where the slide is}``, in the order of reading."""
        return dict(self._slides)

    def __iter__(self) -> Iterator[Patch]:
        share, failed, error_of_last = self._share(), 0, None
        for number, slide_id in enumerate(self._slides):
            if self._whole_slides and number % share.count != share.index:
                continue
            mine = Share(0, 1) if self._whole_slides else share
            patches = self._patches(slide_id, mine, number)
            while True:
                try:
                    patch = next(patches)
                except StopIteration:
                    break
                except Exception as error:  # whatever a decoder may raise is a failure of this slide
                    if not self._skips:
                        raise
                    why = f"{slide_id}: {failure_in_words(slide_id, error)}"
                    logger.warning("a slide is skipped: %s", why)
                    failed, error_of_last = failed + 1, why
                    break
                yield (
                    patch if self._transform is None else patch._replace(pixels=self._transform(patch.pixels))
                )
        if failed and failed == len(self._slides):
            raise SlideFailed(
                f"none of the {count(failed, 'slide')} could be read; the last: {error_of_last}"
            )

    def _patches(self, slide_id: str, share: Share, number: int) -> Iterator[Patch]:
        with open_slide(self._slides[slide_id]) as reader:
            coords = self._find(reader, slide_id=slide_id, mpp=self._slide_mpp(slide_id))
            part = share.part(len(coords), slide=number)
            stream = PatchStream(reader, coords, config=self._streaming, part=part)
            for chunk in stream:
                for row in range(len(chunk)):
                    yield Patch(chunk.pixels_n3PP[row], chunk.l0_xy_n2[row], chunk.ids_n[row], slide_id)
            if stream.telemetry.bad_tiles:
                logger.warning("%s", unreadable(slide_id, stream.telemetry.bad_tiles))

    def _share(self) -> Share:
        """The share of this process: that of its rank, and within it that of its worker."""
        rank = self._rank or _known_rank() or Share(0, 1)
        worker = get_worker_info()
        if worker is None:
            return rank
        return Share(rank.index * worker.num_workers + worker.id, rank.count * worker.num_workers)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process is sent. It cannot ask torch.distributed for the rank, so it is told."""
        return {**self.__dict__, "_rank": self._rank or _known_rank()}


def _several(slides: Path | str | Slide | Iterable[Path | str | Slide]) -> Sequence[Path | str | Slide]:
    return [slides] if isinstance(slides, Path | str | Slide) else list(slides)


def _found(slide: Path | str | Slide) -> list[Location]:
    return [slide.path] if isinstance(slide, Slide) else find_slides(slide)


def _given_mpp(given: float | Mapping[str, float] | None, slides: Mapping[str, Location]) -> SlideMpp:
    """The resolutions. Raises ConfigError for a number that is not a resolution, or a name that is not that of a
    slide.
    """
    if not isinstance(given, Mapping):
        return SlideMpp(given)
    for value in given.values():
        SlideMpp(value)
    table = SlideMpp(None, {name: Mpp(value) for name, value in given.items()})
    if unmatched := table.unmatched(slides):
        raise ConfigError(
            f"wsi_ips.PatchDataset: slide_mpp names {unmatched[0]!r}, which is not one of the slides; they are "
            f"called {', '.join(list(slides)[:5])}"
        )
    return table


def _given_rank(rank: int | None, ranks: int | None) -> Share | None:
    if rank is None and ranks is None:
        return None
    if rank is None or ranks is None or not 0 <= rank < ranks:
        raise ConfigError(
            f"wsi_ips.PatchDataset: rank {rank} of {ranks} ranks is not possible: give both, rank from 0 to "
            "ranks - 1"
        )
    return Share(rank, ranks)


def _known_rank() -> Share | None:
    """The rank of this process, from torch.distributed or else torchrun's environment. None if neither says."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Share(distributed.get_rank(), distributed.get_world_size())
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return Share(rank, ranks) if 0 <= rank < ranks else None
