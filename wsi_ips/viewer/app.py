"""The viewer's web application (:func:`create_app`): tiles of slides and maps, and a run's content as JSON.

    /                                               the page
    /page/{file}                                    the files that the page loads
    /api/view                                       the runs, and what they can show
    /api/runs/{run}/slides                          a page of the run's slides with their predictions
    /api/runs/{run}/slides/{slide_id}               one slide: size, µm per pixel, which maps there are
    /api/runs/{run}/slides/{slide_id}/legend        the colours and their raw values
    /api/runs/{run}/slides/{slide_id}/patches       the patches with the largest values
    /api/runs/{run}/slides/{slide_id}/value         the raw value at a place
    /api/runs/{run}/slides/{slide_id}/outlines      lesions in level-0 pixels
    /api/runs/{run}/slides/{slide_id}/objects       what detect found in a part of the slide
    /runs/{run}/slides/{slide_id}/thumbnail.jpg     no content (204) where the slide cannot be read
    /runs/{run}/slides/{slide_id}/patch/{id}.jpg
    /runs/{run}/slides/{slide_id}/slide/{level}/{col}_{row}.jpg
    /runs/{run}/slides/{slide_id}/heat/{level}/{col}_{row}.png

The list of slides takes ``q`` (words), ``order``, ``first``, ``count`` and ``at``, see
:meth:`wsi_ips.viewer.slide_list.SlideList.page`.

``run`` is 0, or 1 for the run that it is compared with. Maps take the query parameter ``map`` (attention,
contribution or gradient; without it the default of :func:`wsi_ips.heatmaps.maps.choose_heat`); for attention
also ``task`` or ``query``, ``head``, ``colormap``, ``scale``, ``low`` and ``high``; for contributions and
gradients, which have their own colours, ``task`` and ``class``.

Status codes: 404 for what does not exist, 400 for a map that is not possible, 422 for a file that cannot be read.

Serving the viewer: the listening socket (:func:`bound`), its address, the token, the loop (:func:`serve`).
"""

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from wsi_ips.errors import ConfigError, SlideNotFound, WsiIpsError
from wsi_ips.storage.byte_cache import ByteCache
from wsi_ips.storage.location import Location
from wsi_ips.viewer.guard import ACCEPTED_AT_ONCE, Guard, PatientProtocol, SaidOnce
from wsi_ips.viewer.run_answers import RunAnswers, Truth, describe_runs
from wsi_ips.viewer.tiles import NoSuchTile, options_asked_for
from wsi_ips.viewer.viewed_run import LOOK_AGAIN_S, UnknownSlide, ViewedRun, complaint

ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - told apart, not bound to
"""Hosts that mean all addresses of this machine."""


def new_token() -> str:
    """A random token that every request has to show: others may have an account on this machine, or reach it."""
    return secrets.token_urlsafe(24)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket on ``host``; port 0 takes any free one.

    Raises :class:`ConfigError` for a host or port that cannot be bound.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: ports are 1 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address of this machine ({_reason(error)})") from None
    # With its protocol named: asyncio switches Nagle's algorithm off only then, which costs 40 ms an answer.
    server = socket.socket(family, kind, protocol)
    if os.name == "posix":  # elsewhere it would share a port that is in use
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(address)
        server.listen()
    except OSError as error:
        server.close()
        raise ConfigError(
            f"port {port} of {host} cannot be served ({_reason(error)}); choose another with --port, 0 for any "
            "free one"
        ) from None
    return server


def address_of(server: socket.socket, host: str, token: str | None) -> str:
    """The address to open in a browser: on this machine, or on the users' own if the server is for others."""
    name = socket.gethostname() if host in ALL_ADDRESSES else host
    port = server.getsockname()[1]
    in_brackets = f"[{name}]" if ":" in name else name
    return f"http://{in_brackets}:{port}/" + (f"?token={token}" if token else "")


def serve(app: Starlette, server: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answer requests until the process is interrupted. ``ready`` is called once a request would be answered."""
    ready()  # the socket listens: who comes before the loop runs waits a moment
    # uvicorn warns of what strangers send; errors are our own.
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
    )
    said_once, asyncio_s = SaidOnce(), logging.getLogger("asyncio")
    asyncio_s.addFilter(said_once)
    try:
        with suppress(KeyboardInterrupt):  # how it is meant to end
            uvicorn.Server(config).run(sockets=[server])
    finally:
        asyncio_s.removeFilter(said_once)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


CACHE_BYTES = 64 << 20
"""Bytes of pictures that are cached."""

A_DAY = "private, max-age=86400, immutable"
"""``Cache-Control`` for an address that always gives the same bytes."""

ASK_AGAIN = "private, no-cache"
"""``Cache-Control`` for an address whose content may change."""

PAGE = Path(__file__).parent / "page"
"""Folder of the built page."""

_TILE = re.compile(r"([0-9]{1,7})_([0-9]{1,7})\.(jpg|png)")
_PATCH = re.compile(r"([0-9]{1,18})\.jpg")


def create_app(
    run_dir: Path | str,
    *,
    compare: Path | str | None = None,
    elsewhere: Mapping[str, Location] | None = None,
    manifest: Path | None = None,
    annotations: Path | None = None,
    objects: Path | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
    open_urls: bool = False,
) -> Starlette:
    """The application over a run, and over a second one that is compared with it.

    Parameters: ``run_dir`` and ``compare`` are folders that predict wrote. ``elsewhere`` maps slide ids to where
    the slides are now; by default they are where predict read them. ``manifest`` gives labels, and outlines that
    lie beside it; ``annotations`` is a folder of outlines. ``objects`` is the folder that detect wrote, by default
    each run's own. ``host`` is what the server is bound to, ``token`` what every request has to show.
    ``open_urls`` allows slides at URLs that the run names.

    Raises :class:`ResultsError` for a folder without results or objects, :class:`ManifestError` for a manifest
    that cannot be used, and :class:`AnnotationError` if ``annotations`` is no folder.
    """
    roots = [Path(run_dir)] + ([Path(compare)] if compare is not None else [])
    runs = [ViewedRun(root, elsewhere=elsewhere, objects=objects, open_urls=open_urls) for root in roots]
    truth = Truth.read(manifest, annotations, tasks=runs[0].tasks)
    site = _Site([RunAnswers(run, truth) for run in runs], Images())
    below = "/runs/{run}/slides/{slide_id}"
    routes = [
        Route("/", site.page),
        Route("/page/{file}", site.page),
        Route("/api/view", site.view),
        Route("/api/runs/{run}/slides", site.slides),
        Route("/api" + below, site.about),
        Route("/api" + below + "/{what}", site.about),
        Route(below + "/thumbnail.jpg", site.thumbnail),
        Route(below + "/patch/{name}", site.patch),
        Route(below + "/{layer}/{level}/{name}", site.tile),
    ]
    # Unlike errors, bugs are not shown: Starlette answers 500 and the server logs them.
    handlers: dict[Any, Any] = {
        WsiIpsError: _complain,
        UnknownSlide: _complain,
        NoSuchTile: _complain,
        OSError: _complain,
        404: _not_found,
    }
    return Starlette(
        routes=routes,
        exception_handlers=handlers,
        middleware=[Middleware(Guard, host=host, token=token)],
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a request asks for, and how to make it.

    ``what`` says what it shows of its slide: as long as the slide's stamp is the same, the same ``what`` means the
    same bytes.
    """

    run: RunAnswers
    slide_id: str
    media_type: str
    what: tuple[Hashable, ...]
    make: Callable[[], bytes]


class Images:
    """Answers requests for pictures, with ETag and Cache-Control; pictures are cached here.

    If the address contains the slide's stamp (``v``), the picture never changes and browsers keep it; without it,
    they ask whether it is still the same.
    """

    def __init__(self) -> None:
        self._made: ByteCache[tuple[str, Hashable], bytes] = ByteCache(CACHE_BYTES, size=len)
        self._stamps: dict[tuple[RunAnswers, str], tuple[float, str]] = {}

    async def answer(self, request: Request, picture: Picture) -> Response:
        """The picture as a response.

        A cached one is answered at once; only what has to be made waits for a thread.

        Raises whatever making the picture raises.
        """
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


@dataclass(frozen=True, slots=True)
class _Site:
    """The functions behind the routes.

    Starlette runs those that are not ``async`` in threads, for they wait for disks.
    """

    runs: list[RunAnswers]
    images: Images

    def page(self, request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        known = {path.name: path for path in PAGE.iterdir() if path.is_file()} if PAGE.is_dir() else {}
        if name not in known:
            raise NoSuchTile(f"the page has no {name}")
        about = known[name].stat()
        answer = FileResponse(known[name], headers={"Cache-Control": ASK_AGAIN}, stat_result=about)
        if request.headers.get("if-none-match") == answer.headers["etag"]:
            return Response(status_code=304, headers=dict(answer.headers))
        return answer

    def view(self, request: Request) -> Response:
        return _json(describe_runs(self.runs))

    def slides(self, request: Request) -> Response:
        return _json(self._run(request).slides(dict(request.query_params)))

    def about(self, request: Request) -> Response:
        run, slide_id = self._run(request), request.path_params["slide_id"]
        asked = dict(request.query_params)
        answers: dict[str, Callable[[], Any]] = {
            "": lambda: run.slide(slide_id),
            "legend": lambda: run.map(slide_id, options_asked_for(asked)).legend(),
            "patches": lambda: run.top_patches(slide_id, options_asked_for(asked), asked),
            "value": lambda: run.value(slide_id, options_asked_for(asked), asked),
            "outlines": lambda: run.outlines(slide_id),
            "objects": lambda: run.objects(slide_id, asked),
        }
        what = request.path_params.get("what", "")
        if what not in answers:
            raise NoSuchTile(f"there is no {what}")
        return _json(answers[what]())

    async def thumbnail(self, request: Request) -> Response:
        run, slide_id = self._run(request), request.path_params["slide_id"]
        run.run.listed(slide_id)
        picture = Picture(run, slide_id, "image/jpeg", ("thumbnail",), lambda: run.thumbnail(slide_id))
        try:
            return await self.images.answer(request, picture)
        except (NoSuchTile, WsiIpsError, OSError):
            # A list of slides that are gone is no list of errors.
            return Response(status_code=204, headers={"Cache-Control": ASK_AGAIN})

    async def patch(self, request: Request) -> Response:
        run, slide_id = self._run(request), request.path_params["slide_id"]
        asked = _PATCH.fullmatch(request.path_params["name"])
        if asked is None:
            raise NoSuchTile("a patch is ID.jpg")
        number = int(asked[1])
        picture = Picture(run, slide_id, "image/jpeg", ("patch", number), lambda: run.patch(slide_id, number))
        return await self.images.answer(request, picture)

    async def tile(self, request: Request) -> Response:
        run, slide_id = self._run(request), request.path_params["slide_id"]
        layer, level = request.path_params["layer"], request.path_params["level"]
        asked = _TILE.fullmatch(request.path_params["name"])
        kind = {"slide": "jpg", "heat": "png"}.get(layer)
        if asked is None or asked[3] != kind or not re.fullmatch(r"[0-9]{1,2}", level):
            raise NoSuchTile("a tile is LEVEL/COLUMN_ROW.jpg, or .png of heat")
        place = (int(level), int(asked[1]), int(asked[2]))
        if layer == "slide":
            picture = Picture(
                run, slide_id, "image/jpeg", (layer, *place), lambda: run.slide_tile(slide_id, *place)
            )
        else:
            choice = options_asked_for(request.query_params)
            picture = Picture(
                run, slide_id, "image/png", (layer, *place, choice),
                lambda: run.heat_tile(slide_id, choice, *place),
            )  # fmt: skip
        return await self.images.answer(request, picture)

    def _run(self, request: Request) -> RunAnswers:
        number = request.path_params["run"]
        if number not in [str(each) for each in range(len(self.runs))]:
            raise NoSuchTile(f"there is no run {number}")
        return self.runs[int(number)]


def _json(content: Any, code: int = 200, kept: str = ASK_AGAIN) -> Response:
    # ASCII: a file name that is not UTF-8 can be told in no other way.
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(data, code, {"Cache-Control": kept}, media_type="application/json")


def _complain(request: Request, error: Exception) -> Response:
    code = 422
    if isinstance(error, LookupError | SlideNotFound):
        code = 404
    elif isinstance(error, ConfigError):
        code = 400
    return _json({"error": complaint(error)}, code, "no-store")


def _not_found(request: Request, error: Exception) -> Response:
    return _json({"error": "there is nothing here"}, 404, "no-store")
