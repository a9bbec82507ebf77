"""Tasks of reasoning-gym as data sets."""

from __future__ import annotations

import importlib.util
import json

import pytest

from rewards.puzzles import score, solved
from rl4lm.assembly import assemble_judges
from rl4lm.config import ReinforceConfig
from rl4lm.data import procedural
from rl4lm.data.examples import PromptData, load_split
from rl4lm.data.procedural import Puzzle, puzzle_rows, read_name
from rl4lm.data.procedural_rows import as_json
from rl4lm.errors import DataError, MissingSplitError

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
reasoning = pytest.mark.skipif(
    not INSTALLED, reason="needs reasoning-gym: pip install 'rl4lm[reasoning]'"
)
LEGS = "reasoning_gym:leg_counting?size=12&test_size=4&max_animals=3"

# What has no right answer in its rows, though a grader that knows one.
WITHOUT_ANSWER = ["boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"]
NO_ROWS = ["composite"]  # made of other tasks
# Some of its answers are integrals that were not solved, which must not be paid.
UNSOLVED = ["intermediate_integration"]


def test_a_name_holds_the_task_and_what_it_is_made_with():
    assert read_name("reasoning_gym:dice") == Puzzle("dice", "{}", 0, 1000, 200)
    found = read_name("reasoning_gym:dice?seed=3&size=5&min_value=0.5&words=[a,b]&on=true")
    config = '{"min_value": 0.5, "on": true, "words": ["a", "b"]}'
    assert found == Puzzle("dice", config, 3, 5, 200)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dice?", None),
        ("dice?seed", "write reasoning_gym:TASK"),
        ("dice?size=many", "size must be a whole number"),
        ("dice?size=-1", "size must be a whole number"),
        ("dice?seed=true", "seed must be a whole number"),
        ("dice?size=0", "must be 1 or more"),
        ("dice?words=[a", "cannot be read"),
    ],
)
def test_a_name_that_cannot_be_read_is_refused(name, said):
    if said is None:
        assert read_name(f"reasoning_gym:{name}").task == "dice"
        return
    with pytest.raises(DataError, match=said):
        read_name(f"reasoning_gym:{name}")


def test_tuples_and_numbered_mappings_survive_as_json():
    value = {"a": (1, [2.5, None]), "b": {1: "x", (1, 2): True}, "c": {"()": 1}}
    again = json.loads(json.dumps(as_json(value)))
    assert again["a"] == {"()": [1, [2.5, None]]}
    assert again["b"] == {"{}": [[1, "x"], [{"()": [1, 2]}, True]]}
    assert again["c"] == {"{}": [["()", 1]]}


def test_test_prompts_are_new_and_different_and_as_many_as_there_are(monkeypatch):
    def made_up(puzzle, seed, count):
        return [{"prompt": (seed + i) % 7} for i in range(count)]

    def prompts(name, split):
        return [row["prompt"] for row in puzzle_rows(name, split)]

    monkeypatch.setattr(procedural, "_made", made_up)
    assert prompts("reasoning_gym:x?size=4", "train") == [0, 1, 2, 3]
    assert sorted(prompts("reasoning_gym:x?size=4&test_size=2", "test")) == [4, 5]
    assert sorted(prompts("reasoning_gym:x?size=4", "test")) == [4, 5, 6]
    with pytest.raises(MissingSplitError, match="no prompt that is not in its training split"):
        puzzle_rows("reasoning_gym:x?size=7", "test")


@reasoning
@pytest.mark.slow
def test_the_splits_share_no_prompt_and_the_answers_score_1():
    train, test = (load_split(LEGS, split, "prompt") for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4)
    examples = [*train.examples(range(12)), *test.examples(range(4))]
    assert not {e.prompt for e in examples[:12]} & {e.prompt for e in examples[12:]}
    entries = [e.columns["entry"] for e in examples]
    answers = [e.columns["answer"] for e in examples]
    assert json.loads(entries[0])["config"]["max_animals"] == 3
    assert score(completions=answers, entry=entries) == [1.0] * 16
    assert solved(completions=["-1"] * 16, entry=entries) == [0.0] * 16


@reasoning
def test_evaluations_of_such_rows_ask_whether_the_puzzle_is_solved():
    config = ReinforceConfig(dataset_name=LEGS, reward_funcs=["rewards.puzzles:score"])
    row = {"prompt": "p", "answer": "north", "task": "t", "entry": "{}"}
    judges = assemble_judges(config, [score], [PromptData([row], "prompt", "train")])
    assert judges.accuracy is not None
    assert judges.accuracy.asked_as == "rewards.puzzles:solved"


def test_there_are_two_splits():
    with pytest.raises(MissingSplitError, match="train and test, and no 'validation'"):
        load_split(LEGS, "validation", "prompt")


@reasoning
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("leg_count?size=1", "no task 'leg_count'; did you mean leg_counting"),
        ("leg_counting?size=1&max_animal=3", "no field 'max_animal'; did you mean max_animals"),
        ("leg_counting?size=1&max_animals=0", "max_animals must be"),
    ],
)
@pytest.mark.slow
def test_a_task_or_a_field_that_is_not_known_is_refused_with_the_nearest_name(name, said):
    with pytest.raises(DataError, match=said):
        load_split(f"reasoning_gym:{name}", "train", "prompt")


@reasoning
@pytest.mark.slow
def test_a_task_that_knows_few_prompts_has_a_shorter_test_split_or_none():
    few = "reasoning_gym:tower_of_hanoi?size=3&test_size=50&max_disks=3&visualize=false"
    train, test = (load_split(few, split, "prompt") for split in ("train", "test"))
    prompts = [e.prompt for e in test.examples(range(len(test)))]
    assert 0 < len(test) < 50
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {e.prompt for e in train.examples(range(3))}


@reasoning
@pytest.mark.slow
def test_every_task_of_the_library_gives_rows_whose_answer_scores_1():
    from reasoning_gym.factory import DATASETS

    from rl4lm.data.procedural_rows import rows

    failing = []
    for task in sorted(set(DATASETS) - {*NO_ROWS, *UNSOLVED}):
        made = list(rows(task, {}, 5, 3))
        answers = [row["answer"] for row in made]
        assert (answers == [None] * 3) is (task in WITHOUT_ANSWER), task
        entries = [row["entry"] for row in made]
        if task not in WITHOUT_ANSWER and score(completions=answers, entry=entries) != [1.0] * 3:
            failing.append(task)
    assert failing == []


@reasoning
@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["isomorphic_strings", "polynomial_multiplication", "ransom_note", "codeio"]
)
def test_rows_are_the_same_in_every_process(task, monkeypatch):
    made = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        procedural._made.cache_clear()
        made.append(puzzle_rows(f"reasoning_gym:{task}?size=10", "train"))
    assert made[0] == made[1]
