"""What a program cannot do, tried from inside a child; with each layer off, the try gets through.

The second half of each pair is the negative control: it shows that the try itself works, and that
it is this layer which stops it.
"""

import os
import time

import pytest

HOST_FILE = "open('/etc/passwd').read(4) and 'read'"
# Names of layers are left out together where another would stop the same try.
OPEN_WORLD = {"landlock", "namespaces", "files"}


@pytest.fixture(scope="module")
def weaker(make_sandbox):
    """Sandboxes with some layers off, one per set, closed at the end."""
    made = {}

    def get(*without):
        key = frozenset(without)
        if key not in made:
            made[key] = make_sandbox(_without=key)
        return made[key]

    yield get
    for sandbox in made.values():
        sandbox.close()


TRIES = {
    "socket": ("__import__('socket').socket(2, 2) and 'made'", {"seccomp", "namespaces"}),
    "fcntl owner": ("__import__('fcntl').fcntl(0, 8, __import__('os').getpid())", {"seccomp"}),
    "ptrace": ("__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0) and 'OSError'", {"seccomp"}),
    "own limits": (
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_CORE, (0, 0))",
        {"seccomp"},
    ),
    "host file": (HOST_FILE, OPEN_WORLD),
    "stat": ("__import__('os').stat('/etc/passwd') and 'seen'", {"namespaces"}),
    "memory": ("__import__('mmap').mmap(-1, 1 << 30) and 'mapped'", {"rlimits"}),
    "descriptors": ("len([__import__('os').dup(0) for _ in range(100)])", {"rlimits"}),
}


def was_stopped(answer):
    # Python reports a refused `setrlimit` as ValueError.
    errors = ("PermissionError", "OSError", "MemoryError", "FileNotFoundError", "ValueError")
    return answer.strip("'").startswith(errors)


@pytest.mark.parametrize("name", sorted(TRIES))
def test_a_try_is_stopped_with_every_layer_on_and_gets_through_without_its_own(
    sandbox, weaker, evaluate, name
):
    expression, without = TRIES[name]
    assert was_stopped(evaluate(sandbox, expression)[0])
    (through,) = evaluate(weaker(*without), expression)
    assert not was_stopped(through)


@pytest.mark.parametrize("without", [["landlock"], ["namespaces"], ["landlock", "namespaces"]])
def test_each_of_the_three_ways_of_confining_files_is_enough(weaker, evaluate, without):
    assert was_stopped(evaluate(weaker(*without), HOST_FILE)[0])


def test_the_layer_that_confines_files_is_named(sandbox, weaker):
    assert sandbox.layers["files"] == "on: Landlock"
    assert weaker("landlock").layers["files"] == "on: mount namespace"
    both = weaker("landlock", "namespaces")
    assert both.layers["files"] == "on: nothing can be opened"
    assert both.layers["landlock"].startswith("off: ")


@pytest.mark.parametrize("without", [[], ["landlock"], ["landlock", "namespaces"]])
def test_modules_of_the_standard_library_can_be_imported(weaker, evaluate, without):
    code = "import colorsys, sqlite3\nfrom xml.dom import minidom\n"
    code += "from concurrent.futures import ThreadPoolExecutor"  # loaded when it is asked for
    sandbox = weaker(*without)
    assert evaluate(sandbox, "colorsys.__name__", "minidom.__name__", code=code) == [
        "'colorsys'",
        "'xml.dom.minidom'",
    ]


def test_a_hostile_import_line_is_the_programs_own_fault_where_nothing_can_be_opened(
    weaker, evaluate
):
    code = "text = 'import antigravity, os.nothing, winreg, nothing, unittest.__main__'"
    assert evaluate(weaker("landlock", "namespaces"), "1 + 1", code=code) == ["2"]


@pytest.mark.parametrize("without", [[], ["landlock"]])
def test_installed_packages_cannot_be_read(weaker, evaluate, without):
    installed = os.path.dirname(os.path.dirname(pytest.__file__))
    assert was_stopped(evaluate(weaker(*without), f"open({pytest.__file__!r}).read(1)")[0])
    assert was_stopped(evaluate(weaker(*without), f"__import__('os').listdir({installed!r})")[0])


def test_a_fork_is_refused_and_a_thread_too(sandbox, evaluate):
    assert evaluate(sandbox, "__import__('os').fork()") == ["BlockingIOError 11"]
    code = "import threading\ntry:\n    threading.Thread(target=print).start()\n    made = True\n"
    code += "except RuntimeError:\n    made = False"
    assert evaluate(sandbox, "made", code=code) == ["False"]


def test_no_secret_of_the_parents_environment_is_seen(sandbox, evaluate, monkeypatch, make_sandbox):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with make_sandbox() as fresh:
        (names,) = evaluate(fresh, "sorted(__import__('os').environ)")
    assert set(eval(names)) <= {"LANG", "LC_CTYPE", "PATH", "PYTHONHASHSEED", "TZ"}


def test_no_descriptor_of_the_parent_is_inherited(make_sandbox, evaluate):
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        with make_sandbox() as fresh:
            code = "import os\nfound = []\nfor n in range(300):\n    try:\n        os.fstat(n)\n"
            code += "        found.append(n)\n    except OSError:\n        pass"
            assert evaluate(fresh, "found", code=code) == ["[0, 1, 2, 3]"]


def test_asyncio_works_inside(sandbox, evaluate):
    code = "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    return 7\n"
    assert evaluate(sandbox, "asyncio.run(main())", code=code) == ["7"]


def test_hashes_and_random_numbers_are_the_same_in_every_run_of_every_server(
    make_sandbox, sandbox, evaluate
):
    expressions = ("hash('a word')", "__import__('random').random()", "list({'x', 'y', 'z', 'w'})")
    with make_sandbox() as other:
        assert evaluate(sandbox, *expressions) == evaluate(sandbox, *expressions)
        assert evaluate(sandbox, *expressions) == evaluate(other, *expressions)


def test_x32_calls_end_the_run(sandbox, evaluate):
    from rewards.sandbox import Ended

    if os.uname().machine != "x86_64":
        pytest.skip("another architecture")
    call = "__import__('ctypes').CDLL(None).syscall(0x40000000 + 39)"
    with pytest.raises(Ended, match="died: killed by signal 31"):
        evaluate(sandbox, call)


def test_where_forking_is_possible_the_children_end_with_the_run(weaker, evaluate):
    code = "import os, time\nchild = os.fork()\nif child == 0:\n    time.sleep(30)\n    os._exit(0)"
    sandbox = weaker("seccomp", "namespaces", "rlimits")
    (child,) = evaluate(sandbox, "child", code=code)
    deadline = time.monotonic() + 1
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(child)


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            # A zombie waits only for whoever adopted it.
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
