"""Raw gigapixel pathology slides in, slide labels and honest attention maps out.

``import wsi_ips as wi`` is the front door: the names in ``__all__`` are all that it offers, and each is imported
when it is first used, so that the import itself takes no time. docs/python.md is a tour. Everything else in the
package may move between versions.

>>> import wsi_ips as wi
>>> wi.predict("slide.svs", "model.safetensors")
Result('slide', label: ...)
"""

from typing import TYPE_CHECKING

if (
    TYPE_CHECKING
):  # what __getattr__ finds, for type checkers and editors; the tests hold both against each other
    from wsi_ips.api.dataset import PatchDataset as PatchDataset
    from wsi_ips.api.model import Encoder as Encoder
    from wsi_ips.api.model import Model as Model
    from wsi_ips.api.model import load as load
    from wsi_ips.api.patches import Patches as Patches
    from wsi_ips.api.patches import tile as tile
    from wsi_ips.api.result import Result as Result
    from wsi_ips.api.result import overlay as overlay
    from wsi_ips.api.runs import Run as Run
    from wsi_ips.api.runs import evaluate as evaluate
    from wsi_ips.api.runs import predict as predict
    from wsi_ips.api.runs import train as train
    from wsi_ips.api.slide import Slide as Slide
    from wsi_ips.api.slide import open_slide as open_slide
    from wsi_ips.api.streams import Batch as Batch
    from wsi_ips.api.streams import stream as stream
    from wsi_ips.config import FinetuneConfig as FinetuneConfig
    from wsi_ips.config import TilingConfig as TilingConfig
    from wsi_ips.errors import WsiIpsError as WsiIpsError

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Encoder",
    "FinetuneConfig",
    "Model",
    "PatchDataset",
    "Patches",
    "Result",
    "Run",
    "Slide",
    "TilingConfig",
    "WsiIpsError",
    "evaluate",
    "load",
    "open_slide",
    "overlay",
    "predict",
    "stream",
    "tile",
    "train",
]

_MODULE_OF = {
    "Batch": "api.streams",
    "Encoder": "api.model",
    "FinetuneConfig": "config",
    "Model": "api.model",
    "PatchDataset": "api.dataset",
    "Patches": "api.patches",
    "Result": "api.result",
    "Run": "api.runs",
    "Slide": "api.slide",
    "TilingConfig": "config",
    "WsiIpsError": "errors",
    "evaluate": "api.runs",
    "load": "api.model",
    "open_slide": "api.slide",
    "overlay": "api.result",
    "predict": "api.runs",
    "stream": "api.streams",
    "tile": "api.patches",
    "train": "api.runs",
}

if not TYPE_CHECKING:  # a type checker that saw it would believe in any name

    def __getattr__(name):
        """Import a name of the front door when it is first used (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        """What is offered, and what every module has."""
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
