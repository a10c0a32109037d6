"""Settings as YAML that explains itself: :func:`commented_yaml` writes a recipe out of the settings' own classes.

The meaning of a setting is the text below it in its class, and its default is the class's, so that a recipe
cannot say anything else than the program does. A setting that is not given stands there behind ``#``, with its
default: without the ``#`` it is set.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

_IN_YAML = {"None": "null", "True": "true", "False": "false", "none:": "null:"}
# ``none``: with its marks is a choice of a setting, and none: without them is no value.
_PYTHON_WORDS = re.compile(r"\b(?:None|True|False)\b|\bnone:")
WIDTH = 100
"""Columns of a comment."""


@lru_cache
def meanings(section: type[BaseModel]) -> Mapping[str, str]:
    """``{setting: its meaning}``: the text below each field of the class and of the classes that it is made of.

    The texts are on one line, without the marks of the documentation.
    """
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if not (issubclass(kind, BaseModel) and kind is not BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said = _text(text)
                if said or field.target.id not in found:
                    found[field.target.id] = said
    return MappingProxyType(found)


def _text(node: ast.stmt) -> str:
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return ""
    text = " ".join(str(node.value.value).split())
    text = _PYTHON_WORDS.sub(lambda word: _IN_YAML[word[0]], text)
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def commented_yaml(section: type[BaseModel], given: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The settings ``keys`` of a section as YAML, each under its meaning and default.

    Args:
        section: The class of the settings.
        given: Values that are set, nested like the YAML. Each of them has to be among ``keys``.
        keys: The settings to write, in this order. ``tiling.patch_px`` is a setting of the section ``tiling``;
            settings of one section have to stand together.

    Raises:
        KeyError: The class has no such setting, or a given value is not written.
    """
    lines: list[str] = []
    written: list[str] = []
    above: list[str] = []
    for key in keys:
        *sections, name = key.split(".")
        kind, values = section, given
        for depth, part in enumerate(sections):
            if above[: depth + 1] != sections[: depth + 1]:
                lines += ["", f"{'  ' * depth}{part}:"] if depth == 0 else [f"{'  ' * depth}{part}:"]
                above = sections[: depth + 1]
            kind = _inner(kind, part)
            values = values.get(part) or {}
        above = sections
        if not sections:
            lines.append("")
        lines += _setting(kind.model_fields[name], name, meanings(kind).get(name, ""), values, len(sections))
        written.append(key)
    if left := set(_leaves(given)) - set(written):
        raise KeyError(f"given and not written: {', '.join(sorted(left))}")
    return "\n".join(lines).strip("\n") + "\n"


def _inner(kind: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = kind.model_fields[name].annotation
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise KeyError(f"{name} of {kind.__name__} is no section")
    return annotation


def _leaves(given: Mapping[str, Any], before: str = "") -> list[str]:
    found: list[str] = []
    for name, value in given.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [f"{before}{name}"]
    return found


def _setting(field: FieldInfo, name: str, meaning: str, values: Mapping[str, Any], depth: int) -> list[str]:
    indent = "  " * depth
    default = (
        "Required."
        if field.is_required()
        else f"Default: {flow(field.get_default(call_default_factory=True))}."
    )
    said = textwrap.wrap(f"{meaning} {default}".strip(), WIDTH - len(indent) - 2, break_on_hyphens=False)
    lines = [f"{indent}# {line}" for line in said]
    if name not in values:
        value = flow(None if field.is_required() else field.get_default(call_default_factory=True))
        return [*lines, f"{indent}#{name}: {value}"]
    value = values[name]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [*lines, f"{indent}{name}:", *(f"{indent}  - {flow(one)}" for one in value)]
    return [*lines, f"{indent}{name}: {flow(value)}"]


def flow(value: Any) -> str:
    """A value as YAML on one line, such as ``[normal, tumor]``."""
    text = yaml.safe_dump(
        to_jsonable_python(value, exclude_none=True),
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=float("inf"),
    )
    return text.strip().removesuffix("...").strip()
