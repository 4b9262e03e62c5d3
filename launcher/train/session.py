"""From a run folder to everything that the loop needs: the only place where the parts are put together."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import blake3
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from checkpoints.channel import Channel
from checkpoints.errors import StoreError, StoreFull
from checkpoints.log import Claim, CommitLog
from checkpoints.owner import Owner
from checkpoints.policy import newest_stored
from checkpoints.restorer import Restored, restore
from checkpoints.saver import Saver
from checkpoints.store import Store, open_copies, open_store, probe, probe_writing
from checkpoints.strict_json import Fields
from cluster.network import address_towards
from cluster.preemption import Notice
from cluster.topology import Topology
from launcher import loading
from launcher.drift import check, compare_identities
from launcher.errors import UsageError
from launcher.places import is_object
from launcher.plan import Plan, batch_size
from launcher.recipe import Recipe
from launcher.runs import Attempt, Events, Run, read_json, write_json
from launcher.train.agreement import any_rank
from launcher.train.data import Example, data_digest, load_examples, micro_batches
from launcher.train.digests import sample_digest
from launcher.train.engines import Batch, Engine, make_engine, weights_of
from launcher.train.grace import Grace
from launcher.train.metrics import Metrics
from launcher.train.models import LoadedModel, base_digest, load_model
from launcher.train.precision import LossScale, settle_precision
from launcher.train.pulse import Phase, Pulse
from launcher.train.save_schedule import SaveSchedule, schedule_of

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
SAVE_DEADLINE_SECONDS = 600.0
SLOW_SAVE_SECONDS = 10.0
SLOW_SAVE_FACTOR = 3
SAVE_MARGIN = 1.5  # no two saves take equally long
CHANGED_INTERVAL = 2.0  # times or part of what was told


@dataclass(slots=True)
class Progress:
    """How far the run is: completed steps, samples consumed by all ranks, and which (of this rank, added up)."""

    step: int = 0
    samples: int = 0
    digest: int = 0

    def advance(self, batches: list[Batch], batch_size: int) -> None:
        self.step += 1
        self.samples += batch_size
        for batch in batches:
            self.digest = (self.digest + sample_digest(self.step, batch["ids"])) % 2**63


@dataclass(slots=True, kw_only=True)
class Session:
    """One rank's view of a run, from its start or restart to its end."""

    attempt: Attempt
    recipe: Recipe
    plan: Plan
    notice: Notice
    grace: Grace
    pulse: Pulse
    rank: int
    claim: Claim | None  # on rank 0 alone
    engine: Engine
    model: LoadedModel
    saver: Saver
    identity: dict[str, str | None]
    held_out: Sequence[Example]
    events: Events
    progress: Progress = field(default_factory=Progress)
    stored_step: int = 0  # of the newest commit that was saved to the store, or that the run goes on from
    is_only_local: bool = False  # the commit that the run goes on from, and none was saved since
    longest_save_seconds: float = 0.0
    longest_step_seconds: float = 0.0
    schedule: SaveSchedule | None = None  # on rank 0 alone
    told_interval: float = 0.0  # seconds between saves, as they were reported last
    was_late: bool = False  # the last save was left out for lack of time
    has_saved_as_asked: bool = False  # each node is asked once
    slow_step: int = 0  # the last save that was reported for taking long
    blocked_seconds: float = 0.0  # training was held up by checkpoints since the last recorded step
    metrics: Metrics | None = None  # on rank 0 alone

    def report(self, kind: str, **details: object) -> None:
        """Tell whoever watches the run; rank 0 speaks for all."""
        if self.rank == 0:
            self.events.tell(kind, **details)

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step after the current one."""
        examples = load_examples(self.recipe, "train", self.model.tokenizer)
        return micro_batches(
            examples, self.plan, self.recipe.seed, self.progress.samples, self.rank, self.recipe.data.workers
        )

    def wants_stop(self) -> bool:
        """Whether the run was asked to stop, or has to because its last save would not end before the time limit."""
        needed = self.longest_step_seconds + SAVE_MARGIN * self.longest_save_seconds
        if self.grace.left_to_limit() < needed:
            self.notice.give(f"the last save may take {SAVE_MARGIN * self.longest_save_seconds:.1f} s")
        return self.notice.is_given()

    def wants_save(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, or this node was asked for one. Rank 0 has the schedule."""
        is_asked = self.notice.is_asked_to_save() and not self.has_saved_as_asked
        is_saving = self.saver.running() is not None
        return is_asked or (self.schedule is not None and self.schedule.is_due(step, is_saving=is_saving))

    def step_taken(self, seconds: float) -> None:
        self.longest_step_seconds = max(self.longest_step_seconds, seconds)
        if self.schedule is not None:
            self.schedule.step_taken(seconds)
            self._report_interval(self.schedule)

    def save_ended(self, step: int, seconds: float, *, is_stored: bool) -> None:
        """A checkpoint was committed so long after its save had begun: to the store, or to the disk of each node."""
        if is_stored:  # as the last one has to be
            self.stored_step = step
            self.longest_save_seconds = max(self.longest_save_seconds, seconds)
        if self.schedule is not None:
            self.schedule.save_ended(seconds)

    def _report_interval(self, schedule: SaveSchedule) -> None:
        """Say how often the run saves when that was left to it, and when that has changed much."""
        if (interval := schedule.interval()) is None:
            return
        seconds, steps = interval
        if not self.told_interval / CHANGED_INTERVAL <= seconds <= self.told_interval * CHANGED_INTERVAL:
            self.told_interval = seconds
            self.report("save_interval", seconds=round(seconds, 3), steps=steps)

    def save(self, *, is_last: bool) -> None:
        """Start a checkpoint of the current step; training is held up for the copy alone.

        A save before it that is slow on any rank is not waited for: this one is skipped, unless it is the last. The
        last one is left out when it would not be done before the run is ended by force.
        """
        with self.pulse.during(Phase.SAVING):
            self._save(is_last=is_last)

    def _save(self, *, is_last: bool) -> None:
        started = time.perf_counter()
        is_free = self.saver.is_free(3 * SAVE_DEADLINE_SECONDS if is_last else self._patience_seconds())
        is_late = is_last and self.grace.left() < self.longest_save_seconds
        own = [self.progress.digest, not is_free, is_late, self.notice.is_asked_to_save()]
        votes = torch.tensor(own, dtype=torch.int64, device=self.engine.device)
        dist.all_reduce(votes)
        total, busy_ranks, late_ranks, warned_ranks = votes.tolist()
        if self.metrics is not None:
            self.metrics.flush()
        if late_ranks:
            self.was_late = True
            self.report("save_late", step=self.progress.step, seconds=round(self.longest_save_seconds, 3))
        elif busy_ranks:
            self.report("save_skipped", step=self.progress.step)
        else:
            samples = {"count": self.progress.samples, "digest": f"{total % 2**63:016x}"}
            metadata: dict[str, object] = {"step": self.progress.step, "samples": samples, "identity": self.identity}
            if self.engine.loss_scale is not None:
                metadata["loss_scale"] = asdict(self.engine.loss_scale)
            to_store = is_last or warned_ranks > 0  # the disk of a machine that may be taken away keeps nothing
            self.saver.save(self.progress.step, self.engine.state(), metadata, to_store=to_store)
            self.is_only_local = False
            self.has_saved_as_asked = self.notice.is_asked_to_save()
            if self.schedule is not None:
                self.schedule.save_begun(time.perf_counter() - started)
        self.blocked_seconds += time.perf_counter() - started

    def report_slow_save(self) -> None:
        """Say once of each save that it is slow, and since when it runs."""
        running = self.saver.running()
        if running is not None and running.step != self.slow_step and self._patience_seconds() == 0:
            self.slow_step = running.step
            self.report("save_slow", step=running.step, started=round(time.time() - running.seconds, 3))

    def _patience_seconds(self) -> float:
        """Until the running save is slow: it then takes several times as long as any before it."""
        running = self.saver.running()
        usual = max(SLOW_SAVE_SECONDS, SLOW_SAVE_FACTOR * self.longest_save_seconds)
        return 0.0 if running is None else max(0.0, usual - running.seconds)

    def kept_step(self) -> int:
        """How far the run cannot fall back, whatever machine is lost; 0 for nowhere. Rank 0 knows of copies, too."""
        kept = newest_stored(self.claim.state) if self.claim is not None else None
        return self.stored_step if kept is None else kept.step

    def close(self, *, is_finished: bool) -> None:
        """Wait until everything is on disk. Raises Fenced when the run was taken over meanwhile."""
        with self.pulse.during(Phase.SAVING):
            self.saver.close(SAVE_DEADLINE_SECONDS)
            if self.metrics is not None:
                self.metrics.flush()
            if self.claim is not None and is_finished:
                self.claim.done()
            if is_finished:
                self.saver.delete_copies()


def open_session(run: Run, attempt: Attempt, restart: int, agent: int, notice: Notice, pulse: Pulse) -> Session:
    """Join the other ranks, claim the run, build the model and bring back the newest intact commit."""
    record = attempt.record()
    recipe = loading.load_frozen(run.config).recipe
    plan = _plan_of(recipe, record)
    torch.set_num_threads(plan.threads_per_rank)
    device = _join_ranks(plan, is_deterministic=recipe.deterministic)
    precision = settle_precision(record["precision"], device)
    rank = dist.get_rank()
    store = open_store(run.checkpoints)
    claim = _claim(store, run, attempt, agent=agent, is_takeover=record["takeover"]) if rank == 0 else None
    channel = _open_channel(f"{attempt.number}/{restart}")
    copies = _open_copies(recipe.checkpoint.local_folder, store, channel, is_first=rank == 0, restart=restart)
    model = load_model(recipe, device, precision, restores=any_rank(_has_commit(claim), device))
    trainable, total = model.count()  # now: sharding loses how much the bytes of 4-bit weights stand for
    engine = make_engine(recipe, plan, model.module, device, precision)
    saver = Saver(
        store=store, channel=channel, claim=claim, rank=rank, world_size=plan.topology.ranks,
        keep=recipe.checkpoint.keep, copies=copies, deadline_seconds=SAVE_DEADLINE_SECONDS,
    )  # fmt: skip
    session = Session(
        attempt=attempt, recipe=recipe, plan=plan, notice=notice, grace=Grace(notice, record["grace_seconds"]),
        pulse=pulse, rank=rank, claim=claim, engine=engine,
        model=model, saver=saver, identity=_identity(recipe, model, attempt) if rank == 0 else {},
        held_out=load_examples(recipe, "held_out", model.tokenizer)[: recipe.evaluation.samples],
        events=attempt.open_events(), longest_save_seconds=_longest_save_seconds(run),
    )  # fmt: skip
    if restart == 0:
        session.report(
            "model", trainable=trainable, total=total, device=str(device), precision=precision, gpu=_gpu_model(device)
        )
    state = engine.state()
    restored = restore(
        store=store, channel=channel, claim=claim, rank=rank, world_size=plan.topology.ranks, state=state,
        copies=copies, address=address_towards(os.environ["MASTER_ADDR"]) if plan.topology.nodes > 1 else None,
    )  # fmt: skip
    if restored is not None:
        engine.state_restored()
        _take_up(session, restored, record["allow_change"])
    elif model.unread is not None:
        model.unread.fill(weights_of(state))
        engine.state_restored()
    if rank == 0:
        session.metrics = Metrics(run, session.progress.step)
        session.schedule = schedule_of(recipe, plan.topology, state, record.get("mtbf_hours"))
        if session.metrics.lost:
            session.report("lost", steps=session.metrics.lost)
    saver.prepare(state)
    return session


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step depend on (seed, step, rank) alone, so that a resumed run draws the same ones."""
    digest = blake3.blake3(f"{seed}/{step}/{rank}".encode()).digest(length=16)
    for_torch, for_others = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
    # Without a GPU to seed, torch.manual_seed keeps the seed for later, with the whole stack as text, in each step.
    seed_torch = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed_torch(for_torch)
    np.random.seed(for_others % 2**32)
    random.seed(for_others)


def _plan_of(recipe: Recipe, record: dict[str, Any]) -> Plan:
    topology = Topology(nodes=record["nodes"], ranks_per_node=record["ranks_per_node"], has_gpus=record["has_gpus"])
    return Plan(
        topology=topology,
        batch_size=batch_size(recipe),
        micro=record["micro"],
        threads_per_rank=record["threads_per_rank"],
    )


def _join_ranks(plan: Plan, *, is_deterministic: bool) -> torch.device:
    # Not to warn only: attention then takes kernels that add up in another order each time.
    torch.use_deterministic_algorithms(is_deterministic)
    # A debugging aid that writes all new memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if plan.topology.has_gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=COLLECTIVE_TIMEOUT, device_id=device)
        return device
    dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    return torch.device("cpu")


def _gpu_model(device: torch.device) -> str | None:
    """What its driver calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _claim(store: Store, run: Run, attempt: Attempt, *, agent: int, is_takeover: bool) -> Claim:
    """Become the one who may commit. The owner that others see is the agent: it lives as long as the attempt does."""
    probe(store)
    # A batch job that was started again is the same owner: what it was before is over, wherever that ran.
    submission = attempt.record().get("submission", attempt.number)
    owner = Owner.of_process(job=f"{run.name}/{submission}", pid=agent)
    return CommitLog(store).claim(owner, is_takeover=is_takeover)


def _longest_save_seconds(run: Run) -> float:
    """Of the newest attempt that has saved: a start may be too short for more than its last save. 0 if none has."""
    for attempt in reversed(run.attempts()):
        saves = [event.get("seconds") for event in attempt.read_events() if _is_save_to_store(event)]
        if seconds := [value for value in saves if isinstance(value, float)]:
            return max(seconds)
    return 0.0


def _is_save_to_store(event: dict[str, Any]) -> bool:
    return event.get("event") == "committed" and "hosts" not in event


def _has_commit(claim: Claim | None) -> bool:
    return claim is not None and bool(claim.state.live)


def _open_copies(folder: str | None, store: Store, channel: Channel, *, is_first: bool, restart: int) -> Store | None:
    """Where this node's disk keeps copies, by the name that the first rank reads in the log; None without a folder.

    Raises UsageError when an attempt begins and nothing can be written there. Later, saves go to the store then.
    """
    if folder is None:
        return None
    if is_first:
        channel.post("log", CommitLog(store).name().encode())
    name = channel.wait("log", 0, SAVE_DEADLINE_SECONDS).decode()
    copies = open_copies(folder, name)
    try:
        if restart == 0:
            probe_writing(copies)
    except StoreError as error:
        if not isinstance(error, StoreFull):  # there may be room again when a save comes
            what = f"checkpoint.local_folder={folder} cannot be written ({error.reason})"
            raise UsageError(f"{what}; use a folder of the machine's own disk") from error
    return copies


def _open_channel(prefix: str) -> Channel:
    """A connection of its own to the rendezvous store: the threads that commit never wait behind the training's."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return Channel(store, f"checkpoints/{prefix}")


def _identity(recipe: Recipe, model: LoadedModel, attempt: Attempt) -> dict[str, str | None]:
    """Digests of what the result depends on; computed once per attempt.

    Raises DriftError when its data is an object that was replaced since.
    """
    path = attempt.folder / "identity.json"
    identity: dict[str, str | None] | None = read_json(path)
    if identity is None:
        identity = {"data": data_digest(recipe), "base_model": model.source and base_digest(model.source)}
        write_json(path, identity)
    elif is_object(recipe.data.path or ""):
        now = {**identity, "data": data_digest(recipe)}
        check(compare_identities(identity, now), attempt.record()["allow_change"])
    return identity


def _take_up(session: Session, restored: Restored, allowed: list[str]) -> None:
    """Continue where the commit stands, if it belongs to the same data and base model."""
    metadata = Fields(f"{restored.commit.manifest_key}, metadata", restored.metadata)
    step, samples, identity = metadata.integer("step"), metadata.inner("samples"), metadata.mapping("identity")
    if session.rank == 0:
        for line in check(compare_identities(identity, session.identity), allowed):
            session.report("changed", text=line)
        for commit, reason in restored.skipped.items():
            session.report("skipped", commit=commit, reason=reason)
        session.report("resumed", step=step, commit=restored.commit.n)
        session.progress.digest = int(samples.text("digest", most=16), 16)
    session.progress.step = step
    session.progress.samples = samples.integer("count")
    session.is_only_local = not restored.commit.is_stored
    session.stored_step = 0 if session.is_only_local else step
    if session.engine.loss_scale is not None and "loss_scale" in restored.metadata:  # another precision has none
        saved = metadata.inner("loss_scale")
        session.engine.loss_scale = LossScale(factor=saved.number("factor"), good_steps=saved.integer("good_steps"))
