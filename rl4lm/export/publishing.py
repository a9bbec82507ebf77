"""Upload what a run has learned when it has ended; a failure never costs the run."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.errors import Rl4lmError
from rl4lm.export.exported import ExportChoices, export
from rl4lm.export.hub import check_publishing, greet, repository, upload
from rl4lm.export.lineage import adapter_settings, on_hub, parent
from rl4lm.export.source import find_source
from rl4lm.processes.world import World
from rl4lm.rundir.tracking import RunDirectory
from rl4lm.screen.console import Screen


def begin_publishing(config: ReinforceConfig, world: World) -> None:
    """See that the upload at the end of a run can be made, as far as the hub tells beforehand.

    Raises:
        ConfigError, HubError: why not.
    """
    check_publishing(config)
    if config.push_to_hub and world.is_main:
        greet(repository(config))


def publish(
    config: ReinforceConfig, directory: RunDirectory | None, screen: Screen, summary: dict[str, Any]
) -> None:
    """Upload what a run has learned, where that was asked for, and note it in the summary.

    Args:
        config: the options of the run.
        directory: of the run, on the process that writes.
        screen: told how it went.
        summary: gains ``hub_url``, None where the upload failed.
    """
    if config.push_to_hub and directory is not None:
        summary["hub_url"] = _upload_run(config, screen)
        directory.write_summary(summary)


def _upload_run(config: ReinforceConfig, screen: Screen) -> str | None:
    """Export the final weights and upload them.

    An adapter goes as an adapter where its base model is on the hub, and merged into it otherwise.

    Returns:
        The address of the repository; None where it could not be done, which is said on the screen.
    """
    run, name = Path(str(config.output_dir)), repository(config)
    try:
        source = find_source(str(run))
        base = parent(source.weights, source.run)
        alone = adapter_settings(source.weights) is not None and base is not None and on_hub(base)
        # Within the run, since that has the room; its name goes with the run's other folders.
        with tempfile.TemporaryDirectory(dir=run, prefix="model-upload-") as place:
            choices = ExportChoices(
                adapter_only=alone, trust_remote_code=config.trust_remote_code, title=name
            )
            export(source, Path(place) / "export", choices)
            address = upload(Path(place) / "export", name, config.hub_private_repo)
    except (Rl4lmError, OSError) as error:
        again = f"rl4lm export {shlex.quote(str(run))} --out FOLDER --push_to_hub {name}"
        screen.warn(f"{error}\nthe run is whole, only the upload is missing: {again}")
        return None
    screen.result(f"uploaded to {address}")
    return address
