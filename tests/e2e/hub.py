"""A hub of data sets on localhost, as much of its HTTP interface as reading a data set needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repository: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve the files of one data set; gives the address for HF_ENDPOINT."""

    handler = type("Handler", (_Handler,), {"repository": repository, "files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repository: str
    files: Mapping[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        resolved = path.partition(f"/datasets/{self.repository}/resolve/")[2].partition("/")[2]
        of_repository, _, tree = path.partition(f"/tree/{COMMIT}")
        if resolved in self.files:
            self._send(self.files[resolved], file=True)
        elif not of_repository.startswith(f"/api/datasets/{self.repository}"):
            self._send(b"{}", status=404)
        elif of_repository == path:
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": self.repository, "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(json.dumps(about).encode())
        else:
            self._send(json.dumps(_listing(self.files, tree.strip("/"))).encode())

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        found = [_entry(name, self.files[name]) for name in self.files if json.dumps(name) in asked]
        self._send(json.dumps(found).encode())

    def _send(self, body: bytes, status: int = 200, file: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if file:
            self.send_header("ETag", f'"{_digest(body)}"')
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing on the standard error."""


def _listing(files: Mapping[str, bytes], folder: str) -> list[dict[str, object]]:
    """What lies directly in a folder."""
    inside = [name for name in files if not folder or name.startswith(f"{folder}/")]
    at = len(PurePosixPath(folder).parts)
    names = dict.fromkeys("/".join(PurePosixPath(name).parts[: at + 1]) for name in inside)
    folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": n} for n in names]
    return [
        _entry(name, files[name]) if name in files else entry
        for name, entry in zip(names, folders, strict=True)
    ]


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "oid": _digest(content), "size": len(content), "path": name}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
