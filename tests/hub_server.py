"""A stand-in for the hub: what huggingface_hub sends to make a repository and upload a folder.

It keeps every byte, and shares no code with rl4lm. A test says which answers are to be errors.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

_LARGE = (".safetensors", ".bin")


class Hub:
    """Serves one account in a thread, for the time of a ``with`` block."""

    def __init__(
        self,
        token: str = "hf_sesame",
        *,
        role: str = "write",
        fails: Mapping[str, int] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Begin to listen.

        Args:
            token: the one that is known.
            role: of the token.
            fails: part of a path -> status that it is answered with.
            files: what the repository holds; None = there is none yet.
        """
        self.token, self.role, self.fails = token, role, dict(fails or {})
        self.exists, self.files = files is not None, dict(files or {})
        self.private: bool | None = None
        self.requests: list[str] = []  # method and path
        self.commits: list[list[dict[str, Any]]] = []
        self.cards: list[str] = []  # checked by validate-yaml
        self._objects: dict[str, bytes] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        if path == "/api/agent-harnesses":  # asked once a process, whatever it is about
            return 404, {}
        self.requests.append(f"{method} {path}")
        for part, status in self.fails.items():
            if part in path:
                return status, {"error": "so it is"}
        if method == "PUT":  # to storage, where the address itself is the permission
            return self._store(path, body)
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        given = [json.loads(line) for line in body.splitlines()] if body else []
        for part, act in self._places().items():
            if part in path:
                return act(given)
        return 404, {"error": f"no such place: {method} {path}"}

    def _places(self) -> dict[str, Any]:
        """Part of a path -> what is done there with the lines of the body."""
        return {
            "/api/whoami-v2": lambda _: (200, self._who()),
            "/api/repos/create": lambda given: self._create(given[0]),
            "/api/validate-yaml": lambda given: self._check(given[0]["content"]),
            "/preupload/main": lambda given: (200, self._modes(given[0]["files"])),
            "/objects/batch": lambda given: (200, self._batch(given[0]["objects"])),
            "/commit/main": self._commit,
            "/tree/main": lambda _: (200, self._tree()),
        }

    def _who(self) -> dict[str, Any]:
        return {"name": "ann", "auth": {"accessToken": {"role": self.role}}}

    def _check(self, card: str) -> tuple[int, Any]:
        self.cards.append(card)
        return 200, {"warnings": [], "errors": []}

    def _modes(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        return {"files": [self._mode(file["path"]) for file in files]}

    def _batch(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        return {"transfer": "basic", "objects": [self._place(given) for given in objects]}

    def _tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.files.items()
        ]

    def _create(self, given: dict[str, Any]) -> tuple[int, Any]:
        name = f"{given.get('organization') or 'ann'}/{given['name']}"
        if self.exists:
            return 409, {
                "error": "You already created this model repo",
                "url": f"{self.url}/{name}",
            }
        self.exists = True
        self.private = given.get("visibility") == "private" or bool(given.get("private"))
        return 200, {"url": f"{self.url}/{name}", "name": name, "id": "1"}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(_LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _place(self, given: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.url}/storage/{given['oid']}", "header": {}}
        return {**given, "authenticated": True, "actions": {"upload": upload}}

    def _store(self, path: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != path.rpartition("/")[2]:
            return 400, {"error": "other bytes than their hash"}
        self._objects[path.rpartition("/")[2]] = body
        return 200, {}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        self.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self._objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        oid = "1" * 40
        return 200, {"commitUrl": f"{self.url}/ann/it/commit/{oid}", "commitOid": oid}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *given: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            token = self.headers.get("Authorization", "")
            status, value = hub.answer(self.command, urlparse(self.path).path, body, token)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = _serve

    return Handler
