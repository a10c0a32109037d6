"""The slides of a job, and their resolutions where the files do not say."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, InstanceOf, PositiveFloat

from wsi_ips.config import Section
from wsi_ips.storage.location import Url, locate


def _located(value: Any) -> Any:
    return locate(value) if isinstance(value, str) else value


Slides = Annotated[Path | InstanceOf[Url], BeforeValidator(_located)]
"""A slide or a folder of them, or the URL of one slide."""


class Resolution(Section):
    slide_mpp: PositiveFloat | None = None
    """µm per pixel of every slide, instead of what the files say."""
    mpp_csv: Path | None = None
    """CSV with the columns wsi,mpp: the same, slide by slide."""
