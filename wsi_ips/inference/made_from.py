"""What a stored result was made from, and whether it would be made from the same today: :class:`MadeFrom`.

The comparison is by content: files may be moved and renamed, and a table of resolutions may be written anew.
What counts is what the result of this one slide depends on.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from wsi_ips.config import StreamingConfig
from wsi_ips.errors import SlideReadError, count
from wsi_ips.inference.slide_stamps import Stamps
from wsi_ips.slides.folder import files_of
from wsi_ips.slides.resolution import mpp_in_words
from wsi_ips.storage.fingerprint import files_fingerprint
from wsi_ips.storage.location import Location
from wsi_ips.tiling.patches import FindPatches
from wsi_ips.units import Mpp


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """Everything beside the network and its tiling that decides what is stored of a slide."""

    slide: str
    """Fingerprint of the files of the slide; empty if there is none (for a URL)."""
    patches: str
    """Fingerprint of the file with the coordinates of the patches; empty if they are found by segmentation."""
    mpp_given: float | None
    """µm per pixel that the user gave. None: those that the file states were used."""
    decode: str
    """The setting ``streaming.decode``, since decoders differ by a few grey levels."""
    max_bad_tiles: float
    """The setting ``streaming.max_bad_tiles``, the share of unreadable tiles that was allowed."""
    precision: str = "32"
    """What the encoder computed in: ``32``, ``bf16`` or ``fp16``; that of every network, if they differ. Results
    of earlier versions, which do not say, were made in float32."""
    turns: int | None = None
    """In how many orientations kept patches were read, if not as the model was trained."""

    @classmethod
    def now(
        cls,
        slide: Location,
        *,
        slide_id: str,
        mpp: Mpp | None,
        streaming: StreamingConfig,
        find_patches: FindPatches | None = None,
        precision: str = "32",
        turns: int | None = None,
    ) -> Self:
        """What a result would be made from if it were made now.

        Args:
            slide: The slide.
            slide_id: Its name.
            mpp: µm per pixel that the user gave, or None.
            streaming: How slides are read.
            find_patches: How patches are found. None: by segmentation.
            precision: What the encoder computes in.
            turns: In how many orientations kept patches are read. None: as the model was trained.

        Raises:
            CoordsError: The file with the coordinates of the patches cannot be used.
        """
        beside = () if find_patches is None else find_patches.read_from(slide_id)
        return cls(
            slide=files_fingerprint(files_of(slide)),
            patches=files_fingerprint(beside) if beside else "",
            mpp_given=mpp,
            decode=streaming.decode,
            max_bad_tiles=streaming.max_bad_tiles,
            precision=precision,
            turns=turns,
        )

    def difference(self, now: Self, *, bad_tiles: bool) -> str:
        """Why a result made from this has to be made again, as a text. Empty if it has not.

        Args:
            now: What it would be made from now.
            bad_tiles: Whether some tiles of the slide were unreadable. Without any, the result is the same
                whatever share was allowed.
        """
        if self.slide and now.slide and self.slide != now.slide:
            return "the slide's file has changed"
        if self.patches != now.patches:
            return "the coordinates of its patches have changed"
        if self.mpp_given != now.mpp_given:
            before, given = mpp_in_words(self.mpp_given), mpp_in_words(now.mpp_given)
            return f"its resolution was {before}, now it is {given}"
        if self.decode != now.decode:
            return f"streaming.decode was {self.decode}, now it is {now.decode}"
        if self.precision != now.precision:
            return f"its encoder computed in precision {self.precision}, now it is {now.precision}"
        if self.turns != now.turns:
            return f"its kept patches were read {_oriented(self.turns)}, now {_oriented(now.turns)}"
        if bad_tiles and now.max_bad_tiles < self.max_bad_tiles:
            return f"streaming.max_bad_tiles was {self.max_bad_tiles}, now it is {now.max_bad_tiles}"
        return ""

    def check_unchanged(self, now: Self, slide: Location) -> None:
        """Check that the files of a slide are still those that there were before it was read.

        Args:
            now: What the result would be made from now.
            slide: The slide, for the message.

        Raises:
            SlideReadError: They are not.
        """
        if why := self.difference(now, bad_tiles=False):
            raise SlideReadError(
                slide, f"was replaced while it was read ({why})", "start again once nobody writes to it"
            )

    def to_json(self) -> dict[str, Any]:
        """The values by name. The precision is named only if it is not float32, and turns only if they are not the
        model's own, as in earlier versions."""
        values = asdict(self)
        if self.precision == "32":
            del values["precision"]
        if self.turns is None:
            del values["turns"]
        return values

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """The object that :meth:`to_json` wrote. Raises ``KeyError``, ``TypeError``, ``ValueError`` or
        ``OverflowError`` for anything else.
        """
        mpp = stored["mpp_given"]
        return cls(
            slide=str(stored["slide"]),
            patches=str(stored["patches"]),
            mpp_given=None if mpp is None else float(mpp),
            decode=str(stored["decode"]),
            max_bad_tiles=float(stored["max_bad_tiles"]),
            precision=str(stored.get("precision", "32")),
            turns=None if stored.get("turns") is None else int(stored["turns"]),
        )


def _oriented(turns: int | None) -> str:
    return "as the model was trained" if turns is None else f"in {count(turns, 'orientation')}"


@dataclass(frozen=True, slots=True)
class SlideSource:
    """What a slide is about to be read from. It has to be taken before the slide, or its coordinates, are opened.

    Attributes:
        made_from: What its result will be made from. None if that is not known.
        stamps: What the file system says of the same files, taken before ``made_from``.
    """

    made_from: MadeFrom | None
    stamps: Stamps
