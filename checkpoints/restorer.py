"""Restoring: rank 0 decides from the log, all ranks check every byte that they load, and one NO counts for all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.errors import CorruptCheckpoint, NoIntactCheckpoint, StateMismatch, StoreError, one_line
from checkpoints.flat_shard import State, part_of
from checkpoints.log import Claim
from checkpoints.manifest import ITEM_BYTES, Chunk, Manifest, Tensor
from checkpoints.peers import Peers
from checkpoints.reader import CommitReader, open_commit
from checkpoints.store import Store
from checkpoints.strict_json import Fields, Json, encode

_MOST_MESSAGE_BYTES = 2**20
_PART_BYTES = 256 * 1024 * 1024  # how much is read at once
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What training goes on from, and why newer commits were passed over: `n` of the commit -> reason."""

    commit: Commit
    metadata: Mapping[str, Json]
    skipped: Mapping[int, str]


def load(store: Store, commit: Commit, state: State) -> Mapping[str, Json]:
    """Fill the tensors of `state`, in place, from the commit; returns its metadata. Tensors not asked for are not read.

    Raises StateMismatch when the commit lacks one of them, and CorruptCheckpoint or StoreError, after which the state
    is in part overwritten.
    """
    reader = open_commit(store, commit)
    _load(reader, commit, state)
    return reader.manifest.metadata


def restore(
    *,
    store: Store,
    channel: Channel,
    claim: Claim | None,
    rank: int,
    world_size: int,
    state: State,
    copies: Store | None = None,
    address: str | None = None,
    deadline_seconds: float = 1800.0,
) -> Restored | None:
    """Fill `state`, in place, from the newest commit that all ranks find intact; None when the run has no commit.

    copies: on the disk of this rank's node; what is right there is not read from the store.
    address: at which ranks of other nodes reach this one, to read what its disk has; None where there is one node.

    All ranks call it, rank 0 with the claim, and get the same answer or the same error: NoIntactCheckpoint,
    StateMismatch when the newest intact commit belongs to another state, PeerSilent.
    """
    ballot = _Ballot(channel, claim, rank, world_size, deadline_seconds)
    if copies is None or address is None:
        return _restore(ballot, store, copies, None, state)
    with closing(Peers(copies, address, channel, rank, world_size, deadline_seconds)) as peers:
        return _restore(ballot, store, copies, peers, state)  # all have voted then: none reads any more


def _restore(ballot: _Ballot, store: Store, copies: Store | None, peers: Peers | None, state: State) -> Restored | None:
    nearer = [source for source in (copies, peers) if source is not None]
    skipped: dict[int, str] = {}
    while (commit := ballot.candidate(skipped)) is not None:
        if peers is not None and commit.hosts:
            peers.meet(commit)
        metadata: Mapping[str, Json] = {}
        answer, reason = "yes", ""
        try:
            reader = open_commit(store, commit, nearer)
            _check_same_names(reader.manifest, commit, state)
            _load(reader, commit, state)
            metadata = reader.manifest.metadata
        except StateMismatch as error:
            answer, reason = "mismatch", str(error)
        except (CorruptCheckpoint, StoreError) as error:
            answer, reason = "no", str(error) if commit.is_stored else f"{error}; {_on_disks_alone(commit, peers)}"
        reason = ballot.vote(commit, answer, one_line(reason), skipped)
        if not reason:
            return Restored(commit=commit, metadata=metadata, skipped=skipped)
        skipped[commit.n] = reason
    if skipped:
        raise NoIntactCheckpoint([f"commit {n}: {reason}" for n, reason in skipped.items()])
    return None


class _Ballot:
    """The ranks' agreement on one commit."""

    def __init__(
        self, channel: Channel, claim: Claim | None, rank: int, world_size: int, deadline_seconds: float
    ) -> None:
        self._channel = channel
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._deadline_seconds = deadline_seconds

    def candidate(self, skipped: Mapping[int, str]) -> Commit | None:
        """The newest live commit that was not skipped, as rank 0 sees it; None when there is none."""
        key = f"restore/{len(skipped)}/candidate"
        if self._claim is not None:
            commits = [commit.to_json() for commit in self._claim.state.live if commit.n not in skipped]
            self._channel.post(key, encode({"commits": commits[-1:]}))
        said = self._channel.wait(key, 0, self._deadline_seconds)
        found = Fields.parse("the candidate", said, _MOST_MESSAGE_BYTES).objects("commits")
        return Commit.from_json(found[0]) if found else None

    def vote(self, commit: Commit, answer: str, reason: str, skipped: Mapping[int, str]) -> str:
        """Why the commit is passed over; empty when all ranks have loaded it, which is then in the log.

        Raises StateMismatch when it did not fit on some rank.
        """
        place = f"restore/{len(skipped)}"
        self._channel.post(f"{place}/vote/{self._rank}", encode({"answer": answer, "reason": reason}))
        if self._claim is not None:
            verdict = self._count(f"{place}/vote")
            if verdict["answer"] == "yes":
                self._claim.resumed(commit, skipped)
            else:
                self._claim.check()
            self._channel.post(f"{place}/verdict", encode(verdict))
        said = self._channel.wait(f"{place}/verdict", 0, self._deadline_seconds)
        fields = Fields.parse("the verdict", said, _MOST_MESSAGE_BYTES)
        if fields.text("answer") == "mismatch":
            raise StateMismatch(fields.text("reason"))
        return fields.text("reason", most=2000)

    def _count(self, key: str) -> dict[str, str]:
        said = self._channel.collect(key, range(self._world_size), self._deadline_seconds)
        votes = [Fields.parse("a vote", data, _MOST_MESSAGE_BYTES) for data in said]
        for answer in ("mismatch", "no"):
            for rank, vote in enumerate(votes):
                if vote.text("answer") == answer:
                    reason = vote.text("reason")
                    return {"answer": answer, "reason": reason if answer == "mismatch" else f"rank {rank}: {reason}"}
        return {"answer": "yes", "reason": ""}


def _on_disks_alone(commit: Commit, peers: Peers | None) -> str:
    said = f"it had not reached the store, and was on the disk of {', '.join(commit.hosts)} alone"
    return f"{said}; {peers.silence}" if peers is not None and peers.silence else said


def _check_same_names(manifest: Manifest, commit: Commit, state: State) -> None:
    unexpected = [tensor.name for tensor in manifest.tensors if tensor.name not in state]
    if unexpected:
        raise StateMismatch(f"the commit of step {commit.step} also has {_some(unexpected)}, which this run has not")


def _load(reader: CommitReader, commit: Commit, state: State) -> None:
    tensors = {tensor.name: tensor for tensor in reader.manifest.tensors}
    problems = list(_problems(tensors, state))
    if problems:
        raise StateMismatch(f"the commit of step {commit.step} does not fit: {_some(problems)}")
    metadata = Metadata({name: _storage_metadata(tensors[name]) for name in state})
    plan = create_default_local_load_plan(dict(state), metadata)

    def place(item: ReadItem) -> tuple[str, int]:
        chunk = _chunk(tensors, item)
        return chunk.file, chunk.start

    with torch.no_grad():
        for item in sorted(plan.items, key=place):
            target = part_of(state[item.dest_index.fqn], item.dest_index)
            _read(reader, tensors[item.storage_index.fqn], _chunk(tensors, item), item, target)


def _problems(tensors: Mapping[str, Tensor], state: State) -> Iterator[str]:
    for name, value in state.items():
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.size())
        if name not in tensors:
            yield f"it lacks {name}"
        elif (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
            yield f"{name} is {tensors[name].dtype} {tensors[name].shape} in it and {dtype} {shape} here"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _storage_metadata(tensor: Tensor) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
        size=torch.Size(tensor.shape),
        chunks=[
            ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.lengths))
            for chunk in tensor.chunks
        ],
    )


def _chunk(tensors: Mapping[str, Tensor], item: ReadItem) -> Chunk:
    """The chunk that DCP's plan reads from: it numbers them as `_storage_metadata` gave them."""
    position = item.storage_index.index
    assert position is not None
    return tensors[item.storage_index.fqn].chunks[position]


def _read(reader: CommitReader, tensor: Tensor, chunk: Chunk, item: ReadItem, target: torch.Tensor) -> None:
    """Copy a box of the chunk into a box of the target, some rows at a time."""
    strides = [math.prod(chunk.lengths[dim + 1 :]) for dim in range(len(chunk.lengths))]
    target = narrow_tensor_by_index(target, item.dest_offsets, item.lengths)
    for start, count in _row_groups(item.lengths, _PART_BYTES // ITEM_BYTES[tensor.dtype]):
        offsets = (item.storage_offsets[0] + start, *item.storage_offsets[1:]) if strides else ()
        lengths = (count, *item.lengths[1:]) if strides else ()
        first = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
        span = 1 + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))
        data = torch.frombuffer(reader.read_chunk(tensor, chunk, first, span), dtype=target.dtype)
        rows = target.narrow(0, start, count) if strides else target
        rows.copy_(data.as_strided(lengths, strides))


def _row_groups(lengths: Sequence[int], most_items: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of groups that have at most so many items, or one row; (0, 1) without dimensions."""
    rows = lengths[0] if lengths else 1
    step = max(1, most_items // math.prod(lengths[1:]))
    for start in range(0, rows, step):
        yield start, min(step, rows - start)
