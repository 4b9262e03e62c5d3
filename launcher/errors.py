"""What the launcher raises. The command line prints these as one line, without a traceback.

LaunchError               exit code
├── UsageError            2   a flag, a recipe or an override is wrong; nothing was started
├── RunFailed             1   checkpoints cannot be written
├── DamagedRun            2   a file of the run folder is not what was written
├── NoProgress            93  restarts without a new commit
└── DriftError            2   a resumed run would not be the same run
"""

from pathlib import Path


class LaunchError(Exception):
    """One line for the user: what is wrong, with which value, and what to do."""

    exit_code = 1


class UsageError(LaunchError):
    """A flag, a recipe or an override that cannot be used."""

    exit_code = 2


class DriftError(UsageError):
    """Something that decides the result changed since the run started."""


class RunFailed(LaunchError):
    """Training cannot go on: what it computes can no longer be kept."""


class DamagedRun(LaunchError):
    """A file of a run folder that this program cannot have written."""

    exit_code = 2

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}; restore it from a copy")


class NoProgress(LaunchError):
    """The run was restarted several times without a new commit: do not requeue."""

    exit_code = 93
