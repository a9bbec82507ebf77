"""Rewards: which answers are good.

A reward is a callable that scores a batch of completions. It is called with keywords, once per
process and step, over all rows in order:

    reward(prompts=[...], completions=[...], **columns) -> list[float | None]

`columns` are the data's other columns by name, each a list as long as `completions`. A function
that names them (or takes `**kwargs`) also gets `completion_ids`, `trainer_state`, `log_extra` and
`log_metric`. The result has one value per completion: a float, or `None` where the reward does not
apply. A reward may be `async`. Rewards written for TRL work unchanged. `per_sample` turns a
function of one completion into such a batch reward.

Two rules: a wrong answer is 0.0, and a broken grader or a broken reference answer is an exception.

Only the standard library is needed here, and nothing of the package that does the training.
"""

from __future__ import annotations

from rewards.adapters import Graded, per_sample

__all__ = ["Graded", "per_sample"]
