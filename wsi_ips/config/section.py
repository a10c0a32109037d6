"""Sections of settings (:class:`Section`), and the files that they are read from.

:func:`load_yaml` reads YAML from anybody as plain values: numbers, texts, lists and mappings. Time and memory
are bounded. The size of a file does not bound what it stands for: a few lines of aliases can stand for billions
of values, and lists in lists can exhaust the stack. Both are refused before any value is made.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from wsi_ips.errors import ConfigError, one_line

LARGEST_BYTES = 100_000
"""Largest file of YAML. PyYAML reads about as much in a second."""
MOST_DEPTH = 40
"""How deep lists and mappings may be nested."""
MOST_VALUES = 100_000
"""Most values of a document, where those that aliases repeat count each time."""

_TOO_DEEP = f"lists or mappings nested more than {MOST_DEPTH} deep"


class NotPlainYaml(ValueError):
    """The text is not YAML, or it stands for more than plain values."""


class _Loader(yaml.SafeLoader):
    """Reads everything as text that is not a number, a truth value or empty; dates too.

    Stops where lists or mappings are nested too deep: PyYAML's time grows with the square of the depth.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose a node, and count how deep it lies."""
        self._depth += 1
        if self._depth > MOST_DEPTH + 1:  # the document's own node is not nested
            raise NotPlainYaml(_TOO_DEEP)
        composed: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return composed


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The values of one YAML document.

    Raises:
        NotPlainYaml: The text is not plain YAML. The message names the line if PyYAML knows it.
    """
    if len(text) > LARGEST_BYTES:
        raise NotPlainYaml(f"larger than {LARGEST_BYTES} characters")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root)
        return loader.construct_document(root)
    except RecursionError:
        raise NotPlainYaml(_TOO_DEEP) from None
    except NotPlainYaml:
        raise
    except yaml.YAMLError as error:
        raise NotPlainYaml(str(error)) from None
    # If an explicit tag (!!int, !!timestamp) does not fit its text, PyYAML may raise any of these.
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
        raise NotPlainYaml(f"a value that does not fit its type: {error}") from None


def _check(root: Node) -> None:
    values, depth = _measure(root, {}, depth=0)
    if depth > MOST_DEPTH:
        raise NotPlainYaml(_TOO_DEEP)
    if values > MOST_VALUES:
        raise NotPlainYaml(f"its aliases (*name) stand for more than {MOST_VALUES} values")


def _measure(node: Node, known: dict[int, tuple[int, int]], *, depth: int) -> tuple[int, int]:
    """How many values a node stands for, and how deep they are nested. ``known`` are the nodes measured before."""
    if depth > MOST_DEPTH:
        raise NotPlainYaml(f"{_TOO_DEEP}, or an alias within its own value")
    if id(node) in known:
        return known[id(node)]
    inside: list[Node] = []
    if isinstance(node, SequenceNode):
        inside = node.value
    elif isinstance(node, MappingNode):
        _refuse_doubles(node)
        inside = [inner for pair in node.value for inner in pair]
    measured = [_measure(inner, known, depth=depth + 1) for inner in inside]
    known[id(node)] = 1 + sum(one[0] for one in measured), 1 + max((one[1] for one in measured), default=0)
    return known[id(node)]


def _refuse_doubles(node: MappingNode) -> None:
    """Refuse a key that occurs twice. PyYAML would silently take the last one."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.value != "<<":
            if key.value in seen:
                raise NotPlainYaml(
                    f"the key {key.value[:80]!r} stands twice in one mapping, again in line "
                    f"{key.start_mark.line + 1}"
                )
            seen.add(key.value)


FILLED_IN: JsonDict = {"filled_in": True}
"""Marks a field that training fills in: it is no setting, and is not offered as one."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number in 0..1."""
LayerWidth = Annotated[int, Field(gt=0, le=65_536)]
"""How wide a part of a network is, or how many heads it has. A slip of the hand must not ask for terabytes."""
LARGEST_OVERLAY_PX = 16_384
"""Longest side of an overlay: a gigabyte of pixels, and the most that viewers open."""


class Section(BaseModel):
    """Base class of sections. They are frozen, and an unknown key is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, values: Any) -> Any:
        """Refuse true and false where a number is asked for; pydantic takes them for 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and _is_number(field.annotation):
                raise ValueError(f"{name}: {str(value).lower()} is not a number")
        return values


def _is_number(annotation: Any) -> bool:
    """Whether a setting of this type takes numbers and no truth values."""
    kinds = {kind if isinstance(kind, type) else type(kind) for kind in _members(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def _members(annotation: Any) -> Iterator[Any]:
    """The types and literal values that a type with ``|``, ``Annotated`` or ``Literal`` is made of."""
    if get_origin(annotation) in (Annotated, Literal, Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


S = TypeVar("S", bound=Section)


def settings_fingerprint(config: Section) -> str:
    """Cache key over every field, so that a new field cannot be forgotten."""
    return sha256(config.model_dump_json().encode()).hexdigest()[:12]


def section_of(kind: type[S], asked_by: str, **settings: Any) -> S:
    """The settings as a section. Raises :class:`ConfigError`, which begins with ``asked_by``, for one that is not
    possible.
    """
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ConfigError(f"{asked_by}: {first_problem(error)}") from None


def read_described(path: Path, section: type[S], *, what: str) -> S:
    """Read a section from a file that exists.

    Args:
        path: The file, JSON or YAML.
        section: The class of the section.
        what: What the file should be, for the message.

    Raises:
        ConfigError: The file is wrong. The message names it and the first wrong key.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES} bytes; is it a {what}?")
    try:
        return section.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except (NotPlainYaml, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: neither JSON nor YAML ({one_line(error, most=160)})") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError, *, most: int | None = None) -> str:
    """The first wrong value of a section or a stored file and what is wrong with it, on one line.

    Keys may come from an untrusted file, so that only their beginning is kept. With ``most``, only that many
    characters of the whole are.
    """
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[:200]
    message = first["msg"].removeprefix("Value error, ")
    return one_line(f"{where}: {message}" if where else message, most=most)
