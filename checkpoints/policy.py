"""Which commits may go. Pure: the log decides when, the saver deletes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from checkpoints.entry import Commit, Entry

_SAVE_FOLDER = re.compile(r"(data/([1-9][0-9]*)-[0-9]+-[0-9a-f]+)/")


def retirable(state: Entry, keep: int) -> tuple[Commit, ...]:
    """The live commits that nobody needs, oldest first.

    The newest `keep` stay, and so do pinned ones. A commit goes only when a later one of this epoch was verified, so
    the newest verified commit never goes; the base of this epoch stays until this epoch has two commits of its own.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would delete every checkpoint; use 1 or more")
    own = [commit for commit in state.live if commit.epoch == state.epoch]
    newest_verified = max((commit.n for commit in own if commit.is_verified), default=0)
    return tuple(
        commit
        for commit in state.live[:-keep]
        if commit.n < newest_verified and not commit.is_pinned and (commit.n != state.base or len(own) >= 2)
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


def deletion_order(keys: Iterable[str]) -> list[str]:
    """Manifests first, so that what is half deleted does not look whole."""
    return sorted(keys, key=lambda key: (not key.endswith("/MANIFEST.json"), key))
