"""The training loop."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from checkpoints.saver import SaveResult
from launcher.errors import RunFailed
from launcher.runs import PREEMPTED_CODE, STOP_AFTER, Outcome
from launcher.train.agreement import any_rank
from launcher.train.data import to_device
from launcher.train.engines import Batch, StepResult
from launcher.train.evaluation import completion, perplexity
from launcher.train.optim import learning_rate
from launcher.train.pulse import Phase
from launcher.train.session import SAVE_DEADLINE_SECONDS, Session, seed_step

ABORTED_SAVES_IN_A_ROW = 3


def train(session: Session) -> Outcome:
    """Train from the session's progress to the end of the recipe, or to the step that the ranks agree to stop at."""
    recipe, progress = session.recipe, session.progress
    last = recipe.stop_after or recipe.steps
    is_stopped = progress.step == 0 and not _evaluate(session)
    is_stopped = is_stopped or any_rank(session.notice.is_given(), session.engine.device)
    if session.is_only_local and (is_stopped or progress.step >= last):  # no step will be taken, and so no save be made
        session.save(is_last=True)
        _report_saves(session, session.saver.wait(SAVE_DEADLINE_SECONDS))
    if is_stopped:
        return _stopped(session)
    batches = session.batches()
    session.pulse.begin_steps()
    while progress.step < last:
        result = _train_step(session, batches)
        at_end = result.should_stop or progress.step == last
        if at_end or result.should_save:
            session.save(is_last=at_end)
        session.report_slow_save()
        _report_saves(session, session.saver.poll())
        _report_uploads(session)
        if at_end:
            break
        if recipe.evaluation.every and progress.step % recipe.evaluation.every == 0 and not _evaluate(session):
            session.save(is_last=True)
            break
    with session.pulse.during(Phase.SAVING):
        _report_saves(session, session.saver.wait(SAVE_DEADLINE_SECONDS))
    _report_uploads(session)
    if progress.step < recipe.steps or session.was_late:
        return _stopped(session)
    if session.stored_step < progress.step:
        raise RunFailed(f"the checkpoint of the last step {progress.step} could not be written; mend that and resume")
    if not _evaluate(session):
        return _stopped(session)
    session.close(is_finished=True)
    return Outcome(state="SUCCEEDED", cause="", exit_code=0, step=progress.step)


@dataclass(slots=True)
class _Stopwatch:
    """Seconds since the last look."""

    since: float

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        return seconds


def _train_step(session: Session, batches: Iterator[list[Batch]]) -> StepResult:
    """One optimizer step, and what the ranks agreed to do after it."""
    recipe, progress, engine = session.recipe, session.progress, session.engine
    step = progress.step + 1
    watch = _Stopwatch(time.perf_counter())
    seed_step(recipe.seed, step, session.rank)
    micro_batches = next(batches)
    data_seconds = watch.lap()
    lr = learning_rate(step, recipe.steps, recipe.optimizer.lr, recipe.schedule)
    on_device = [to_device(batch, engine.device) for batch in micro_batches]
    result = engine.train_step(on_device, lr=lr, wants_stop=session.wants_stop(), wants_save=session.wants_save(step))
    progress.advance(micro_batches, session.plan.batch_size)
    session.pulse.step_done(step, None if result.own_seconds is None else data_seconds + result.own_seconds)
    compute_seconds = watch.lap()
    session.step_taken(data_seconds + compute_seconds)
    if session.metrics is not None:
        session.metrics.add(_record(session, result, lr, data_seconds, compute_seconds))
    return result


def _record(
    session: Session, result: StepResult, lr: float, data_seconds: float, compute_seconds: float
) -> dict[str, float]:
    blocked_seconds, session.blocked_seconds = session.blocked_seconds, 0.0
    seconds = data_seconds + compute_seconds + blocked_seconds
    return {
        "step": session.progress.step,
        "loss": result.loss,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "tokens_per_second": round(result.tokens / seconds, 1),
        "samples": session.progress.samples,
        "attempt": session.attempt.number,
        "seconds_data": round(data_seconds, 6),
        "seconds_compute": round(compute_seconds, 6),
        "seconds_checkpoint": round(blocked_seconds, 6),
        "memory_bytes": _peak_memory(session.engine.device),
    }


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of this rank: on its GPU, or of its process where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stopped(session: Session) -> Outcome:
    """Preempted, at the step of the newest commit that outlives the machines: that far the run cannot fall back."""
    is_early = session.progress.step == session.recipe.stop_after
    cause = session.notice.reason() or (STOP_AFTER if is_early else "another node was asked to stop")
    if session.was_late:  # but what is on a disk alone may still get to the store
        with session.pulse.during(Phase.SAVING):
            session.saver.wait_for_upload(min(SAVE_DEADLINE_SECONDS, max(0.0, session.grace.left())))
        _report_uploads(session)
    session.close(is_finished=False)
    is_out_of_time = session.grace.is_out_of_time()
    step = session.kept_step()
    return Outcome(state="PREEMPTED", cause=cause, exit_code=PREEMPTED_CODE, step=step, is_out_of_time=is_out_of_time)


def _evaluate(session: Session) -> bool:
    """Report held-out perplexity and a completion; False when the ranks were asked to stop instead."""
    if not session.held_out:
        return True
    with session.pulse.during(Phase.EVALUATING):
        return _evaluate_held_out(session)


def _evaluate_held_out(session: Session) -> bool:
    held_out = session.held_out
    value = perplexity(session.engine, held_out, micro=session.plan.micro, wants_stop=session.wants_stop)
    if value is None:
        return False
    step = session.progress.step
    if session.metrics is not None:
        session.metrics.add_evaluation(step, value)
        session.report("evaluated", step=step, perplexity=round(value, 3), samples=len(held_out))
    if session.rank == 0 or session.engine.passes_are_collective:
        text = completion(session.recipe, session.model, session.engine)
        if text is not None:
            session.report("completed", step=step, prompt=session.recipe.evaluation.prompt, text=text)
    return True


def _report_saves(session: Session, results: list[SaveResult]) -> None:
    """Raises RunFailed when checkpoints keep failing.

    A disk that is full or read-only is waited for, because it can be mended meanwhile; one that loses data is not.
    """
    for result in results:
        for damage in result.damage:
            session.report("damaged", text=damage)
        if result.commit is not None:
            commit, seconds = result.commit, round(result.seconds, 3)
            session.save_ended(result.step, result.seconds, is_stored=commit.is_stored)
            where = {} if commit.is_stored else {"hosts": commit.hosts}
            session.report("committed", step=result.step, commit=commit.n, bytes=commit.bytes, seconds=seconds, **where)
            continue
        session.report("save_failed", step=result.step, cause=str(result.abort))
        can_wait = result.abort is not None and result.abort.is_unwritable
        if session.saver.aborts_in_a_row >= ABORTED_SAVES_IN_A_ROW and not can_wait:
            raise RunFailed(f"{ABORTED_SAVES_IN_A_ROW} checkpoints in a row failed: {result.abort}")


def _report_uploads(session: Session) -> None:
    """Say which commits have gone from disks of nodes to the store. One that has not is no loss: the next one may."""
    for upload in session.saver.poll_uploads():
        step, commit = upload.commit.step, upload.commit.n
        if upload.failure:
            session.report("upload_failed", step=step, commit=commit, cause=upload.failure)
        else:
            session.report("stored", step=step, commit=commit, seconds=round(upload.seconds, 3))
