import json

from rewards.sandbox.imports import named_modules


def test_modules_of_the_standard_library_are_found_in_a_job():
    program = "import math, json as j\nfrom os.path import join\n\tfrom heapq import heappush\n"
    program += "import numpy\nfrom . import x\n"
    job = json.dumps({"program": program}).encode()
    assert named_modules(job) == [
        "heapq",
        "heapq.heappush",
        "json",
        "math",
        "os.path",
        "os.path.join",
    ]


def test_the_number_of_names_is_bounded_whatever_the_job_says():
    names = ", ".join(f"os.a{number}" for number in range(10_000))
    assert len(named_modules(f"import {names}".encode())) <= 64


def test_a_long_name_is_left_out():
    assert named_modules(b"import os." + b"a" * 1000) == []
