"""Pictures over HTTP: made once, kept a while here and longer in browsers."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import sha256

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from wsi_ips.byte_cache import ByteCache
from wsi_ips.viewer.run_answers import RunAnswers

CACHE_BYTES = 64 << 20
A_DAY = "private, max-age=86400, immutable"
ASK_AGAIN = "private, no-cache"
LOOK_AGAIN_S = 1.0
"""How long a slide's files are taken to be what they were."""


@dataclass(frozen=True, slots=True)
class Picture:
    """what: of its slide, what it shows; the same means the same bytes, as long as the slide's stamp holds."""

    run: RunAnswers
    slide_id: str
    media_type: str
    what: tuple[Hashable, ...]
    make: Callable[[], bytes]


class Images:
    """Answers requests for pictures, with ETag and Cache-Control.

    With the slide's stamp (``v``) in its address a picture never changes, and browsers keep it; without, they ask
    whether it is still the same.
    """

    def __init__(self) -> None:
        self._made: ByteCache[tuple[str, Hashable], bytes] = ByteCache(CACHE_BYTES, size=len)
        self._stamps: dict[tuple[RunAnswers, str], tuple[float, str]] = {}

    async def answer(self, request: Request, picture: Picture) -> Response:
        """What is at hand is answered at once; only what has to be made waits for a thread."""
        looked_at, stamp = self._stamps.get((picture.run, picture.slide_id), (0.0, ""))
        if stamp and time.monotonic() - looked_at < LOOK_AGAIN_S:
            answer = self._at_hand(request, picture, stamp)
            if answer is not None:
                return answer
        return await run_in_threadpool(self._answer, request, picture)

    def _answer(self, request: Request, picture: Picture) -> Response:
        stamp = picture.run.run.stamp(picture.slide_id)
        self._stamps[picture.run, picture.slide_id] = (time.monotonic(), stamp)
        answer = self._at_hand(request, picture, stamp)
        if answer is None:
            data = picture.make()
            self._made.put((stamp, picture.what), data)
            answer = Response(data, media_type=picture.media_type, headers=_headers(request, picture, stamp))
        return answer

    def _at_hand(self, request: Request, picture: Picture, stamp: str) -> Response | None:
        headers = _headers(request, picture, stamp)
        if headers["ETag"] in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        data = self._made.get((stamp, picture.what))
        return None if data is None else Response(data, media_type=picture.media_type, headers=headers)


def _headers(request: Request, picture: Picture, stamp: str) -> dict[str, str]:
    said = repr((stamp, picture.what)).encode("utf-8", "surrogateescape")
    lasting = request.query_params.get("v") == stamp
    return {"ETag": f'"{sha256(said).hexdigest()[:20]}"', "Cache-Control": A_DAY if lasting else ASK_AGAIN}
