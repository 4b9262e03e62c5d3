"""How the tasks of a batch job are put into a container, as text for its shell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.slurm.settings import SlurmSettings

# An image may say in which folder its commands run, and set variables; by these the run's code finds itself. So both
# are said again where the image has no say any more.
_FOLDER = '"$run_folder":"$run_folder"'


def check_mountable(folders: Iterable[Path]) -> None:
    """Raises ClusterError for a folder that cannot be named in a list of mounts."""
    for folder in folders:
        if set(str(folder)) & {":", ","}:
            raise ClusterError(
                f"{str(folder)!r} cannot be mounted in a container, for its ':' or ','; use another folder"
            )


def options_of_srun(settings: SlurmSettings) -> str:
    """What pyxis adds to srun; empty for another runtime."""
    if settings.container is None or settings.container_runtime != "pyxis":
        return ""
    mounts = f"--container-mounts={_mounts(settings)}"
    return f' --container-image={settings.container} {mounts} --container-workdir="$code"'


def command_before(settings: SlurmSettings, names: Sequence[str], *, has_gpus: bool) -> str:
    """What comes before the task's own command; `names` are the variables that it must find."""
    if settings.container is None:
        return ""
    environment = " ".join(f'{name}="${name}"' for name in names)
    if settings.container_runtime == "pyxis":
        return f"env {environment} "
    gpus = "--nv " if has_gpus else ""
    return f'apptainer exec {gpus}--bind {_mounts(settings)} --pwd "$code" {settings.container} env {environment} '


def _mounts(settings: SlurmSettings) -> str:
    return ",".join((_FOLDER, *(m if ":" in m else f"{m}:{m}" for m in settings.container_mounts)))
