"""Further prompts in the place of those without an advantage: what that is the gradient of."""

from __future__ import annotations

import itertools

import pytest
import torch

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.exact.enumeration import (
    PROMPTS,
    all_completions,
    gradient_of_expectation,
    measure,
    tiny_model,
    tiny_tokenizer,
)
from rl4lm.metrics import Stopwatch
from rl4lm.screen.console import Screen

COMPLETIONS = all_completions(1)  # three of them
GENERATIONS = 2
# Two of three completions earn the same, so that a group without spread need not be of equal ones.
REWARDS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)


class Bench:
    """A trainer of one prompt a step, on which every course of events can be played."""

    def __init__(self, rounds, prompts=PROMPTS, **options):
        self.rounds, self.prompts = rounds, prompts
        self.trainer = ReinforceTrainer(
            model=tiny_model(0),
            reward_funcs=lambda prompts, completion_ids, **_: [
                float(REWARDS[PROMPTS.index(q), COMPLETIONS.index(tuple(ids))])
                for q, ids in zip(prompts, completion_ids, strict=True)
            ],
            args=ReinforceConfig(
                dtype="float64",
                prompts_per_step=1,
                num_generations=GENERATIONS,
                max_completion_length=1,
                dynamic_sampling=rounds,
                eval_samples=0,
                **options,
            ),
            train_dataset=[{"prompt": prompt} for prompt in prompts],
            processing_class=tiny_tokenizer(),
            screen=Screen(quiet=True),
        )
        self.gatherer = self.trainer.learner.gatherer
        model = self.trainer.policy.module.model
        named = dict(model.named_parameters())
        self.truth = measure(model, named, model, COMPLETIONS, 1.0)
        places = [PROMPTS.index(prompt) for prompt in prompts]
        self.probability = self.truth.probability[places]  # [P, n]
        self.scores = self.truth.scores[places]  # [P, n, D]
        self.rewards = REWARDS[places]
        # `gradient_of_expectation` is over both prompts, so one that is left out is worth nothing.
        worth = torch.zeros_like(REWARDS).index_copy(0, torch.tensor(places), self.rewards)
        self.gradient = gradient_of_expectation(
            model, named, COMPLETIONS, 1.0, lambda p, o, _: worth[p, o]
        ) * (len(PROMPTS) / len(prompts))

    def groups(self):
        """Every prompt with every group of completions, and its probability."""
        n = len(COMPLETIONS)
        for p, one, other in itertools.product(range(len(self.prompts)), range(n), range(n)):
            chance = self.probability[p, one] * self.probability[p, other] / len(self.prompts)
            yield (p, (one, other)), float(chance)

    def has_spread(self, group):
        p, drawn = group
        return len({float(self.rewards[p, o]) for o in drawn}) > 1

    @property
    def share_with_spread(self):
        return sum(chance for group, chance in self.groups() if self.has_spread(group))

    def courses(self, dropped=None, rounds=None):
        """Every course of events of a step: the groups that are drawn, and its probability."""
        rounds = self.rounds if rounds is None else rounds
        for group, chance in self.groups():
            again = rounds and (dropped(group) if dropped else not self.has_spread(group))
            rest = self.courses(dropped, rounds - 1) if again else [((), 1.0)]
            for later, probability in rest:
                yield (group, *later), chance * probability

    def play(self, course):
        """The trainer's own experience of a course of events."""

        def choose(sampling, lists, count):
            assert (sampling, lists, count) == (0, self.rounds + 1, 1)
            keys = [p for p, _ in course]
            return keys + [0] * (lists - len(keys))

        def sampler(draw, finished=None):
            (place,) = draw.chance.places
            p, drawn = course[place]
            assert draw.prompts == self.trainer.policy.codec.encode([self.prompts[p]])
            rollout = Rollout.from_lists(
                [list(draw.prompts[0])] * GENERATIONS,
                [list(COMPLETIONS[o]) for o in drawn],
                num_generations=GENERATIONS,
            )
            played.append(place)
            return rollout

        played = []
        self.gatherer.course.choose = choose
        self.gatherer.sampler = sampler
        experience, _ = self.gatherer.gather(0, {}, self.trainer.learner.context(), Stopwatch())
        assert played == list(range(len(course)))  # as many draws as the course has, and no more
        return experience

    def expected(self, dropped=None):
        """E[-∇L] over all courses of events, and what it were with all completions in N: [D]."""
        total, other = torch.zeros_like(self.gradient), torch.zeros_like(self.gradient)
        for course, probability in self.courses(dropped):
            experience = self.play(course)
            p, drawn = course[-1]
            assert list(experience.keys) == [p]
            pull = (experience.advantages[:, None] * self.scores[p, list(drawn)]).sum(dim=0)
            total += probability * pull / experience.num_completions
            other += probability * pull / experience.drawing.completions
        return total, other


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("rounds", "prompts", "baseline", "shrinks"),
    [
        (1, PROMPTS, "prompt_leave_one_out", 1.0),
        pytest.param(2, PROMPTS[:1], "length_weighted", 1.0, marks=pytest.mark.slow),
        (1, PROMPTS[:1], "prompt_mean", (GENERATIONS - 1) / GENERATIONS),
    ],
)
def test_the_expected_step_is_the_gradient_times_what_the_further_draws_add(
    rounds, prompts, baseline, shrinks
):
    bench = Bench(rounds, prompts, baseline=baseline)
    p = bench.share_with_spread
    scale = (1 - (1 - p) ** (rounds + 1)) / p * shrinks
    assert scale > 1.1 * shrinks
    assert sum(chance for _, chance in bench.courses()) == pytest.approx(1.0, abs=1e-12)
    found, all_in_n = bench.expected()
    assert off(found, scale * bench.gradient) < 1e-12
    assert off(all_in_n, scale * bench.gradient) > 0.05


def test_a_rule_that_drops_by_more_than_the_lack_of_an_advantage_bends_the_gradient():
    bench = Bench(1, PROMPTS[:1])
    bench.gatherer._live = lambda groups: torch.tensor(
        [[1] in (drawn := groups.rollout.completion_lists()) and [0] in drawn]
    )
    found, _ = bench.expected(dropped=lambda group: set(group[1]) != {0, 1})
    assert torch.cosine_similarity(found, bench.gradient, dim=0) < 0.999


def test_what_was_drawn_is_counted_and_the_first_draws_say_what_the_policy_earns():
    bench = Bench(2, PROMPTS[:1])
    idle, live = (0, (1, 2)), (0, (0, 1))
    for course, groups, unfilled in (
        ((live,), 1, 0),
        ((idle, live), 2, 0),
        ((idle, idle, live), 3, 0),
        ((idle, idle, idle), 3, 1),
    ):
        experience = bench.play(course)
        metrics = experience.drawing.metrics
        assert experience.drawing.completions == groups * GENERATIONS
        assert experience.num_completions == GENERATIONS
        assert metrics["dynamic_sampling/groups"] == groups
        assert metrics["dynamic_sampling/rounds"] == groups - 1
        assert metrics["dynamic_sampling/unfilled"] == unfilled
        assert metrics["dynamic_sampling/live_share"] == (1 - unfilled) / groups
        first = bench.rewards[0, list(course[0][1])].mean()
        assert metrics["dynamic_sampling/first_reward"] == pytest.approx(float(first))
