"""A page on this machine: type a sentence, see the photos, and why. No build step, nothing loaded from elsewhere.

Images are served by their row, made anew as JPEG (so without what cameras write into files); no path of a visitor's reaches the
file system, and every text is escaped. Whoever asks under another name than this machine's own is refused, so that no other page
in the same browser can read along.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import ipaddress
import os
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from core.console import UserError
from core.overlay import answered, heat, layer, part_name, strongest_parts
from core.pictures import load_upright
from model.explain import Explanation
from search.ask import MAX_CHARACTERS, Hit, Search, open_search

_HERE = Path(__file__).parent
SHOWN, MOST = 24, 240  # results at first, and when more are asked for again and again
_PHOTO_SIDE = 1280
_OVERLAY_SIDE = 224
_FRAMES = 3  # regions an image shows
_EXPLAINED_AT_ONCE, _REMEMBERED = 12, 512
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _Explanations:
    """Those of one search that were asked for last, by run, sentence and row; of several runs each is computed."""

    def __init__(self, search: Search) -> None:
        self.search, self.known, self.lock = search, OrderedDict(), threading.Lock()

    def of(self, sentence: str, rows: Sequence[int], run: str | None) -> dict[int, list[Explanation]]:
        """For each row its explanations, one for each run that answers."""
        with self.lock:
            found: dict[int, list[Explanation]] = {row: [] for row in rows}
            for one in self.search.chosen(run):
                missing = [row for row in found if (one, sentence, row) not in self.known]
                for start in range(0, len(missing), _EXPLAINED_AT_ONCE):
                    part = missing[start : start + _EXPLAINED_AT_ONCE]
                    for row, explanation in zip(part, self.search.explain(sentence, part, run=one), strict=True):
                        self.known[one, sentence, row] = explanation
                for row, explanations in found.items():
                    self.known.move_to_end((one, sentence, row))
                    explanations.append(self.known[one, sentence, row])
            while len(self.known) > max(_REMEMBERED, 2 * len(found)):
                self.known.popitem(last=False)
            return found


def make_app(search: Search, *, hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> Starlette:
    """The pages of a search. `hosts`: names under which it may be asked; "*" for any."""
    pages = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    explanations = _Explanations(search)
    strongest = functools.lru_cache(64)(lambda sentence, run, rows: _strongest(explanations.of(sentence, rows, run)))

    def row_of(request: Request) -> int:
        row = request.path_params["row"]
        if row >= len(search.images):
            raise HTTPException(404, f"There is no image {row}.")
        return row

    def asked(request: Request) -> dict[str, Any]:
        """What an address asks for; what cannot be is left out."""
        given = request.query_params
        run = given.get("run") or None
        if run not in search.runs:
            run = None
        number = given.get("image", "")
        row = int(number) if number.isascii() and number.isdigit() and len(number) < 12 else None
        if row is not None and row >= len(search.images):
            raise HTTPException(404, f"There is no image {row}.")
        top = given.get("top", "")
        top = min(MOST, max(1, int(top))) if top.isascii() and top.isdigit() and len(top) < 6 else SHOWN
        sentence = " ".join(given.get("q", "").split())[:MAX_CHARACTERS]
        return {"sentence": sentence, "run": run, "row": row, "top": top, "why": given.get("why") == "1"}

    def answer(request: Request) -> dict[str, Any]:
        wanted = asked(request)
        sentence, run, row, top = (wanted[key] for key in ("sentence", "run", "row", "top"))
        found: dict[str, Any] = {"sentences": [], "own": [], "words": [], "explained": {}, "remarks": []}
        if row is not None:
            hits = search.similar(row, run=run, top=top)
            sentences = search.sentences(row, run=run, top=8)
            found["sentences"] = [(search.captions[hit.row]["text"], hit.score) for hit in sentences]
            found["own"] = search.own_captions(row)
        elif sentence:
            hits = search.find(sentence, run=run, top=top)
            found["remarks"] = search.remarks(sentence, run=run)
            if wanted["why"] and hits:
                found["explained"] = {
                    number: _told(several, search.class_names(run))
                    for number, several in explanations.of(sentence, [h.row for h in hits], run).items()
                }
        else:
            hits = [Hit(number, float("nan")) for number in range(min(top, len(search.images)))]
        return wanted | found | {
            "hits": hits,
            "search": search,
            "rows": ",".join(str(hit.row) for hit in hits) if found["explained"] else "",
            "more": len(hits) == top < MOST,
            "shown": SHOWN,
        }  # fmt: skip

    def page(request: Request) -> Response:
        return HTMLResponse(pages.get_template("page.html").render(answer(request)))

    def results(request: Request) -> Response:
        return HTMLResponse(pages.get_template("results.html").render(answer(request)))

    def thumbnail(request: Request) -> Response:
        small = search.thumbnail(row_of(request))
        if small is None:
            raise HTTPException(404, "This image has no thumbnail.")
        return Response(small, media_type="image/jpeg", headers={"Cache-Control": "max-age=600"})

    def photo(request: Request) -> Response:
        path = search.images[row_of(request)]["path"]
        with contextlib.suppress(OSError):
            if path and os.path.isfile(path):
                return _encoded(load_upright(path, _PHOTO_SIDE), "JPEG", quality=88)
        return thumbnail(request)  # its file is gone, or on another machine

    def overlay(request: Request) -> Response:
        row, wanted = row_of(request), asked(request)
        sentence, run = wanted["sentence"], wanted["run"]
        if not sentence:
            raise HTTPException(404, "Nothing is explained without a sentence.")
        values = _mean_heat(explanations.of(sentence, [row], run)[row])
        numbers = request.query_params.get("rows", "").split(",")[:MOST]
        beside = [
            int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) < 12 and int(n) < len(search.images)
        ]
        # Painted on one scale with what is shown beside it.
        most = strongest(sentence, run, tuple(beside) or (row,))
        picture = layer(values, most).resize((_OVERLAY_SIDE, _OVERLAY_SIDE))
        return _encoded(picture, "PNG")

    def refused(_: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 409)  # of files that are no longer those that were searched
        told = error.detail if isinstance(error, HTTPException) else str(error)
        return HTMLResponse(pages.get_template("error.html").render(message=told), status_code=status)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/results", results),
            Route("/thumbnail/{row:int}", thumbnail),
            Route("/photo/{row:int}", photo),
            Route("/why/{row:int}", overlay),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: refused, UserError: refused},
    )  # fmt: skip


class _Headers:
    """Puts `HEADERS` on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                extra = HEADERS | ({} if b"cache-control" in known else {"Cache-Control": "no-store"})
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in extra.items()),
                ]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)


def _encoded(picture: Any, kind: str, **options: Any) -> Response:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Response(buffer.getvalue(), media_type=f"image/{kind.lower()}", headers={"Cache-Control": "max-age=600"})


def _mean_heat(explanations: Sequence[Explanation]) -> np.ndarray:
    return sum(heat(explanation) for explanation in explanations) / len(explanations)


def _strongest(found: dict[int, list[Explanation]]) -> float:
    """What is painted most: all but the last hundredth of what there is, so that one small box does not pale the rest."""
    values = np.concatenate([np.abs(_mean_heat(several)).ravel() for several in found.values()])
    return float(np.quantile(values, 0.99)) or 1.0


def _told(explanations: Sequence[Explanation], names: Sequence[str] = ()) -> dict[str, Any]:
    """What the page says of an image: frames with the words they answer to, and the words, each with a level from -4 to 4.

    Of several runs, words have their mean; frames are the regions of the first run that has places for them,
    called by `names` of their classes.
    """
    first = next((one for one in explanations if strongest_parts(one, _FRAMES)), explanations[0])
    frames = []
    for number in strongest_parts(first, _FRAMES):
        x0, y0, x1, y1 = (float(value) for value in first.places[number])
        own = sorted(zip(first.shares[number], first.words, strict=True), reverse=True)[:3]
        said = ", ".join(f"{word} {share:+.3f}" for share, word in own)
        share, called = float(first.shares[number].sum()), part_name(first.classes, number, names)
        frame = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
        answers = answered(first, number)
        frame |= {"share": share, "said": said, "answers": answers, "called": called, "kind": first.kinds[number]}
        frames.append(frame)
    same = all(one.words == explanations[0].words for one in explanations)
    used = explanations if same else explanations[:1]
    shares = sum(one.shares.sum(0) for one in used) / len(used)
    most = float(np.abs(shares).max()) or 1.0
    words = [(w, float(s), round(4 * float(s) / most)) for w, s in zip(explanations[0].words, shares, strict=True)]
    return {"frames": frames, "words": words}


def serve(*, dataset: str, results: str, host: str, port: int, expose: bool, threads: int | None) -> None:
    """Serve a search until interrupted.

    Raises:
        UserError: there is no such search, the address is open to others without `expose`, or it is taken.
    """
    import uvicorn

    if not (0 <= port <= 65535):
        raise UserError(f"--port: {port} is no port; choose one from 1024 to 65535, or 0 for any that is free")
    alone = is_loopback(host)
    if not alone and not expose:
        raise UserError(
            f"--host: {host} can be reached from other machines, and whoever reaches it sees all images; add --expose if that "
            "is meant, or use 127.0.0.1 through an ssh tunnel"
        )
    search = open_search(results, dataset)
    from core.devices import open_device

    open_device("cpu", threads=threads)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # whoever reads the address may ask at once
    except OSError as error:
        flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another {flag}") from error
    if not alone:
        print(f"warning: {host} is open to others: whoever reaches it sees all images of {dataset}", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listening.getsockname()[1]}/  {len(search.images)} images; Ctrl+C ends it", flush=True)
    app = make_app(search, hosts=own_names(shown) if alone else ("*",))
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def own_names(host: str) -> tuple[str, ...]:
    """How a page that listens at a loopback address is asked for: by it (IPv6 in brackets), or by this machine's own names."""
    return ("127.0.0.1", "localhost", "[::1]", host)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
