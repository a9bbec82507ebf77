"""How a program's verdict is made, outside of the process that runs the program.

    extraction       which part of a completion is the program
    task_forms, row_tasks     the tests of a row: plain JSON, HumanEval, MBPP
    assertions, literal_asserts, review     tests that are code: what they need, what can be judged
    judging          a program and a task to a verdict, through `rewards.sandbox`
    protocol, frames, relay   lock-step with the program's process, and with that of its tests
    comparison, wording       an answer beside the expected one, as canonical text; reasons in words
    program_batches, shared_sandbox    a batch of completions on the sandboxes of this process

`rewards.programs` holds the rewards that are made of it.
"""
