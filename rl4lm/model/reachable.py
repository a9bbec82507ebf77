"""Whether the hub can be asked at all: its own client tries for half a minute before it says no.

Only what is certain counts: no such host, nobody who listens, no route, three times within two
seconds. What is merely slow, or goes through a proxy, is left to the client's own patience.
"""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies

_TRIES = 3
_PAUSE_S = 1.0
_LIMIT_S = 3.0  # for a connection; a slower one is left to the client
_PORTS = {"https": 443, "http": 80}


def why_unreachable(name: str) -> str | None:
    """Why the hub cannot be asked about a model, in words; None where it can be, or need not be.

    Args:
        name: of the model; of one in the hub's cache nobody needs to be asked.
    """
    from huggingface_hub import constants, errors, try_to_load_from_cache

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except errors.HFValidationError:  # no name of the hub: the client says so without asking
        return None
    if cached or constants.HF_HUB_OFFLINE or {"http", "https", "all"} & getproxies().keys():
        return None
    error = _no_connection(constants.ENDPOINT)
    if error is None:
        return None
    return f"{constants.ENDPOINT} cannot be reached ({error}), and the hub's cache does not have it"


def _no_connection(endpoint: str) -> OSError | None:
    """The error of the last of some attempts to connect, None where one may succeed."""
    parts = urlsplit(endpoint)
    place = (parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443))
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            with socket.create_connection(place, timeout=_LIMIT_S):
                return None
        except TimeoutError:
            return None
        except OSError as error:
            failure = error
    return failure
