"""Options of TRL's configurations and of transformers' TrainingArguments, answered.

Every one of them is either an option of this project or has its reason here or in
`rl4lm.settings.refusals`; a test goes through the fields of the TRL that is installed. Beside each
stand the values that ask for nothing, with which a configuration written for TRL is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from rl4lm.settings import of_transformers, of_trl

_GROUPS = (*of_trl.GROUPS, *of_transformers.GROUPS)

# Option -> the reason why it is not taken, in words that follow "because".
REASONS: Mapping[str, str] = {name: reason for reason, names in _GROUPS for name in names}
# Option -> values that ask for nothing.
NOTHING: Mapping[str, tuple[object, ...]] = {
    name: values for _, names in _GROUPS for name, values in names.items()
}
