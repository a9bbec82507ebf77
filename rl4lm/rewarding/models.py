"""A sequence classifier as a reward: ``r = logit(prompt, completion)``, or a label's probability.

Named as a folder or a hub id, with ``#label`` where it knows several; or handed over as a model. It
runs in the trainer's process, whole in each of several, without gradient. Imports torch when it is
first asked, so that a misspelt name is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4lm.errors import RewardError
from rl4lm.rewarding.classifiers import (
    check_folder,
    check_kind,
    load_classifier,
    load_tokenizer,
    read_out,
    token_limit,
)

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS_AT_ONCE = 16_384  # of a batch, padding included


class RewardModel:
    """A batch reward: one float per completion, from a model that reads prompt and completion."""

    def __init__(self, name: str, label: str = "", tokenizer: Any = None) -> None:
        """Take a checkpoint by name; its weights are read when it is first asked.

        Args:
            name: a folder, or a hub id.
            label: which one's probability the reward is, by name or number, its logit with
                ``,logit`` behind it; empty for a model with one output.
            tokenizer: used instead of the checkpoint's.

        Raises:
            RewardError: there is no such folder, or it holds another kind of model.
        """
        self.name = name
        self.__name__ = Path(name).name + (f"-{label.replace(',', '-')}" if label else "")
        self._label = label
        self._tokenizer = tokenizer
        self._model: Any = None
        self._read_out: Callable[[Tensor], Tensor] | None = None
        check_folder(name)

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None) -> RewardModel:
        """A model object as a reward; its tokenizer is read from where the model came from.

        Raises:
            RewardError: it is a model of another kind.
        """
        check_kind(type(model).__name__, [type(model).__name__])
        reward = cls.__new__(cls)
        reward.name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        reward.__name__ = Path(reward.name).name
        reward._label, reward._tokenizer, reward._read_out = "", tokenizer, None
        reward._model = model
        return reward

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None],
    ) -> list[float]:
        """Score B completions; rows that are too long are cut on the left, and counted.

        Raises:
            RewardError: the model cannot be loaded, or it cannot read these rows.
        """
        if self._read_out is None:
            self._prepare()
        rows = self._encoded(prompts, completions)
        limit = token_limit(self._model.config, self._tokenizer)
        log_metric("texts_cut", sum(len(row) > limit for row in rows))
        return self._scores([self._cut(row, limit) for row in rows])

    def _prepare(self) -> None:
        import torch
        from accelerate import PartialState

        # As for the policy: a graphics card where there is CUDA, else the CPU.
        cuda = torch.cuda.is_available()
        device = PartialState().device if cuda else torch.device("cpu")
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name)
        if self._model is None:
            self._model = load_classifier(self.name, "auto" if cuda else torch.float32)
        self._model.to(device).eval()
        config = self._model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = self._tokenizer.pad_token_id
        self._read_out = read_out(self.name, self._model.config, self._label)

    def _encoded(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Token ids of each row: messages through the chat template, text one after the other."""
        rows = zip(prompts, completions, strict=True)
        if all(isinstance(prompt, str) for prompt in prompts):
            found = self._tokenizer([prompt + completion for prompt, completion in rows])
        elif getattr(self._tokenizer, "chat_template", None) is None:
            raise RewardError(
                f"the prompts are chat messages, but the tokenizer of the reward model "
                f"{self.name!r} has no chat template; hand over one that has, in "
                "reward_processing_classes, or give plain text prompts"
            )
        else:
            apply = self._tokenizer.apply_chat_template
            texts = [apply([*prompt, *reply], tokenize=False) for prompt, reply in rows]
            # The template has written the special tokens already.
            found = self._tokenizer(texts, add_special_tokens=False)
        ids: list[list[int]] = found["input_ids"]
        self._check_ids(ids)
        return ids

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        size = self._model.get_input_embeddings().weight.shape[0]
        if not all(rows):
            raise RewardError(
                f"a prompt and its completion have no tokens for the reward model {self.name!r}; "
                "drop the row"
            )
        largest = max(max(row) for row in rows)
        if largest >= size:
            raise RewardError(
                f"the tokenizer of the reward model {self.name!r} makes token id {largest}, and "
                f"the model knows ids below {size}; give the tokenizer that belongs to it"
            )

    def _cut(self, row: list[int], limit: int) -> list[int]:
        """At most `limit` tokens: the end, which is judged, and the special token that begins."""
        if len(row) <= limit:
            return row
        first = row[:1] if row[0] in self._tokenizer.all_special_ids else []
        return first + row[len(row) - limit + len(first) :]

    def _scores(self, rows: Sequence[list[int]]) -> list[float]:
        import torch

        scores = [0.0] * len(rows)
        pad = self._model.config.get_text_config().pad_token_id
        device = next(self._model.parameters()).device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for batch in _batches([len(row) for row in rows], alone=pad is None):
                longest = max(len(rows[i]) for i in batch)
                ids = [rows[i] + [pad] * (longest - len(rows[i])) for i in batch]
                mask = [[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in batch]
                logits = self._model(
                    input_ids=torch.tensor(ids, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                ).logits
                for i, value in zip(batch, self._checked(logits).tolist(), strict=True):
                    scores[i] = value
        return scores

    def _checked(self, logits: Tensor) -> Tensor:
        """What is read out of logits [b, labels]: [b]."""
        assert self._read_out is not None
        if logits.dim() != 2:
            raise RewardError(
                f"the reward model {self.name!r} returns logits of shape {list(logits.shape)}; "
                "expected one row of them for each text, as AutoModelForSequenceClassification has"
            )
        return self._read_out(logits.float())


def names_model(name: str) -> bool:
    """Whether the name of a reward is that of a model: a folder, or a hub id with its owner."""
    place = name.partition("#")[0]
    function = ":" in place or place.endswith(".py")
    return not function and ("/" in place or Path(place).is_dir())


@lru_cache(maxsize=16)  # one copy, however often it is asked for
def named_model(name: str) -> RewardModel:
    """The reward model of a name such as ``./folder``, ``owner/model`` or ``owner/model#label``."""
    place, _, label = name.partition("#")
    return RewardModel(place, label)


def listed(reward_funcs: Any, processing_classes: Any = None) -> list[Any] | None:
    """The rewards that were handed over as a list, models among them as rewards; None for none.

    Args:
        reward_funcs: one or several functions, names or models.
        processing_classes: None, or for each its tokenizer; None for functions.

    Raises:
        RewardError: not one for each, or a model of another kind.
    """
    from torch import nn

    if reward_funcs is None:
        return None
    single = isinstance(reward_funcs, str) or callable(reward_funcs)
    funcs = [reward_funcs] if single else list(reward_funcs)
    several = isinstance(processing_classes, (list, tuple))
    tokenizers = list(processing_classes) if several else [processing_classes] * len(funcs)
    if len(tokenizers) != len(funcs) or (
        processing_classes is not None and len(funcs) > 1 > several
    ):
        raise RewardError(
            f"reward_processing_classes must have one entry for each of the {len(funcs)} "
            "reward_funcs, None for a function"
        )
    return [
        RewardModel.of(each, tokenizer)
        if isinstance(each, nn.Module)
        else RewardModel(*_split(each), tokenizer)
        if tokenizer is not None and isinstance(each, str) and names_model(each)
        else each
        for each, tokenizer in zip(funcs, tokenizers, strict=True)
    ]


def _split(name: str) -> tuple[str, str]:
    place, _, label = name.partition("#")
    return place, label


def _batches(lengths: Sequence[int], alone: bool) -> Iterator[list[int]]:
    """Rows of about the same length, longest first, within the token budget; or each alone."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (alone or (len(batch) + 1) * lengths[batch[0]] > _TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
