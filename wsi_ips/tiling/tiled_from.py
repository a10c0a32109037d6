"""What stored patch coordinates were made from, so that the same are not made twice."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from wsi_ips.config import TilingConfig
from wsi_ips.fingerprint import fingerprint
from wsi_ips.location import Location
from wsi_ips.slides.folder import files_of
from wsi_ips.units import Mpp
from wsi_ips.versions import versions


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledFrom:
    """Everything that decides a slide's patches. It names no path, so that files may be moved and renamed."""

    slide: str
    """Fingerprint of the slide's files; empty where it cannot be had (a URL, a disk that is gone)."""
    mpp_given: float | None
    """µm per pixel that the user gave; None: the file's own were believed."""
    outlines: str
    """Fingerprint of the tissue outlines that the user gave; empty where our own segmentation finds tissue."""
    tiling: str
    """The tiling's settings as JSON; a tissue model counts by its contents."""
    version: str
    """This package's version: the segmentation of another version may find other tissue."""

    @classmethod
    def now(
        cls, slide: Location, *, mpp: Mpp | None, tiling: TilingConfig, outlines: Path | None = None
    ) -> Self:
        """What coordinates would be made from if they were made now."""
        settings = tiling.model_dump(mode="json", exclude={"tissue": {"model": {"file"}}})
        return cls(
            slide=fingerprint(files_of(slide)),
            mpp_given=mpp,
            # Outlines that cannot be read are no outlines that were read before.
            outlines="" if outlines is None else fingerprint([outlines]) or "unreadable",
            tiling=json.dumps(settings, sort_keys=True),
            version=versions()["wsi_ips"],
        )

    def is_same(self, now: Self) -> bool:
        """Whether both are known to be the same."""
        return bool(self.slide) and self == now

    def may_be_same(self, now: Self) -> bool:
        """Whether nothing is known that tells them apart: the slide's fingerprint may be missing."""
        return self.is_same(now) or (not now.slide and replace(self, slide="") == now)

    def to_json(self) -> str:
        """One line, always the same for the same content."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """What :meth:`to_json` wrote; None for any other text."""
        try:
            held = json.loads(text)
            return cls(
                slide=str(held["slide"]),
                mpp_given=None if held["mpp_given"] is None else float(held["mpp_given"]),
                outlines=str(held["outlines"]),
                tiling=str(held["tiling"]),
                version=str(held["version"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
