"""HTTP answers that hold no more bytes than were asked for, as they lie in the file.

A server decides how long an answer is and how it is packed: a body without end, or a megabyte of gzip that becomes
gigabytes, would fill the memory of whoever reads it whole.
"""

import re

from aiohttp import ClientResponse
from aiohttp.connector import Connection

from wsi_ips.slides.remote import UnaskedAnswer

MOST_WHOLE_BYTES = (1 << 27) + 1
"""Of an answer to a request that names no range, or a longer one."""

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")


class BoundedResponse(ClientResponse):
    """aiohttp's answer, for sessions with ``auto_decompress=False``. Raises :class:`UnaskedAnswer`."""

    async def start(self, connection: Connection) -> ClientResponse:
        """Wait for the headers; refuse a body that is packed (RFC 9110, section 8.4)."""
        await super().start(connection)
        packed = self.headers.get("Content-Encoding", "identity").strip().lower()
        if self.ok and packed not in ("", "identity"):
            self.close()
            raise UnaskedAnswer(f"the server packs its answer ({packed[:40]!r}), though asked not to")
        return self

    async def read(self) -> bytes:
        """The body, of at most as many bytes as were asked for."""
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
