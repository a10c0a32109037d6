"""Reading slides at a URL through fsspec: time limits, clear errors, and answers of bounded size.

:func:`storage_options` makes fsspec's options and :func:`network_error` turns what fsspec raises into one clear
error; both readers of URLs use them. A server decides how long its answer is and how it is packed, and a body
without an end, or a megabyte of gzip that becomes gigabytes, would fill the memory of whoever reads all of it.
:class:`BoundedResponse` therefore accepts HTTP answers only if they hold no more bytes than were asked for, as
they lie in the file.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

import fsspec
from aiohttp import ClientResponse
from aiohttp.connector import Connection

from wsi_ips.errors import FileError, ReaderNotInstalled, SlideNotFound, SlideUnreachable
from wsi_ips.storage.fingerprint import fingerprint_of_samples, sample_places
from wsi_ips.storage.location import Url

TIMEOUT_SECONDS = 30.0
"""How long to wait for a connection, and for data."""

HTTP = ("http", "https")
"""Schemes of HTTP."""

NO_RANGES = "the server does not answer range requests"
"""The problem of a server from which files can only be had whole."""

MOST_WHOLE_BYTES = (1 << 27) + 1
"""The most bytes of an answer to a request that names no range, or a longer one."""

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")


class UnaskedAnswer(ValueError):
    """A server sent other bytes than it was asked for, or more of them."""


def storage_options(url: Url, *, reader: str, timeout_s: float) -> dict[str, Any]:
    """Make fsspec's options for ``url``, with a time limit.

    Connecting, and every wait for data, takes at most ``timeout_s`` seconds. Only HTTP and S3 take such a limit;
    other protocols keep their own. ``reader`` is the reader's name for the message.

    Raises :class:`SlideUnreachable` for an unknown protocol, and :class:`ReaderNotInstalled` for one whose package
    is not installed.
    """
    try:
        fsspec.get_filesystem_class(url.scheme)
    except ValueError:
        raise SlideUnreachable(
            url, f"there is no protocol {url.scheme!r}", "known are http, https, s3 and fsspec's others"
        ) from None
    except ImportError as error:
        wanted = getattr(error.__cause__, "name", None) or error.name or url.scheme
        raise ReaderNotInstalled(reader, "'wsi_ips[remote]'" if url.scheme in HTTP else wanted) from error
    if url.scheme in HTTP:
        from aiohttp import ClientTimeout

        return {
            "client_kwargs": {
                "timeout": ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
                "headers": {"Accept-Encoding": "identity"},
                "auto_decompress": False,
                "response_class": BoundedResponse,
            }
        }
    if url.scheme in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": timeout_s, "read_timeout": timeout_s}}
    return {}


def remote_fingerprint(url: Url, *, timeout_s: float = TIMEOUT_SECONDS) -> str:
    """The fingerprint of the file at ``url``, the same as that of a copy on a disk: 64 hexadecimal digits.

    Its length and 16 samples are asked for (:func:`wsi_ips.storage.fingerprint.files_fingerprint`). Returns an
    empty text where that cannot be known: for a folder such as a Zarr store, or a server that does not answer.
    """
    try:
        options = storage_options(url, reader="fingerprint", timeout_s=timeout_s)
        filesystem, inner = fsspec.url_to_fs(str(url), **options)
        size = filesystem.info(inner).get("size")
        if not size:
            return ""
        starts, ends = zip(*sample_places(int(size)), strict=True)
        samples = filesystem.cat_ranges([inner] * len(starts), list(starts), list(ends), on_error="raise")
        return fingerprint_of_samples(int(size), map(bytes, samples))
    except Exception as error:  # noqa: BLE001 - a protocol's own errors; whoever opens the slide says what is wrong
        logger.debug("no fingerprint of %s: %s", url, error)
        return ""


def network_error(url: Url, error: BaseException) -> FileError | None:
    """The error to raise for what fsspec has raised, or None if the network is not to blame.

    Raise it after the ``except`` block and not inside it. A network's exceptions hold connections, and an error
    that has one for its cause cannot be pickled and sent back from a worker process.
    """
    chain = list(_chain(error))
    for link in chain:
        status = getattr(link, "status", None)  # aiohttp's ClientResponseError
        if status == 404:
            return SlideNotFound(url, "the server has no such file (404)", "check the URL")
        if isinstance(status, int):
            return SlideUnreachable(url, f"the server refuses with {status}", "check the URL and its rights")
        if isinstance(link, UnaskedAnswer):
            return SlideUnreachable(url, str(link), "download the file and name its path")
        if isinstance(link, TimeoutError):
            return SlideUnreachable(url, "the server does not answer in time", "try again later")
        if isinstance(link, ConnectionError) or type(link).__module__.startswith(("aiohttp.", "botocore.")):
            return SlideUnreachable(url, f"the server cannot be reached: {link}", "check the URL")
        if isinstance(link, PermissionError):
            return SlideUnreachable(url, "access is denied", "check the credentials")
        if "range requests" in str(link):
            return SlideUnreachable(url, NO_RANGES, "download the file and name its path")
    if any(isinstance(link, FileNotFoundError) for link in chain):
        return SlideNotFound(url, "no such file", "check the URL")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes.

    fsspec reports "not found" for everything that may happen, and gives the real cause.
    """
    while error is not None:
        yield error
        error = error.__cause__


class BoundedResponse(ClientResponse):
    """An HTTP answer for aiohttp sessions with ``auto_decompress=False``, whose body has a limit.

    Reading it raises :class:`UnaskedAnswer` if the server sends other bytes than it was asked for, or more of
    them.
    """

    async def start(self, connection: Connection) -> ClientResponse:
        """Wait for the headers, and refuse a body that is compressed (RFC 9110, section 8.4)."""
        await super().start(connection)
        packed = self.headers.get("Content-Encoding", "identity").strip().lower()
        if self.ok and packed not in ("", "identity"):
            self.close()
            raise UnaskedAnswer(f"the server packs its answer ({packed[:40]!r}), though asked not to")
        return self

    async def read(self) -> bytes:
        """Read the body, of at most as many bytes as were asked for."""
        if self._body is None:
            most, body = self._asked_bytes(), bytearray()
            if self.content_length is not None and self.content_length > most:
                self.close()
                raise UnaskedAnswer(f"the server sends {self.content_length} bytes, though asked for {most}")
            async for part in self.content.iter_any():
                body += part
                if len(body) > most:
                    self.close()
                    raise UnaskedAnswer(f"the server sends more than the {most} bytes that it was asked for")
            self._body = bytes(body)
        return await super().read()

    def _asked_bytes(self) -> int:
        asked = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
        if asked is None or not self.ok:
            return MOST_WHOLE_BYTES
        return min(MOST_WHOLE_BYTES, int(asked[2]) - int(asked[1]) + 1)
