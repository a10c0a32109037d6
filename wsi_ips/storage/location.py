"""Where a slide is: a path on this machine, or a URL.

A URL is never made a ``Path``: ``Path("http://a")`` is ``http:/a``.
"""

import errno
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

# Two letters at least: "C://" is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class Url(str):
    """A URL, as text: ``http://host/a.svs``, ``s3://bucket/a.svs``, ``memory://a.svs``. Made by :func:`locate`."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """``http`` of ``http://host/a.svs``, in lower case."""
        return self.partition("://")[0].lower()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names between the slashes, without the host, decoded; a name never holds a slash."""
        if self.scheme in ("http", "https"):
            path = unquote(urlsplit(self).path).replace("\\", "/")
        else:
            path = self.partition("://")[2]
        return tuple(name for name in path.split("/") if name)

    @property
    def name(self) -> str:
        """The last name, the slide's file name; empty where the URL has none."""
        return self.parts[-1] if self.parts else ""


Location = Path | Url


def locate(where: Path | str) -> Location:
    """Text as a path, or as a :class:`Url` where it starts with ``scheme://``; ``file://`` is a path."""
    if isinstance(where, Path):
        return where
    scheme = _SCHEME.match(where)
    if scheme is None:
        return Path(where)
    if scheme[1].lower() == "file":
        return Path(url2pathname(urlsplit(where).path))
    return Url(where)


LONGEST_NAME_BYTES = 255
"""Of a file's name, in nearly every file system."""


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder. A path that none can have (a name too long, a zero byte) is not."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            return False
        raise
    except ValueError:
        return False


def is_file_name(text: str) -> bool:
    """Whether a file can be called so: one name, no path, without control characters, and with room for a suffix
    and a temporary name's beginning."""
    if Path(text).name != text or text in ("", ".", "..") or "\\" in text:
        return False
    if any(letter < " " or letter == "\x7f" for letter in text):
        return False
    return len(text.encode("utf-8", "surrogateescape")) <= LONGEST_NAME_BYTES - _ROOM


_ROOM = len("_patches.geojson")
