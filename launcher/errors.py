"""What the launcher raises. The command line prints these as one line, without a traceback.

LaunchError               exit code
├── UsageError            2   a flag, a recipe or an override is wrong; nothing was started
├── RunFailed             1   checkpoints cannot be written
├── ExportFailed          1   a checkpoint could not be exported; 2 and 4 as for a run
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


class ExportFailed(LaunchError):
    """The process that exports a checkpoint has ended, for that reason and with that exit code."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(f"the export failed: {reason}")
        self.exit_code = exit_code if exit_code in (2, 4) else 1


class DamagedRun(LaunchError):
    """A file of a run folder that this program cannot have written."""

    exit_code = 2

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}; restore it from a copy")


class NoProgress(LaunchError):
    """The run was restarted several times without a new commit: do not requeue."""

    exit_code = 93
