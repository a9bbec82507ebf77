"""A grader as most are: program and tests in one process, the exit status is the verdict.

It runs in the place of the sandbox's own runner, and shows which programs beat such a grader.
"""

import json
import os


def main(rpc):
    job = json.loads(os.read(rpc, 1 << 20))
    namespace = {"__name__": "program"}
    exec(job["program"], namespace)
    task = job["task"]
    if task["kind"] == "assert":
        exec(task["tests"], namespace)
        if task.get("call_check"):
            namespace["check"](namespace[task["entry"]])
        return 0
    for test in task["tests"]:
        got, expected = namespace[task["entry"]](*test["args"]), test["expected"]
        if "compare" in task:
            assert not abs(got - expected) > 1e-9
        else:
            assert got == expected
    return 0
