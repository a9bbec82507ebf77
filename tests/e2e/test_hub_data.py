"""Data sets by the ids of the hub: from a hub on localhost, and from a copy where there is none."""

from __future__ import annotations

import json
import sys

import pytest
from hub import COMMIT, serving
from launching import finished

NAME = "acme/sums"
CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.jsonl
  - split: test
    path: main/test-*.jsonl
- config_name: hard
  data_files: hard/*.jsonl
---
"""
FILES = {
    "README.md": CARD,
    "main/train-0.jsonl": b'{"question": "1+1=", "answer": "2"}\n'
    b'{"question": "2+1=", "answer": "3"}\n',
    "main/test-0.jsonl": b'{"question": "4+4=", "answer": "8"}\n',
    "hard/train.jsonl": b'{"question": "17*3=", "answer": "51"}\n',
}
READ = """
import json, sys
from rl4lm.data.examples import load_split
from rl4lm.errors import DataError
from rl4lm.data.sources import Access
for configuration, split, rows in json.loads(sys.argv[1]):
    try:
        data = load_split("acme/sums", split, "question", access=Access(configuration, rows))
        found = [[e.prompt, e.columns["answer"]] for e in data.examples(range(len(data)))]
    except DataError as error:
        found = f"{type(error).__name__}: {error}"
    print("found", json.dumps(found))
"""
TRAIN = [["1+1=", "2"], ["2+1=", "3"]]
CASES = [  # configuration, split, rows to stream; what is found, or words of the refusal
    (("main", "train", None), TRAIN),
    (("main", "test", None), [["4+4=", "8"]]),
    (("hard", "train", None), [["17*3=", "51"]]),
    (("main", "train", 1), TRAIN[:1]),
    (("main", "train", 9), TRAIN),
    ((None, "train", None), "it has the configurations 'main', 'hard': name one with --dataset_co"),
    (
        ("mian", "train", None),
        "it has the configurations 'main', 'hard': name one with --dataset_c",
    ),
    (("main", "tset", None), "MissingSplitError: the data set 'acme/sums' has no split 'tset'"),
    (("main", "tset", 2), "it has: train, test"),
]


def read(folder, cases, **environment):
    """What a process of its own finds: the libraries read these variables when imported."""
    words = [sys.executable, "-c", READ, json.dumps([case for case, _ in cases])]
    own = {"HF_HOME": str(folder), "NO_PROXY": "127.0.0.1", **environment}
    done = finished(words, seconds=240, **own)
    lines = [line.removeprefix("found ") for line in done.stdout.splitlines() if "found " in line]
    return [json.loads(line) for line in lines]


def check(found, cases):
    assert len(found) == len(cases)
    for have, (case, wanted) in zip(found, cases, strict=True):
        if isinstance(wanted, str):
            assert wanted in have, case
        else:
            assert have == wanted, case


def test_a_data_set_of_the_hub_is_read_by_split_and_configuration_whole_or_as_a_stream(tmp_path):
    with serving(NAME, FILES) as address:
        found = read(tmp_path, CASES, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    check(found, CASES)


@pytest.mark.slow
def test_a_downloaded_copy_serves_where_the_hub_may_not_be_asked(tmp_path):
    copy = tmp_path / "hub" / "datasets--acme--sums"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text(COMMIT)
    for name, content in FILES.items():
        blob, link = copy / "blobs" / name.replace("/", "-"), copy / "snapshots" / COMMIT / name
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
    check(read(tmp_path, CASES, HF_HUB_OFFLINE="1"), CASES)
    # The control: no copy, no data, and the reason in words.
    (refused,) = read(tmp_path / "none", CASES[:1], HF_HUB_OFFLINE="1")
    assert "cannot be read: Couldn't reach 'acme/sums' on the Hub" in refused
