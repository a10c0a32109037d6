"""What leaves for other programs: an export is a name and an import path, loaded when first asked for."""

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

EXTRAS: Mapping[str, str] = MappingProxyType({"ome-zarr": "'wsi_ips[zarr]'"})
"""What to install for an export whose packages are optional."""


class Exporter(Protocol):
    """A frozen dataclass whose fields are the export's options, all with a default."""

    @property
    def suffix(self) -> str:
        """Of the files that it writes, e.g. ``.ome.tif``."""
        ...

    @property
    def needs_slide(self) -> bool:
        """Whether :meth:`write` has to be given the slide."""
        ...

    def write(self, path: Path, heat: Heat, slide: SlideReader | None) -> None:
        """Write one map of one slide to ``path``, whole or not at all; an earlier one is replaced.

        Numbers are raw attention, where patches overlap their mean; only colours know scales. Raises
        :class:`ConfigError` for an option that cannot be with these values, :class:`ResultsError` for a slide
        of another size than the one that was predicted, and the reader's :class:`SlideReadError`.
        """
        ...


def make_exporter(name: str, options: Mapping[str, Any]) -> Exporter:
    """The export ``name`` with these options.

    Raises :class:`ConfigError` for an unknown name or an option that this export does not have,
    :class:`ExportNotInstalled` where its package is missing.
    """
    if name not in EXPORTS:
        raise ConfigError(f"there is no export {name!r}; known are {', '.join(EXPORTS)}")
    module, _, attribute = EXPORTS[name].partition(":")
    try:
        exporter = getattr(import_module(module), attribute)
    except ImportError as error:
        raise ExportNotInstalled(name, EXTRAS.get(name, error.name or name)) from error
    known = [each.name for each in fields(exporter)]
    strange = [option for option in options if option not in known]
    if strange:
        raise ConfigError(f"{strange[0]} is no option of {name}, which has {', '.join(known) or 'none'}")
    return cast(Exporter, exporter(**options))
