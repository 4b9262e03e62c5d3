"""Saving while training goes on: a save blocks for one copy into memory; everything else happens in the background."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from checkpoints.arena import Arena
from checkpoints.channel import Channel
from checkpoints.committer import Committer, Saved
from checkpoints.entry import Commit
from checkpoints.errors import SaveAborted, StateMismatch, StoreError
from checkpoints.flat_shard import State, part_of
from checkpoints.layout import Piece, place, tensors
from checkpoints.log import Claim
from checkpoints.manifest import ITEM_BYTES, PAGE_BYTES, Tensor
from checkpoints.store import Store
from checkpoints.strict_json import Fields, Json, encode
from checkpoints.uploads import Upload, Uploads
from checkpoints.writer import Writer, open_writer

_MOST_PLAN_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveResult:
    """How one save ended: with a commit, or aborted. The times are counted from the call of `save`."""

    step: int
    commit: Commit | None
    abort: SaveAborted | None
    blocked_seconds: float  # how long training stood still
    seconds: float  # until the commit, or until it was given up
    damage: tuple[str, ...] = ()  # what reading the commit before it back has found wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A save under way, and for how long."""

    step: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    number: int
    step: int
    metadata: Mapping[str, Json]
    to_store: bool
    started: float
    blocked_seconds: float


class Saver:
    """Saves the state of all ranks together. Each rank has one and makes the same calls in the same order.

    `claim` is rank 0's right to commit, and None on every other rank. A save whose files are not written within
    `deadline_seconds` is aborted on all ranks; the commits before it stay, and training goes on.

    copies: on the disk of this rank's node. Where they are kept, a save becomes a commit when it is on the disks of all
    nodes, and is copied to the store from there, unless a copy is under way; but the first commit goes to the store.
    """

    def __init__(
        self,
        *,
        store: Store,
        channel: Channel,
        claim: Claim | None,
        rank: int,
        world_size: int,
        keep: int,
        copies: Store | None = None,
        deadline_seconds: float = 600.0,
    ) -> None:
        self.aborts_in_a_row = 0
        self._store = store
        self._copies = copies
        self._uploads: Uploads | None = None
        self._channel = channel
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._keep = keep
        self._deadline_seconds = deadline_seconds
        self._number = 0
        self._job: _Job | None = None  # the newest
        self._results: deque[SaveResult] = deque()
        self._failure: BaseException | None = None
        self._is_failure_told = False
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def prepare(self, state: State) -> None:
        """Agree with the other ranks who saves what; make the memory for it, and the writer. To be called once.

        Raises StateMismatch for a state that cannot be saved, and PeerSilent.
        """
        pieces, whole = self._share_out(_pieces(state))
        starts, size = place(pieces)
        self._arena = Arena(max(size, PAGE_BYTES))
        memory = torch.frombuffer(self._arena.memory, dtype=torch.uint8)
        self._names = set(state)
        self._indices = [MetadataIndex(piece.name, piece.offsets) for piece in pieces]
        self._copies_from_gpu = any(part_of(state[index.fqn], index).is_cuda for index in self._indices)
        if self._copies_from_gpu:
            _register(memory)
        self._views = [
            memory[start : start + piece.size].view(getattr(torch, piece.dtype)).view(piece.lengths)
            for start, piece in zip(starts, pieces, strict=True)
        ]
        self._writer: Writer = open_writer(self._store, self._arena)
        if self._copies is not None:
            self._uploads = Uploads(
                copies=self._copies,
                store=self._store,
                channel=self._channel.beside("uploads"),
                writer=open_writer(self._store, self._arena),
                claim=self._claim,
                rank=self._rank,
                world_size=self._world_size,
                deadline_seconds=self._deadline_seconds,
            )
        self._committer = Committer(
            store=self._store,
            copies=self._copies,
            uploads=self._uploads,
            channel=self._channel,
            writer=self._writer,
            claim=self._claim,
            rank=self._rank,
            world_size=self._world_size,
            keep=self._keep,
            deadline_seconds=self._deadline_seconds,
            size=size,
            tensors=whole,
        )
        self._thread.start()

    def save(self, step: int, state: State, metadata: Mapping[str, object], *, to_store: bool = False) -> None:
        """Copy the state and start to save it. When this returns, training may change the state.

        to_store: the commit has to be in the store, also where copies on disks of nodes come first; rank 0 says so.
        Waits for the save before it, if that still runs. Rank 0's metadata is kept. Raises Fenced, StateMismatch when
        the state is not what was prepared, and ValueError or TypeError for metadata that is not JSON.
        """
        started = time.perf_counter()
        copied: dict[str, Json] = json.loads(encode(metadata))  # the caller may go on to change the original
        self._number += 1
        is_free = self._is_idle.wait(3 * self._deadline_seconds)
        self._raise_failure()
        if not is_free:
            self._add_abort(step, SaveAborted(self._rank, "wait", "the save before it still runs"), started, 0.0)
            return
        self._stage(state)
        blocked = time.perf_counter() - started
        self._job = _Job(
            number=self._number, step=step, metadata=copied, to_store=to_store, started=started, blocked_seconds=blocked
        )
        self._is_idle.clear()
        if self._failure is not None:  # the thread has ended since: it will not say that this save has
            self._is_idle.set()
            self._raise_failure()
        self._jobs.put(self._job)

    def running(self) -> Running | None:
        """The save that has not ended yet."""
        job = self._job
        if job is None or self._is_idle.is_set():
            return None
        return Running(step=job.step, seconds=time.perf_counter() - job.started)

    def is_free(self, seconds: float) -> bool:
        """Whether `save` would start at once, now or within that many seconds."""
        return self._is_idle.wait(seconds)

    def poll(self) -> list[SaveResult]:
        """The saves that have ended since the last call. Raises Fenced when a successor has claimed the run."""
        if not self._results:
            self._raise_failure()
        return [self._results.popleft() for _ in range(len(self._results))]

    def poll_uploads(self) -> list[Upload]:
        """On rank 0, the copies to the store that have ended since the last call."""
        results = self._uploads.results if self._uploads is not None else deque[Upload]()
        return [results.popleft() for _ in range(len(results))]

    def wait(self, seconds: float) -> list[SaveResult]:
        """Like `poll`, once the running save has ended or that many seconds have passed."""
        self._is_idle.wait(seconds)
        return self.poll()

    def close(self, seconds: float) -> None:
        """End the writer, once everything is written and read back or that many seconds have passed.

        Raises what ended the background work, such as Fenced, if no other method has raised it yet.
        """
        self._jobs.put(None)
        self._thread.join(seconds)
        self._writer.close()
        if self._uploads is not None:
            self._uploads.close()
        self._arena.close()
        if not self._is_failure_told:
            self._raise_failure()

    def wait_for_upload(self, seconds: float) -> None:
        """Until no commit is being copied to the store any more, or that many seconds have passed."""
        if self._uploads is not None:
            self._uploads.wait(seconds)

    def delete_copies(self) -> None:
        """On the disk of this rank's node, those of other ranks, too. To be called after `close`.

        The run has ended, so that its last save has gone to the store, and no rank needs them any more.
        """
        if self._copies is not None:
            with suppress(StoreError):
                for key in self._copies.list("data/"):
                    self._copies.delete(key)

    def _share_out(self, held: list[Piece]) -> tuple[list[Piece], tuple[Tensor, ...]]:
        """The pieces that this rank saves, of those that it holds; and, on rank 0, where all tensors will lie."""
        self._channel.post(f"plan/{self._rank}", encode({"pieces": [asdict(piece) for piece in held]}))
        if self._claim is None:
            layout = self._channel.wait(f"layout/{self._rank}", 0, self._deadline_seconds)
            positions = Fields.parse("the layout", layout, _MOST_PLAN_BYTES).integers("saved", len(held))
            return [held[i] for i in positions], ()
        said = self._channel.collect("plan", range(self._world_size), self._deadline_seconds)
        plans = [Fields.parse("a plan", data, _MOST_PLAN_BYTES).objects("pieces") for data in said]
        ranks = [[Piece.from_json(fields) for fields in plan] for plan in plans]
        chosen = _choose(ranks)
        for rank, kept in enumerate(chosen):
            self._channel.post(f"layout/{rank}", encode({"saved": kept}))
        saved = [[pieces[i] for i in positions] for pieces, positions in zip(ranks, chosen, strict=True)]
        return saved[0], tensors(saved)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._is_failure_told = True
            raise self._failure

    @torch.no_grad()
    def _stage(self, state: State) -> None:
        if state.keys() != self._names:
            names = ", ".join(sorted(state.keys() ^ self._names)[:5])
            raise StateMismatch(f"the state is not the one that was prepared; only one of them has {names}")
        sources = [part_of(state[index.fqn], index) for index in self._indices]
        for source, view, index in zip(sources, self._views, self._indices, strict=True):
            if source.shape != view.shape or source.dtype != view.dtype:
                raise StateMismatch(
                    f"{index.fqn} is {source.dtype} {tuple(source.shape)},"
                    f" and was {view.dtype} {tuple(view.shape)} when the save was prepared"
                )
        torch._foreach_copy_(self._views, sources, non_blocking=True)
        if self._copies_from_gpu:
            torch.cuda.synchronize()

    def _work(self) -> None:
        try:
            self._committer.collect_orphans()
            while (job := self._jobs.get()) is not None:
                saved = self._run(job)
                self._is_idle.set()
                if saved is not None:
                    self._committer.finish(saved)
        except BaseException as error:  # save, poll and wait raise it to the one who can act
            self._failure = error
        finally:
            self._is_idle.set()

    def _run(self, job: _Job) -> Saved | None:
        try:
            saved = self._committer.save(job.number, job.step, job.metadata, to_store=job.to_store)
        except SaveAborted as error:
            self._add_abort(job.step, error, job.started, job.blocked_seconds)
            return None
        self.aborts_in_a_row = 0
        self._results.append(
            SaveResult(
                step=job.step,
                commit=saved.commit,
                abort=None,
                blocked_seconds=job.blocked_seconds,
                seconds=time.perf_counter() - job.started,
                damage=saved.damage,
            )
        )
        return saved

    def _add_abort(self, step: int, error: SaveAborted, started: float, blocked_seconds: float) -> None:
        self.aborts_in_a_row += 1
        seconds = time.perf_counter() - started
        self._results.append(
            SaveResult(step=step, commit=None, abort=error, blocked_seconds=blocked_seconds, seconds=seconds)
        )


def _register(memory: torch.Tensor) -> None:
    """Let the GPU copy straight into host memory, as into memory that torch has pinned."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))


def _pieces(state: State) -> list[Piece]:
    """What this rank holds of the state, as DCP sees it."""
    pieces = []
    for item in create_default_local_save_plan(dict(state), is_coordinator=False).items:
        name, data = item.index.fqn, item.tensor_data
        if data is None:
            raise StateMismatch(f"{name} is not a tensor; give it with the metadata of the save")
        dtype = str(data.properties.dtype).removeprefix("torch.")
        if dtype not in ITEM_BYTES:
            raise StateMismatch(f"{name} is {dtype}, which cannot be saved; use one of {', '.join(ITEM_BYTES)}")
        pieces.append(
            Piece(
                name=name,
                dtype=dtype,
                shape=tuple(data.size),
                offsets=tuple(data.chunk.offsets),
                lengths=tuple(data.chunk.sizes),
                is_shard=item.type is WriteItemType.SHARD,
            )
        )
    return pieces


def _choose(ranks: list[list[Piece]]) -> list[list[int]]:
    """The positions of the pieces that each rank saves: each piece once, and about as many bytes on each rank."""
    planner = DefaultSavePlanner(flatten_state_dict=False)
    try:
        plans, _ = planner.create_global_plan([SavePlan([_item(piece) for piece in pieces]) for pieces in ranks])
    except (ValueError, AssertionError) as error:
        raise StateMismatch(f"the ranks do not hold one state together: {error}") from error
    chosen = []
    for pieces, plan in zip(ranks, plans, strict=True):
        kept = {item.index for item in plan.items}
        chosen.append([i for i, piece in enumerate(pieces) if MetadataIndex(piece.name, piece.offsets) in kept])
    return chosen


def _item(piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=torch.Size(piece.lengths))
    properties = TensorProperties(dtype=getattr(torch, piece.dtype))
    return WriteItem(
        index=MetadataIndex(piece.name, piece.offsets),
        type=WriteItemType.SHARD if piece.is_shard else WriteItemType.TENSOR,
        tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(piece.shape)),
    )
