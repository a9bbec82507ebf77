"""A few random kills of one process of two; `kill_ranks.py` makes as many as one likes."""

from __future__ import annotations

import random

import kill_ranks
import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_end_soon_name_the_cause_and_go_on_to_the_same_weights(tmp_path):
    campaign = kill_ranks.Campaign(tmp_path, random.Random(2))
    campaign.run(4)
    assert campaign.faults == []
    assert campaign.counts["identical"] == 4
    assert max(campaign.seconds) < kill_ranks.LIMIT_S


@pytest.mark.parametrize(
    ("log", "named"),
    [
        ("process 1 (pid 7 on vm) is gone without a word", "named by the run"),
        ("terminated; process 1 was gone before", "named by the run"),
        ("Signal 9 (SIGKILL) received by PID 7", "named by the launcher alone"),
        ("process 0 (pid 6 on vm) is gone without a word", "not named"),
        ("Connection closed by peer", "not named"),
    ],
)
def test_only_the_killed_process_counts_as_named(log, named):
    assert kill_ranks.who_named(log, 1, 7) == named
