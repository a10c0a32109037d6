"""YAML within bounds: what is refused, and how soon."""

from pathlib import Path
from time import process_time

import pytest

from wsi_ips.commands.recipe import with_overrides
from wsi_ips.config import read_specification_table
from wsi_ips.config.section import LARGEST_BYTES, NotPlainYaml, load_yaml
from wsi_ips.config.slides import read_tissue_model
from wsi_ips.errors import ConfigError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
HOSTILE = {
    "bomb": BOMB,
    "merged": MERGED,
    "chain": CHAIN,
    "lists": "[" * 50_000,
    "mappings": "{a: " * 20_000,
    "open and closed": "[" * 300 + "]" * 300,
    "itself": "&a [*a]",
    "its own value": "a: &a {b: *a}",
    "timestamp": "!!timestamp x",
    "a day that is none": "!!timestamp 2020-13-45",
    "int": "!!int x",
    "float": "!!float x",
    "bool": "!!bool x",
    "binary": "!!binary é",
    "python": "!!python/object/apply:os.system [ls]",
    "digits": "9" * 5000,
    "a list as a key": "? [a]\n: b",
    "no such alias": "*a",
    "two documents": "a\n---\nb",
    "control characters": "a: \x00",
    "twice": "epochs: 1\nepochs: 2",
    "long": "a" * (LARGEST_BYTES + 1),
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_is_refused_within_a_second(hostile: str) -> None:
    began = process_time()
    with pytest.raises(NotPlainYaml):
        load_yaml(hostile)
    assert process_time() - began < 2  # a second, where nothing else runs


def test_wherever_yaml_is_read_it_is_one_line_that_names_the_place(hostile: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    file = tmp_path / "model.yaml"
    file.write_text(hostile)
    for read in (
        lambda: read_specification_table(file),
        lambda: read_tissue_model(tmp_path / "model.pt"),
        lambda: with_overrides({}, [f"training.epochs={hostile}"]),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(file) in str(caught.value) or "--set training.epochs" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("out: 2020-01-31", {"out": "2020-01-31"}),
        ("2020-13-45", "2020-13-45"),
        ("at: 2001-12-14t21:59:43.10-05:00", {"at": "2001-12-14t21:59:43.10-05:00"}),
        ("a: &a {x: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
        ("[1, 2.5, yes, null, 'x']", [1, 2.5, True, None, "x"]),
        ("", None),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    assert load_yaml(text) == value
