"""REINFORCE in forty lines, as a competent person would write it with `model.generate`.

Nothing here is tuned, and nothing is wasted that one would see at a glance: logits are asked for on
completion positions only, micro-batches bound the memory, and the loss is a plain log-softmax.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from measuring import Parts
from shapes import Shape, hashed
from torch import Tensor


class HandRolled:
    """A model, its optimizer, and a step on all prompts."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: list[str],
        shape: Shape,
        micro: int,
        learning_rate: float,
        autocast: AbstractContextManager[Any],
        parts: Parts,
    ) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._shape, self._micro, self._autocast, self._parts = shape, micro, autocast, parts
        trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        self._trained = trained

    def step(self) -> float:
        """One update; returns the mean length of the completions."""
        repeated = [p for p in self._prompts for _ in range(self._shape.samples)]
        device = self._model.device
        inputs = self._tokenizer(repeated, return_tensors="pt", padding=True, padding_side="left")
        inputs = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
        with self._parts.book("sampling"), torch.no_grad(), self._autocast:
            ids = self._model.generate(  # [B, Q + T]
                **inputs,
                do_sample=True,
                top_k=0,
                max_new_tokens=self._shape.new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=self._tokenizer.eos_token_id,
            )
        with self._parts.book("scoring"):
            completions = ids[:, inputs["input_ids"].shape[1] :]
            ends = completions == self._tokenizer.eos_token_id
            mask = ends.cumsum(dim=1) - ends.long() == 0  # [B, T], the end token included
            texts = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
            rewards = torch.tensor(hashed(texts)).view(-1, self._shape.samples)
        baseline = rewards.mean(dim=int(self._shape.samples > 1), keepdim=True)
        advantages = (rewards - baseline).flatten().to(device)
        attention = torch.cat([inputs["attention_mask"], mask.long()], dim=1)
        self._differentiate(ids, attention, mask, advantages)
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(mask.sum() / len(mask))

    def _differentiate(
        self, ids: Tensor, attention: Tensor, mask: Tensor, advantages: Tensor
    ) -> None:
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        count = mask.shape[1]
        for start in range(0, len(ids), self._micro):
            rows = slice(start, start + self._micro)
            with self._parts.book("forward"), self._autocast:
                logits = self._model(
                    input_ids=ids[rows],
                    attention_mask=attention[rows],
                    position_ids=positions[rows],
                    logits_to_keep=count + 1,
                ).logits[:, :-1]  # [b, T, V]
                targets = ids[rows, -count:, None]
                logprobs = logits.float().log_softmax(dim=-1).gather(-1, targets).squeeze(-1)
                sums = (logprobs * mask[rows]).sum(dim=1)
                loss = -(advantages[rows] * sums).sum() / len(ids)
            with self._parts.book("backward"):
                loss.backward()
