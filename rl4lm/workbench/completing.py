"""Complete the prompts of rows with a model; make token ids of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl4lm.assembly import assemble_policy, end_rule
from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import PromptData
from rl4lm.data.rowfile import Row
from rl4lm.model.loading import open_tokenizer
from rl4lm.processes.world import World
from rl4lm.randomness import Stream
from rl4lm.sampling.sampler import Chance, Draw, PolicySampler
from rl4lm.types import Rollout
from rl4lm.workbench.bench import Ids
from rl4lm.workbench.stages import NOBODY, Stages

_BATCH_PROMPTS = 64  # prompts completed at once
_OF_A_COMPLETION = ("completion", "completion_ids", "truncated", "sample", "reward", "detail")


def complete_rows(
    config: ReinforceConfig, rows: Sequence[Row], stages: Stages = NOBODY
) -> tuple[list[Row], Ids]:
    """Sample `num_generations` completions for every row's prompt.

    Args:
        config: model, length, temperature, ends, seed. The same options give the same completions.
        rows: with `prompt`, and columns; what they say of another completion is dropped.
        stages: told how many prompts are completed.

    Returns:
        A row for every completion, with `completion`, `completion_ids` (the end token included),
        `truncated` and `sample`; and what makes ids of other texts, with the model's tokenizer.

    Raises:
        ModelError, DataError: the model cannot be loaded, or a prompt does not fit it.
    """
    bare = [{n: v for n, v in row.items() if n not in _OF_A_COMPLETION} for row in rows]
    data = PromptData(bare, "prompt", "given")
    world = World()
    world.use_threads(config.torch_threads)
    policy, _ = assemble_policy(config, None, None, None, [data], world)
    sampler, ends = PolicySampler(policy), end_rule(config, policy)
    completed: list[Row] = []
    stages.begin(f"completing {len(bare):,} prompts")
    for start in range(0, len(bare), _BATCH_PROMPTS):
        places = range(start, min(start + _BATCH_PROMPTS, len(bare)))
        prompts = [example.prompt for example in data.examples(places)]
        rollout = sampler(
            Draw(
                prompts=policy.codec.encode(prompts),
                num_generations=config.num_generations,
                max_completion_length=config.max_completion_length,
                ends=ends,
                chance=Chance(config.seed, Stream.EVALUATION, 0, places, config.temperature),
            )
        )
        texts = policy.codec.decode(rollout.completion_lists())
        completed += _with_completions([bare[i] for i in places], rollout, texts)
        stages.told(places.stop, len(bare))
    return completed, _encode_with(policy.codec.tokenizer)


def _with_completions(
    rows: Sequence[Mapping[str, Any]], rollout: Rollout, texts: Sequence[str]
) -> list[Row]:
    group, ids = rollout.num_generations, rollout.completion_lists()
    return [
        {
            **rows[i // group],
            "completion": text,
            "completion_ids": ids[i],
            "truncated": not bool(rollout.ended[i]),
            "sample": i % group,
        }
        for i, text in enumerate(texts)
    ]


def tokenizer_ids(name: str, trust_remote_code: bool) -> Ids:
    """What makes token ids of texts, by the tokenizer of a model; no special tokens are added.

    Raises:
        ModelError: no such tokenizer.
    """
    return _encode_with(open_tokenizer(name, trust_remote_code=trust_remote_code))


def _encode_with(tokenizer: Any) -> Ids:
    return lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"]
