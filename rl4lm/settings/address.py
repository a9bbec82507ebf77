"""Where a server is: what an address must look like, before anybody is asked.

Knows text only. An address goes into config.yaml and onto the screen, so it may hold no secret.
"""

from __future__ import annotations

from urllib.parse import urlsplit

API_KEY = "RL4LM_SAMPLER_API_KEY"  # the environment variable that holds the key, if there is one


def unusable_address(url: str) -> str | None:
    """What is wrong with the address of a server, in words that follow it; None if nothing is."""
    try:
        parts = urlsplit(url)
        place, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError as error:
        return f"is no address: {error}; write it as http://host:port"
    if parts.scheme not in ("http", "https") or not place:
        return "is no address of a server; write it as http://host:port"
    if parts.username is not None or parts.password is not None:
        return (
            "holds a user or a password, and options are written to config.yaml; put a key into "
            f"the environment variable {API_KEY}"
        )
    if parts.query or parts.fragment:
        return "goes on after its path; write it as http://host:port, with a path if there is one"
    return None


def without_password(url: str) -> str:
    """An address to show: what stands before an @ is left out."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('//')[0]}//…@{after}" if at else url


def endpoint(url: str, path: str) -> str:
    """The address of ``/v1/PATH`` at a server that was named with or without its /v1."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/{path}"
