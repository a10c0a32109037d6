"""DICOM whole-slide images, read by their own frames (see :mod:`wsi_ips.slides.dicom`)."""

from wsi_ips.errors import UnsupportedSlide
from wsi_ips.slides.dicom.series import series_of, starts_as_dicom
from wsi_ips.slides.stored_tile_reader import StoredTileReader
from wsi_ips.slides.tile_layout import SlideLayout


class DicomReader(StoredTileReader):
    """``DicomReader(path)``: a folder that holds one series, or any file of a series; see
    :class:`StoredTileReader`."""

    name = "dicom"

    def read_layout(self) -> SlideLayout:
        """See :meth:`StoredTileReader.read_layout`. Raises also :class:`SeveralSlides`."""
        if not self._path.is_dir() and not starts_as_dicom(self._path):
            raise UnsupportedSlide(self._path, "not a DICOM file")
        from wsi_ips.slides.dicom.layout import series_layout

        return series_layout(self._path, series_of(self._path))
