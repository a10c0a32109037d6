"""Tiled pyramidal TIFF of many scanners, read by its own tiles (see :mod:`wsi_ips.slides.tiff.containers`)."""

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.slides.tiff.containers import read_layout
from wsi_ips.slides.tile_layout import SlideLayout


class TiffReader(StoredTileReader):
    """``TiffReader(path)``: see :class:`StoredTileReader`."""

    name = "tiff"

    def read_layout(self) -> SlideLayout:
        """See :meth:`StoredTileReader.read_layout`."""
        if self._path.is_dir():
            raise UnsupportedSlide(self._path, "a folder, not a TIFF file")
        return read_layout(self._path, file_size=self._path.stat().st_size)
