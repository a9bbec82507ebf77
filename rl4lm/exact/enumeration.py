"""A problem so small that everything about it can be written down: the ground truth of `verify`.

A vocabulary of three tokens and completions of at most three leave 15 completions of a prompt.
Their probabilities, rewards and derivatives are computed here by autograd through the bare model,
one unpadded sequence at a time in float64. Nothing of the training code is used: not its
log-probs, not its masks, not its losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 3
END = 0  # also the padding id: masks must not be recomputed from ids
PROMPTS = ("t1", "t2 t1 t2")  # of different lengths, so that one of them is padded
_PROMPT_IDS = ((1,), (2, 1, 2))


def tiny_model(seed: int) -> Any:
    """A GPT-2 of one layer in float64: its learned positions show where padding shifts them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=END,
        eos_token_id=END,
        tie_word_embeddings=False,
    )  # its dropout of 0.1 is left on, for the trainer to switch off
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).double()
    perturb(model.parameters(), seed, 0.4)
    return model


def perturb(parameters: Any, seed: int, size: float) -> None:
    """Add normal noise to parameters, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter.device))


def tiny_tokenizer() -> Any:
    """Words "t0" to "t2" for the ids 0 to 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token=f"t{END}")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"t{END}", pad_token=f"t{END}"
    )


def all_completions(length: int) -> list[tuple[int, ...]]:
    """Every completion of at most `length` tokens: ended by the end token, or cut off."""
    inner = [token for token in range(VOCABULARY) if token != END]
    ended = [(*tokens, END) for k in range(length) for tokens in itertools.product(inner, repeat=k)]
    return [*ended, *itertools.product(inner, repeat=length)]


@dataclass(frozen=True)
class Rewards:
    """A reward for every completion of every prompt, drawn once: each is another number."""

    per_token: Tensor  # float64 [P, n, T], 0 behind a completion
    completions: Sequence[tuple[int, ...]]

    @classmethod
    def draw(cls, completions: Sequence[tuple[int, ...]], seed: int) -> Rewards:
        """Draw normal rewards for every token, with a mean that no baseline would miss.

        A token's reward depends on the tokens up to it and on no later one: returns-to-go leave
        out what was paid before a token, as something that the token could not change.
        """
        generator = torch.Generator().manual_seed(seed)
        width = max(map(len, completions))
        table = torch.zeros(len(PROMPTS), len(completions), width, dtype=torch.float64)
        paid: dict[tuple[int, ...], Tensor] = {}  # prefix -> [P]
        for o, ids in enumerate(completions):
            for t in range(len(ids)):
                noise = torch.randn(len(PROMPTS), generator=generator, dtype=torch.float64)
                table[:, o, t] = paid.setdefault(ids[: t + 1], 0.5 + noise)
        return cls(table, completions)

    def whole(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each completion, as a reward function gives it."""
        return [sum(row) for row in self.by_token(prompts, completion_ids)]

    def by_token(
        self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """What each token of each completion is paid, as a reward function gives it."""
        places = [
            (PROMPTS.index(q), self.completions.index(tuple(ids)), len(ids))
            for q, ids in zip(prompts, completion_ids, strict=True)
        ]
        return [self.per_token[p, o, :length].tolist() for p, o, length in places]


@dataclass(frozen=True)
class Truth:
    """Everything about the policy, exactly. n completions of each of P prompts, D weights."""

    completions: Sequence[tuple[int, ...]]
    mask: Tensor  # bool [n, T]
    logprobs: Tensor  # float64 [P, n, T], 0 behind a completion
    reference: Tensor  # float64 [P, n, T], of the reference policy
    entropies: Tensor  # float64 [P, n, T]
    slopes: Tensor  # float64 [P, n, T, D], ∇ log π of each token
    entropy_slopes: Tensor  # float64 [P, n, T, D], ∇ H of the distribution of each token

    @property
    def probability(self) -> Tensor:
        """π(o|q), float64 [P, n]; each row sums to 1."""
        return self.logprobs.sum(dim=-1).exp()

    @property
    def log_ratio(self) -> Tensor:
        """log π(o|q) - log π_ref(o|q), float64 [P, n]."""
        return (self.logprobs - self.reference).sum(dim=-1)

    @property
    def scores(self) -> Tensor:
        """∇ log π(o|q), float64 [P, n, D]."""
        return self.slopes.sum(dim=2)


def measure(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    reference: nn.Module,
    completions: Sequence[tuple[int, ...]],
    temperature: float,
) -> Truth:
    """Write a policy down: every completion of every prompt, alone and without padding.

    Args:
        model: the bare model of `transformers` or `peft`, dropout off.
        parameters: those that derivatives are taken by, in order.
        reference: the bare model that the divergence is measured from.
        completions: of `all_completions`.
        temperature: divides the logits.
    """
    leaves = list(parameters.values())
    size = sum(leaf.numel() for leaf in leaves)
    shape = (len(PROMPTS), len(completions), max(map(len, completions)))
    numbers = {k: torch.zeros(shape, dtype=torch.float64) for k in ("pi", "ref", "entropy")}
    slopes = {k: torch.zeros(*shape, size, dtype=torch.float64) for k in ("pi", "entropy")}
    for p, o in itertools.product(range(shape[0]), range(shape[1])):
        ids, length = (_PROMPT_IDS[p], completions[o]), len(completions[o])
        with torch.no_grad():
            numbers["ref"][p, o, :length] = _read(reference, *ids, temperature)[0]
        chosen, entropies = _read(model, *ids, temperature)
        for name, values in (("pi", chosen), ("entropy", entropies)):
            numbers[name][p, o, :length] = values.detach()
            slopes[name][p, o, :length] = torch.stack(list(_gradients(values, leaves)))
    lengths = torch.tensor([len(ids) for ids in completions])
    return Truth(
        completions=completions,
        mask=torch.arange(shape[2]) < lengths[:, None],
        logprobs=numbers["pi"],
        reference=numbers["ref"],
        entropies=numbers["entropy"],
        slopes=slopes["pi"],
        entropy_slopes=slopes["entropy"],
    )


def _read(
    model: nn.Module, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> tuple[Tensor, Tensor]:
    """log π of each token of a completion, and the entropies they were drawn with: twice [T]."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    rows = logits[len(prompt) - 1 : -1] / temperature  # [T, V]
    log_pi = rows - rows.logsumexp(dim=-1, keepdim=True)
    chosen = torch.stack([log_pi[t, token] for t, token in enumerate(completion)])
    return chosen, -(log_pi.exp() * log_pi).sum(dim=-1)


def _gradients(values: Tensor, leaves: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """The gradient [D] of each of several values [T]."""
    for value in values:
        parts = torch.autograd.grad(
            value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        yield torch.cat([part.flatten() for part in parts])


def gradient_of_expectation(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    completions: Sequence[tuple[int, ...]],
    temperature: float,
    values: Any,
) -> Tensor:
    """∇ (1/P) Σ_q Σ_o π(o|q) · value, differentiated through the probabilities as they stand.

    Args:
        model: the bare model.
        parameters: those that the derivative is taken by.
        completions: of `all_completions`.
        temperature: divides the logits.
        values: (prompt index, completion index, log π(o|q)) -> a value, which may depend on log π
            and is differentiated too.

    Returns:
        float64 [D].
    """
    total = torch.zeros((), dtype=torch.float64)
    for p, o in itertools.product(range(len(PROMPTS)), range(len(completions))):
        log_pi = _read(model, _PROMPT_IDS[p], completions[o], temperature)[0].sum()
        total = total + log_pi.exp() * values(p, o, log_pi)
    parts = torch.autograd.grad(
        total / len(PROMPTS),
        list(parameters.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([part.flatten() for part in parts])
