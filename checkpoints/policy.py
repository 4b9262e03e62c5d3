"""Which commits may go. Pure: the log decides when, the saver deletes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from checkpoints.entry import Commit, Entry

LOCAL_COPIES = 2  # of commits that are in the store, on the disk of each node
_SAVE_FOLDER = re.compile(r"(data/([1-9][0-9]*)-[0-9]+-[0-9a-f]+)/")


def retirable(state: Entry, keep: int, uploading: int = 0) -> tuple[Commit, ...]:
    """The live commits that nobody needs, oldest first. `uploading` is the one that is being copied; 0 for none.

    Of the commits in the store the newest `keep` stay, and so do pinned ones. One goes only when a later one of this
    epoch, in the store, was verified, so the newest verified one never goes; the base of this epoch stays until this
    epoch has two of its own there. What is on disks of nodes alone counts for none of that; it goes, by the same rules
    and with keep=0, when a later commit of either kind was verified.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would delete every checkpoint; use 1 or more")
    newest = [commit.n for commit in state.live if commit.is_stored][-keep:]
    own = [commit for commit in state.live if commit.epoch == state.epoch]

    def may_go(commit: Commit) -> bool:
        others = [other for other in own if other.is_stored or not commit.is_stored]
        newest_verified = max((other.n for other in others if other.is_verified), default=0)
        return commit.n < newest_verified and (commit.n != state.base or len(others) >= 2)

    stays = (uploading, *newest)
    return tuple(commit for commit in state.live if commit.n not in stays and not commit.is_pinned and may_go(commit))


def newest_stored(state: Entry) -> Commit | None:
    """The commit that outlives the machines. Of epochs before, those that are newer than the base were passed over."""
    stored = [c for c in state.live if c.is_stored and (c.epoch == state.epoch or c.n <= (state.base or 0))]
    return stored[-1] if stored else None


def without_old_copies(live: tuple[Commit, ...]) -> tuple[Commit, ...]:
    """Commits that are in the store have copies on disks of nodes only while they are the newest that have."""
    newest = [commit.n for commit in live if commit.hosts][-LOCAL_COPIES:]
    return tuple(
        replace(commit, hosts=()) if commit.is_stored and commit.n not in newest else commit for commit in live
    )


def orphans(keys: Iterable[str], state: Entry) -> tuple[str, ...]:
    """The keys of saves that are not live and never will be: their epoch is over.

    Saves of this epoch or a later one are never named, because their writer may be at work.
    """
    live = {commit.folder for commit in state.live}
    over = range(state.doubtful_epoch + 1, state.epoch)
    return tuple(
        key for key in keys if (found := _SAVE_FOLDER.match(key)) and found[1] not in live and int(found[2]) in over
    )


def old_copies(keys: Iterable[str], copied: Collection[str], over: range, epoch: int, name: str) -> tuple[str, ...]:
    """The keys on a node's disk that one of its ranks may delete: none of a save in `copied`, by folder.

    `over` are epochs that have ended. Of its own epoch a rank deletes the files called `name`, which are its own: what
    other ranks have written there may belong to a save that has just begun.
    """
    return tuple(
        key
        for key in keys
        if (found := _SAVE_FOLDER.match(key))
        and found[1] not in copied
        and (int(found[2]) in over or (int(found[2]) == epoch and key.endswith(f"/{name}")))
    )


def deletion_order(keys: Iterable[str]) -> list[str]:
    """Manifests first, so that what is half deleted does not look whole."""
    return sorted(keys, key=lambda key: (not key.endswith("/MANIFEST.json"), key))
