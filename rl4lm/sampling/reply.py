"""What a completions server answered: token ids, log-probs and ends, checked one by one.

Tokens in, tokens out: ids are read where the server writes ids, and never made from text. What it
says of an end is compared with the ends of this run, because an end token is an action whose
log-prob counts, and a completion that was cut off has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4lm.errors import EngineError
from rl4lm.sampling.loop import EndRule

_PREFIX = "token_id:"  # how vLLM writes an id in the place of a token's text
_ROUNDING = 1e-6  # a log-prob above 0 by no more than this is one of a certain token


@dataclass(frozen=True)
class Completion:
    """One completion as it was drawn."""

    ids: list[int]  # the end token included where there is one
    logprobs: list[float]  # of each of the ids
    ended: bool  # False where the length limit cut it off


@dataclass(frozen=True)
class Asked:
    """What a reply is held against."""

    prompt: Sequence[int]
    count: int  # completions
    length: int  # tokens after which a completion is cut off
    ends: EndRule
    vocabulary: int  # ids are below it


def read_reply(reply: Any, asked: Asked) -> list[Completion]:
    """The completions of one prompt.

    Raises:
        EngineError: anything about them is not as it was asked for; says what.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise EngineError(f"the server's answer holds no choices: {str(reply)[:200]}")
    if len(choices) != asked.count:
        raise EngineError(
            f"the server gave {len(choices)} completions of a prompt, and {asked.count} were asked "
            "for; it must take `n`"
        )
    ordered = sorted(choices, key=lambda choice: choice.get("index") or 0)
    return [_completion(choice, asked) for choice in ordered]


def _completion(choice: Mapping[str, Any], asked: Asked) -> Completion:
    taken = choice.get("prompt_token_ids")
    if taken is not None and list(taken) != list(asked.prompt):
        raise EngineError(
            f"the server completed another prompt than it was given: {list(taken)[:8]}… for "
            f"{list(asked.prompt)[:8]}…; it must take token ids as they are"
        )
    ids, logprobs = _ids(choice), _logprobs(choice)
    if not ids or len(ids) != len(logprobs):
        raise EngineError(
            f"the server gave {len(ids)} token ids and {len(logprobs)} log-probs of a completion; "
            "there must be as many, and one at least"
        )
    beyond = [token for token in ids if not 0 <= token < asked.vocabulary]
    if beyond:
        raise EngineError(
            f"the server drew token {beyond[0]}, and the model here knows ids below "
            f"{asked.vocabulary}; serve the model that is named here"
        )
    for value in logprobs:
        if not math.isfinite(value) or value > _ROUNDING:
            raise EngineError(
                f"the server gave {value} as the log-prob of a token, which must be finite and at "
                "most 0; vLLM gives them with --logprobs-mode raw_logprobs or processed_logprobs"
            )
    return _until_end(ids, logprobs, choice, asked)


def _ids(choice: Mapping[str, Any]) -> list[int]:
    """The drawn ids, from either of the two places where vLLM writes them."""
    ids = choice.get("token_ids")
    if ids is None:
        tokens = (choice.get("logprobs") or {}).get("tokens") or [""]
        if not all(str(token).startswith(_PREFIX) for token in tokens):
            raise EngineError(
                "the server gives the text of a completion and not its token ids, which cannot be "
                "made from text; it must know return_token_ids (vLLM since 0.10.2) or "
                "return_tokens_as_token_ids"
            )
        ids = [str(token).removeprefix(_PREFIX) for token in tokens]
    try:
        return [int(token) for token in ids]
    except (TypeError, ValueError):
        raise EngineError(f"the server gave token ids that are none: {str(ids)[:200]}") from None


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    values = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(values, list):
        raise EngineError("the server gives no log-probs; it must take `logprobs`")
    # A missing one becomes nan, which is refused with its reason.
    return [float(v) if isinstance(v, (int, float)) else math.nan for v in values]


def _until_end(
    ids: list[int], logprobs: list[float], choice: Mapping[str, Any], asked: Asked
) -> Completion:
    """The completion up to the first of this run's ends, or to the length limit."""
    for size in range(1, min(len(ids), asked.length) + 1):
        if _ends(ids, size, asked.ends):
            return Completion(ids[:size], logprobs[:size], ended=True)
    if len(ids) == asked.length:
        return Completion(ids, logprobs, ended=False)
    reason = f"finish_reason {choice.get('finish_reason')!r}"
    if choice.get("stop_reason") is not None:
        reason += f", stop_reason {choice['stop_reason']!r}"
    raise EngineError(
        f"the server ended a completion after {len(ids)} of {asked.length} tokens ({reason}), with "
        f"token {ids[-1]}, which ends none here (token ids {list(asked.ends.token_ids)} do, and "
        "stop strings). It must hand over the end token too; name its ends by stop_token_ids; and "
        "give it a context that is long enough"
    )


def _ends(ids: list[int], size: int, ends: EndRule) -> bool:
    """Whether the first `size` ids are a completion that has ended."""
    if ids[size - 1] in ends.token_ids:
        return True
    return ends.reaches_stop is not None and ends.reaches_stop(ids[:size])
