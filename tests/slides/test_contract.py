import pytest

from tests.slides.tiff_files import write_pyramid
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiff.layout import TiffReader
from wsi_ips.testing.readers import MPP, ReaderContract, contract_image


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    path = tmp_path_factory.mktemp("pyramid") / "käse.tif"
    write_pyramid(path, contract_image(), mpp=MPP, tile=128, levels=2, compression="lzw")
    return path


class TestMemoryReader(ReaderContract):
    @pytest.fixture
    def slide(self):
        with MemoryReader(contract_image(), mpp=MPP, levels=(1, 2)) as reader:
            yield reader


class TestOpenSlideReader(ReaderContract):
    @pytest.fixture
    def slide(self, pyramid):
        with OpenSlideReader(pyramid) as reader:
            yield reader


class TestTiffReader(ReaderContract):
    @pytest.fixture
    def slide(self, pyramid):
        with TiffReader(pyramid) as reader:
            yield reader


class TestTiffReaderWithoutCache(ReaderContract):
    @pytest.fixture
    def slide(self, pyramid):
        with TiffReader(pyramid, cache_bytes=0) as reader:
            yield reader
