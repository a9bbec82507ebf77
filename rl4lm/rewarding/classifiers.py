"""Read a sequence classifier: its configuration, tokenizer and weights, what its outputs mean.

Imports torch and transformers only where something is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4lm.errors import RewardError, did_you_mean, first_line

if TYPE_CHECKING:
    from torch import Tensor

_NO_LIMIT = 1 << 24  # what tokenizers without a limit call their limit is far above it


def check_folder(name: str) -> None:
    """Refuse a folder that is not there or not a classifier's; a hub id is looked at later.

    Raises:
        RewardError: says which.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise RewardError(f"there is no folder {name!r} of a reward model")
        return
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(
            f"the folder {name!r} of a reward model has no config.json that can be read: "
            f"{first_line(error)}; give a directory written by save_pretrained, or name a function "
            "as package.module:function"
        ) from error
    check_kind(name, config.get("architectures") or [])


def check_kind(name: str, architectures: Sequence[str]) -> None:
    """Refuse a model that says that it is something else than a sequence classifier."""
    if architectures and not any("SequenceClassification" in kind for kind in architectures):
        raise RewardError(
            f"the reward model {name!r} is a {architectures[0]}, not a sequence classifier; give a "
            "model that AutoModelForSequenceClassification loads, or a function"
        )


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        RewardError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # every tokenizer has checks of its own
        raise RewardError(
            f"no tokenizer could be read for the reward model {name!r}: {first_line(error)}; save "
            "one beside it, or hand it over in reward_processing_classes"
        ) from error


def load_classifier(name: str, dtype: Any) -> Any:
    """The model of a checkpoint, in a precision or, with ``auto``, in its own.

    Raises:
        RewardError: it cannot be read, or it is no whole classifier.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(name)
        check_kind(name, config.architectures or [])
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True
        )
    except RewardError:
        raise
    except Exception as error:  # every architecture has checks of its own
        raise RewardError(
            f"no reward model could be read from {name!r}: {first_line(error)}"
        ) from error
    if report["missing_keys"]:
        raise RewardError(
            f"the reward model {name!r} lacks weights ({sorted(report['missing_keys'])[0]}), which "
            "would be made up at random; give a checkpoint of the whole classifier"
        )
    return model


def read_out(name: str, config: Any, label: str) -> Callable[[Tensor], Tensor]:
    """What turns logits [b, labels] into rewards [b].

    Args:
        name: of the model, for messages.
        config: its configuration.
        label: the name or number of one, with ``,logit`` behind it for its logit instead of its
            probability; empty for the logit of a model with one output.

    Raises:
        RewardError: no label where there are several, or one that it does not have.
    """
    wanted, _, kind = label.partition(",")
    labels = {str(text): int(place) for place, text in config.id2label.items()}
    if not wanted:
        if config.num_labels != 1:
            raise RewardError(
                f"the reward model {name!r} has {config.num_labels} labels ({', '.join(labels)}); "
                f"say which one is rewarded: {name}#{next(iter(labels))}"
            )
        return lambda logits: logits[:, 0]
    place = labels.get(wanted, int(wanted) if wanted.isdecimal() else -1)
    if not 0 <= place < config.num_labels or kind not in ("", "logit"):
        raise RewardError(
            f"the reward model {name!r} has no label {label!r}{did_you_mean(wanted, labels)}; it "
            f"has {', '.join(labels)}, each also with ',logit' behind it"
        )
    if kind:
        return lambda logits: logits[:, place]
    if config.num_labels == 1 or config.problem_type == "multi_label_classification":
        return lambda logits: logits[:, place].sigmoid()
    return lambda logits: logits.softmax(dim=1)[:, place]


def token_limit(config: Any, tokenizer: Any) -> int:
    """Tokens that the model can read."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [positions, getattr(tokenizer, "model_max_length", None), _NO_LIMIT]
    return min(limit for limit in limits if limit)
