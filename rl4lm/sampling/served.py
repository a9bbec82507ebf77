"""From the options to what draws completions: the policy in this process, or a server.

Also what is read of a checkpoint whose weights are the server's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import PromptData
from rl4lm.data.fitting import check_prompts, check_vocabulary
from rl4lm.model import loading
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import end_token_ids
from rl4lm.processes.sharding import Shards
from rl4lm.sampling.engine import EngineSampler, check_engine, engine_of
from rl4lm.sampling.sampler import PolicySampler, Sampler
from rl4lm.text import TextCodec


@dataclass(frozen=True)
class ServedModel:
    """What is known here of a model whose weights a server holds."""

    codec: TextCodec
    end_token_ids: Sequence[int]
    vocabulary: int  # V, rows of the head
    shards: Shards = field(default_factory=Shards)  # none: there are no weights here


def check_server(config: ReinforceConfig, temperature: float | None) -> None:
    """Try the server of the options, where they name one, before anything expensive.

    Args:
        config: the options.
        temperature: that completions will be drawn at; None where they will be greedy.

    Raises:
        ConfigError: the server cannot be used for this.
    """
    server = engine_of(config)
    if server is not None:
        check_engine(server, temperature)


def make_sampler(config: ReinforceConfig, model: Policy | ServedModel) -> Sampler:
    """What draws completions: the server of the options, else the policy in this process."""
    server = engine_of(config)
    if server is not None:
        size = model.module.vocabulary if isinstance(model, Policy) else model.vocabulary
        return EngineSampler(server, size, config.stop_strings)
    assert isinstance(model, Policy), "weights are left at a server only where there is one"
    return PolicySampler(model)


def read_served(config: ReinforceConfig, data: Sequence[PromptData]) -> ServedModel:
    """Read everything of a checkpoint but its weights, and check that the prompts fit it.

    Raises:
        ModelError, DataError: what cannot be loaded or does not fit.
    """
    source = loading.open_model(
        config.model_name_or_path, trust_remote_code=config.trust_remote_code
    )
    codec = TextCodec(source.tokenizer, config.template_variables)
    largest = check_prompts(config, codec, source.context_length, data)
    model = loading.without_weights(source)
    check_vocabulary(model, largest, config.stop_token_ids)
    size = model.get_output_embeddings().weight.shape[0]
    ends = end_token_ids(model, source.tokenizer, config.stop_token_ids, size)
    return ServedModel(codec, ends, size)
