"""Encoders by name, from a server on this machine that answers as the hub does, by the hub's own client."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.console import UserError
from model.pretrained import provenance, resolve_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    "tf_model.h5": b"others",
    **dict.fromkeys(("added_tokens.json", "special_tokens_map.json", "tokenizer.model", "merges.txt"), b"{}"),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The paths that were asked for."""
    from huggingface_hub import constants

    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/api/models/some/encoder/"):
                listing = [{"rfilename": name} for name in FILES]
                body, kind = json.dumps({"id": "some/encoder", "sha": COMMIT, "siblings": listing}).encode(), "json"
                if "/tree/" in self.path:
                    tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
                    body = json.dumps(tree).encode()
            else:
                body, kind = FILES.get(self.path.rpartition("/")[2]), "octet-stream"
            self.send_response(404 if body is None else 200)
            body = body or b""
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub
    from huggingface_hub import snapshot_download

    def client(*arguments, **options):
        return snapshot_download(*arguments, endpoint=address, cache_dir=tmp_path / "cache", **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["some/encoder", f"some/encoder@{COMMIT}"])
def test_a_name_is_downloaded_once(hub, name):
    folder = resolve_pretrained(name)
    assert {path.name for path in folder.iterdir()} == FILES.keys() - {"tf_model.h5"}
    assert hub and not any("tf_model.h5" in path for path in hub if "/resolve/" in path)
    hub.clear()
    found = provenance(name)
    assert hub == []  # it is not asked again
    weights = {"model.safetensors": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}
    assert found == {"name": name, "revision": COMMIT, "weights": weights}


def test_a_name_that_the_hub_does_not_know(hub):
    with pytest.raises(UserError, match="'some/other' is not a local folder and could not be fetched"):
        resolve_pretrained("some/other")
