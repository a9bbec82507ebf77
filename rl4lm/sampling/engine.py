"""Completions from a server, for evaluation and for training with an importance ratio.

The server holds weights of its own, which do not follow the training: what it draws comes from
another policy μ, and its log-probs say which. `rl4lm.estimator.losses.clipped_loss` weighs a
completion by π(o|q) / μ(o|q), so that the gradient stays that of the policy here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError, EngineError
from rl4lm.randomness import uniforms
from rl4lm.sampling.client import Body, EngineClient
from rl4lm.sampling.loop import EndRule, Finished
from rl4lm.sampling.reply import Asked, Completion, read_reply
from rl4lm.sampling.sampler import Chance, Draw
from rl4lm.types import Rollout

_SEED_BITS = 48  # JSON carries 53; a server counts on from the seed for further completions
_TRIALS = 4  # prompts of one token that the server is tried with
_ANY_ID = 2**31  # a vocabulary that holds them all, before that of the model is known
_TELLING = 0.02  # nats; by this much a temperature must change the likeliest token's log-prob


def engine_of(config: ReinforceConfig) -> EngineClient | None:
    """The server that the options name; None where this process samples. Nobody is asked yet."""
    if config.sampler_url is None:
        return None
    model = config.sampler_model or config.model_name_or_path
    return EngineClient(config.sampler_url, model, config.sampler_timeout_s)


def check_engine(client: EngineClient, temperature: float | None) -> None:
    """Try a server before anything expensive is begun.

    Args:
        client: the server.
        temperature: that of training; None where completions will be greedy.

    Raises:
        ConfigError: it is away, serves another model, does not answer as it must, or gives
            log-probs that are not those of the distribution that it draws from.
    """
    try:
        served = client.models()
        if client.model not in served:
            raise EngineError(
                f"the server {client.url} serves {', '.join(served)}, not {client.model}; if that "
                "is the same model, name it by --sampler_model"
            )
        at_one = _likeliest(client, 1.0)
        if temperature in (None, 1.0):
            return
        assert temperature is not None
        changed = [abs(a - b) for a, b in zip(_likeliest(client, temperature), at_one, strict=True)]
        if max(changed) < _TELLING:
            raise EngineError(
                f"the server {client.url} gives the log-probs of its logits as they are, and "
                f"draws at temperature={temperature:g}: they are not those of the distribution "
                "that it draws from, and the importance ratio would be wrong; start vLLM with "
                "--logprobs-mode processed_logprobs, or set temperature=1"
            )
    except EngineError as error:
        raise ConfigError(str(error)) from None


def _likeliest(client: EngineClient, temperature: float) -> list[float]:
    """The log-prob of the likeliest first token after some prompts, as the server gives it."""
    prompts = [[token] for token in range(_TRIALS)]
    draw = Draw(prompts, 1, 1, EndRule(()), chance=None)
    bodies = [{**body, "temperature": temperature, "seed": 0} for body in _bodies(client, draw, ())]
    found = []
    for prompt, reply in zip(prompts, client.complete(bodies), strict=True):
        (drawn,) = read_reply(reply, Asked(prompt, 1, 1, draw.ends, _ANY_ID))
        listed = (reply["choices"][0]["logprobs"].get("top_logprobs") or [None])[0]
        found.append(max([*(listed or {}).values(), *drawn.logprobs]))
    return found


class EngineSampler:
    """Draws from the model of a server; see `rl4lm.sampling.sampler.Sampler`."""

    def __init__(
        self, client: EngineClient, vocabulary: int, stop_strings: Sequence[str] = ()
    ) -> None:
        """Take the server.

        Args:
            client: the server.
            vocabulary: V of the model here; an id beyond it is refused.
            stop_strings: what `Draw.ends` looks for in the text, so that the server ends there.
        """
        self._client = client
        self._vocabulary = vocabulary
        self._stop_strings = tuple(stop_strings)

    def __call__(self, draw: Draw, finished: Finished | None = None) -> Rollout:
        """Ask for all prompts, several at once; `finished` is told of nothing.

        Raises:
            EngineError: the server is away, or an answer is not as it must be.
        """
        replies = self._client.complete(list(_bodies(self._client, draw, self._stop_strings)))
        completions: list[Completion] = []
        for prompt, reply in zip(draw.prompts, replies, strict=True):
            asked = Asked(
                prompt,
                draw.num_generations,
                draw.max_completion_length,
                draw.ends,
                self._vocabulary,
            )
            completions += read_reply(reply, asked)
        return _rollout(draw, completions)


def _bodies(client: EngineClient, draw: Draw, stop_strings: Sequence[str]) -> Iterator[Body]:
    """A request for each prompt.

    What a checkpoint's generation_config would change about the distribution is set to leave it
    alone. Both forms in which vLLM gives token ids are asked for.
    """
    for i, prompt in enumerate(draw.prompts):
        body: dict[str, Any] = {
            "model": client.model,
            "prompt": list(prompt),
            "n": draw.num_generations,
            "max_tokens": draw.max_completion_length,
            "temperature": 0.0 if draw.chance is None else draw.chance.temperature,
            "top_p": 1.0 if draw.chance is None else draw.chance.top_p,
            "top_k": (draw.chance.top_k or -1) if draw.chance else -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 1,
            "stop_token_ids": list(draw.ends.token_ids),
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if stop_strings:
            body |= {"stop": list(stop_strings), "include_stop_str_in_output": True}
        if draw.chance is not None:
            body["seed"] = _seed(draw.chance, i)
        yield body


def _seed(chance: Chance, prompt: int) -> int:
    """A seed for the completions of a prompt: a function of what `InverseCdf` depends on too."""
    where = np.array([chance.places[prompt]], dtype=np.uint64)
    sample = np.array([chance.first_sample], dtype=np.uint64)
    number = uniforms(chance.seed, chance.stream, chance.step, where, sample, 0, 1)
    return int(number[0, 0] * 2**_SEED_BITS)


def _rollout(draw: Draw, completions: Sequence[Completion]) -> Rollout:
    prompts = [prompt for prompt in draw.prompts for _ in range(draw.num_generations)]
    rollout = Rollout.from_lists(
        prompts,
        [each.ids for each in completions],
        draw.num_generations,
        [each.ended for each in completions],
    )
    drawn = [value for each in completions for value in each.logprobs]  # row by row, as the mask
    logprobs = torch.zeros(rollout.completion_mask.shape, dtype=torch.float64)
    logprobs[rollout.completion_mask] = torch.tensor(drawn, dtype=torch.float64)
    return replace(rollout, sampling_logprobs=logprobs)
