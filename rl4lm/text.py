"""Between text and token ids: the tokenizer with the rules that training needs.

Tokens in, tokens out: a completion's ids are never made from its text. Text is for rewards and for
people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rl4lm.errors import DataError
from rl4lm.types import Message

Prompt = str | Sequence[Message]


class TextCodec:
    """A `transformers` tokenizer, and how prompts are written with it."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: of the model.
            variables: what its chat template is told besides the messages.
        """
        self.tokenizer = tokenizer
        self._variables = variables

    def encode(
        self, prompts: Sequence[Prompt], names: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Token ids of each prompt: text as it stands, chat messages through the chat template.

        After messages the template opens the assistant's turn. Where the last message is the
        assistant's own, it is the beginning of the completion and stays open.

        Args:
            prompts: text, or chat messages.
            names: what messages call each prompt; None where its text says enough.

        Raises:
            DataError: a prompt without tokens, or that the tokenizer or its chat template cannot
                take.
        """
        chat = [not isinstance(prompt, str) for prompt in prompts]
        texts = [p if isinstance(p, str) else self._render(p) for p in prompts]
        plain = iter(self._plain_ids([t for t, c in zip(texts, chat, strict=True) if not c]))
        # The template has written the special tokens already; a second BOS would be a new prompt.
        rendered = iter(self._bare_ids([t for t, c in zip(texts, chat, strict=True) if c]))
        ids = [next(rendered) if is_chat else next(plain) for is_chat in chat]
        for i, row in enumerate(ids):
            if not row:
                name = f"{names[i]}, " if names else ""
                raise DataError(
                    f"the prompt {name}{prompts[i]!r:.100}, has no tokens; a completion needs at "
                    "least one token to follow: drop the row, or give the prompt a first token"
                )
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, special tokens left out."""
        return self.tokenizer.batch_decode(
            [list(row) for row in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _bare_ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair, for instance
            bad = next((text for text in texts if not text.isprintable()), texts[0])
            raise DataError(
                f"the tokenizer cannot read a prompt, perhaps {bad!r:.100}: it takes valid Unicode "
                "text; mend the prompt or drop the row"
            ) from error

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """Ids with the tokenizer's special tokens, but for an end token after the text.

        Some tokenizers close every text with their end token; a prompt is not closed. A text that
        begins with the first token by itself, as one that a chat template has made, gets no second.
        """
        if not texts:
            return []
        bare = self._bare_ids(texts)
        full = self.tokenizer(texts)["input_ids"]
        first, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = []
        for row, plain in zip(full, bare, strict=True):
            doubled = plain[:1] == [first] and row[: len(plain) + 1] == [first, *plain]
            closed = row and row[-1] == end and row[-1:] != plain[-1:] and plain
            ids.append(row[int(doubled) : -1 if closed else None])
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise DataError(
                "the prompts are chat messages, but the tokenizer has no chat template; give plain "
                "text prompts (as_chat and system_prompt make chat of them), or a model whose "
                "tokenizer has a template"
            )
        from jinja2 import TemplateError

        begun = messages[-1]["role"] == "assistant"
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                **self._variables,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the tokenizer's chat template does not take the prompt {messages!r:.200}: "
                f"{type(error).__name__}: {error}; mend the messages (roles and their order), or "
                "the template"
            ) from error
