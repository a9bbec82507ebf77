"""One, two and four processes, replicated and sharded, make the same steps."""

from __future__ import annotations

import pytest
import world_sizes

# One of each kind in the default tests; the slow ones make all.
SOME = [
    "float64: full, prompt_leave_one_out",
    "float64: special, all skipped on some",
    "float64: special, as TRL has it",
    "float32: adapters, linear_value",
]
ALL = world_sizes.cases()
LIMITS = {"float64": 1e-12, "float32": 1e-6}
# Whose gradients are not summed over the processes.
CONTROL = "float64: unreduced"
ALL[CONTROL] = {**ALL[SOME[0]], "broken": True}


def folder_of(factory, layouts, names):
    folder = factory.mktemp("world-sizes")
    chosen = {name: ALL[name] for name in names}
    world_sizes.start(folder, "alone", chosen)
    for layout in layouts:
        world_sizes.start(folder, layout, chosen)
    return folder


def check(folder, layout, name):
    relative, of_way, same = world_sizes.difference(folder, layout, name)
    assert same, "other completions"
    dtype = name.partition(":")[0]
    assert relative < LIMITS[dtype]
    assert of_way < 1e5 * LIMITS[dtype], "the way that the weights went is short beside them"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes, replicated and sharded, wrote down some cases."""
    return folder_of(tmp_path_factory, ["replicated-2", "sharded-2"], [*SOME, CONTROL])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("layout", ["replicated-2", "sharded-2"])
@pytest.mark.parametrize("name", SOME)
def test_two_processes_end_where_one_ends(two, layout, name):
    check(two, layout, name)


@pytest.mark.timeout(240)
def test_without_the_reduction_they_would_end_elsewhere(two):
    relative, of_way, _ = world_sizes.difference(two, "replicated-2", CONTROL)
    assert relative > 1e-3
    assert of_way > 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_cases_on_two_and_on_four_processes(tmp_path_factory):
    layouts = ["replicated-2", "sharded-2", "replicated-4", "sharded-4"]
    folder = folder_of(tmp_path_factory, layouts, list(world_sizes.cases()))
    for layout in layouts:
        for name in world_sizes.cases():
            check(folder, layout, name)
