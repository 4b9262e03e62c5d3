"""What this package raises. Each message says what failed, with which value, and what to do.

CheckpointError           exit code
├── StoreError            1   the storage failed; StoreUnwritable, KeyMissing and OutcomeUnknown say how
├── NotExclusive          2   the storage cannot create a key exclusively: two launchers could destroy each other's work
├── OwnerAlive            2   somebody else is training this run
├── StateMismatch         2   the commit is intact but belongs to another model or optimizer
├── NoIntactCheckpoint    4   commits exist and none can be read
├── CorruptCheckpoint     4   bytes in the storage are not what was written
├── Fenced                93  a successor has claimed the run; this process must stop
├── SaveAborted           1   one save failed on one rank; the last commit stands
└── PeerSilent            1   a rank did not answer in time
"""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(Exception):
    """One line for the user: what is wrong, with which value, and what to do."""

    exit_code = 1


def one_line(text: str) -> str:
    """The text without line feeds and other unprintable characters, and not too long to be read."""
    return "".join(character if character.isprintable() else " " for character in text)[:1000]


class StoreError(CheckpointError):
    """An operation on the storage failed."""

    def __init__(self, operation: str, key: str, reason: str) -> None:
        super().__init__(f"{operation} {key}: {reason}")
        self.operation = operation
        self.key = key
        self.reason = reason


class StoreUnwritable(StoreError):
    """The storage takes nothing for now, which somebody may mend while training goes on."""


class StoreFull(StoreUnwritable):
    """The storage, or this user's share of it, has no space left."""


class KeyMissing(StoreError):
    """There is nothing under this key."""

    def __init__(self, operation: str, key: str) -> None:
        super().__init__(operation, key, "there is no such file")


class NotAFile(StoreError):
    """Something else than a file has the key's place: a link, a folder, a device."""


class OutcomeUnknown(StoreError):
    """The storage did not say whether it stored the data: it may be there, so nothing may be cleaned up."""

    def __init__(self, operation: str, key: str) -> None:
        super().__init__(operation, key, "the storage does not answer; whether it was stored is not known")


class NotExclusive(CheckpointError):
    """The storage let two writers create the same key."""

    exit_code = 2

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url} cannot create a file exclusively, so two launchers could destroy each other's checkpoints;"
            " use a folder, or a bucket of a service that can"
        )


class OwnerAlive(CheckpointError):
    """The process that owns the run looks alive."""

    exit_code = 2

    def __init__(self, owner: str) -> None:
        super().__init__(f"this run is being trained by {owner}; stop it first, or take the run over with --takeover")


class Fenced(CheckpointError):
    """A successor has claimed the run: this process may not write to it any more, and must stop."""

    exit_code = 93

    def __init__(self, epoch: int, owner: str) -> None:
        super().__init__(f"this run was taken over by {owner} (epoch {epoch}); this attempt stops and changes nothing")
        self.epoch = epoch
        self.owner = owner


class CorruptCheckpoint(CheckpointError):
    """Bytes in the storage are not those that were written, or were never written by this program."""

    exit_code = 4

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class StateMismatch(CheckpointError):
    """An intact commit does not fit the state that it should be loaded into."""

    exit_code = 2


class NoIntactCheckpoint(CheckpointError):
    """Commits exist, but not one of them is intact. `skipped` has one reason for each."""

    exit_code = 4

    def __init__(self, skipped: Sequence[str]) -> None:
        super().__init__(
            f"none of the {len(skipped)} commits is intact ({'; '.join(skipped)});"
            " restore the files from a copy, or start a new run under another name"
        )
        self.skipped = tuple(skipped)


class SaveAborted(CheckpointError):
    """One save did not become a commit. Training can go on: the commits before it are untouched.

    is_unwritable: the storage is full or read-only, which somebody may mend while training goes on.
    """

    def __init__(self, rank: int, operation: str, reason: str, *, is_unwritable: bool = False) -> None:
        super().__init__(f"rank {rank} could not save ({operation}): {reason}; the last commit stands")
        self.rank = rank
        self.operation = operation
        self.reason = reason
        self.is_unwritable = is_unwritable


class PeerSilent(CheckpointError):
    """Ranks that did not answer within the deadline."""

    def __init__(self, key: str, ranks: Sequence[int], seconds: float) -> None:
        names = ", ".join(str(rank) for rank in ranks)
        super().__init__(f"no answer from rank {names} to {key} within {seconds:.0f} s")
        self.ranks = tuple(ranks)
