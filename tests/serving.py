"""A small completions server, with the fields that vLLM has: real HTTP, and whole forward passes.

It shares no code with rl4lm. A test says what is to be wrong with it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Reply = dict[str, Any]


class Server:
    """Serves a model of transformers in a thread, for the time of a ``with`` block."""

    def __init__(
        self,
        model: Any,
        name: str = "served",
        *,
        tokenizer: Any = None,
        processed: bool = False,
        form: str = "token_ids",
        change: Callable[[Reply], Any] = lambda reply: reply,
        status: Callable[[int], int] = lambda count: 200,
        key: str | None = None,
    ) -> None:
        """Begin to listen.

        Args:
            model: gives logits for ids.
            name: what it is served as.
            tokenizer: to look for stop strings.
            processed: log-probs are those at the temperature, not those of the logits.
            form: "token_ids", "token_id:" as older versions of vLLM, or "text".
            change: makes another answer of an answer.
            status: of the n-th request for completions, from 1; 0 hangs up and stops listening.
            key: asked of every request.
        """
        self.model, self.name, self.tokenizer = model, name, tokenizer
        self.processed, self.form, self.change = processed, form, change
        self.status, self.key = status, key
        self.bodies: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *given: object) -> None:
                pass

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                self.answer(200 if known else 404, {"data": [{"id": server.name}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    status = server.status(len(server.bodies))
                if status == 0:
                    server._http.socket.close()
                elif status == 200:
                    self.answer(200, server.change(server.reply(body)))
                else:
                    self.answer(status, {"error": {"message": "so it is"}})

            def answer(self, status: int, value: Any) -> None:
                if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                    status, value = 401, {"error": "who are you"}
                content = json.dumps(value).encode() if not isinstance(value, bytes) else value
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client has given up
                    self.wfile.write(content)

        return Handler

    def reply(self, body: dict[str, Any]) -> Reply:
        choices = [self._choice(body, k) for k in range(body["n"])]
        return {"object": "text_completion", "model": self.name, "choices": choices}

    @torch.no_grad()
    def _choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        ids, logprobs, best, reason = [], [], [], "length"
        generator = torch.Generator().manual_seed(body.get("seed", 0) + index)
        while len(ids) < body["max_tokens"] and reason == "length":
            seen = torch.tensor([[*body["prompt"], *ids]])
            logits = self.model(input_ids=seen).logits[0, -1]
            token, log_pi = self._draw(logits, body["temperature"], generator)
            ids.append(token)
            logprobs.append(float(log_pi[token]))
            best.append({f"token_id:{int(log_pi.argmax())}": float(log_pi.max())})
            if token in body["stop_token_ids"] or self._at_stop(ids, body.get("stop", [])):
                reason = "stop"
        choice = {"index": index, "text": "", "finish_reason": reason, "stop_reason": None}
        words = [f"token_id:{token}" if self.form == "token_id:" else "word" for token in ids]
        listed = {"tokens": words, "token_logprobs": logprobs, "top_logprobs": best}
        if self.form == "token_ids":
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        return {**choice, "logprobs": listed}

    def _draw(self, logits: Any, temperature: float, generator: Any) -> tuple[int, Any]:
        if temperature == 0:
            return int(logits.argmax()), logits.log_softmax(0)
        log_pi = (logits / temperature).log_softmax(0)
        token = int(torch.multinomial(log_pi.exp(), 1, generator=generator))
        return token, log_pi if self.processed else logits.log_softmax(0)

    def _at_stop(self, ids: list[int], stops: list[str]) -> bool:
        return bool(stops) and any(stop in self.tokenizer.decode(ids) for stop in stops)
