"""Who owns an attempt: one process on one host, started by one job."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints.errors import one_line
from checkpoints.strict_json import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, told from any other even if its pid is used again. `job` says who started it, across restarts."""

    job: str
    host: str
    pid: int
    boot_id: str
    started: int  # clock ticks after boot

    @classmethod
    def of_process(cls, job: str, pid: int) -> Owner:
        """The owner that a living process of this host is."""
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid} on this host")
        return cls(job=job, host=host_name(), pid=pid, boot_id=_boot_id(), started=started)

    @classmethod
    def from_json(cls, fields: Fields) -> Owner:
        return cls(
            job=fields.text("job"),
            host=fields.text("host"),
            pid=fields.integer("pid"),
            boot_id=fields.text("boot_id"),
            started=fields.integer("started"),
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"job {self.job} (process {self.pid} on {self.host})"


def owner_is_alive(owner: Owner) -> bool:
    """Whether the process runs. One on another host is taken to be alive: nothing here can tell."""
    if owner.host != host_name():
        return True
    return owner.boot_id == _boot_id() and _started(owner.pid) == owner.started


def host_name() -> str:
    """Of this machine."""
    return one_line(socket.gethostname())  # the log holds printable texts alone


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """When the process started; None when there is none, or only its exit status is left."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = status.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def this_process(job: str) -> Owner:
    """The owner that the calling process is."""
    return Owner.of_process(job, os.getpid())
