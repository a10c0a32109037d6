"""Which packages the members of a model come from: its encoder, its aggregator and its selector.

A checkpoint holds weights, not code, so the code of another package, or of the user's own file, decides what they
compute. :func:`origins_of` says which package and version that is here, or which file with which content,
:func:`stored_origins` reads what a checkpoint says, and :func:`differences` compares the two.
"""

from collections.abc import Mapping
from typing import Any

from wsi_ips.config import PipelineConfig
from wsi_ips.config.model import OUR_SELECTORS
from wsi_ips.models.aggregators.registry import AGGREGATORS
from wsi_ips.models.encoders.registry import ENCODERS, code_file, code_sha256
from wsi_ips.registry import Origin, origin_of, outside

MADE_BY = "made_by"
"""Key of a checkpoint's metadata under which the packages stand. A model of wsi_ips alone has no such key."""

CODE_DIGITS = 12
"""Hexadecimal digits of the SHA-256 of a file of code that a checkpoint keeps."""

LONGEST_TEXT = 100
"""Characters of a package's name or version that are read from a checkpoint."""


def names_of(config: PipelineConfig) -> dict[str, str]:
    """The members of a model by kind: ``{"encoder": name, ...}``."""
    named = {"encoder": config.model.encoder.name, "selector": config.selection.way}
    if config.model.aggregator is not None:
        named["aggregator"] = config.model.aggregator.name
    return named


def origin_here(kind: str, name: str) -> Origin | None:
    """The package that offers this member here, or the file of an encoder ``FILE.py:FUNCTION`` with the SHA-256 of
    its content for a version; None for those of wsi_ips or timm, and for a missing one.
    """
    if kind == "encoder" and (file := code_file(name)) is not None:
        content = code_sha256(name)
        return Origin(file.name, content[:CODE_DIGITS]) if content else None
    group, ours = {
        "encoder": ("wsi_ips.encoders", tuple(ENCODERS)),
        "aggregator": ("wsi_ips.aggregators", tuple(AGGREGATORS.members)),
        "selector": ("wsi_ips.selectors", OUR_SELECTORS),
    }[kind]
    return next((origin_of(entry) for entry in outside(group, ours) if entry.name == name), None)


def origins_of(config: PipelineConfig) -> dict[str, dict[str, str]]:
    """``{kind: {"package": ..., "version": ...}}`` for the members of a model that other packages offer here."""
    found = {kind: origin_here(kind, name) for kind, name in names_of(config).items()}
    return {kind: as_stored(origin) for kind, origin in found.items() if origin is not None}


def as_stored(origin: Origin) -> dict[str, str]:
    """A package as files hold it."""
    return {"package": origin.package, "version": origin.version}


def stored_origins(held: Mapping[str, Any]) -> dict[str, Origin]:
    """The packages by kind that the metadata of a checkpoint names. What is not such a table counts as none."""
    table = held.get(MADE_BY)
    found: dict[str, Origin] = {}
    for kind in ("encoder", "aggregator", "selector"):
        row = table.get(kind) if isinstance(table, dict) else None
        texts = [row.get(key) for key in ("package", "version")] if isinstance(row, dict) else []
        if len(texts) == 2 and all(isinstance(text, str) for text in texts):
            found[kind] = Origin(*(str(text)[:LONGEST_TEXT] for text in texts))
    return found


def differences(stored: Mapping[str, Origin], names: Mapping[str, str]) -> list[str]:
    """What is another package or version here than when a checkpoint was written, a phrase for each member.

    ``names`` are the members by kind; see :func:`names_of`.
    """
    told = []
    for kind, then in stored.items():
        name = names.get(kind, "")
        here = origin_here(kind, name)
        if here != then and code_file(name) is not None:
            now = here.version if here else "missing"
            told.append(f"the code of its {kind} {name} had the SHA-256 {then.version}, and here it is {now}")
        elif here != then:
            now = f"and here it is of {here}" if here else "which does not offer it here"
            told.append(f"its {kind} {name} is of {then}, {now}")
    return told
