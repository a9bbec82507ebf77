"""Which prompts a step draws: those nearest to 50 %, by what past samplings have shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from rl4lm import ReinforceConfig
from rl4lm.curriculum import (
    HALF_LIFE,
    MOST_ESTIMATES,
    PRIOR,
    Curriculum,
    Stream,
    make_course,
)
from rl4lm.data.examples import PromptData, stream_indices
from rl4lm.errors import ConfigError

SEED = 3
ROWS = [{"prompt": f"q{k}", "level": k % 4} for k in range(40)]
DATA = PromptData(ROWS, "prompt", "train")


def curriculum(candidates=4, column="level", data=DATA):
    return Curriculum(data, SEED, candidates, column)


def tell(course, sampling, rewards, count=8):
    """Note the mean rewards of rows, as if `count` completions of each had been drawn."""
    values = torch.tensor(list(rewards.values()), dtype=torch.float64)
    course.note(sampling, list(rewards), values, torch.full_like(values, count))


def test_without_a_curriculum_the_prompts_are_the_stream():
    stream = Stream(DATA, SEED)
    seen = [key for sampling in range(5) for key in stream.choose(sampling, 2, 3)]
    assert seen == stream_indices(len(DATA), SEED, 0, 30)


def test_before_anything_is_known_each_list_is_the_start_of_its_window():
    chosen = curriculum().choose(2, 2, 3)
    window, first = 4 * 3, 2 * 2 * 4 * 3  # two samplings of two windows each came before
    assert chosen[:3] == stream_indices(len(DATA), SEED, first, 3)
    assert chosen[3:] == stream_indices(len(DATA), SEED, first + window, 3)


def test_the_prompts_nearest_to_half_of_each_window_are_chosen():
    course = curriculum()
    tell(course, 0, {k: (0.0, 0.4, 0.9, 1.0)[k % 4] for k in range(40)}, count=10**6)
    for sampling in (1, 2):
        window = stream_indices(len(DATA), SEED, sampling * 4 * 5, 4 * 5)
        distance = {key: abs((0.0, 0.4, 0.9, 1.0)[key % 4] - 0.5) for key in window}
        order = sorted(range(20), key=lambda k: (round(distance[window[k]], 3), k))
        expected = [window[k] for k in order]
        chosen = course.choose(sampling, 1, 5)
        # 0 and 1 are equally far from a half, up to rounding; those in front are not.
        front = sum(distance[key] < 0.45 for key in chosen)
        assert chosen[:front] == expected[:front]
        assert Counter(key % 4 for key in chosen)[1] == min(5, sum(k % 4 == 1 for k in window))


def test_no_prompt_is_drawn_more_often_than_candidates_times_its_share():
    course = curriculum(candidates=2)
    tell(course, 0, {0: 0.5}, count=10**6)
    tell(course, 0, dict.fromkeys(range(1, 40), 0.0), count=10**6)
    chosen = Counter(k for sampling in range(40) for k in course.choose(sampling, 1, 10))
    # 40 samplings of windows of 20 are 20 epochs.
    assert chosen[0] == max(chosen.values()) == 20


def test_an_estimate_is_the_mean_of_its_completions_and_of_a_prior():
    course = curriculum()
    tell(course, 0, {0: 1.0, 4: 0.0}, count=6)
    group = (PRIOR * 0.5 + 6) / (PRIOR + 12)
    assert course.estimate(8, 0) == pytest.approx(group)  # not met itself
    assert course.estimate(0, 0) == pytest.approx((PRIOR * group + 6) / (PRIOR + 6))
    assert course.estimate(4, 0) == pytest.approx((PRIOR * group + 0) / (PRIOR + 6))
    assert course.estimate(1, 0) == 0.5  # of another level


def test_what_was_not_tried_for_long_counts_as_half_again():
    course = curriculum()
    tell(course, 10, {0: 0.0}, count=10**6)
    for key in (0, 4):
        assert course.estimate(key, 10) == pytest.approx(0.0, abs=1e-5)
    assert course.estimate(4, 10 + int(HALF_LIFE)) == pytest.approx(0.25, abs=1e-5)
    # Its own estimate fades into that of its level, which fades too.
    assert course.estimate(0, 10 + int(HALF_LIFE)) == pytest.approx(0.125, abs=1e-5)
    assert course.estimate(0, 10 + 100 * int(HALF_LIFE)) == pytest.approx(0.5)


def test_rewards_beyond_one_and_rows_without_a_reward_are_no_trouble():
    course = curriculum()
    tell(course, 0, {0: 7.0, 1: -3.0}, count=10**6)
    assert course.estimate(0, 0) == pytest.approx(1.0, abs=1e-5)
    assert course.estimate(1, 0) == pytest.approx(0.0, abs=1e-5)
    tell(course, 0, {2: 0.0}, count=0)
    assert course.estimate(2, 0) == 0.5


def test_a_prompt_that_was_drawn_twice_in_a_step_learns_once_from_all_of_it():
    twice, once = curriculum(), curriculum()
    twice.note(0, [3, 3], torch.tensor([1.0, 0.0]).double(), torch.tensor([4.0, 4.0]))
    once.note(0, [3], torch.tensor([0.5]).double(), torch.tensor([8.0]))
    assert twice.estimate(3, 0) == once.estimate(3, 0)


def test_without_groups_every_prompt_stands_for_itself():
    course = curriculum(column=None)
    tell(course, 0, {0: 0.0}, count=10**6)
    assert course.estimate(4, 0) == 0.5
    assert course.estimate(0, 0) == pytest.approx(0.0, abs=1e-5)


def test_a_state_that_was_saved_chooses_as_the_one_that_was_not(tmp_path):
    course = curriculum()
    for sampling in range(5):
        keys = course.choose(sampling, 1, 6)
        tell(course, sampling, {key: (key % 7) / 7 for key in keys})
    torch.save(course.state_dict(), tmp_path / "state.pt")
    other = curriculum()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.choose(5, 3, 6) == course.choose(5, 3, 6)
    assert [other.estimate(k, 9) for k in range(40)] == [course.estimate(k, 9) for k in range(40)]
    fresh = curriculum()
    fresh.load_state_dict(Stream(DATA, SEED).state_dict())  # of a run without a curriculum
    assert fresh.choose(5, 3, 6) == curriculum().choose(5, 3, 6) != course.choose(5, 3, 6)


def test_the_memory_holds_so_many_estimates_those_met_last(monkeypatch):
    monkeypatch.setattr("rl4lm.curriculum.MOST_ESTIMATES", 3)
    course = curriculum(column=None)
    tell(course, 0, {0: 0.0, 1: 0.0, 2: 0.0})
    tell(course, 1, {0: 0.0, 3: 0.0})
    assert [course.estimate(key, 1) == 0.5 for key in range(4)] == [False, True, False, False]
    assert MOST_ESTIMATES >= 2**16


def test_the_options_name_the_column_and_the_default_one_may_be_missing():
    config = ReinforceConfig(curriculum="success")
    assert isinstance(make_course(replace(config, curriculum="none"), DATA), Stream)
    course = make_course(config, DATA)
    tell(course, 0, {0: 0.0})
    assert course.estimate(4, 0) < 0.5
    bare = PromptData([{"prompt": f"q{k}", "kind": "a"} for k in range(9)], "prompt", "train")
    course = make_course(config, bare)
    tell(course, 0, {0: 0.0})
    assert course.estimate(4, 0) == 0.5
    with pytest.raises(ConfigError, match=r"curriculum_column=sort is no column.*kind"):
        make_course(replace(config, curriculum_column="sort"), bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum_candidates": 2}, "curriculum=success"),
        ({"curriculum_column": "kind"}, "curriculum=success"),
        ({"dynamic_sampling": 1, "num_generations": 1}, "batch_leave_one_out"),
        ({"dynamic_sampling": 1, "baseline": "prompt_value"}, "prompt_leave_one_out"),
        ({"dynamic_sampling": 1, "beta": 0.1}, "another objective"),
        ({"dynamic_sampling": 1, "entropy_coef": 0.1}, "another objective"),
        ({"dynamic_sampling": True}, "number of further prompts"),
        ({"curriculum": "sucess"}, "success"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ReinforceConfig(**options)
