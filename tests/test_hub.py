"""Uploads, against a stand-in for the hub that is reached by real HTTP."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard, constants

from rl4lm import ReinforceConfig
from rl4lm.errors import ConfigError, HubError
from rl4lm.export.hub import check_publishing, check_upload, greet, upload


@pytest.fixture
def folder(tmp_path):
    """What an export looks like to an upload."""
    place = tmp_path / "exported"
    place.mkdir()
    (place / "README.md").write_text("---\nlibrary_name: transformers\n---\n# it\n")
    (place / "config.json").write_text("{}\n")
    (place / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return place


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_byte_of_the_folder_arrives_in_one_commit(reach, folder, hub_server):
    with hub_server.Hub() as hub:
        reach(hub.url)
        address = upload(folder, "ann/it", private=True)
    assert address == f"{hub.url}/ann/it"
    assert hub.files == contents(folder)
    assert hub.private
    assert len(hub.commits) == 1
    assert ModelCard(hub.cards[0]).data.library_name == "transformers"


def test_a_name_without_an_account_goes_to_the_account_of_the_token(reach, folder, hub_server):
    with hub_server.Hub() as hub:
        reach(hub.url)
        assert upload(folder, "it", private=False).endswith("/ann/it")
    assert hub.private is False


def test_a_repository_that_is_there_is_written_to_and_loses_older_weights(
    reach, folder, hub_server
):
    there = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine"}
    with hub_server.Hub(files=there) as hub:
        reach(hub.url)
        upload(folder, "ann/it", private=False)
    assert hub.files == {**contents(folder), "notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ({"/create": 401}, "401 .*does not know the token"),
        ({"/create": 403}, "403 .*may not write there"),
        ({"/commit": 403}, "403 .*may not write there"),
        ({"/commit": 500}, "answered 500 .*try again later"),
        ({"/storage": 500}, "answered 500.*try again later"),
        ({"/batch": 500}, "answered 500.*try again later"),
        ({"/preupload": 503}, "answered 503.*try again later"),
        ({"/validate-yaml": 400}, "Invalid metadata in README.md"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_said_in_words_and_without_the_token(
    reach, folder, hub_server, fails, words, capfd
):
    before = contents(folder)
    with hub_server.Hub(fails=fails) as hub:
        reach(hub.url)
        with pytest.raises(HubError, match=re.compile(words, re.DOTALL)) as caught:
            upload(folder, "ann/it", private=False)
    assert str(caught.value).startswith("ann/it cannot be uploaded: ")
    assert hub.token not in str(caught.value) + "".join(capfd.readouterr())
    assert not hub.commits
    assert contents(folder) == before


def test_a_hub_that_is_not_there_is_named(reach, folder):
    reach("http://127.0.0.1:9")
    for act in (lambda: greet("ann/it"), lambda: upload(folder, "ann/it", private=False)):
        with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 within reach"):
            act()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token": "another"}, "401"),
        ({"role": "read"}, "the token of ann may only read"),
        ({"fails": {"whoami": 502}}, "answered 502"),
    ],
    ids=str,
)
def test_a_token_that_will_not_do_is_found_out_before_the_work(reach, hub_server, settings, words):
    with hub_server.Hub(**settings) as hub:
        reach(hub.url)
        with pytest.raises(HubError, match=words):
            greet("ann/it")
    assert hub.requests == ["GET /api/whoami-v2"]


def test_a_good_token_is_welcome_and_nothing_is_made(reach, hub_server):
    with hub_server.Hub() as hub:
        reach(hub.url)
        greet("ann/it")
    assert not hub.exists


def test_what_needs_no_network_to_be_refused_is_refused_without_one(reach, monkeypatch):
    reach("http://127.0.0.1:9")
    check_upload("ann/it")
    with pytest.raises(ConfigError, match="'a/b/c' is no name of a repository"):
        check_upload("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE .* is set; unset it"):
        check_upload("ann/it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(ConfigError, match="without a token: put one that may write"):
        check_upload("ann/it")


def test_a_run_is_uploaded_under_the_name_of_its_folder(reach):
    check_publishing(ReinforceConfig())
    check_publishing(ReinforceConfig(push_to_hub=True, output_dir="runs/first"))
    with pytest.raises(ConfigError, match="'not a name' is no name of a repository"):
        check_publishing(ReinforceConfig(push_to_hub=True, output_dir="runs/not a name"))
    with pytest.raises(ConfigError, match="name that folder"):
        check_publishing(ReinforceConfig(push_to_hub=True))
    with pytest.raises(ConfigError, match="push_to_hub=false"):
        ReinforceConfig(hub_model_id="ann/it")
