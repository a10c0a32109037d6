"""Every error that wsi_ips raises on purpose.

All of them derive from :class:`WsiIpsError`. Most are a :class:`FileError`, which names the file, what is wrong
with it, and the fix::

    WsiIpsError
      ConfigError            a setting that is not possible
        ExtensionBroken      an extension of another package cannot be imported
        ExtensionWrong       an extension of another package does not do what its kind has to do
        NameTaken            a name that several packages offer, or that is not the package's to give
      ReaderNotInstalled     the package of an optional reader is not installed
      ExportNotInstalled     the package of an optional exporter is not installed
      ReaderBroken           a reader of another package cannot be imported
      SlideClosed            a reader was used after close()
      NotFinite              a network computed NaN or infinity
      TrainingError          training cannot go on: the loss is not finite, or too many slides are bad
      SlideFailed            a failed slide ends a run, whatever the failure was
      ClusterError           the dask cluster cannot be used, or its workers were lost
      FileError              names a file, what is wrong with it, and the fix
        SlideNotFound
        SlideUnreachable     a URL that cannot be read: no answer, no permission, no range requests
        UnsupportedSlide     no reader opens the file
          DamagedSlide       a known format in a file that is cut short or contradicts itself
          RefusedSlide       an intact file that every reader here would show wrongly
          SeveralSlides      a folder of several slides where one was asked for
          ReaderRaised       the reader of another package raised an exception of its own
        SlideReadError       the slide opened, but a part of it cannot be read
          SlideInterrupted   the file is not to blame: the network, the disk, a permission, or memory is
        ProcessDied          the process that read the slide crashed or was killed
        MissingResolution
          PixelsNotSquare
        TooCoarse            the slide has less detail than the patches need
        NoTissue             no patch is left; the message says which step removed them
        SegmenterError       a tissue model that cannot be used
        CoordsError
        FeaturesError
        AnnotationError
        ManifestError
        DatasetError         a data set's labels or checksums cannot be read, or its slides are missing
        CheckpointError
        CalibrationError     a calibration file that cannot be used, or belongs to another model
        ResultsError

The command line prints such an error as one line without a traceback and exits with code 2. An error keeps its
parts in ``args`` and builds the message only when it is shown, so that it can be pickled and travel back from a
worker process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import category

from wsi_ips.storage.location import Location, locate

LONGEST_WORDS = 2000
"""The most characters of an error message, about a page. Text that comes from a hostile file may have any length.
"""

_KEPT_OF_END = 500
"""How many characters at the end of a long message are kept, because the fix stands there."""

_TURNED = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of writing, and can make a terminal show another text than is there."""

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}
"""The ASCII control characters, which ``backslashreplace`` does not escape."""


class WsiIpsError(Exception):
    """Base class of every error that is raised on purpose. A subclass builds its message in ``_words``.

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
    """A setting, a recipe or a combination of options that is not possible."""


class ReaderNotInstalled(WsiIpsError):
    """A known reader whose package is not installed: ``ReaderNotInstalled(name, package)``."""

    def _words(self) -> str:
        name, package = self.args
        return f"reader {name} needs a package that is not installed: pip install {package}"


class ExportNotInstalled(WsiIpsError):
    """A known exporter whose package is not installed: ``ExportNotInstalled(name, package)``."""

    def _words(self) -> str:
        name, package = self.args
        return f"export {name} needs a package that is not installed: pip install {package}"


class ReaderBroken(WsiIpsError):
    """A reader of another package that cannot be imported: ``ReaderBroken(name, package, reason)``."""

    def _words(self) -> str:
        name, package, reason = self.args
        return f"reader {name} of the package {package} does not load: {reason}"


class ExtensionBroken(ConfigError):
    """An extension of another package that cannot be imported.

    Made as ``ExtensionBroken(kind, name, package, reason)``.
    """

    def _words(self) -> str:
        kind, name, package, reason = self.args
        return f"{kind} {name} of the package {package} does not load: {reason}"


class ExtensionWrong(ConfigError):
    """An extension of another package that does not do what its kind has to do.

    Made as ``ExtensionWrong(kind, name, package, expected, came)``.
    """

    def _words(self) -> str:
        kind, name, package, expected, came = self.args
        return f"{kind} {name} of {package}: expected {expected}, but {came}"


class NameTaken(ConfigError):
    """A name that several packages offer, or that one offers though it is somebody else's."""


class NotFinite(WsiIpsError, ValueError):
    """A network computed NaN or infinity: ``NotFinite(what)``, where ``what`` names the values, in the plural."""

    def _words(self) -> str:
        return f"{self.args[0]} are not finite: the network's weights are broken, or its precision is too low"


class TrainingError(WsiIpsError):
    """Training cannot go on, because the loss is not finite or too many slides are bad."""


class SlideFailed(WsiIpsError):
    """An unforeseen failure of one slide that ends the whole run. Its text is the failure in words."""


class ClusterError(WsiIpsError):
    """A dask cluster that cannot be used, or that was lost during the run."""


class SlideClosed(WsiIpsError):
    """A reader was used after ``close()``: ``SlideClosed(path)``."""

    def _words(self) -> str:
        return f"{self.args[0]} is closed"


class FileError(WsiIpsError):
    """An error about one file: ``FileError(path, problem, fix)``.

    The message is one line, ``path: problem; fix``. ``problem`` says what is wrong with the file, ``fix`` what the
    user can do about it; ``fix`` may be empty.
    """

    def __init__(self, path: Path | str, problem: str, fix: str = "") -> None:
        super().__init__(path, problem, fix)

    @property
    def path(self) -> Location:
        """The file or URL that the error is about."""
        return locate(self.args[0])

    def _words(self) -> str:
        path, problem, fix = self.args
        return f"{path}: {problem}" + (f"; {fix}" if fix else "")


class SlideNotFound(FileError):
    """There is no such file or folder, or the folder holds no slides."""


class SlideUnreachable(FileError):
    """A URL that cannot be read: no answer in time, no permission, or a server without range requests."""


class UnsupportedSlide(FileError):
    """A file that no reader opens, or that the reader in question does not open."""

    @classmethod
    def refused_by(cls, path: Path | str, refused: Mapping[str, str], fix: str) -> "UnsupportedSlide":
        """The error for a file that every reader has refused.

        ``refused`` maps the name of each reader to its reason; the message gives all of them. ``fix`` says what
        the user can do.
        """
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        return cls(path, f"no reader could open it ({reasons})", fix)


class DamagedSlide(UnsupportedSlide):
    """A file of a known format that is cut short or contradicts itself. No further reader is tried.

    OpenSlide opens a truncated file without complaint and fails hours later, so it must not be asked.
    """


class RefusedSlide(UnsupportedSlide):
    """An intact file of a kind that no reader here shows correctly. No further reader is tried.

    OpenSlide opens some files and then returns wrong pixels, or none, so it must not be asked.
    """


class SeveralSlides(UnsupportedSlide):
    """A folder that holds several slides where one was asked for.

    No further reader is tried, since it would open any one of them.
    """


class ReaderRaised(UnsupportedSlide):
    """The reader of another package raised an exception that is no error of wsi_ips while it opened the file."""


class SlideReadError(FileError):
    """The slide opened, but a region of it cannot be read."""


class ProcessDied(FileError):
    """The process that read the slide died: native code crashed on the file, or memory ran out."""


class SlideInterrupted(SlideReadError):
    """A region cannot be read and the file is not to blame: the network, the disk, a permission, or memory is.

    The region is never replaced by white, whatever the settings allow for damaged tiles. The slide fails, and can
    be read again later.
    """


class MissingResolution(FileError):
    """The slide does not state how many µm a pixel covers: ``MissingResolution(path)``."""

    def __init__(self, path: Path | str, *_: str) -> None:
        super().__init__(
            path,
            "does not say how many µm a pixel covers",
            "give it with --slide-mpp or --mpp-csv (in Python: slide_mpp=)",
        )


class PixelsNotSquare(MissingResolution):
    """The slide states pixels that are not square."""

    def __init__(self, path: Path | str, problem: str, fix: str = "") -> None:
        FileError.__init__(self, path, problem, fix)

    @classmethod
    def of(cls, path: Path | str, x: float, y: float) -> "PixelsNotSquare":
        """The error for the slide at ``path`` whose pixels are ``x`` µm wide and ``y`` µm high."""
        return cls(
            path,
            f"its pixels are not square: {x:g} µm wide and {y:g} µm high",
            "resample it to square pixels, or give --slide-mpp or --mpp-csv (in Python: slide_mpp=) if the file "
            "is wrong",
        )


class TooCoarse(FileError):
    """The pixels of the slide are coarser than those that the patches need."""


class NoTissue(FileError):
    """No patch of the slide is left. The message says which step removed them all, and which setting to change."""

    def __init__(
        self,
        path: Path | str,
        problem: str = "no tissue was found",
        fix: str = "lower tiling.min_tissue (in Python: min_tissue=), or leave the slide out",
    ) -> None:
        super().__init__(path, problem, fix)


class SegmenterError(FileError):
    """A tissue model that is missing, cannot be run, or is not the one that was used in training."""


class CoordsError(FileError):
    """A file of patch coordinates that cannot be read."""


class FeaturesError(FileError):
    """A file of stored features that is missing or cannot be used."""


class AnnotationError(FileError):
    """An annotation file that cannot be read."""


class ManifestError(FileError):
    """A manifest or table of slides with an error, such as an unknown label, a duplicate id, or a missing file."""


class DatasetError(FileError):
    """The labels or checksums of a data set cannot be read, or its folder holds no slides."""


class CheckpointError(FileError):
    """A file that is not a checkpoint of wsi_ips, or one of another architecture."""


class CalibrationError(FileError):
    """A calibration file that cannot be read, or that belongs to another checkpoint."""


class ResultsError(FileError):
    """A results file or run folder that cannot be read, or may not be written to."""


def one_line(what: Exception | str, *, most: int | None = None) -> str:
    """The text of an error on one line, for a message or a table cell.

    Line breaks and runs of blanks become single blanks. With ``most``, a text of more characters is cut to that
    many, the last of which is ``…``. A ``KeyError`` becomes ``no <key>``, since its own text is the key alone.
    """
    missing = isinstance(what, KeyError) and len(what.args) == 1
    text = f"no {what.args[0]}" if missing and isinstance(what, KeyError) else str(what)
    line = " ".join(text.split())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def count(number: int, thing: str, things: str | None = None) -> str:
    """A number of things, for a message: ``1 slide``, ``1,024 slides``, ``2 patches``.

    ``things`` is the plural where it is not ``thing`` with an s.
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def first_of(names: Sequence[str], most: int) -> str:
    """The first names, for a message, with ``, …`` behind them if there are more than ``most``."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def harmless(text: str) -> str:
    """Escape everything in ``text`` that a terminal would obey or fail to print.

    The text may come from an untrusted file. Control characters, characters that change the direction of writing,
    line separators, and bytes of a file name that are not UTF-8 become escapes such as ``\\x1b``. Line breaks and
    tabs are kept.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("ascii", "backslashreplace").decode()
        if letter in _TURNED or (category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t")
        else letter
        for letter in text
    ).translate(_ESCAPED)
