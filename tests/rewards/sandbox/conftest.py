import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUNNER = str(Path(__file__).with_name("evaluating_runner.py"))
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "sandbox" in getattr(item, "fixturenames", ()):
            item.add_marker(linux_only)


@pytest.fixture(scope="session")
def make_sandbox() -> Callable:
    from rewards.sandbox import Sandbox

    def make(workers: int = 1, **options):
        return Sandbox(workers, _runner=RUNNER, **options)

    return make


@pytest.fixture(scope="session")
def sandbox(make_sandbox) -> Iterator:
    with make_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def evaluate() -> Callable:
    """Run code in one child of a sandbox and return the values of expressions there."""

    def run(sandbox, *expressions: str, code: str = "") -> list[str]:
        def judge(runner, item):
            with runner.start(json.dumps(code).encode()) as session:
                return [session.ask(text.encode()).decode() for text in expressions]

        return sandbox.map(judge, [None])[0]

    return run
