"""Which aggregator a name means: an import path for each, loaded when it is asked for."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from wsi_ips.config import Section
from wsi_ips.errors import ConfigError, ExtensionBroken
from wsi_ips.models.aggregators.base import Kind
from wsi_ips.registry import Registry, did_you_mean

AGGREGATORS: Registry[Kind] = Registry(
    "aggregator",
    {
        "mean": "wsi_ips.models.aggregators.mean:KIND",
        "max": "wsi_ips.models.aggregators.max:KIND",
        "abmil": "wsi_ips.models.aggregators.abmil:KIND",
        "clam_sb": "wsi_ips.models.aggregators.clam:SINGLE",
        "clam_mb": "wsi_ips.models.aggregators.clam:MULTI",
        "dsmil": "wsi_ips.models.aggregators.dsmil:KIND",
        "transmil": "wsi_ips.models.aggregators.transmil:KIND",
        "abmilx": "wsi_ips.models.aggregators.abmilx:KIND",
    },
    group="wsi_ips.aggregators",
    taken=lambda name: "model.attention's own" if name in ("direct", "paper") else "",
    problem=lambda member: (
        "" if isinstance(member, Kind) else f"it is of type {type(member).__name__}, no Kind"
    ),
)
"""The :class:`Kind` of each aggregator. Another package adds one under the entry point group
``wsi_ips.aggregators``. The names ``direct`` and ``paper`` are ``model.attention``'s own."""


def aggregator_kind(name: str) -> Kind:
    """The aggregator of this name, ours or another package's.

    Raises :class:`ConfigError` for a name that nobody has, and for another package's that does not load.
    """
    if name not in AGGREGATORS:
        known = ["direct", "paper", *AGGREGATORS]
        raise ConfigError(
            f"model.aggregator: there is no {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"
        )
    try:
        return AGGREGATORS.load(name)
    except ExtensionBroken as error:
        raise ConfigError(f"model.aggregator: {error}") from error


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
