"""What scored rows come to: quantiles, histogram, agreement with labels."""

from __future__ import annotations

import random

import pytest

from rl4lm.workbench.tallying import (
    compare_with_labels,
    histogram,
    latencies,
    quantile,
    read_label,
    summarize_scores,
)


def rows(*pairs):
    return [{"label": label, "reward": reward} for label, reward in pairs]


def test_a_summary_leaves_out_rows_without_a_reward():
    scored = [{"reward": value} for value in (1.0, 0.0, None, 1.0)]
    summary = summarize_scores(scored)
    assert (summary["rows"], summary["scored"], summary["none"]) == (4, 3, 1)
    assert summary["none_share"] == 0.25
    assert summary["mean"] == pytest.approx(2 / 3)
    assert summary["histogram"] == [
        {"from": 0.0, "to": 0.0, "count": 1},
        {"from": 1.0, "to": 1.0, "count": 2},
    ]


def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed():
    values = [random.Random(0).random() for _ in range(101)]
    for share in (0.01, 0.25, 0.5, 0.99, 1.0):
        found = quantile(values, share)
        assert found in values
        assert sum(v <= found for v in values) >= share * len(values)
        assert sum(v < found for v in values) < share * len(values)
    assert quantile([], 0.5) is None


def test_many_values_are_counted_in_bins_that_hold_each_once():
    values = [i * i / 100 for i in range(100)]
    bins = histogram(values)
    assert len(bins) == 10
    assert sum(row["count"] for row in bins) == 100
    for row in bins[:-1]:
        assert row["count"] == sum(row["from"] <= v < row["to"] for v in values)
    assert bins[-1]["count"] == sum(v >= bins[-1]["from"] for v in values)


def test_percentiles_of_times_end_with_the_longest():
    assert latencies([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0, "max": 3.0}


def test_a_label_is_true_or_false_in_words_or_numbers():
    assert [read_label(v) for v in (True, 1, 1.0, "true", "1")] == [True] * 5
    assert [read_label(v) for v in (False, 0, 0.0, "False", "0")] == [False] * 5
    assert [read_label(v) for v in (None, "")] == [None] * 2
    for value in ("cat", 2, 0.5, ["true"]):
        with pytest.raises(ValueError, match=r"cat|2|0\.5|true"):
            read_label(value)


def test_a_confusion_matrix_counts_labels_against_rewards():
    scored = rows((1, 1.0), (1, 0.7), (1, 0.2), (0, 0.9), (0, 0.0), (None, 1.0), (1, None))
    found, agrees = compare_with_labels(scored, "label", 0.5)
    assert agrees == [True, True, False, False, True, None, None]
    assert (found["true_positive"], found["false_negative"]) == (2, 1)
    assert (found["false_positive"], found["true_negative"]) == (1, 1)
    assert (found["unlabelled"], found["unscored"]) == (1, 1)
    assert (found["precision"], found["recall"]) == (2 / 3, 2 / 3)
    assert found["agreement"] == 3 / 5


def test_the_threshold_itself_says_right():
    assert compare_with_labels(rows((1, 0.5)), "label", 0.5)[1] == [True]
    assert compare_with_labels(rows((1, 0.5)), "label", 0.51)[1] == [False]


def test_a_rate_that_divides_by_nothing_is_none():
    found, _ = compare_with_labels(rows((0, 0.0)), "label", 0.5)
    assert (found["precision"], found["recall"], found["agreement"]) == (None, None, 1.0)
