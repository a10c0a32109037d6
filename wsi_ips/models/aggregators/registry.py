"""Which aggregator a name means: an import path for each, loaded when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from wsi_ips.config import Section
from wsi_ips.errors import ConfigError, one_line
from wsi_ips.models.aggregators.base import Kind

AGGREGATORS: Mapping[str, str] = MappingProxyType(
    {
        "mean": "wsi_ips.models.aggregators.mean:KIND",
        "max": "wsi_ips.models.aggregators.max:KIND",
        "abmil": "wsi_ips.models.aggregators.abmil:KIND",
        "clam_sb": "wsi_ips.models.aggregators.clam:SINGLE",
        "clam_mb": "wsi_ips.models.aggregators.clam:MULTI",
        "dsmil": "wsi_ips.models.aggregators.dsmil:KIND",
        "transmil": "wsi_ips.models.aggregators.transmil:KIND",
        "abmilx": "wsi_ips.models.aggregators.abmilx:KIND",
    }
)
"""{name: where its :class:`Kind` is}. The names ``direct`` and ``paper`` are ``model.attention``'s own."""

ENTRY_POINTS = "wsi_ips.aggregators"
"""The group under which another package offers aggregators: a name, and a :class:`Kind`."""


def aggregator_kind(name: str) -> Kind:
    """The aggregator of this name, ours or another package's.

    Raises :class:`ConfigError` for a name that nobody has, and for another package's that does not load.
    """
    if name in AGGREGATORS:
        module, _, attribute = AGGREGATORS[name].partition(":")
        ours: Kind = getattr(import_module(module), attribute)
        return ours
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join(["direct", "paper", *AGGREGATORS, *sorted(offered)])
        raise ConfigError(f"model.aggregator: there is no {name!r}; known: {known}")
    try:  # another package's code may fail in any way
        kind = offered[name].load()
    except Exception as error:
        raise ConfigError(
            f"model.aggregator: {name} comes from {offered[name].value} and does not load ({one_line(error)})"
        ) from error
    if not isinstance(kind, Kind):
        raise ConfigError(f"model.aggregator: {name} comes from {offered[name].value}, which is no Kind")
    return kind


def aggregator_options(name: str, given: Mapping[str, Any]) -> Section:
    """The settings of an aggregator, with its defaults where nothing is given.

    Raises :class:`ConfigError` for a setting that it does not have, or a value that cannot be.
    """
    try:
        return aggregator_kind(name).options.model_validate(dict(given))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()
        )
        known = ", ".join(aggregator_kind(name).options.model_fields)
        raise ConfigError(f"model.aggregator: {name}: {problems}; its settings: {known}") from None
