"""Many runs: order, losses, retries, exceptions, threads, forks."""

import json
import os
import signal
import threading

import pytest

from rewards.sandbox import Sandbox, SandboxFailed
from rewards.sandbox.worker import Worker

JOB = b'""'


def double(runner, item):
    with runner.start(JOB) as session:
        return int(session.ask(f"{item} * 2".encode()))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def kill_server(runner):
    os.kill(runner._worker.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_are_in_order_whatever_the_number_of_workers(make_sandbox, workers):
    with make_sandbox(workers) as sandbox:
        assert sandbox.map(double, range(20)) == [2 * item for item in range(20)]


def test_no_items_give_no_results(sandbox):
    assert sandbox.map(double, []) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_killed_in_the_middle_of_a_batch_loses_no_result(make_sandbox, workers):
    killed = []

    def judge(runner, item):
        with runner.start(JOB) as session:
            if item == 7 and not killed:
                killed.append(item)
                kill_server(runner)
            return int(session.ask(f"{item} * 2".encode()))

    with make_sandbox(workers) as sandbox:
        assert sandbox.map(judge, range(15)) == [2 * item for item in range(15)]
    assert killed == [7]


@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_a_server_killed_between_two_batches_is_replaced(make_sandbox, without):
    with make_sandbox(_without=frozenset(without)) as sandbox:
        sandbox.map(lambda runner, item: kill_server(runner), [None])
        assert sandbox.map(double, [4]) == [8]


def test_an_item_that_loses_its_server_twice_is_never_scored(make_sandbox):
    tries = []

    def judge(runner, item):
        tries.append(item)
        with runner.start(JOB) as session:
            kill_server(runner)
            return session.ask(b"sum(range(10**8))")  # longer than it takes to be killed

    with make_sandbox() as sandbox:
        with pytest.raises(SandboxFailed, match="twice"):
            sandbox.map(judge, [None])
        assert len(tries) == 2
        assert sandbox.map(double, [4]) == [8]


def test_a_server_that_hangs_is_replaced(make_sandbox, monkeypatch):
    monkeypatch.setattr("rewards.sandbox.worker._ANSWER_SECONDS", 0.5)
    stopped = []

    def judge(runner, item):
        if not stopped:
            stopped.append(item)
            os.kill(runner._worker.process.pid, signal.SIGSTOP)
        return double(runner, item)

    # Without namespaces the process started is the server itself.
    with make_sandbox(_without=frozenset({"namespaces"})) as sandbox:
        assert sandbox.map(judge, [1, 2]) == [2, 4]


def test_a_run_killed_from_outside_is_judged_again_and_then_counts_as_died(make_sandbox):
    pids = []

    def judge(runner, item):
        with runner.start(JOB) as session:
            pids.append(int(session.ask(b"__import__('os').getpid()")))
            if len(pids) <= item:
                os.kill(pids[-1], signal.SIGKILL)
            return session.ask(b"1")

    with make_sandbox(_without=frozenset({"namespaces"})) as sandbox:
        assert sandbox.map(judge, [1]) == [b"1"]
        assert len(pids) == 2
        pids.clear()
        with pytest.raises(Exception, match="died: killed by signal 9"):
            sandbox.map(judge, [2])


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_judge_comes_out_and_the_pool_goes_on(make_sandbox, workers):
    def judge(runner, item):
        if item in (3, 4):
            raise KeyError(item)
        return double(runner, item)

    with make_sandbox(workers) as sandbox:
        with pytest.raises(KeyError, match="3"):
            sandbox.map(judge, range(6))
        assert sandbox.map(double, [1, 2]) == [2, 4]


def test_an_interrupt_in_the_middle_of_a_run_leaves_the_pool_usable(make_sandbox):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    def judge(runner, item):
        with runner.start(JOB) as session:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return session.ask(b"__import__('time').sleep(4)")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with make_sandbox() as sandbox:
            with pytest.raises(KeyboardInterrupt):
                sandbox.map(judge, [None])
            assert sandbox.map(double, [4]) == [8]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_between_a_question_to_the_server_and_its_answer_does_not_mix_them_up(
    make_sandbox, monkeypatch
):
    with make_sandbox() as sandbox:
        answer = Worker._answer

        def interrupted(self):
            monkeypatch.setattr(Worker, "_answer", answer)
            raise KeyboardInterrupt

        monkeypatch.setattr(Worker, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.map(double, [1])
        assert sandbox.map(double, [2, 3]) == [4, 6]


def test_sessions_that_a_judge_left_open_are_ended(make_sandbox):
    def judge(runner, item):
        return [runner.start(JOB).ask(b"1") for _ in range(3)]

    with make_sandbox() as sandbox:
        before = descriptors()
        for _ in range(5):
            assert sandbox.map(judge, [None]) == [[b"1"] * 3]
        assert descriptors() == before


def test_a_server_is_replaced_after_its_share_of_runs(make_sandbox, monkeypatch):
    monkeypatch.setattr("rewards.sandbox.pool.RUNS_PER_SERVER", 3)
    servers = []

    def judge(runner, item):
        servers.append(runner._worker.process.pid)
        return double(runner, item)

    with make_sandbox() as sandbox:
        assert sandbox.map(judge, range(7)) == [2 * item for item in range(7)]
    assert len(set(servers)) == 3


def test_threads_with_a_sandbox_each_do_not_disturb_each_other(make_sandbox):
    results = {}

    def work(number):
        with make_sandbox() as sandbox:
            results[number] = sandbox.map(double, range(number, number + 10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [2 * item for item in range(n, n + 10)] for n in range(4)}


def test_threads_that_share_a_sandbox_take_turns(make_sandbox):
    results = {}
    with make_sandbox(2) as sandbox:

        def work(number):
            results[number] = sandbox.map(double, range(number, number + 10))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [2 * item for item in range(n, n + 10)] for n in range(3)}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_copy_of_a_sandbox_starts_servers_of_its_own(make_sandbox):
    with make_sandbox() as sandbox:
        ready, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                outcome = sandbox.map(double, [5])
                sandbox.close()
                os.write(report, json.dumps(outcome).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(report)
        assert json.loads(os.read(ready, 100)) == [10]
        os.close(ready)
        # The child's close has left the parent's server alone.
        assert sandbox.map(double, [6]) == [12]


def test_a_closed_sandbox_refuses_and_leaves_no_process(make_sandbox):
    sandbox = make_sandbox(2)
    servers = [worker.process for worker in sandbox._workers]
    sandbox.close()
    assert all(server.returncode is not None for server in servers)
    with pytest.raises(ValueError, match="closed"):
        sandbox.map(double, [1])


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_below_one_is_refused(workers):
    with pytest.raises(ValueError, match=f"workers.*{workers}"):
        Sandbox(workers)


def test_an_unknown_isolation_is_refused():
    with pytest.raises(ValueError, match=r"isolation.*'none'"):
        Sandbox(isolation="none")


def test_a_thousand_runs_leave_descriptors_and_memory_as_they_were(make_sandbox):
    def resident(pid):
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with make_sandbox(_without=frozenset({"namespaces"})) as sandbox:
        server = sandbox._workers[0].process.pid
        sandbox.map(double, range(100))
        before = descriptors(), resident(os.getpid()), resident(server)
        sandbox.map(double, range(1000))
        after = descriptors(), resident(os.getpid()), resident(server)
    assert after[0] == before[0]
    assert after[1] - before[1] < 2 << 20
    assert after[2] - before[2] < 1 << 20
