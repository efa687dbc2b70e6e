"""A web server on this machine that misbehaves as told."""

import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from published.registry import Entry, File


@dataclass
class Server:
    """What a server has and how it behaves; `requests` is what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True  # honours Range
    if_range: bool = True  # honours If-Range
    shift: int = 0  # sends that many bytes earlier than asked for, and says so
    drop_after: list[int | None] = field(
        default_factory=list
    )  # bytes of the body before the connection breaks, per request
    statuses: list[int] = field(default_factory=list)  # answered first, one per request
    headers: dict[str, str] = field(default_factory=dict)  # added or replaced
    announced: int | None = None  # a Content-Length that is not true
    chunked: bool = False
    stall: float = 0.0  # seconds of silence in the middle of each body
    requests: list[dict[str, str]] = field(default_factory=list)

    def answered(self) -> int:
        return len(self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server.behaviour
        server.requests.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        self.close_connection = True
        if server.statuses:
            return self.answer(server.statuses.pop(0), {"Content-Length": "0"} | server.headers)
        if self.path.startswith("/moved/"):
            return self.answer(302, {"Location": self.path.removeprefix("/moved"), "Content-Length": "0"})
        if self.path == "/loop":
            return self.answer(302, {"Location": "/loop", "Content-Length": "0"})
        if self.path not in server.files:
            return self.answer(404, {"Content-Length": "0"})
        body, status, headers = server.files[self.path], 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if wanted and server.ranges and (condition in (None, server.etag) or not server.if_range):
            start, total = int(wanted[1]), len(body)
            if start >= total:
                return self.answer(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            start, end = start - server.shift, total - server.shift
            body, status = body[start:end], 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        if server.etag is not None:
            headers["ETag"] = server.etag
        if server.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if server.announced is None else server.announced)
        self.answer(status, headers | server.headers)
        cut = server.drop_after.pop(0) if server.drop_after else None
        sent = body if cut is None else body[:cut]
        for half in (sent[: len(sent) // 2], sent[len(sent) // 2 :]):
            if half:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half) if server.chunked else half)
                self.wfile.flush()
                if server.stall:
                    time.sleep(server.stall)
        if server.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def answer(self, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *args: None  # a client that hangs up is part of the test
    httpd.behaviour = Server(address=f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd.behaviour
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(scope="session")
def content() -> bytes:
    """A file of some hundred blocks, no two alike."""
    return np.random.default_rng(0).bytes(5_000_000)


@pytest.fixture
def weights(server, content):
    """`weights(**knowledge)`: an entry of one file, which the server has."""
    server.files["/models/weights.pkl"] = content

    def make(path: str = "/models/weights.pkl", **knowledge) -> tuple[Entry, File]:
        file = File("weights.pkl", path and server.address + path, **knowledge)
        return Entry("some-weights", "detector", "weights", "CC0-1.0", "https://example.org", (file,), "arch"), file

    return make
