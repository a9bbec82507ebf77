"""What training needs where another policy draws the completions, from the options alone.

A server's weights do not follow the training, so that every completion must be weighed by how much
likelier it is here than there. What has no such weight is refused, and not averaged over the wrong
distribution.
"""

from __future__ import annotations

from collections.abc import Iterator

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError


def check_off_policy(config: ReinforceConfig) -> None:
    """Refuse to train on a server's completions without the weights that they need.

    Raises:
        ConfigError: each thing that cannot be, with the reason.
    """
    problems = list(_problems(config)) if config.sampler_url is not None else []
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(config: ReinforceConfig) -> Iterator[str]:
    if config.epsilon is None:
        yield (
            "sampler_url: the server draws from weights that do not follow the training, and "
            "without the importance ratio the gradient would be that of another policy; set "
            "epsilon, the range of the ratio (0.2 is usual; a large one, such as 1000, clips "
            "nothing)"
        )
    if config.beta and config.kl_in in ("loss", "grpo_k3"):
        yield (
            f"sampler_url with kl_in={config.kl_in}: a KL in the loss is averaged over the "
            "server's completions without the importance ratio; use kl_in=reward, which has it"
        )
    if config.entropy_coef:
        yield (
            f"sampler_url with entropy_coef={config.entropy_coef:g}: the slope of the entropy is "
            "averaged over the server's completions without the importance ratio; leave it out"
        )
