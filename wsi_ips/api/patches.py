"""Which patches of a slide are used: :func:`tile` finds them, :class:`Patches` holds them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.api.slide import AnySlide, place_of, png_in_notebook, reading
from wsi_ips.commands.recipe import make_job
from wsi_ips.commands.tile import TileJob
from wsi_ips.config import TilingConfig
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.tissue_preview import draw_preview
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.folder import slide_id
from wsi_ips.slides.registry import open_slide
from wsi_ips.slides.resolution import SlideMpp
from wsi_ips.storage.location import Location
from wsi_ips.tiling.contours import tissue_contours
from wsi_ips.tiling.coords import read_coords, write_coords
from wsi_ips.tiling.grid import PatchCoords
from wsi_ips.tiling.patches import (
    FindPatches,
    PatchesInTissue,
    StoredPatches,
    find_coords,
    no_patches,
    tile_slide,
)
from wsi_ips.tiling.tissue import TissueMask
from wsi_ips.units import Mpp, mpp_of_magnification


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The patches of one slide that hold tissue, as :func:`wsi_ips.tile` finds them.

    In a notebook, the slide is shown with its tissue outlined and its patches drawn.

    Attributes:
        coords: Their coordinates, in the package's own form.
        path: The slide.
        mask: Its tissue on a thumbnail.

    >>> import wsi_ips as wi
    >>> patches = wi.tile("slide.svs", px=64, mpp=1.0)
    >>> len(patches), patches.xy.shape, patches.xy.dtype
    (40, (40, 2), dtype('int64'))
    >>> patches.px, patches.mpp, patches.side  # 64 px of 1 µm are 128 pixels of a slide with 0.5 µm
    (64, 1.0, 128.0)
    >>> patches.save("coords/slide.h5")
    """

    coords: PatchCoords
    path: Location
    mask: TissueMask

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def slide_id(self) -> str:
        """What results call the slide."""
        return self.coords.slide_id

    @property
    def xy(self) -> NDArray[np.int64]:
        """(N, 2) int64: top-left corners (x, y) in level-0 pixels, row by row of the grid."""
        return self.coords.l0_xy_N2

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64: raster indices of the patches in the grid that covers the slide, ascending."""
        return self.coords.ids_N

    @property
    def tissue(self) -> NDArray[np.float32]:
        """(N,) float32: the share of each patch that is tissue, 0 to 1."""
        return self.coords.tissue_N

    @property
    def px(self) -> int:
        """Side of a patch in its own pixels."""
        return self.coords.patch_px

    @property
    def mpp(self) -> float:
        """Resolution of a patch, in µm per pixel."""
        return float(self.coords.patch_mpp)

    @property
    def side(self) -> float:
        """Side of a patch in level-0 pixels. It need not be an integer."""
        return self.coords.l0_patch

    def save(self, path: Path | str) -> None:
        """Write the coordinates as ``wsi-ips tile`` does: HDF5 that CLAM reads, to be called ``<slide_id>.h5``.

        The folder of the file can be given as ``patches=`` to :func:`wsi_ips.stream` and
        :class:`wsi_ips.PatchDataset`.
        """
        with open_slide(self.path) as reader:
            write_coords(Path(path), self.coords, layout="clam", info=reader.info)

    def picture(self) -> Image.Image:
        """A PIL image of the slide in which all but tissue is shaded, outlines and patches are drawn, and a
        legend explains it.
        """
        with open_slide(self.path) as reader:
            return draw_preview(reader, self.coords, self.mask, tissue_contours(self.mask))

    def __repr__(self) -> str:
        return f"Patches({self.slide_id!r}, {len(self)} of {self.px} px at {self.mpp:.4g} µm/px)"

    def _repr_png_(self) -> bytes | None:
        return png_in_notebook(self.picture)


def tile(
    slide: AnySlide,
    *,
    px: int | None = None,
    mpp: float | None = None,
    mag: float | None = None,
    overlap: int | None = None,
    min_tissue: float | None = None,
    slide_mpp: float | None = None,
    allow_upsampling: bool = False,
    tiling: TilingConfig | None = None,
) -> Patches:
    """Find the tissue of a slide and the patches that hold it. No model is needed.

    The coordinates are those that ``wsi-ips tile`` writes.

    Args:
        slide: The slide.
        px: Side of a patch in pixels (256).
        mpp: Resolution of a patch in µm per pixel (0.5).
        mag: The resolution as a magnification instead; ``mag=20`` is ``mpp=0.5``.
        overlap: Pixels that neighbouring patches share (0).
        min_tissue: Share of a patch that has to be tissue (0.25).
        slide_mpp: Resolution of the slide in µm per pixel, used instead of what the file states.
        allow_upsampling: Accept a slide that is more than 10 % coarser than mpp. Its patches are enlarged when
            they are read.
        tiling: All settings at once. The other arguments override it.

    Raises:
        ConfigError: Settings are not possible.
        MissingResolution: The file does not state its resolution, and ``slide_mpp`` is not given.
        TooCoarse: The slide has less detail than the patches need.
        NoTissue: No patch is left.
        FileError: The slide cannot be opened or read; the error is that of the reader.

    >>> import wsi_ips as wi
    >>> wi.tile("slide.svs", px=64, mag=10)
    Patches('slide', 40 of 64 px at 1 µm/px)
    """
    chosen = tiling_of(
        "wsi_ips.tile", tiling, px=px, mpp=mpp, mag=mag, overlap=overlap, min_tissue=min_tissue,
        allow_upsampling=allow_upsampling or None,
    )  # fmt: skip
    name = slide_id(place_of(slide))
    with reading(slide) as reader:
        coords, mask = tile_slide(reader, chosen, slide_id=name, mpp=SlideMpp(slide_mpp)(name))
        if not len(coords):
            raise no_patches(reader.info.path, coords, mask, chosen)
        return Patches(coords, reader.info.path, mask)


def tiling_of(
    asked_by: str,
    tiling: TilingConfig | None = None,
    *,
    px: int | None = None,
    mpp: float | None = None,
    mag: float | None = None,
    overlap: int | None = None,
    min_tissue: float | None = None,
    allow_upsampling: bool | None = None,
) -> TilingConfig:
    """The settings that are given, over ``tiling``, over the defaults, checked like those of a recipe.

    ``asked_by`` is what the message says in front. Raises :class:`ConfigError` that names the wrong setting.
    """
    if mag is not None:
        if mpp is not None:
            raise ConfigError(f"{asked_by}: mag and mpp say the same thing: give one of them")
        if not mag > 0:
            raise ConfigError(f"{asked_by}: mag {mag} is not a magnification; expected e.g. 20")
        mpp = mpp_of_magnification(mag)
    asked = {
        "patch_px": px,
        "patch_mpp": mpp,
        "overlap_px": overlap,
        "min_tissue": min_tissue,
        "allow_upsampling": allow_upsampling,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    settings = {**dict(tiling or TilingConfig()), **given}
    job = make_job({"command": "tile", "slides": ".", "out": ".", "tiling": settings}, source=asked_by)
    assert isinstance(job, TileJob)
    return job.tiling


@dataclass(frozen=True, slots=True)
class PatchesAsStored:
    """Finds the patches in a folder of coordinates, with the pixels and the resolution that its files state."""

    folder: Path
    allow_upsampling: bool = False

    def __call__(self, slide: SlideReader, *, slide_id: str, mpp: Mpp | None) -> PatchCoords:
        """The stored patches of a slide. For the errors see :class:`wsi_ips.tiling.patches.StoredPatches`."""
        info = slide.info if mpp is None else slide.info.with_mpp(mpp)
        stored = read_coords(find_coords(self.folder, slide_id), info=info)
        tiling = tiling_of(
            f"{self.folder}: patches of {slide_id}",
            px=stored.patch_px,
            mpp=stored.patch_mpp,
            overlap=min(max(0, stored.overlap_px), stored.patch_px - 1),
            allow_upsampling=self.allow_upsampling,
        )
        return StoredPatches(self.folder, tiling)(slide, slide_id=slide_id, mpp=mpp)

    def read_from(self, slide_id: str) -> tuple[Path, ...]:
        """The file with the coordinates of a slide."""
        return (find_coords(self.folder, slide_id),)


def patch_finder(
    asked_by: str,
    patches: Path | str | None,
    *,
    tiling: TilingConfig | None,
    px: int | None,
    mpp: float | None,
    mag: float | None,
    overlap: int | None,
    min_tissue: float | None,
    allow_upsampling: bool,
) -> FindPatches:
    """What finds the patches of a slide: in its tissue, or in ``patches``, a folder of stored coordinates.

    ``asked_by`` is what messages say in front; the other arguments are those of :func:`tile`.

    Raises:
        ConfigError: The folder does not exist, or a setting is given that the files in the folder state.
    """
    if patches is None:
        return PatchesInTissue(
            tiling_of(
                asked_by, tiling, px=px, mpp=mpp, mag=mag, overlap=overlap, min_tissue=min_tissue,
                allow_upsampling=allow_upsampling or None,
            )
        )  # fmt: skip
    folder = Path(patches)
    if not folder.is_dir():
        raise ConfigError(f"{asked_by}: patches: {folder} is not a folder")
    for name, value in (
        ("px", px),
        ("mpp", mpp),
        ("mag", mag),
        ("overlap", overlap),
        ("min_tissue", min_tissue),
        ("tiling", tiling),
    ):
        if value is not None:
            raise ConfigError(f"{asked_by}: {name} is stated by the files in patches: leave it out")
    return PatchesAsStored(folder, allow_upsampling)
