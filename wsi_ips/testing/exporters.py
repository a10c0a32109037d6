"""What every exporter must do: see :class:`wsi_ips.heatmaps.export.Exporter`.

The values that it writes are its own tests' matter: there is no common way to read them back.
"""

from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, ResultsError, SlideReadError
from wsi_ips.heatmaps.export import Exporter, make_exporter
from wsi_ips.slides.base import RgbImage, SlideReader
from wsi_ips.slides.image_reader import MemoryReader
from wsi_ips.testing.maps import L0_SIZE, drawn, without_patches
from wsi_ips.units import L0Point, Size


class Damaged(MemoryReader):
    """Its pixels cannot be read."""

    def read(self, l0_xy: L0Point, *, level: int, size_px: Size) -> RgbImage:
        raise SlideReadError(self.info.path, "is damaged")


def white(width: int, height: int, kind: type[MemoryReader] = MemoryReader) -> MemoryReader:
    """A slide of this size that is white all over."""
    return kind(np.full((height, width, 3), 255, np.uint8))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class ExporterContract:
    """Subclass with ``name``, an export's; or override the fixture ``exporter``."""

    name: str
    reads_pixels = False
    """Whether it draws the slide's own pixels, so that it fails over a slide that cannot be read."""

    @pytest.fixture
    def exporter(self) -> Exporter:
        """The export with its default options."""
        return make_exporter(self.name, {})

    @pytest.fixture
    def slide(self) -> SlideReader:
        """The slide that was predicted."""
        return drawn().slide

    def test_writes_under_its_name_only(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        path = tmp_path / "new" / f"a.b é{exporter.suffix}"
        exporter.write(path, drawn().heat, slide)
        assert path.exists()
        assert tree(tmp_path)
        assert all(name.startswith("new/a.b é") for name in tree(tmp_path))

    def test_the_same_again_is_the_same_bytes(
        self, exporter: Exporter, slide: SlideReader, tmp_path: Path
    ) -> None:
        """And what was there before is gone."""
        for folder, heats in (("once", [drawn()]), ("again", [drawn(share=0.1, seed=1), drawn()])):
            for each in heats:
                exporter.write(tmp_path / folder / f"a{exporter.suffix}", each.heat, slide)
        assert tree(tmp_path / "once") == tree(tmp_path / "again")

    def test_leaves_the_result_alone(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        heat = drawn(queries=2).heat
        values, attention = heat.values_N.copy(), heat.result.attention_NHT.copy()
        exporter.write(tmp_path / f"a{exporter.suffix}", heat, slide)
        np.testing.assert_array_equal(heat.values_N, values)
        np.testing.assert_array_equal(heat.result.attention_NHT, attention)

    def test_a_slide_without_patches(self, exporter: Exporter, slide: SlideReader, tmp_path: Path) -> None:
        exporter.write(tmp_path / f"a{exporter.suffix}", without_patches().heat, slide)
        assert (tmp_path / f"a{exporter.suffix}").exists()

    def test_another_slide_of_that_name_is_refused(self, exporter: Exporter, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match=r"is 64x65 pixels, but slide_01 was 1511x997"):
            exporter.write(tmp_path / f"a{exporter.suffix}", drawn().heat, white(64, 65))
        assert not tree(tmp_path)

    def test_needs_its_slide_or_does_without(self, exporter: Exporter, tmp_path: Path) -> None:
        path = tmp_path / f"a{exporter.suffix}"
        if not exporter.needs_slide:
            exporter.write(path, drawn().heat, None)
            assert path.exists()
            return
        with pytest.raises(ConfigError, match="needs the slide"):
            exporter.write(path, drawn().heat, None)
        assert not tree(tmp_path)

    def test_what_fails_halfway_leaves_nothing(
        self, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slide that cannot be read; a disk that is full while a file is put in its place."""
        path = tmp_path / f"a{exporter.suffix}"
        if self.reads_pixels:
            with pytest.raises(SlideReadError):
                exporter.write(path, drawn().heat, white(*L0_SIZE, kind=Damaged))
            assert not tree(tmp_path)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            exporter.write(path, drawn().heat, drawn().slide)
        assert not list(tmp_path.iterdir())
