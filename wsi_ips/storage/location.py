"""Where a slide is: a path on this machine, or a URL.

:func:`locate` turns text into one or the other. A URL never becomes a ``Path``, since ``Path("http://a")`` is
``http:/a``. The module also answers what may be the name of a file (:func:`is_file_name`, :func:`is_there`), and
where the files lie that come with the package (:func:`shipped`).
"""

import errno
import re
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

# At least two letters, because "C://" is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
LONGEST_NAME_BYTES = 255
"""The most bytes in the name of a file, in nearly every file system."""

_ROOM = len("_patches.geojson")
"""Bytes kept free in a name for the longest suffix that is added to it, and for the start of a temporary name."""


class Url(str):
    """A URL as text: ``http://host/a.svs``, ``s3://bucket/a.svs``, ``memory://a.svs``. :func:`locate` makes it."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """The part before ``://`` in lower case, for example ``"http"``."""
        return self.partition("://")[0].lower()

    @property
    def parts(self) -> tuple[str, ...]:
        """The decoded names between the slashes, without the host. No name holds a slash."""
        if self.scheme in ("http", "https"):
            path = unquote(urlsplit(self).path).replace("\\", "/")
        else:
            path = self.partition("://")[2]
        return tuple(name for name in path.split("/") if name)

    @property
    def name(self) -> str:
        """The last part of the URL, which is the slide's file name. Empty if the URL has none."""
        return self.parts[-1] if self.parts else ""


Location = Path | Url
"""The path or URL of a slide or of another file."""

Place = TypeVar("Place", bound=Location | None)
"""A location, or a kind of location, or None where none was given."""


def absolute(where: Place) -> Place:
    """The same place with an absolute path, so that a process in another folder finds it. A URL, and None, are
    returned unchanged.
    """
    return cast(Place, where.absolute()) if isinstance(where, Path) else where


def locate(where: Path | str) -> Location:
    """Turn text into a :class:`Url` if it starts with ``scheme://``, and into a path otherwise.

    ``file://`` URLs become paths. A path is returned unchanged.
    """
    if isinstance(where, Path):
        return where
    scheme = _SCHEME.match(where)
    if scheme is None:
        return Path(where)
    if scheme[1].lower() == "file":
        return Path(url2pathname(urlsplit(where).path))
    return Url(where)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder at this path.

    A path that no file can have (a name that is too long, or holds a zero byte) counts as not there.
    """
    try:
        return path.exists()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            return False
        raise
    except ValueError:
        return False


def is_file_name(text: str) -> bool:
    """Whether ``text`` can be the name of a file.

    It has to be one name and not a path, without backslashes and control characters, and short enough to leave
    room for a suffix and for the start of a temporary name.
    """
    if Path(text).name != text or text in ("", ".", "..") or "\\" in text:
        return False
    if any(letter < " " or letter == "\x7f" for letter in text):
        return False
    return len(text.encode("utf-8", "surrogateescape")) <= LONGEST_NAME_BYTES - _ROOM


def shipped(folder: str) -> Path:
    """A folder that comes with the package, ``pipelines`` or ``data_manifests``: within it where it is installed,
    beside it in a checkout.
    """
    package = Path(__file__).parents[1]
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder
