"""What a stored result was made from, and whether it would be made from the same today.

Compared by content: files may be moved and renamed, a table of resolutions may be written anew; what counts is
what this slide's own result comes from.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from wsi_ips.config import StreamingConfig
from wsi_ips.slides.folder import files_of
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.location import Location
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """Everything beside the network and its tiling that decides what is stored of a slide."""

    slide: str
    """Fingerprint of the slide's files; empty where it cannot be had (a URL)."""
    patches: str
    """Fingerprint of the file with the patches' coordinates; empty where our own segmentation finds them."""
    mpp_given: float | None
    """µm per pixel that the user gave; None: the file's own were believed."""
    decode: str
    """``streaming.decode``: decoders differ by a few grey levels."""
    max_bad_tiles: float
    """``streaming.max_bad_tiles``, the share of unreadable tiles that was allowed."""

    @classmethod
    def now(
        cls,
        slide: Location,
        *,
        slide_id: str,
        mpp: Mpp | None,
        streaming: StreamingConfig,
        find_patches: FindPatches | None = None,
    ) -> Self:
        """What a result would be made from if it were made now. Raises :class:`CoordsError`."""
        beside = () if find_patches is None else find_patches.read_from(slide_id)
        return cls(
            slide=files_fingerprint(files_of(slide)),
            patches=files_fingerprint(beside) if beside else "",
            mpp_given=mpp,
            decode=streaming.decode,
            max_bad_tiles=streaming.max_bad_tiles,
        )

    def difference(self, now: Self, *, bad_tiles: bool) -> str:
        """Why a result made from this has to be made again, in words; empty where it has not.

        bad_tiles: whether some of the slide's tiles were unreadable. A slide without any is the same whatever
        share was allowed.
        """
        if self.slide and now.slide and self.slide != now.slide:
            return "the slide's file is another one by now"
        if self.patches != now.patches:
            return "its patches' coordinates are others by now"
        if self.mpp_given != now.mpp_given:
            return f"its resolution was {_source(self.mpp_given)}, now it is {_source(now.mpp_given)}"
        if self.decode != now.decode:
            return f"streaming.decode was {self.decode}, now it is {now.decode}"
        if bad_tiles and now.max_bad_tiles < self.max_bad_tiles:
            return f"streaming.max_bad_tiles was {self.max_bad_tiles}, now it is {now.max_bad_tiles}"
        return ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Raises ``TypeError`` or ``ValueError`` for anything that :meth:`to_json` did not give."""
        mpp = stored["mpp_given"]
        return cls(
            slide=str(stored["slide"]),
            patches=str(stored["patches"]),
            mpp_given=None if mpp is None else float(mpp),
            decode=str(stored["decode"]),
            max_bad_tiles=float(stored["max_bad_tiles"]),
        )


def _source(mpp_given: float | None) -> str:
    return "the file's own" if mpp_given is None else f"given as {mpp_given:g} µm"
