"""What the quick passes are measured by: the whole model on one unpadded sequence at a time.

On a handful of made-up tokens: prompts of two lengths, each with a longer and a shorter completion.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rl4lm.estimator.logprobs import token_logprobs
from rl4lm.model.policy import Policy
from rl4lm.randomness import Stream, uniforms
from rl4lm.types import Rollout

PROMPT_LENGTHS = (2, 7)
COMPLETION_LENGTHS = (5, 3)  # of each prompt


def made_up_rollout(policy: Policy) -> Rollout:
    """Random prompts of two lengths, each with a longer and a shorter random completion."""
    count = len(PROMPT_LENGTHS) * (1 + len(COMPLETION_LENGTHS))
    index = torch.arange(count).numpy().astype("uint64")
    longest = max(*PROMPT_LENGTHS, *COMPLETION_LENGTHS)
    draws = uniforms(0, Stream.PROBE, 0, index, 0 * index, 0, longest)
    ids = iter((draws * policy.module.vocabulary).astype("int64").tolist())
    prompts, completions = [], []
    for length in PROMPT_LENGTHS:
        prompt = next(ids)[:length]
        for size in COMPLETION_LENGTHS:
            prompts.append(prompt)
            completions.append(next(ids)[:size])
    return Rollout.from_lists(prompts, completions, num_generations=len(COMPLETION_LENGTHS))


def plain_logprobs(policy: Policy, rollout: Rollout) -> Tensor:
    """log π [B, T] by the whole model, without gradient."""
    with torch.no_grad():
        rows = [row.cpu() for row in plain_rows(policy, rollout)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def plain_rows(policy: Policy, rollout: Rollout) -> Iterator[Tensor]:
    """log π [T] of each completion in turn, with gradient where that is on."""
    prompts, group = rollout.prompt_lists(), rollout.num_generations
    for i, completion in enumerate(rollout.completion_lists()):
        prompt = prompts[i // group]
        ids = torch.tensor([prompt + completion], device=policy.device)
        with policy.module.precision():
            outputs = policy.module.model(input_ids=ids, use_cache=False)
        logits = outputs.logits[0, len(prompt) - 1 : -1]  # [T, V]
        targets = torch.tensor(completion, device=policy.device)  # [T]
        yield token_logprobs(logits, targets, temperature=1.0)


def gap(logprobs: Tensor, reference: Tensor) -> float:
    """Largest difference of two tables [B, T] of log-probs; nan where either holds one."""
    return float((logprobs - reference).abs().max())


def name_of(policy: Policy) -> str:
    """The class of the model, as messages have it."""
    return type(policy.module.causal_lm).__name__
