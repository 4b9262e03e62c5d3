"""Bugs of other launchers and checkpointers, put into the real code. Each returns a patch to be entered."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.disk import File, Folder

from checkpoints import manifest, restorer
from checkpoints.committer import Committer, Saved, _Place
from checkpoints.entry import Commit, Entry, Kind
from checkpoints.errors import KeyMissing, StoreError
from checkpoints.log import Claim, CommitLog
from checkpoints.policy import retirable
from checkpoints.posix_store import PosixStore
from checkpoints.reader import CommitReader, Source
from checkpoints.restorer import _Ballot
from checkpoints.store import Store
from checkpoints.uploads import Uploads

Patch = AbstractContextManager[object]


def no_exclusive() -> Patch:
    """Log entries are put, not created."""

    def offer(self: CommitLog, entry: Entry) -> bool:
        self.store.put(entry.key, [memoryview(entry.to_bytes())])
        return True

    return patch.object(CommitLog, "offer", offer)


def check_then_write() -> Patch:
    """Whether the slot is free is asked first, and then it is written."""

    def offer(self: CommitLog, entry: Entry) -> bool:
        if entry.key in self.store.list("log/"):
            return False
        self.store.put(entry.key, [memoryview(entry.to_bytes())])
        return True

    return patch.object(CommitLog, "offer", offer)


def delete_before_retire() -> Patch:
    finish = Committer.finish

    def early(self: Committer, saved: Saved) -> None:
        assert self._claim is not None
        for gone in retirable(self._claim.state, self._keep):
            self._delete(self._store, self._store.list(f"{gone.folder}/"))
        finish(self, saved)

    return patch.object(Committer, "finish", early)


def retire_before_save() -> Patch:
    """Room is made for a save before it has become a commit."""
    save = Committer.save

    def greedy(self: Committer, number: int, step: int, metadata: Mapping[str, Any], *, to_store: bool) -> Saved:
        assert self._claim is not None
        gone = self._claim.state.live
        if gone:
            self._claim._append(Kind.RETIRE, {}, lambda entry: replace(entry, live=()))
            for commit in gone:
                self._delete(self._store, self._store.list(f"{commit.folder}/"))
        return save(self, number, step, metadata, to_store=to_store)

    return patch.object(Committer, "save", greedy)


def ack_before_commit() -> Patch:
    """A save is said to be a commit, and then its entry is created."""
    commit, finish = Claim.commit, Committer.finish
    promised: dict[int, dict[str, Any]] = {}

    def promise(self: Claim, **details: Any) -> Commit:
        promised[id(self)] = details
        size, details = details["size"], {name: details[name] for name in ("step", "folder", "manifest_digest")}
        return Commit(n=self.state.n + 1, epoch=self.epoch, bytes=size, **details)

    def keep_promise(self: Committer, saved: Saved) -> None:
        assert self._claim is not None
        commit(self._claim, **promised.pop(id(self._claim)))
        finish(self, saved)

    return _both(patch.object(Claim, "commit", promise), patch.object(Committer, "finish", keep_promise))


def gc_before_claim() -> Patch:
    """A starting attempt tidies up, and then claims the run."""
    claim = CommitLog.claim

    def tidy(self: CommitLog, *arguments: Any, **options: Any) -> Claim:
        entry = self.read()
        folders = {commit.folder for commit in entry.live} if entry else set()
        for key in self.store.list("data/"):
            if key.rpartition("/")[0] not in folders:
                with suppress(StoreError):
                    self.store.delete(key)
        return claim(self, *arguments, **options)

    return patch.object(CommitLog, "claim", tidy)


def gc_any_epoch() -> Patch:
    """Whatever the log does not name is deleted, whoever may be writing it."""

    def everything(keys: Iterable[str], state: Entry) -> tuple[str, ...]:
        folders = {commit.folder for commit in state.live}
        return tuple(key for key in keys if key.rpartition("/")[0] not in folders)

    return patch("checkpoints.committer.orphans", everything)


def cleanup_on_unknown() -> Patch:
    from checkpoints import committer

    aborted = committer._aborted
    return patch.object(committer, "_aborted", lambda _kind, error: aborted("aborted", error))


def resume_by_step_number() -> Patch:
    return _candidates(lambda _ballot, live: sorted(live, key=lambda commit: commit.step)[-1:])


def pointer() -> Patch:
    """A file, written after the commit, says which one is the newest."""
    finish = Committer.finish

    def point(self: Committer, saved: Saved) -> None:
        self._store.delete("latest")
        self._store.put("latest", [memoryview(str(saved.commit.n).encode())])
        finish(self, saved)

    def pointed(ballot: _Ballot, live: list[Commit]) -> list[Commit]:
        assert ballot._claim is not None
        with suppress(KeyMissing):
            n = int(ballot._claim._log.store.get("latest"))
            return [commit for commit in live if commit.n == n] or live[:1]
        return live[:1]

    return _both(patch.object(Committer, "finish", point), _candidates(pointed))


def one_rank_decides() -> Patch:
    """Rank 0 does not ask the others whether they could load the commit."""
    counted = _Ballot._count

    def count_one(self: _Ballot, key: str) -> dict[str, str]:
        with patch.object(self, "_world_size", 1):
            return counted(self, key)

    return patch.object(_Ballot, "_count", count_one)


def unpickles() -> Patch:
    """What looks like metadata beside a commit is loaded, as DCP loads its own."""
    opened = restorer.open_commit

    def load(store: Store, commit: Commit, nearer: Sequence[Source]) -> CommitReader:
        for key in store.list(f"{commit.folder}/"):
            if key.endswith(".pkl"):
                pickle.loads(store.get(key))
        return opened(store, commit, nearer)

    return patch("checkpoints.restorer.open_commit", load)


def overwrite_attempt_dir() -> Patch:
    """The folder of a save is named after its step alone."""

    def reuse(self: Committer, number: int, step: int, *, to_store: bool) -> _Place:
        return _Place(folder=f"data/1-{step}-0", is_local=False)

    return patch.object(Committer, "_agree_on_place", reuse)


def keep_deletes_newest() -> Patch:
    return patch("checkpoints.log.retirable", lambda state, keep, uploading: state.live[keep:])


def no_verify() -> Patch:
    """Commits go without a newer one having been read back."""
    return patch("checkpoints.log.retirable", lambda state, keep, uploading: state.live[:-keep])


def keep_counts_copies_on_disks() -> Patch:
    """What is on disks of nodes alone makes room as if it were in the store."""

    def blind(state: Entry, keep: int, uploading: int = 0) -> tuple[Commit, ...]:
        live = tuple(replace(commit, is_stored=True) for commit in state.live)
        gone = {commit.n for commit in retirable(replace(state, live=live), keep, uploading)}
        return tuple(commit for commit in state.live if commit.n in gone)

    return patch("checkpoints.log.retirable", blind)


def copies_are_trusted() -> Patch:
    """What is on the disk of this node is used without its digests."""
    read = CommitReader._blocks

    def trusting(self: CommitReader, file: manifest.File, first: int, count: int) -> bytes:
        for source in self._nearer:
            with suppress(StoreError):
                key, size = f"{self._commit.folder}/{file.path}", file.block_bytes
                return source.get(key, first * size, count * size)
        return read(self, file, first, count)

    return patch.object(CommitReader, "_blocks", trusting)


def stored_before_it_is() -> Patch:
    """A copy is said to be in the store when it is about to be made."""
    begin = Uploads.begin

    def early(self: Uploads, commit: Commit, file: manifest.File | None, trouble: str) -> None:
        if self._claim is not None:
            self._claim.stored(commit.n)
        with patch.object(Claim, "stored", lambda self, n: None):
            begin(self, commit, file, trouble)

    return patch.object(Uploads, "begin", early)


def manifests_unread() -> Patch:
    """A commit counts as verified although its manifest was not read back."""
    finish = Committer.finish

    def finish_shards(self: Committer, saved: Saved) -> None:
        with patch.object(self, "_manifest", None):
            finish(self, saved)

    return patch.object(Committer, "finish", finish_shards)


def no_file_fsync() -> Patch:
    return patch.object(File, "fsync", lambda self: None)


def no_dir_fsync() -> Patch:
    return patch.object(Folder, "fsync", lambda self: None)


def no_fsync_of_a_folder_that_was_there() -> Patch:
    """Only who makes a folder synchronizes its parent."""

    def make(self: PosixStore, folder: Path, parent: int) -> None:
        from checkpoints import posix_store

        with suppress(FileExistsError):
            posix_store.os.mkdir(folder.name, dir_fd=parent)
            posix_store.os.fsync(parent)

    return patch.object(PosixStore, "_make", make)


def _both(*patches: Patch) -> Patch:
    stack = ExitStack()
    for each in patches:
        stack.enter_context(each)
    return stack


def _candidates(choose: Callable[[_Ballot, list[Commit]], list[Commit]]) -> Patch:
    """Restoring looks at the live commit that `choose` names."""
    candidate = _Ballot.candidate

    def chosen(self: _Ballot, skipped: Mapping[int, str]) -> Commit | None:
        claim = self._claim
        if claim is None:
            return candidate(self, skipped)
        state = claim.state
        live = choose(self, [commit for commit in state.live if commit.n not in skipped])
        claim.state = replace(state, live=tuple(live))
        try:
            return candidate(self, skipped)
        finally:
            claim.state = state

    return patch.object(_Ballot, "candidate", chosen)
