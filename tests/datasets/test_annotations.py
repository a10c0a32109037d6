from pathlib import Path

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.datasets.annotations import lesion_area, read_asap, write_asap
from wsi_ips.errors import AnnotationError


def asap(tmp_path: Path, annotations: str) -> Path:
    path = tmp_path / "a.xml"
    path.write_text(f"<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>")
    return path


def annotation(points: list[tuple[float, float]], *, group: str = "_0", kind: str = "Polygon") -> str:
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}" />'
        for order, (x, y) in reversed(list(enumerate(points)))
    )
    return (
        f'<Annotation Name="n" Type="{kind}" PartOfGroup="{group}"><Coordinates>{coordinates}</Coordinates>'
        "</Annotation>"
    )


SQUARE = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
INNER = [(20.0, 20.0), (60.0, 20.0), (60.0, 60.0), (20.0, 60.0)]


def test_points_are_placed_by_their_order_and_holes_cut_out(tmp_path: Path) -> None:
    path = asap(tmp_path, annotation(SQUARE) + annotation(INNER, group="_2"))
    assert [region.kind for region in read_asap(path)] == ["tumor", "hole"]
    assert lesion_area(path).area == 100 * 100 - 40 * 40


@pytest.mark.parametrize("group", ["_0", "_1", "Tumor", "metastases", "None"])
def test_every_name_of_tumour_counts(tmp_path: Path, group: str) -> None:
    assert lesion_area(asap(tmp_path, annotation(SQUARE, group=group))).area == 10_000


def test_dots_and_rulers_have_no_area(tmp_path: Path) -> None:
    path = asap(tmp_path, annotation(SQUARE[:1], kind="Dot") + annotation(SQUARE[:2], kind="Measurement"))
    assert lesion_area(path).is_empty


def test_an_outline_that_crosses_itself_still_has_an_area(tmp_path: Path) -> None:
    bow = [(0.0, 0.0), (100.0, 100.0), (100.0, 0.0), (0.0, 100.0)]
    assert lesion_area(asap(tmp_path, annotation(bow))).area > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(SQUARE, group="stroma"), "unknown group 'stroma'"),
        (annotation([(0, 0), (float("nan"), 1), (1, 1)]), "no numbers"),
        ('<Annotation Type="Polygon"><Coordinate Order="0" X="a" Y="1"/></Annotation>', "no numbers"),
        ("<Annotation", "not XML"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_asap(asap(tmp_path, text))


def test_hostile_xml_is_not_expanded(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><ASAP_Annotations>&y;</ASAP_Annotations>'
    (tmp_path / "bomb.xml").write_text(bomb)
    with pytest.raises(AnnotationError):
        read_asap(tmp_path / "bomb.xml")
    with pytest.raises(AnnotationError, match="no such annotation"):
        read_asap(tmp_path / "absent.xml")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5, unique=True))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("asap") / "w.xml"
    boxes = [
        shapely.box(x * 50, y * 50, x * 50 + 40, y * 50 + 40).difference(
            shapely.box(x * 50 + 10, y * 50 + 10, x * 50 + 20, y * 50 + 20)
        )
        for x, y in places
    ]
    write_asap(path, boxes)
    assert lesion_area(path).equals(shapely.union_all(boxes))


def test_asap_s_own_files_are_read(real_data: Path) -> None:
    folder = real_data / "annotations" / "wsidicom" / "asap"
    areas = {path.stem: lesion_area(path).area for path in sorted(folder.glob("*.xml"))}
    assert areas["asap-polygon"] > 0
    assert areas["asap-dot"] == areas["asap-pointset"] == 0
