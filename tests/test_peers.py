"""What one process of a run takes for the failure of another, and what not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rl4lm.errors import DataError, PeerLostError
from rl4lm.processes import activity, peers
from rl4lm.processes.board import BoardLostError
from rl4lm.processes.neighbours import Identity, identity, is_gone
from rl4lm.processes.signs import DONE, FAILED, STOPPED, Failure, Signs
from rl4lm.processes.stopping import StopRequest
from rl4lm.processes.world import World
from rl4lm.rundir.resume import Start, agree


class Notes:
    """A board of one process."""

    place = "nowhere:1"

    def __init__(self):
        self.notes = {}
        self.lost = False

    def post(self, name, note):
        self._check()
        self.notes[name] = note

    def post_first(self, name, note):
        self._check()
        return self.notes.setdefault(name, note)

    def read(self, name):
        self._check()
        return self.notes.get(name)

    def _check(self):
        if self.lost:
            raise BoardLostError(self.place)


@pytest.fixture
def dead():
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = replace(identity(1), pid=process.pid, started=_started(process.pid))
    process.communicate()
    return found


@pytest.fixture
def alive():
    """Another process of this machine, as far as anyone can tell: it is this very one."""
    return identity(1)


@pytest.fixture
def waited(monkeypatch):
    """Sets for how long the main thread has waited in a collective."""

    def set_to(seconds):
        monkeypatch.setattr(activity, "waited_s", lambda: seconds)

    return set_to


def _started(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def signs(other, board, limit_s=None):
    mine = identity(0)
    return Signs(mine, [mine, other], board, limit_s)


def test_a_process_that_has_ended_is_gone_and_one_that_runs_is_not(dead):
    assert is_gone(dead)
    assert not is_gone(identity(0))


def test_a_process_id_that_belongs_to_another_process_by_now_does_not_count():
    assert is_gone(replace(identity(0), started="1"))


def test_nothing_is_found_where_all_is_well(alive):
    look = signs(alive, Notes(), limit_s=1.0).look
    assert [look() for _ in range(3)] == [None] * 3


def test_a_process_that_is_gone_without_a_word_is_named_with_what_it_was_doing(dead):
    board = Notes()
    board.notes["state/1"] = {"what": "sampling", "step": 7, "for_s": 0.1, "waiting": False}
    found = signs(dead, board).look()
    assert found.culprit == 1
    assert found.text.startswith(f"process 1 (pid {dead.pid} on ")
    assert "it was last seen sampling in step 7" in found.text
    assert board.notes["failure"]["text"] == found.text  # and the others are told


@pytest.mark.parametrize("how", [DONE, STOPPED])
def test_a_process_that_has_left_in_good_order_is_missed_by_who_waits_for_it_alone(
    dead, how, waited
):
    board = Notes()
    Signs(replace(dead, rank=1), [], board, None).leave(how)
    here = signs(dead, board)
    assert here.look() is None
    waited(1.0)
    assert here.look() is None  # it may have passed the same end a little earlier
    waited(60.0)
    assert "still waits for it" in here.look().text


def test_the_cause_that_was_posted_first_is_everybodys(dead):
    board = Notes()
    signs(dead, board).post(Failure("process 2 has failed: no such unit", 2, "elsewhere"))
    assert signs(dead, board).look().text == "process 2 has failed: no such unit"


def test_who_keeps_the_others_waiting_for_too_long_is_named(alive, waited):
    board = Notes()
    hangs = {"what": "scoring with the reward 'mine'", "step": 3, "for_s": 31.0, "waiting": False}
    board.notes["state/1"] = hangs
    here = signs(alive, board, limit_s=30.0)
    waited(29.0)
    assert here.look() is None
    waited(30.5)
    text = here.look().text
    assert "has been scoring with the reward 'mine' in step 3 for 31 s" in text
    assert "process 0 has waited for 30 s (ddp_timeout)" in text


def test_without_a_limit_one_may_wait_for_ever(alive, waited):
    waited(1e9)
    assert signs(alive, Notes()).look() is None


def test_all_waiting_for_one_another_is_no_single_ones_fault(alive, waited):
    board = Notes()
    board.notes["state/1"] = {"what": "evaluating", "step": 3, "for_s": 31.0, "waiting": True}
    waited(31.0)
    found = signs(alive, board, limit_s=30.0).look()
    assert found.culprit is None
    assert "all wait for one another" in found.text
    assert "process 1 while evaluating in step 3" in found.text


def test_a_process_of_another_machine_is_lost_when_it_is_silent_for_long(alive, monkeypatch):
    board, now = Notes(), [1000.0]
    monkeypatch.setattr("rl4lm.processes.signs.time.monotonic", lambda: now[0])
    far = replace(alive, machine="another", host="node-b")
    here = signs(far, board)
    for beat in range(5):
        board.notes["state/1"] = {"what": "sampling", "step": beat, "beat": beat}
        now[0] += 100
        assert here.look() is None
    now[0] += 200
    assert "has not been heard of for" in here.look().text


def test_a_lost_board_matters_to_who_waits_alone(alive, waited, monkeypatch):
    board, now = Notes(), [1000.0]
    monkeypatch.setattr("rl4lm.processes.signs.time.monotonic", lambda: now[0])
    here = signs(alive, board)
    board.lost = True
    assert here.look() is None
    now[0] += 60
    assert here.look() is None
    waited(60.0)
    assert "what holds the processes together at nowhere:1 is gone" in here.look().text


def test_one_process_of_a_machine_speaks():
    board, mine = Notes(), identity(0)
    everybody = [mine, replace(mine, rank=1), replace(mine, rank=2, machine="another")]
    speak = [Signs(who, everybody, board, None).may_speak() for who in everybody]
    assert speak == [True, False, True]


@pytest.mark.parametrize(("absent", "speaks"), [([0], True), ([2], False), ([], False)])
def test_while_a_run_starts_the_first_that_is_left_speaks(absent, speaks, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    here = peers.Peers.__new__(peers.Peers)
    here.rank, here._signs, here._absent = 1, None, absent
    assert here.may_speak() is speaks


def test_what_a_process_is_doing_is_the_reward_it_asks_while_it_asks():
    activity.doing("sampling", 4)
    with activity.asking("slow"):
        assert activity.phrase(activity.note()) == "scoring with the reward 'slow' in step 4"
    assert activity.phrase(activity.note()) == "sampling in step 4"


def test_one_process_alone_has_no_thread():
    World()
    assert "rl4lm-peers" not in {thread.name for thread in threading.enumerate()}
    assert peers.failure() is None


def test_a_launchers_signal_is_the_failure_of_another_process_and_no_request(monkeypatch):
    monkeypatch.setattr(peers, "failure", lambda patience_s=0.0: "process 1 is gone")
    with pytest.raises(PeerLostError, match="process 1 is gone"), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_a_failure_it_is_a_request_to_stop(monkeypatch):
    monkeypatch.setattr(peers, "failure", lambda patience_s=0.0: None)
    with StopRequest(speaks=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_an_error_of_its_own_in_something_common_stays_what_it_is():
    here = peers.Peers.__new__(peers.Peers)
    here._failure = None
    with pytest.raises(RuntimeError, match="sizes must match"):
        here.together(lambda: (_ for _ in ()).throw(RuntimeError("sizes must match")))


def test_where_a_run_goes_on_is_what_the_main_process_has_found():
    assert agree(Start(), lambda mine: [Start(notes=("main",)), *mine]).notes == ("main",)


def test_a_checkpoint_that_another_process_does_not_find_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rl4lm.rundir.resume._SHARED_S", 0.0)
    answers = iter([[Start(tmp_path / "checkpoint-000004", {"step": 4})] * 2, [True, False]])

    def gather(mine):
        return next(answers)

    with pytest.raises(DataError, match="checkpoint-000004, which process 1 does not find"):
        agree(Start(), gather)


def test_a_process_says_in_what_way_it_leaves_and_only_the_first_time():
    board = Notes()
    here = peers.Peers.__new__(peers.Peers)
    here.rank, here._over = 0, threading.Event()
    mine = identity(0)
    here._signs = Signs(mine, [mine], board, None)
    here.leave(STOPPED)
    here.leave(FAILED, "too late")
    assert board.notes["left/0"]["how"] == STOPPED
    assert "failure" not in board.notes


@pytest.mark.parametrize("told", [True, False])
def test_an_error_is_repeated_for_those_who_have_not_seen_it(told):
    board, mine = Notes(), identity(0)
    fails = Signs(replace(mine, rank=1), [mine], board, None)
    fails.post(Failure("process 1 has failed: no such folder", 1, mine.machine * told))
    other = peers.Peers.__new__(peers.Peers)
    other.rank, other.advice, other._signs = 0, lambda: "", Signs(mine, [mine], board, None)
    words = other._words(other._signs.look())
    assert ("no such folder" in words) is not told
    assert ("says why itself" in words) is told


def test_identities_are_plain_enough_to_be_sent():
    assert Identity(**vars(identity(3))) == identity(3)
