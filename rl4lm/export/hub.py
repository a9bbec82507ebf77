"""Upload a folder to the Hugging Face hub, and say in words what stands in the way.

The token is the one of ``HF_TOKEN`` or of ``hf auth login``. It is never an option: options are
written down, and a command line is there for all to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError, HubError, first_line

_TOKENS = "https://huggingface.co/settings/tokens"
# What an earlier upload may have left beside the weights that are uploaded now.
_WEIGHTS = ["model*.safetensors*", "pytorch_model*", "adapter_model.*", "adapter_config.json"]


def repository(config: ReinforceConfig) -> str:
    """The name of the repository that a run is uploaded to."""
    if config.hub_model_id is not None:
        return config.hub_model_id
    return Path(str(config.output_dir)).resolve().name


def check_publishing(config: ReinforceConfig) -> None:
    """Refuse an upload that could not be made, before the run, without a word to the network.

    Raises:
        ConfigError: no output directory, no token, a name that the hub does not take, or the hub
            is switched off.
    """
    if not config.push_to_hub:
        return
    if config.output_dir is None:
        raise ConfigError("push_to_hub=true uploads the weights in output_dir; name that folder")
    check_upload(repository(config))


def check_upload(name: str) -> None:
    """Refuse what cannot be uploaded, without a word to the network.

    Args:
        name: of the repository, ``ORG/NAME``, or ``NAME`` for the token's own account.

    Raises:
        ConfigError: a name that the hub does not take, no token, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r} is no name of a repository on the hub ({first_line(error)}); give ORG/NAME"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{name} cannot be uploaded: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it"
        )
    if get_token() is None:
        raise ConfigError(
            f"{name} cannot be uploaded without a token: put one that may write ({_TOKENS}) in the "
            "environment variable HF_TOKEN, or run `hf auth login`"
        )


def greet(name: str) -> None:
    """Ask the hub whose the token is, before hours of work end at its door; nothing is made there.

    Raises:
        HubError: the hub cannot be reached, does not know the token, or lets it only read.
    """
    from huggingface_hub import HfApi

    with _in_words(name):
        known = HfApi().whoami()
    role = known.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"{name} cannot be uploaded: the token of {known.get('name')} may only read; take one "
            f"that may write ({_TOKENS})"
        )


def upload(folder: Path, name: str, private: bool) -> str:
    """Make the repository where there is none, and put the files of a folder into it, in a commit.

    Weights of an earlier upload that the folder does not hold are removed by the same commit.

    Args:
        folder: of an export.
        name: as of `check_upload`.
        private: of a repository that is made; one that exists keeps what it is.

    Returns:
        The address of the repository.

    Raises:
        HubError: says what the hub said; the folder is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _in_words(name):
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Upload of rl4lm export",
            delete_patterns=_WEIGHTS,
        )
    return str(repository)


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # What failed in a thread of the upload comes wrapped.
        met = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        if isinstance(met, HfHubHTTPError):
            said = _answer(met)
        elif isinstance(met, ValueError):  # the hub does not take the card
            said = " ".join(str(met).split())
        else:
            said = _silence(met)
        raise HubError(f"{name} cannot be uploaded: {said}") from None


def _answer(error: Any) -> str:
    """What the hub's answer means, and what to do."""
    status = error.response.status_code
    said = f"the hub answered {status}" + (
        f" ({error.server_message})" if error.server_message else ""
    )
    if status == 401:
        return f"{said}: it does not know the token; put a valid one ({_TOKENS}) in HF_TOKEN"
    if status in (403, 404):
        return (
            f"{said}: the token may not write there; look at the name, and at the rights of the "
            f"token ({_TOKENS})"
        )
    return f"{said}; try again later"


def _silence(error: BaseException) -> str:
    from huggingface_hub import constants

    assert isinstance(error, Exception)
    return (
        f"{first_line(error)}; is {constants.ENDPOINT} within reach of this machine? Then try again"
    )
