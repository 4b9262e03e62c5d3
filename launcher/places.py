"""Where runs are kept, and what to call one in a command."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from checkpoints.store import OBJECT_SCHEMES
from launcher.errors import UsageError

_OWN_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay")
_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*/?")


def runs_dir(flag: str | None) -> Path:
    """From `--runs-dir`, $LAUNCH_RUNS_DIR or ./runs. Raises UsageError for a URL that is not on this machine."""
    text = (os.environ.get("LAUNCH_RUNS_DIR") or "runs") if flag is None else flag
    scheme, separator, rest = text.partition("://")
    if "\0" in text or not text:
        raise UsageError(f"--runs-dir {text!r} is no folder's name; use a path or file://PATH")
    if separator and scheme != "file":
        raise UsageError(f"--runs-dir {text} is not on this machine; use a path or file://PATH")
    return Path(rest if separator else text).expanduser().absolute()


def store_url(flag: str, name: str) -> str:
    """Where the checkpoints of the run `name` lie, from `--checkpoints`: a bucket's URL, or a folder's path."""
    scheme, separator, rest = flag.partition("://")
    if separator and scheme in OBJECT_SCHEMES and _PREFIX.fullmatch(rest):
        return f"{flag.rstrip('/')}/{name}"
    if separator or "\0" in flag or not flag or flag.startswith(tuple(f"{name}:" for name in OBJECT_SCHEMES)):
        schemes = " or ".join(f"{scheme}://BUCKET/PREFIX" for scheme in OBJECT_SCHEMES)
        raise UsageError(f"--checkpoints {flag!r} is no place for checkpoints; use a folder, or {schemes}")
    return str(Path(flag).expanduser().absolute() / name)


def remedy_for(store: str) -> str:
    """What to do where checkpoints cannot be written, by the store's URL. It names variables, and shows no value."""
    names = _CREDENTIALS.get(store.partition("://")[0], ())
    if not names:
        return "choose another folder"
    missing = [name for name in names if name not in os.environ]
    return f"export {' and '.join(missing)}" if missing else f"make the bucket, and let {' and '.join(names)} write it"


def is_object(path: str) -> bool:
    """Whether the path is the URL of an object in a bucket."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme in OBJECT_SCHEMES


def check_object(url: str) -> None:
    """Raises UsageError for a URL that is no object's."""
    rest = url.partition("://")[2]
    if not (is_object(url) and "/" in rest and not rest.endswith("/") and _PREFIX.fullmatch(rest)):
        objects = " or ".join(f"{scheme}://BUCKET/NAME" for scheme in OBJECT_SCHEMES)
        raise UsageError(
            f"data.path={url!r} is no object's URL; use a path, or {objects} of letters, digits, . _ and -"
        )


def own_disk(path: Path, mounts: str) -> str | None:
    """The kind of file system that `path` is on, where that is one of this machine alone as a rule; None elsewhere.

    mounts: the content of /proc/self/mounts.
    """
    kinds: dict[str, str] = {}
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        kinds[point.replace("\\040", " ")] = kind  # what was mounted last lies on top
    folders = (str(folder) for folder in (path, *path.parents))
    kind = next((kinds[folder] for folder in folders if folder in kinds), "")
    return kind if kind in _OWN_DISKS else None


def word_for(run: Path) -> str:
    """What to type for the run's folder in another command; quoted, because it is there to be copied into a shell."""
    return shlex.quote(run.name if run.parent == runs_dir(None) else str(run))
