"""HTTP to a completions server: what is sent, when it is sent again, and what is said of failures.

Knows JSON and knows nothing of tokens. Of the standard library alone: a completion takes seconds,
and a connection of its own milliseconds. Redirects are not followed, because the key would go with
them.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4lm.errors import EngineError
from rl4lm.processes.background import all_in_background
from rl4lm.settings.address import API_KEY, endpoint

Body = Mapping[str, Any]

_AT_ONCE = 32  # requests under way; a server puts what is too much for it in a queue of its own
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before a request is made again
_GREETING_S = 20.0  # the longest wait for what a server can say without computing
_BUSY = 429
_SHOWN = 300  # characters of what a server says


class _Unreachable(Exception):
    """A request that may well succeed if it is made again."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any, **named: Any) -> None:
        """Leave a redirect unfollowed: it then counts as an error, with its status."""


@dataclass(frozen=True)
class EngineClient:
    """A server, and how long to wait for it."""

    url: str
    model: str  # as the server calls it
    timeout_s: float

    def models(self) -> list[str]:
        """The names that the server serves; asked once, so that a wrong address shows at once.

        Raises:
            EngineError: it is away, or answers otherwise than such a server does.
        """
        try:
            answer = self._ask("models", None, min(self.timeout_s, _GREETING_S))
        except _Unreachable as error:
            raise self._error(str(error)) from None
        listed = answer.get("data") if isinstance(answer, dict) else None
        names = [row.get("id") for row in listed or [] if isinstance(row, dict)]
        if not names:
            raise self._error("lists no models at /v1/models: it is no OpenAI-compatible server")
        return [str(name) for name in names]

    def complete(self, bodies: Sequence[Body]) -> list[Any]:
        """Post requests for completions, several at once; the answers in their order.

        Raises:
            EngineError: one of them failed, as a last word after several attempts.
        """
        waiting = deque(enumerate(bodies))
        answers: dict[int, Any] = {}
        failures: list[EngineError] = []
        over = threading.Event()  # nobody begins anything new, or waits to try again

        def work() -> None:
            while waiting and not over.is_set():
                try:
                    place, body = waiting.popleft()
                except IndexError:  # somebody else was quicker
                    return
                try:
                    answers[place] = self._exchange(body, over)
                except EngineError as error:
                    failures.append(error)
                    over.set()

        try:
            all_in_background([work] * min(_AT_ONCE, len(bodies)))
        finally:
            over.set()
        if failures:
            raise failures[0]
        return [answers[place] for place in range(len(bodies))]

    def _exchange(self, body: Body, over: threading.Event) -> Any:
        """Ask for completions until there is an answer, or nothing is left to try."""
        for pause in _PAUSES_S:
            try:
                return self._ask("completions", body, self.timeout_s)
            except _Unreachable as error:
                if over.wait(pause):
                    raise self._error(str(error)) from None
        try:
            return self._ask("completions", body, self.timeout_s)
        except _Unreachable as error:
            attempts = len(_PAUSES_S) + 1
            raise self._error(f"{error} ({attempts} attempts)") from None

    def _ask(self, path: str, body: Body | None, timeout_s: float) -> Any:
        """One request and its answer, as JSON."""
        request = urllib.request.Request(
            endpoint(self.url, path),
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **_authorization()},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise self._refusal(path, error) from None
        except (http.client.HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                raise self._error(
                    f"did not answer /v1/{path} within {timeout_s:g} s; raise sampler_timeout_s "
                    f"(it is {self.timeout_s:g}), or ask for less at once"
                ) from None
            what = str(cause) or type(cause).__name__
            raise _Unreachable(f"cannot be reached: {what}") from None
        try:
            return json.loads(text)
        except ValueError:
            raise self._error(f"answers with something else than JSON: {_cut(text)}") from None

    def _refusal(self, path: str, error: urllib.error.HTTPError) -> Exception:
        """What to raise for a status that is no success."""
        with error:
            try:
                said = _cut(error.read())
            except (OSError, http.client.HTTPException):
                said = ""
        answer = f"answers {error.code} {error.reason} to /v1/{path}"
        if said:
            answer += f": {said}"
        if error.code == _BUSY or error.code >= 500:
            return _Unreachable(answer)
        if error.code in (401, 403):
            return self._error(f"{answer}; its key goes into the environment variable {API_KEY}")
        return self._error(answer)

    def _error(self, what: str) -> EngineError:
        return EngineError(f"the server {self.url} {what}")


def _authorization() -> dict[str, str]:
    """The header with the key, if the environment holds one.

    Raises:
        EngineError: a key that no header can hold; it is not shown.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"the key in {API_KEY} holds characters that no header can; look at it")
    return {"Authorization": f"Bearer {key}"}


def _cut(said: bytes) -> str:
    """What a server says, on one line and not at length; of an error in JSON only its message."""
    text = said.decode("utf-8", errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        inner = answer.get("error", answer)
        text = str(inner.get("message", text) if isinstance(inner, dict) else inner)
    return " ".join(text.split())[:_SHOWN]
