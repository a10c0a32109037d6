"""Exports of a map for other programs. :func:`make_exporter` loads the one with a given name."""

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

from wsi_ips.errors import ConfigError, ExportNotInstalled
from wsi_ips.heatmaps.maps import Heat
from wsi_ips.slides.base import SlideReader

EXPORTS: Mapping[str, str] = MappingProxyType(
    {
        "ome-tiff": "wsi_ips.heatmaps.pyramids:OmeTiff",
        "ome-zarr": "wsi_ips.heatmaps.pyramids:OmeZarr",
        "geojson": "wsi_ips.heatmaps.regions:QuPathGeoJson",
        "deepzoom": "wsi_ips.heatmaps.pyramids:DeepZoom",
        "sheet": "wsi_ips.heatmaps.patch_sheet:PatchSheet",
        "asap": "wsi_ips.heatmaps.regions:AsapRegions",
    }
)
"""Every export by its name, as ``module:class``."""

EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType({"ome-zarr": ("zarr", "'wsi_ips[zarr]'")})
"""The optional package that an export needs, and what to install for it."""


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


def make_exporter(name: str, options: Mapping[str, Any]) -> Exporter:
    """The export ``name`` with these options.

    Raises :class:`ConfigError` for an unknown name or an option that this export does not have, and
    :class:`ExportNotInstalled` if a package that it needs is missing.
    """
    if name not in EXPORTS:
        raise ConfigError(f"there is no export {name!r}; known are {', '.join(EXPORTS)}")
    module, _, attribute = EXPORTS[name].partition(":")
    optional, install = EXTRAS.get(name, ("", ""))
    try:
        exporter = getattr(import_module(module), attribute)
        if optional:
            import_module(optional)
    except ImportError as error:
        raise ExportNotInstalled(name, install or error.name or name) from error
    known = [each.name for each in fields(exporter)]
    strange = [option for option in options if option not in known]
    if strange:
        raise ConfigError(f"{strange[0]} is no option of {name}, which has {', '.join(known) or 'none'}")
    return cast(Exporter, exporter(**options))
