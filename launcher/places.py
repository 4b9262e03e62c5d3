"""Where runs are kept, and what to call one in a command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from launcher.errors import UsageError


def runs_dir(flag: str | None) -> Path:
    """From `--runs-dir`, $LAUNCH_RUNS_DIR or ./runs. Raises UsageError for a URL that is not on this machine."""
    text = (os.environ.get("LAUNCH_RUNS_DIR") or "runs") if flag is None else flag
    scheme, separator, rest = text.partition("://")
    if "\0" in text or not text:
        raise UsageError(f"--runs-dir {text!r} is no folder's name; use a path or file://PATH")
    if separator and scheme != "file":
        raise UsageError(f"--runs-dir {text} is not on this machine; use a path or file://PATH")
    return Path(rest if separator else text).expanduser().absolute()


def word_for(run: Path) -> str:
    """What to type for the run's folder in another command; quoted, because it is there to be copied into a shell."""
    return shlex.quote(run.name if run.parent == runs_dir(None) else str(run))
