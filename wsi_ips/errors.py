"""Every error raised on purpose.

    WsiIpsError
      ConfigError            a setting that cannot be
        ExtensionBroken      what another package adds does not load
      ReaderNotInstalled     an optional reader's package is absent
      ExportNotInstalled     an optional export's package is absent
      ReaderBroken           a reader of another package does not load
      SlideClosed            a reader was used after close()
      NotFinite              a network's numbers are NaN or infinite
      TrainingError          training cannot go on: a loss that is not finite, too many bad slides
      SlideFailed            a slide's failure, of whatever kind, where it ends a run
      ClusterError           no dask scheduler, no workers, workers of another version; or they were lost
      FileError              names a file, what is wrong with it, and the mend
        SlideNotFound
        SlideUnreachable     a URL that cannot be read from: no answer, no permission, no range requests
        UnsupportedSlide
          DamagedSlide       a known format, cut short or contradicting itself
          RefusedSlide       a whole file that other readers would show wrongly
          SeveralSlides      a folder of several slides, where one was asked for
        SlideReadError       the file opened, but some of it cannot be read
          SlideInterrupted   for another reason than its content: the network, the disk, a permission, memory
        ProcessDied          the process that read the slide died of it
        MissingResolution
          PixelsNotSquare
        TooCoarse            a slide with less detail than the patches that are wanted of it
        NoTissue             no patch is left: the message names what left them out
        SegmenterError       a tissue model that cannot be used
        CoordsError
        FeaturesError
        AnnotationError
        ManifestError
        DatasetError         a data set's own labels or checksums, or its slides are not there
        CheckpointError
        CalibrationError     a file of temperatures and thresholds that cannot be used, or belongs to another model
        ResultsError

The command line prints these in one line without a traceback and exits with 2. An exception keeps its
parts in ``args`` and words them when it is shown, so it survives the pickling that brings it back from a
worker process.
"""

from collections.abc import Mapping
from pathlib import Path
from unicodedata import category

from wsi_ips.storage.location import Location, locate


def one_line(what: Exception | str, *, most: int | None = None) -> str:
    """The words without line breaks, for a message or a cell; no more than ``most`` characters of them."""
    missing = isinstance(what, KeyError) and len(what.args) == 1
    text = f"no {what.args[0]}" if missing and isinstance(what, KeyError) else str(what)
    return " ".join(text.split())[:most]


LONGEST_WORDS = 2000
"""Characters of an error's words: a page. What a hostile file states may have any length."""
_KEPT_OF_END = 500
"""Characters at the end of a long text that are kept: an error says there what to do."""
_TURNED = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, and so can show another text than the one that is there."""


def harmless(text: str) -> str:
    """The text as a terminal may be given it, though it may come out of anybody's file.

    Control characters, what turns the direction of writing, line separators, and bytes of a file name that are not
    UTF-8 are written as escapes (``\\x1b``): a terminal would obey them, or fail over them. Line breaks and tabs
    stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("ascii", "backslashreplace").decode()
        if letter in _TURNED or (category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t")
        else letter
        for letter in text
    ).translate(_ESCAPED)


_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}
"""Control characters that are ASCII, which ``backslashreplace`` leaves alone."""


class WsiIpsError(Exception):
    """Base of every error raised on purpose. A subclass words itself in ``_words``.

    >>> import wsi_ips as wi
    >>> try:
    ...     wi.open_slide("missing.svs")
    ... except wi.WsiIpsError as error:
    ...     print(error)
    missing.svs: no such file; check the path
    """

    def __str__(self) -> str:
        text = harmless(self._words()).replace("\n", " ").replace("\t", " ")
        if len(text) <= LONGEST_WORDS:
            return text
        return f"{text[: LONGEST_WORDS - _KEPT_OF_END]} [...] {text[-_KEPT_OF_END:]}"

    def _words(self) -> str:
        return super().__str__()


class ConfigError(WsiIpsError, ValueError):
    """A setting, a recipe or a combination of options that cannot be."""


class ReaderNotInstalled(WsiIpsError):
    """``ReaderNotInstalled(name, package)``: the reader exists, its package does not."""

    def _words(self) -> str:
        name, package = self.args
        return f"reader {name} needs a package that is not installed: pip install {package}"


class ExportNotInstalled(WsiIpsError):
    """``ExportNotInstalled(name, package)``: the export exists, its package does not."""

    def _words(self) -> str:
        name, package = self.args
        return f"export {name} needs a package that is not installed: pip install {package}"


class ReaderBroken(WsiIpsError):
    """``ReaderBroken(name, package, reason)``: another package's reader does not load."""

    def _words(self) -> str:
        name, package, reason = self.args
        return f"reader {name} of the package {package} does not load: {reason}"


class ExtensionBroken(ConfigError):
    """``ExtensionBroken(kind, name, package, reason)``: what another package adds does not load."""

    def _words(self) -> str:
        kind, name, package, reason = self.args
        return f"{kind} {name} of the package {package} does not load: {reason}"


class NotFinite(WsiIpsError, ValueError):
    """``NotFinite(what)``: numbers that a network made are NaN or infinite."""

    def _words(self) -> str:
        return f"{self.args[0]} are not finite: the network's weights are broken, or its precision is too low"


class TrainingError(WsiIpsError):
    """Training cannot go on: a loss that is not finite, too many bad slides."""


class SlideFailed(WsiIpsError):
    """A slide's failure that was not foreseen, in words, where it ends a run."""


class ClusterError(WsiIpsError):
    """A dask cluster that cannot be worked with, or was lost."""


class SlideClosed(WsiIpsError):
    """``SlideClosed(path)``: a reader was used after ``close()``."""

    def _words(self) -> str:
        return f"{self.args[0]} is closed"


class FileError(WsiIpsError):
    """``FileError(path, problem, mend)``: one line that names the file, the problem and the mend."""

    def __init__(self, path: Path | str, problem: str, mend: str = "") -> None:
        super().__init__(path, problem, mend)

    @property
    def path(self) -> Location:
        return locate(self.args[0])

    def _words(self) -> str:
        path, problem, mend = self.args
        return f"{path}: {problem}" + (f"; {mend}" if mend else "")


class SlideNotFound(FileError):
    """No such file or folder, or a folder without slides."""


class SlideUnreachable(FileError):
    """A URL that cannot be read from: no answer in time, no permission, a server without range requests."""


class UnsupportedSlide(FileError):
    """No reader opens this file."""

    @classmethod
    def refused_by(cls, path: Path | str, refused: Mapping[str, str], mend: str) -> "UnsupportedSlide":
        """``refused`` maps a reader's name to its reason; every reason is told."""
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        return cls(path, f"no reader could open it ({reasons})", mend)


class DamagedSlide(UnsupportedSlide):
    """A known format in a file that is cut short or contradicts itself. It ends the search for a reader.

    OpenSlide opens a truncated file without a word and fails hours later, so no other reader is asked.
    """


class RefusedSlide(UnsupportedSlide):
    """A file in order, of a kind that no reader here shows rightly. It ends the search for a reader.

    OpenSlide opens some files and then gives wrong pixels, or none at all, so it is not asked.
    """


class SeveralSlides(UnsupportedSlide):
    """A folder of several slides, where one was asked for. It ends the search for a reader: another one would open
    any of them."""


class SlideReadError(FileError):
    """The slide opened, but a region of it cannot be read."""


class ProcessDied(FileError):
    """The process that read the slide died: native code crashed over it, or memory ran out."""


class SlideInterrupted(SlideReadError):
    """A region cannot be read, and the file is not to blame: the network, the disk, a permission, memory.

    Nothing is white for it: the slide fails, and can be read another time.
    """


class MissingResolution(FileError):
    """``MissingResolution(path)``: the slide does not say how many µm a pixel covers."""

    def __init__(self, path: Path | str, *_: str) -> None:
        super().__init__(
            path, "does not say how many µm a pixel covers", "give it with --slide-mpp or --mpp-csv"
        )


class PixelsNotSquare(MissingResolution):
    """A slide whose pixels are wider than high, or higher than wide."""

    def __init__(self, path: Path | str, problem: str, mend: str = "") -> None:
        FileError.__init__(self, path, problem, mend)

    @classmethod
    def of(cls, path: Path | str, x: float, y: float) -> "PixelsNotSquare":
        """The error for a slide whose pixels are ``x`` µm wide and ``y`` µm high."""
        return cls(
            path,
            f"its pixels are not square: {x:g} µm wide and {y:g} µm high",
            "resample it to square pixels, or give --slide-mpp or --mpp-csv if the file is wrong",
        )


class TooCoarse(FileError):
    """A slide whose pixels are coarser than those of the patches that are wanted of it."""


class NoTissue(FileError):
    """A slide without patches. The message says what left all of it out, and which setting to change."""

    def __init__(
        self,
        path: Path | str,
        problem: str = "no tissue was found",
        mend: str = "lower tiling.min_tissue, or leave the slide out",
    ) -> None:
        super().__init__(path, problem, mend)


class SegmenterError(FileError):
    """A tissue model that is not there, is another one than was trained with, or cannot be run."""


class CoordsError(FileError):
    """A coordinates file that cannot be understood."""


class FeaturesError(FileError):
    """A file of stored features that cannot be used, or is not there."""


class AnnotationError(FileError):
    """An annotation file that cannot be understood."""


class ManifestError(FileError):
    """A manifest with an unknown label, a duplicate id, a missing file, …"""


class DatasetError(FileError):
    """A data set's own file (labels, checksums) that cannot be understood, or a folder without its slides."""


class CheckpointError(FileError):
    """A file that is no checkpoint of ours, or one of another architecture."""


class CalibrationError(FileError):
    """A calibration file that cannot be understood, or belongs to another checkpoint."""


class ResultsError(FileError):
    """A results file or run directory that cannot be read or may not be written."""
