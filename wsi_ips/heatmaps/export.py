"""Exports of a map for other programs. :func:`make_exporter` loads the one with a given name."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from wsi_ips.errors import ConfigError, ExportNotInstalled
from wsi_ips.heatmaps.maps import Heat
from wsi_ips.registry import Registry
from wsi_ips.slides.base import SlideReader


class Exporter(Protocol):
    """An export: a frozen dataclass whose fields are the export's options, all with a default."""

    @property
    def suffix(self) -> str:
        """The suffix of the files that it writes, such as ``.ome.tif``."""
        ...

    @property
    def needs_slide(self) -> bool:
        """Whether :meth:`write` has to be given the slide."""
        ...

    def write(self, path: Path, heat: Heat, slide: SlideReader | None) -> None:
        """Write one map of one slide to ``path``, whole or not at all; an existing file is replaced.

        Numbers are raw values of the map, and their mean where patches overlap; scales only concern colours.
        Raises :class:`ConfigError` for an option that does not suit these values, :class:`ResultsError` for a
        slide of another size than the one that was predicted, and the reader's :class:`SlideReadError`.
        """
        ...


def _problem(member: object) -> str:
    """What is wrong with the class of another package; "" for nothing."""
    if not (isinstance(member, type) and is_dataclass(member)):
        return "it is no dataclass, whose fields are its options"
    missing = [name for name in ("suffix", "needs_slide", "write") if not hasattr(member, name)]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    bare = [
        field.name
        for field in fields(member)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]
    return f"its field {bare[0]} has no default, which every option needs" if bare else ""


EXPORTS: Registry[Callable[..., Exporter]] = Registry(
    "export",
    {
        "ome-tiff": "wsi_ips.heatmaps.pyramids:OmeTiff",
        "ome-zarr": "wsi_ips.heatmaps.pyramids:OmeZarr",
        "geojson": "wsi_ips.heatmaps.regions:QuPathGeoJson",
        "deepzoom": "wsi_ips.heatmaps.pyramids:DeepZoom",
        "sheet": "wsi_ips.heatmaps.patch_sheet:PatchSheet",
        "asap": "wsi_ips.heatmaps.regions:AsapRegions",
    },
    group="wsi_ips.exporters",
    extras={"ome-zarr": "'wsi_ips[zarr]'"},
    needs={"ome-zarr": "zarr"},
    not_installed=ExportNotInstalled,
    problem=_problem,
)
"""Classes of :class:`Exporter` by name. Another package adds one under the entry point group
``wsi_ips.exporters``."""


def export_options(name: str) -> list[str]:
    """The names of the options of the export ``name``: the fields of its class.

    Raises :class:`ConfigError` for an unknown name, :class:`ExportNotInstalled` where its package is missing, and
    :class:`ExtensionBroken` for an export of another package that does not load.
    """
    return [each.name for each in fields(EXPORTS.load(name))]  # type: ignore[arg-type]


def make_exporter(name: str, options: Mapping[str, Any]) -> Exporter:
    """The export ``name`` with these options.

    Raises :class:`ConfigError` for an unknown name or an option that this export does not have,
    :class:`ExportNotInstalled` where its package is missing, and :class:`ExtensionBroken` for an export of another
    package that does not load.
    """
    exporter, known = EXPORTS.load(name), export_options(name)
    strange = [option for option in options if option not in known]
    if strange:
        raise ConfigError(f"{strange[0]} is no option of {name}, which has {', '.join(known) or 'none'}")
    return exporter(**options)
