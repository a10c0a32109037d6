import json
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import LinearRing

from wsi_ips.datasets.annotations import area_of, lesion_area, read_asap, write_asap
from wsi_ips.errors import AnnotationError


def groups(*names: str, **parents: str) -> str:
    inside = "".join(f'<Group Name="{name}" PartOfGroup="None" Color="#000000"/>' for name in names)
    inside += "".join(f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in parents.items())
    return f"<AnnotationGroups>{inside}</AnnotationGroups>"


ALL_GROUPS = groups("_0", "_1", "_2", "Tumor", "Exclusion", "metastases", "normal", "stroma")


def asap(tmp_path: Path, annotations: str, *, defined: str = ALL_GROUPS) -> Path:
    path = tmp_path / "a.xml"
    path.write_text(f"<ASAP_Annotations><Annotations>{annotations}</Annotations>{defined}</ASAP_Annotations>")
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


def test_both_lobes_of_an_outline_that_crosses_itself_count(tmp_path: Path) -> None:
    bow = [(0.0, 0.0), (100.0, 100.0), (100.0, 0.0), (0.0, 100.0)]
    assert lesion_area(asap(tmp_path, annotation(bow))).area == 5000
    [region] = read_asap(asap(tmp_path, annotation(bow)))
    assert len(region.area.geoms) == 2
    assert list(region.outline.coords) == [*bow, bow[0]]


def test_points_without_order_are_in_document_order(tmp_path: Path) -> None:
    text = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in SQUARE)
    text = f'<Annotation Name="n" Type="Polygon" PartOfGroup="None"><Coordinates>{text}</Coordinates></Annotation>'
    assert lesion_area(asap(tmp_path, text)).area == 10_000


def test_order_is_a_number_and_not_a_text(tmp_path: Path) -> None:
    """As text, 10 comes before 2: an outline of twelve points would cross itself."""
    corners = [(x, 0.0) for x in range(0, 60, 10)] + [(x, 50.0) for x in range(50, -10, -10)]
    assert lesion_area(asap(tmp_path, annotation(corners))).area == 2500


@pytest.mark.parametrize(
    "mark", ["", '<?xml version="1.0"?>\n', '\ufeff<?xml version="1.0" encoding="utf-8"?>']
)
@pytest.mark.parametrize("defined", ["", ALL_GROUPS])
def test_the_root_element_may_be_absent(tmp_path: Path, mark: str, defined: str) -> None:
    (tmp_path / "a.xml").write_text(
        f"{mark}<Annotations>{annotation(SQUARE, group='_1' if defined else 'None')}</Annotations>{defined}",
        encoding="utf-8",
    )
    assert lesion_area(tmp_path / "a.xml").area == 10_000


def test_a_group_that_is_not_known_counts_as_its_parent(tmp_path: Path) -> None:
    defined = groups("_2", "stroma", fold="_2", deep="fold", a="b", b="a", island="metastases", metastases="_2",
                     lost="stroma")  # fmt: skip
    read = {
        name: read_asap(asap(tmp_path, annotation(SQUARE, group=name), defined=defined))[0].kind
        for name in ("fold", "deep", "island", "metastases")
    }
    assert read == {"fold": "hole", "deep": "hole", "island": "tumor", "metastases": "tumor"}
    for name in ("a", "lost", "stroma"):
        with pytest.raises(AnnotationError, match=f"unknown group '{name}'"):
            read_asap(asap(tmp_path, annotation(SQUARE, group=name), defined=defined))
    with pytest.raises(AnnotationError, match="'fold' is part of 'gone', which is not defined"):
        read_asap(asap(tmp_path, "", defined=groups(fold="gone")))


def test_another_pipeline_s_names_of_groups(tmp_path: Path) -> None:
    path = asap(tmp_path, annotation(SQUARE, group="stroma") + annotation(INNER, group="_0"))
    assert [region.kind for region in read_asap(path, groups={"stroma": "hole", "_0": "tumor"})] == [
        "hole",
        "tumor",
    ]
    with pytest.raises(AnnotationError, match="unknown group 'None'"):
        read_asap(asap(tmp_path, annotation(SQUARE, group="None")), groups={"_0": "tumor"})


def test_holes_are_cut_out_of_every_lesion_and_lesions_are_apart(tmp_path: Path) -> None:
    far = [(x + 500, y) for x, y in SQUARE]
    across = [(50.0, -10.0), (60.0, -10.0), (60.0, 110.0), (50.0, 110.0)]
    path = asap(tmp_path, annotation(across, group="_2") + annotation(SQUARE) + annotation(far, group="_1"))
    assert sorted(part.area for part in lesion_area(path).geoms) == [4000, 5000, 10_000]


def test_a_small_outline_wholly_outside_is_refused_however_near(tmp_path: Path) -> None:
    path = asap(tmp_path, annotation([(1002, 0), (1009, 0), (1009, 9)]))
    with pytest.raises(AnnotationError, match="outside its slide"):
        lesion_area(path, l0_size=(1000, 500))


def test_a_scribble_is_refused_before_it_costs_minutes(tmp_path: Path) -> None:
    scribble = np.random.default_rng(0).uniform(0, 1e5, (5_000, 2))
    path = asap(tmp_path, annotation([tuple(point) for point in scribble]))
    started = process_time()
    with pytest.raises(AnnotationError, match="'n' crosses itself more than 10000 times; draw it again"):
        read_asap(path)
    assert process_time() - started < 10


def test_an_outline_may_repeat_its_first_point_or_enclose_nothing(tmp_path: Path) -> None:
    closed = [*SQUARE, SQUARE[0]]
    for points in ([SQUARE[0]] * 4, [*SQUARE[:2], SQUARE[0]], SQUARE[:2], [(0, 0), (1, 1), (2, 2)]):
        path = asap(tmp_path, annotation(closed) + annotation(points))
        assert [region.area.area for region in read_asap(path)] == [10_000]


@pytest.mark.parametrize(
    ("shift", "fine"), [((0, 0), True), ((-10, 0), True), ((905, 0), True), ((0, 410), True), ((0, 411), False),
                        ((-21, 0), False), ((1000, 0), False), ((0, -100), False), ((9000, 40), False)]
)  # fmt: skip
def test_an_outline_outside_its_slide_is_refused(tmp_path: Path, shift: tuple[int, int], fine: bool) -> None:
    """Two hundredths of a slide's side may stick out: 20 px of 1000 wide, 10 px of 500 high."""
    path = asap(tmp_path, annotation([(x + shift[0], y + shift[1]) for x, y in SQUARE]))
    if fine:
        assert lesion_area(path, l0_size=(1000, 500)).area == 10_000
    else:
        with pytest.raises(AnnotationError, match=r"'n' spans .* outside its slide of 1000x500 px"):
            lesion_area(path, l0_size=(1000, 500))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(SQUARE, group="stroma"), "unknown group 'stroma'"),
        (annotation([(0, 0), (float("nan"), 1), (1, 1)]), "no numbers"),
        (annotation([(0, 0), (1, 1), (1e12, 1)]), "no numbers"),
        (annotation(SQUARE).replace('X="0.0"', 'X="a"'), "no numbers"),
        (annotation(SQUARE).replace('Order="2"', ""), "no numbers"),
        (annotation(SQUARE).replace('Order="2"', 'Order="1"'), "two points in one place"),
        (annotation(SQUARE, kind="4"), "unknown type '4'"),
        (annotation(SQUARE, group="undefined"), "'undefined', which is not defined"),
        (annotation(SQUARE).replace('PartOfGroup="_0"', ""), "which is not defined"),
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
    (tmp_path / "other.xml").write_text("<html><body/></html>")
    with pytest.raises(AnnotationError, match="no ASAP annotation"):
        read_asap(tmp_path / "other.xml")
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


def test_another_program_s_xml_is_not_taken_for_a_slide_without_lesions(real_data: Path) -> None:
    [path] = (real_data / "annotations" / "histoqc").glob("*.xml")
    with pytest.raises(AnnotationError, match="unknown type '4'"):
        read_asap(path)


def test_real_outlines_arrive_point_for_point(real_data: Path, tmp_path: Path) -> None:
    """Hand-drawn lesions; points stand in the file in reverse."""
    for path in sorted((real_data / "camelyon" / "lesion_polygons").glob("*.json"))[::4]:
        drawn = json.loads(path.read_text())
        rings = [
            (group, each["vertices"])
            for group, kind in (("_0", "positive"), ("_2", "negative"))
            for each in drawn[kind]
            if len(each["vertices"]) > 3 and LinearRing(each["vertices"]).is_simple
        ]
        read = read_asap(asap(tmp_path, "".join(annotation(ring, group=group) for group, ring in rings)))
        assert [region.group for region in read] == [group for group, _ in rings]
        for region, (_, ring) in zip(read, rings, strict=True):
            assert (np.array(region.outline.coords)[:-1] == ring).all()
        lesions = area_of(read)
        assert lesions.is_valid
        assert not lesions.is_empty
