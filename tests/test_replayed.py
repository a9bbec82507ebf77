"""Decoding that is captured once per batch and replayed, against decoding that runs every token.

A capture on a GPU notes what was launched, with which memory, and nothing of what Python decided.
`Tape` does the same on a CPU, so that all but the capture itself is tested without a GPU.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl4lm.model import decoding
from rl4lm.model.module import PolicyModule
from rl4lm.model.preparing import inference_mode_of, make_policy
from rl4lm.passes.kvcache import StaticLayer
from rl4lm.passes.replayed import Front, Replay, cuda_graph
from rl4lm.preflight.probe import probe
from rl4lm.randomness import Stream
from rl4lm.sampling import loop as sampling
from rl4lm.sampling.drawing import InverseCdf
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.text import TextCodec
from rl4lm.types import Rollout

PROMPTS = [[3], [0, 4, 5, 6, 7, 8, 9, 10, 11], [0, 12, 0], [60, 61, 62, 63, 64], [2, 0]]
ENDS = [0, *range(12, 20)]
GROUP, LENGTH = 4, 30
SIZED_BY_VALUES = (torch.ops.aten.nonzero.default, torch.ops.aten._unique2.default)


class Tape(TorchDispatchMode):
    """The operations of one run and the tensors they worked on, to be done again on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in SIZED_BY_VALUES or not all(isinstance(x, Tensor) for x in tree_leaves(out)):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.done:
            for held, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if held.data_ptr() != new.data_ptr():
                    held.copy_(new)


class Captures:
    """Stands in for `cuda_graph`; what it has captured and how often that was replayed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.replays = 0

    def __call__(self, step):
        with Tape() as tape:
            logits = step()
        self.sizes.append(len(logits))
        logits.fill_(torch.nan)  # a capture computes nothing yet

        def replay() -> Tensor:
            self.replays += 1
            tape.replay()
            return logits

        return replay


@pytest.fixture
def captures(monkeypatch) -> Captures:
    """Captures on a CPU, in a loop that goes on as on a GPU."""
    captures = Captures()
    monkeypatch.setattr(decoding, "cuda_graph", captures)
    monkeypatch.setattr(sampling, "_COMPACT_SHARE", sampling._COMPACT_SHARE_ON_GPU)
    monkeypatch.setattr(sampling, "_without_gradient", lambda device: torch.no_grad())
    return captures


def policy_in(tiny, model, dtype: str):
    return make_policy(model, TextCodec(tiny.build_tokenizer()), dtype=dtype)


def sample(policy, replays: bool) -> Rollout:
    policy.module.packs, policy.module.replays = True, replays
    choose = InverseCdf(
        seed=1,
        stream=Stream.TRAINING,
        step=0,
        places=range(64),
        num_generations=GROUP,
        temperature=0.7,
    )
    with inference_mode_of(policy.module), policy.module.precision():
        return generate(
            policy,
            PROMPTS,
            choose,
            num_generations=GROUP,
            max_completion_length=LENGTH,
            ends=EndRule(ENDS),
        )


def gap(one: Rollout, other: Rollout) -> float:
    """Largest difference of log-probs; infinite where other tokens were drawn, or nan came out."""
    if one.completion_lists() != other.completion_lists():
        return float("inf")
    found = float((one.sampling_logprobs - other.sampling_logprobs).abs().max())
    return found if found == found else float("inf")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_replayed_decoding_draws_what_running_every_token_draws(
    architecture, dtype, tolerance, captures, tiny
):
    policy = tiny.build_policy(tiny.build_model(architecture, dtype=dtype))
    expected = sample(policy, replays=False)
    assert not captures.sizes
    assert gap(sample(policy, replays=True), expected) < tolerance
    assert 0 < int(expected.ended.sum()) < len(expected.ended), "both kinds of end must occur"
    assert len(captures.sizes) > 1, "rows must leave"
    assert captures.replays > len(captures.sizes) + 2


def test_each_size_of_a_batch_is_captured_once(captures, tiny):
    """And rows leave by halves, so that there are few sizes."""
    policy = tiny.build_policy(tiny.build_model("llama"))
    sample(policy, replays=True)
    assert captures.sizes[0] == len(PROMPTS) * GROUP
    assert all(after <= before / 2 for before, after in pairwise(captures.sizes))


def test_mixed_precision_is_replayed_too(captures, tiny):
    """bfloat16 sums of other shapes round otherwise, and may draw other tokens: each rollout is
    compared with the policy's own log-probs of what it drew."""
    policy = policy_in(tiny, tiny.build_model("llama", std=0.15), "bfloat16")
    gaps = {}
    for replays in (False, True):
        rollout = sample(policy, replays)
        logprobs = policy.completion_logprobs(rollout, 0.7)
        gaps[replays] = float((logprobs - rollout.sampling_logprobs).abs().max())
    assert captures.replays > 0
    assert gaps[True] < max(2 * gaps[False], 0.1)
    assert gaps[True] < 0.3


def test_a_rollout_in_one_context_of_precision_casts_each_weight_once(captures, tiny):
    """Autocast forgets its casts where the outermost context ends."""

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._to_copy.default and args[0] is head
            return func(*args, **(kwargs or {}))

    model = tiny.build_model("llama")
    head = model.lm_head.weight
    policy = policy_in(tiny, model, "bfloat16")
    with Casts() as casts:
        sample(policy, replays=False)
    assert casts.count == 1
    precision, outermost = policy.module.precision, iter([nullcontext()])
    policy.module.precision = lambda: next(outermost, None) or precision()
    with Casts() as casts:
        sample(policy, replays=False)
    assert casts.count > 1


def plant_a_stale_front(monkeypatch):
    show = Front.show

    def stale(self):
        at = self.at.clone()
        show(self)
        if self.length > 1:
            self.at.copy_(at)

    monkeypatch.setattr(Front, "show", stale)


def plant_places_that_are_not_written_in_sight(monkeypatch):
    show = Front.show
    monkeypatch.setattr(Front, "show", lambda self: (show(self), self.hidden.zero_()))


def plant_inputs_that_stay(monkeypatch):
    def stay(self, step, tokens, positions):
        given = (tokens, positions) if self._inputs is None else self._inputs
        return logits(self, step, *given)

    logits = Replay._logits
    monkeypatch.setattr(Replay, "_logits", stay)


def plant_room_that_holds_anything(monkeypatch):
    room = StaticLayer._room
    monkeypatch.setattr(StaticLayer, "_room", lambda self, like: room(self, like).fill_(torch.nan))


PLANTS = [
    plant_a_stale_front,
    plant_places_that_are_not_written_in_sight,
    plant_inputs_that_stay,
]


@pytest.mark.parametrize("plant", PLANTS)
def test_mistakes_in_what_is_replayed_would_be_noticed(plant, captures, monkeypatch, tiny):
    policy = tiny.build_policy(tiny.build_model("llama"))
    expected = sample(policy, replays=False)
    plant(monkeypatch)
    assert gap(sample(policy, replays=True), expected) > 0.01


@pytest.mark.parametrize("plant", [None, *PLANTS, plant_room_that_holds_anything])
def test_the_probe_keeps_replaying_only_where_it_gives_what_the_model_gives(
    plant, captures, monkeypatch, tiny
):
    policy = tiny.build_policy(tiny.build_model("llama"))
    if plant is not None:
        plant(monkeypatch)
    policy.module.replays = True
    notes = probe(policy)
    assert captures.replays >= 3
    if plant is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith("LlamaForCausalLM: log-probs of replayed decoding are off by ")
    assert policy.module.packs
    assert policy.module.replays == (plant is None)


def test_what_cannot_be_captured_is_run(captures, monkeypatch, tiny):
    """Here a layer that waits for the device, as some do that look at a value."""
    policy = tiny.build_policy(tiny.build_model("llama"))
    expected = sample(policy, replays=False)
    norm = policy.module.causal_lm.model.norm
    norm.register_forward_hook(lambda module, inputs, output: output * float(output[0, 0, 0].ne(7)))
    policy.module.replays = True
    assert probe(policy) == [
        "LlamaForCausalLM: its decoding cannot be captured (operation not permitted when stream "
        "is capturing); every token's kernels are launched one by one"
    ]
    assert captures.sizes == []
    assert not policy.module.replays
    assert gap(sample(policy, policy.module.replays), expected) == 0


def test_nothing_is_replayed_without_the_fast_path(captures, tiny):
    policy = tiny.build_policy(tiny.build_model("gpt2"))
    assert not policy.module.replays, "not on a CPU"
    policy.module.replays = True
    assert probe(policy, fast_path=False) == []
    assert not policy.module.replays
    assert captures.sizes == []


def test_a_copy_of_a_policy_replays_as_the_policy_does(tiny):
    policy = tiny.build_policy(tiny.build_model("gpt2"))
    for replays in (True, False):
        policy.module.replays = replays
        assert policy.frozen_copy().module.replays is replays
        assert copy.deepcopy(policy.module).replays is replays


def test_writing_down_a_token_does_not_wait_for_the_device():
    """The part of the loop that runs for every token, at the end of its captured step."""
    choose = InverseCdf(
        seed=1,
        stream=Stream.TRAINING,
        step=0,
        places=range(64),
        num_generations=2,
        temperature=0.7,
    )
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    ends = EndRule([0, 1])
    batch = sampling._Batch.start(torch.ones(6, 3, dtype=torch.bool), 4, logits, ends)
    batch.record(choose, logits.clone(), 0)
    with Tape():
        batch.record(choose, logits.clone(), 1)
    with pytest.raises(RuntimeError, match="not permitted"), Tape():
        batch.tell(lambda rows, ids: None)


def test_a_full_cache_is_named(captures, tiny):
    front = Front(1, torch.device("cpu"))
    replay = Replay(captures, front)
    inputs = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    replay(lambda tokens, positions: tokens + positions, *inputs)
    with pytest.raises(IndexError, match="a cache made for 1 drawn tokens is full"):
        replay(lambda tokens, positions: tokens + positions, *inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("bfloat16", 0.25)], ids=["f64", "mixed"]
)
def test_a_cuda_graph_draws_what_running_every_token_draws(
    architecture, dtype, tolerance, monkeypatch, tiny
):
    assert torch.cuda.is_available()
    sizes = []

    def counted(step):
        replay = cuda_graph(step)
        sizes.append(len(replay()))  # once more does no harm: it writes the same in the same place
        return replay

    monkeypatch.setattr(decoding, "cuda_graph", counted)
    monkeypatch.setattr(sampling, "_CHECK_EVERY_ON_GPU", 2)
    exact = torch.float64 if dtype == "float64" else torch.float32
    policy = policy_in(tiny, tiny.build_model(architecture, dtype=exact).cuda(), dtype)
    assert policy.module.replays
    assert PolicyModule(policy.module.model).replays
    assert probe(policy) == []
    assert policy.module.replays
    expected = sample(policy, replays=False)
    sizes.clear()
    for _ in range(3):  # graphs of a rollout make room for those of the next
        found = sample(policy, replays=True)
        if dtype == "float64":
            assert gap(found, expected) < tolerance
        again = policy.completion_logprobs(found, 0.7)
        assert float((found.sampling_logprobs - again).abs().max()) < max(tolerance, 1e-9)
    assert len(sizes) > 3
