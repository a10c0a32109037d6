from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_ips.errors import AnnotationError, DatasetError
from wsi_ips.nuclei.data import boxes_within, read_outlined_images, read_outlines


def xml(*rings: list[tuple[float, float]]) -> str:
    regions = "".join(
        "<Region><Vertices>" + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ring) + "</Vertices></Region>"
        for ring in rings
    )
    return f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>"


SQUARE = [(10.0, 20.0), (30.0, 20.0), (30.0, 50.0), (10.0, 50.0)]


def test_a_pair_of_files_is_an_image_with_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (60, 80), (1, 2, 3)).save(tmp_path / "a.png")
    # One that sticks out, one of two points, one without area.
    rings = (SQUARE, [(50, 70), (70, 70), (70, 90)], [(1, 1), (2, 2)], [(5, 5), (5, 9), (5, 7)])
    (tmp_path / "a.xml").write_text(xml(*rings))  # type: ignore[arg-type]
    (image,) = read_outlined_images(tmp_path)
    assert image.name == "a"
    assert image.rgb_HWC.shape == (80, 60, 3)
    assert image.boxes_N4.tolist() == [[10, 20, 30, 50], [50, 70, 60, 80]]


def test_real_outlines_lie_in_their_images(real_data: Path) -> None:
    folder = real_data / "nuclei" / "test"
    if not folder.is_dir():
        pytest.skip("no nuclei among the test data")
    path = min(folder.glob("*.xml"), key=lambda path: path.stat().st_size)
    outlines = read_outlines(path)
    assert len(outlines) > 400
    assert all((o >= -5).all() and (o <= 1005).all() for o in outlines)


def test_what_a_crop_cuts_in_half_is_left_out() -> None:
    boxes = np.array([[0, 0, 10, 10], [95, 0, 105, 10], [97, 0, 107, 10], [200, 0, 210, 10]], np.float32)
    assert boxes_within(boxes, left=0, top=0, side=100).tolist() == [[0, 0, 10, 10], [95, 0, 100, 10]]
    assert boxes_within(boxes, left=90, top=0, side=100).tolist() == [[5, 0, 15, 10], [7, 0, 17, 10]]


@pytest.mark.parametrize(
    "text", ["<a", xml([(1, 1), (2, float("nan")), (3, 9)]), xml(SQUARE).replace('X="10.0"', 'X="ten"')]
)
def test_broken_outlines_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(AnnotationError, match=r"a\.xml"):
        read_outlines(tmp_path / "a.xml")


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no \*\.png"):
        read_outlined_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"a\.png: is no PNG"):
        read_outlined_images(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.xml: no such annotation"):
        read_outlined_images(tmp_path)
