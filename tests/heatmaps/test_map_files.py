"""Names of maps: one for each map of a run, the same for all slides, and safe as names of folders."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.heatmaps.maps_of_slides import drawn
from wsi_ips.config import HeatOptions
from wsi_ips.errors import ConfigError
from wsi_ips.heatmaps.map_files import NOTED_IN, MapFiles, map_name
from wsi_ips.inference.results import Probabilities, SlideResult

ATTENTION = HeatOptions(map="attention")
TWO = {"label": {"normal": 0.4, "tumor": 0.6}, "grade": {"low": 0.2, "mid": 0.7, "high": 0.1}}


def result_with(probabilities: Probabilities = TWO, *, queries: int = 2) -> SlideResult:
    """A slide read by two heads, which holds contributions and gradients to all outputs."""
    result = drawn(queries=queries).heat.result
    outputs = sum(map(len, probabilities.values()))
    told = np.ones((len(result.kept_ids_M), outputs), np.float32)
    return replace(
        result,
        probabilities=probabilities,
        task_queries={task: place % queries for place, task in enumerate(reversed(probabilities))},
        kept_contributions_MK=told,
        kept_gradients_MK=told,
    )


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"map": "attention"}, ""),
        ({"head": 1}, "attention-head1"),
        ({"query": 0}, "attention-grade"),
        ({"map": "attention", "task": "label", "head": 0}, "attention-label-head0"),
        ({}, "contribution-label-tumor"),
        ({"task": "grade"}, "contribution-grade"),
        ({"map": "gradient", "class_name": "mid"}, "gradient-grade-mid"),
    ],
)
def test_a_map_is_named_by_what_it_shows(chosen: dict[str, object], name: str) -> None:
    assert map_name(result_with(), HeatOptions.model_validate(chosen), ATTENTION) == name


def test_the_name_does_not_depend_on_the_slide() -> None:
    """Of three classes each slide shows its likeliest one, until one is named: then it has a folder of its own,
    also where it is the likeliest."""
    one = result_with({"grade": {"low": 0.2, "mid": 0.7, "high": 0.1}}, queries=1)
    other = replace(one, probabilities={"grade": {"low": 0.8, "mid": 0.1, "high": 0.1}})
    for options, name in ((HeatOptions(), ""), (HeatOptions(class_name="mid"), "contribution-mid")):
        assert map_name(one, options, HeatOptions()) == name
        assert map_name(other, options, HeatOptions()) == name


def test_what_only_has_one_query_or_head_is_the_default_map() -> None:
    result = result_with({"label": {"normal": 0.4, "tumor": 0.6}}, queries=1)
    one_head = replace(result, attention_NHT=result.attention_NHT[:, :1], logits_NHT=result.logits_NHT[:, :1])
    for chosen in ({"task": "label"}, {"query": 0}, {"head": 0}, {"task": "label", "head": 0}):
        options = HeatOptions.model_validate({"map": "attention", **chosen})
        assert map_name(one_head, options, ATTENTION) == ""


HOSTILE = ["..", "../../a", "a/b", "a b", "a_b", "A_B", "head1", "Query0", "", "µ" * 80, "é", "nul\x00", "a-b",
           "CON", "x" * 300, "\udcff", "肿瘤"]  # fmt: skip


def test_no_two_maps_share_a_name_and_none_leaves_the_folder(tmp_path: Path) -> None:
    """Also on a disk that does not tell capital letters apart, with names that are paths, or too long."""
    tasks = {f"{name}": {"no": 0.5, name: 0.5} for name in HOSTILE}
    result = result_with(tasks, queries=len(HOSTILE))
    maps = [HeatOptions(map="attention", task=task, head=head) for task in tasks for head in (None, 0, 1)]
    maps += [HeatOptions(map="attention", head=head) for head in (0, 1)]
    maps += [HeatOptions(map=kind, task=task, class_name=name)  # type: ignore[arg-type]
             for kind in ("contribution", "gradient") for task in tasks for name in ("no", task)]  # fmt: skip
    names = [map_name(result, options, ATTENTION) for options in maps]
    for (one, its), (other, that) in combinations(zip(names, maps, strict=True), 2):
        assert one.casefold() != other.casefold(), (its, that)
    for name in names:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(names)
    assert not [name for name in names if set(name) & set('/\\:*?"<>|\0')]


def test_files_of_others_are_not_replaced_in_a_folder_that_was_named(tmp_path: Path) -> None:
    mine = {"run": tmp_path / "run", "purpose": "asap", "shared": True}
    out = tmp_path / "out"
    files = MapFiles(out, **mine)
    files.check(["a.xml", "b.xml"])  # there is no folder yet
    out.mkdir()
    (out / "a.xml").write_text("mine")
    files.note("a.xml")
    files.note("a.xml")
    assert len((out / NOTED_IN).read_text().splitlines()) == 1
    (out / "b.xml").write_text("a pathologist's")
    (out / "c.xml").symlink_to(tmp_path / "nowhere")
    MapFiles(out, **mine).check(["a.xml", "d.xml"])
    with pytest.raises(
        ConfigError, match=r"b\.xml is there already, and 1 more, and was not written as asap of"
    ):
        MapFiles(out, **mine).check(["a.xml", "b.xml", "c.xml", "d.xml"])
    for other in ({"run": tmp_path / "run2"}, {"purpose": "geojson"}):
        with pytest.raises(ConfigError, match=r"a\.xml is there already, and was not"):
            MapFiles(out, **{**mine, **other}).check(["a.xml"])
    MapFiles(out, **{**mine, "shared": False}).check(["a.xml", "b.xml"])


def test_tiles_beside_a_dzi_count_as_its_files(tmp_path: Path) -> None:
    """A browser names the folder of a saved page so."""
    (tmp_path / "a_files").mkdir()
    with pytest.raises(ConfigError, match="a_files is there already"):
        MapFiles(tmp_path, run=tmp_path / "run", purpose="deepzoom", shared=True).check(["a.dzi"])


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"file": "a.xml"}', "[" * 100_000, '"\udcff"'])
def test_notes_that_are_damaged_protect_the_file(tmp_path: Path, line: str) -> None:
    good = json.dumps({"file": "b.xml", "run": str(tmp_path / "run"), "purpose": "asap"})
    (tmp_path / NOTED_IN).write_bytes(f"{line}\n{good}\n".encode("utf-8", "surrogateescape"))
    for name in ("a.xml", "b.xml"):
        (tmp_path / name).touch()
    files = MapFiles(tmp_path, run=tmp_path / "run", purpose="asap", shared=True)
    files.check(["b.xml"])
    with pytest.raises(ConfigError, match=r"a\.xml is there already"):
        files.check(["a.xml", "b.xml"])
