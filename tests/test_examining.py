"""The evaluations of a run, before and after, prompt by prompt."""

from __future__ import annotations

import json

import pytest

from rewards.arithmetic import exact_answer
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.errors import ConfigError, DataError
from rl4lm.evaluation import examining
from rl4lm.evaluation.evaluate import Evaluated
from rl4lm.evaluation.paired import compare
from rl4lm.screen.console import Screen

ROWS = [
    {"prompt": f"{a}+{b}=", "answer": str(a + b), "kind": "a" if a < 20 else "b"}
    for a in (11, 23, 35)
    for b in (12, 34)
]
SETTINGS = {
    "max_steps": 2,
    "accuracy_func": "none",  # so that the reward says who passes
    "prompts_per_step": 2,
    "num_generations": 4,
    "max_completion_length": 6,
    "learning_rate": 1e-2,  # so that two steps make a difference
    "eval_pass_at_k": [1, 2],
    "eval_num_generations": 4,
    "eval_by": ["kind"],
    "torch_threads": 1,
    "noise_every": 0,
}


def trainer(path=None, eval_dataset=ROWS[::-1], **changes):
    return ReinforceTrainer(
        reward_funcs=exact_answer,  # in this process
        args=ReinforceConfig(output_dir=path and str(path), **{**SETTINGS, **changes}),
        train_dataset=ROWS,
        eval_dataset=eval_dataset,
        screen=Screen(quiet=True),
    )


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with evaluations before, between and after, and its summary."""
    path = tmp_path_factory.mktemp("run")
    return path, trainer(path, eval_steps=1, save_steps=1).train()


def test_a_run_keeps_the_completions_of_every_evaluation(run):
    path, summary = run
    pages = sorted(page.name for page in (path / "evaluations").iterdir())
    assert pages == [f"step-00000{k}.jsonl" for k in range(3)]
    logged = rows(path / "eval.jsonl")
    assert [line["step"] for line in logged] == [0, 1, 2]
    for line, page in zip(logged, pages, strict=True):
        found = rows(path / "evaluations" / page)
        assert len(found) == 6 * (1 + 4)
        right = [row["reward"] for row in found if row["greedy"]]
        assert sum(right) / 6 == pytest.approx(line["reward"])
        assert [row["prompt"] for row in found if row["greedy"]] == [
            r["prompt"] for r in ROWS[::-1]
        ]
    assert {"pass@1", "pass@2_low", "reward/a", "pass@2/b"} <= summary["eval_after"].keys()


def test_the_summary_compares_before_and_after_prompt_by_prompt(run):
    path, summary = run
    before, after = (
        [row["reward"] for row in rows(path / "evaluations" / page) if row["greedy"]]
        for page in ("step-000000.jsonl", "step-000002.jsonl")
    )
    assert summary["eval_change"]["reward"] == compare(after, before).to_dict()
    assert before != after
    assert summary["eval_change"].keys() == {"reward", "sampled/reward", "pass@1", "pass@2"}
    gain = summary["eval_after"]["pass@2"] - summary["eval_before"]["pass@2"]
    assert summary["eval_change"]["pass@2"]["difference"] == pytest.approx(gain)


def test_a_resumed_run_still_knows_what_it_was_like_before(run, tmp_path):
    path, summary = run
    checkpoint = str(path / "checkpoint-000001")
    again = trainer(tmp_path, save_steps=1).train(resume_from_checkpoint=checkpoint)
    for name in ("eval_before", "eval_after", "eval_change"):
        assert again[name] == summary[name]


class PulledOut(Exception):
    pass


@pytest.fixture
def evaluated(monkeypatch):
    """The steps after which evaluations were made."""
    steps, evaluate = [], examining.evaluate

    def counted(policy, exams, what, context, world):
        steps.append(context.global_step)
        return evaluate(policy, exams, what, context, world)

    monkeypatch.setattr(examining, "evaluate", counted)
    return steps


@pytest.fixture
def cut_off(tmp_path, monkeypatch, evaluated):
    """A run that ended between its last checkpoint and its final weights."""

    def gone(*_):
        raise PulledOut

    with monkeypatch.context() as patch:
        patch.setattr("rl4lm.run.save_weights", gone)
        with pytest.raises(PulledOut):
            trainer(tmp_path, eval_steps=1, save_steps=1).train()
    assert evaluated == [0, 1, 2]
    evaluated.clear()
    return tmp_path


def test_what_was_evaluated_after_the_last_step_is_the_result(evaluated, tmp_path):
    summary = trainer(tmp_path, eval_steps=2).train()
    assert evaluated == [0, 2]
    assert rows(tmp_path / "eval.jsonl")[-1] == {"step": 2, **summary["eval_after"]}
    evaluated.clear()
    trainer(eval_steps=3).train()
    assert evaluated == [0, 2], "where no evaluation comes with the last step, one comes after it"


def test_a_run_resumed_after_its_last_step_has_been_evaluated_already(run, cut_off, evaluated):
    again = trainer(cut_off, eval_steps=1, save_steps=1).train(resume_from_checkpoint=True)
    assert evaluated == []
    assert [line["step"] for line in rows(cut_off / "eval.jsonl")] == [0, 1, 2]
    for name in ("eval_before", "eval_after", "eval_change"):
        assert again[name] == run[1][name]


@pytest.mark.parametrize(
    "changes",
    [{"eval_samples": 5}, {"eval_pass_at_k": [1]}, {"eval_dataset": ROWS}],
    ids=["fewer prompts", "another metric", "another data set"],
)
def test_another_evaluation_than_that_of_the_last_step_is_made(changes, cut_off, evaluated):
    again = trainer(cut_off, eval_steps=1, **changes).train(resume_from_checkpoint=True)
    assert evaluated == [2]
    assert rows(cut_off / "eval.jsonl")[-1] == {"step": 2, **again["eval_after"]}


def test_a_run_of_its_own_logs_an_evaluation_of_its_own(run, tmp_path, evaluated):
    checkpoint = str(run[0] / "checkpoint-000002")
    trainer(tmp_path, eval_steps=1).train(resume_from_checkpoint=checkpoint)
    assert evaluated == [2]
    assert [line["step"] for line in rows(tmp_path / "eval.jsonl")] == [2]


def test_other_prompts_than_before_are_not_compared(run, tmp_path):
    checkpoint = str(run[0] / "checkpoint-000001")
    again = trainer(tmp_path, eval_samples=5).train(resume_from_checkpoint=checkpoint)
    assert again["eval_change"] == {}


def test_evaluations_leave_a_run_as_it_is(run):
    plain = trainer(eval_samples=0, eval_pass_at_k=[], eval_num_generations=None, eval_by=[])
    assert plain.train()["eval_change"] == {}
    with_evaluations = trainer(eval_steps=1)
    with_evaluations.train()
    weights = (t.policy.trainable() for t in (plain, with_evaluations))
    for a, b in zip(*(list(w.values()) for w in weights), strict=True):
        assert a.equal(b)


def test_a_checkpoint_of_an_earlier_version_has_no_outcomes():
    examiner = trainer()._run.examiner
    examiner.load_state_dict({"accuracy": 0.5}, {}, in_one_log=True)
    assert examiner.before.metrics == {"accuracy": 0.5}
    assert examiner.change(Evaluated({"accuracy": 1.0}, {"accuracy": [1.0]}, "a", [])) == {}
    assert examiner.known(2) is None


def test_further_data_sets_are_evaluated_in_training_under_their_names(tmp_path):
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:4]))
    found = trainer(eval_dataset_name=[str(tmp_path / "sums.jsonl")]).evaluate()
    assert (found["samples"], found["sums/samples"]) == (6.0, 4.0)
    assert {"sums/reward", "sums/pass@2", "sums/reward/a"} <= found.keys()


def test_a_column_that_was_asked_for_and_is_not_there_is_refused():
    with pytest.raises(DataError, match=r"eval_by: .* no column 'kin'; did you mean kind"):
        trainer(eval_by=["kin"])
    trainer(eval_by=["family"])  # the default asks for nothing


def test_two_data_sets_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sums.jsonl").write_text(json.dumps(ROWS[0]))
    names = [str(tmp_path / folder / "sums.jsonl") for folder in ("a", "b")]
    with pytest.raises(ConfigError, match="would both be called 'sums'"):
        trainer(eval_dataset_name=names)


def test_fewer_completions_than_k_are_refused():
    with pytest.raises(ConfigError, match=r"eval_num_generations=4 .* say nothing of pass@8"):
        ReinforceConfig(eval_pass_at_k=[1, 8], eval_num_generations=4)
    assert ReinforceConfig(eval_num_generations=4).eval_pass_at_k == []


def test_data_sets_given_by_name_are_evaluated_each_under_its_own(tmp_path):
    """As those of `eval_dataset_name` are: the first by plain names."""
    parts = {"first": ROWS[:2], "other": ROWS[2:5]}
    found = trainer(eval_dataset=parts).evaluate()
    assert (found["samples"], found["other/samples"]) == (2, 3)
    alone = trainer(eval_dataset=ROWS[2:5]).evaluate()
    assert {f"other/{name}": value for name, value in alone.items()}.items() <= found.items()
    (tmp_path / "other.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(ConfigError, match="both have a data set called 'other'"):
        trainer(eval_dataset=parts, eval_dataset_name=[str(tmp_path / "other.jsonl")])
