"""`launch status`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.groups import changes_of, members_of
from launcher.pace import duration
from launcher.places import runs_dir
from launcher.runs import Run, find_run
from launcher.status import run_state, run_summary, where
from launcher.terminal import answer


def status(arguments: argparse.Namespace) -> int:
    folder = runs_dir(arguments.runs_dir)
    if members := members_of(arguments.run, folder):
        if arguments.prices is not None:
            raise UsageError(f"--prices {arguments.prices}: {arguments.run} is a group; give one of its runs")
        return _group_status(members, as_json=arguments.json)
    own_prices = None if arguments.prices is None else Path(arguments.prices)
    state = run_state(find_run(arguments.run, folder), own_prices)
    if arguments.json:
        print(json.dumps(state, indent=1))
        return 0
    loss = "" if state["loss"] is None else f", loss {state['loss']:.4f}"
    eta = "" if state["eta_seconds"] is None else f", ETA {duration(state['eta_seconds'])}"
    answer(f"{state['run']}: {state['state']}, step {state['step']} of {state['steps']}{loss}{eta}")
    if state["cause"]:
        answer(f"  {state['cause']}")
    if (job := state["job"]) and job["state"] != "ENDED":
        answer(f"  job {job['id']} is {_of_job(job)}")
    for attempt in state["attempts"]:
        answer(f"  {_of_attempt(attempt)}  {attempt['cause']}".rstrip())
    for line in _of_bill(state["bill"]) if state["bill"] else ():
        answer(f"  {line}")
    for slow in state["stragglers"]:
        own = f"{slow['seconds']:.3g} s of its own work per step"
        answer(f"  rank {slow['rank']} on {slow['host']} is slow: {own}, {slow['ratio']:.2f} times the median rank")
    for commit in state["commits"]:
        pinned = ", pinned" if commit["pinned"] else ""
        place = f", {where(commit)}" if commit["hosts"] else ""
        answer(f"  checkpoint of step {commit['step']}, {commit['bytes'] / 1e6:.1f} MB{pinned}{place}")
    answer(f"  {state['folder']}")
    return 0


def _of_attempt(attempt: Mapping[str, Any]) -> str:
    """Such as attempt 2 on local: LOST after 0:12, steps 21-40 (3 again)."""
    steps = f"steps {attempt['first_step']}-{attempt['last_step']}" if attempt["first_step"] else "no step kept"
    again = f" ({attempt['lost_steps']} again)" if attempt["lost_steps"] else ""
    ended = attempt["ended"] is not None and attempt["started"] is not None
    after = f" after {duration(attempt['ended'] - attempt['started'])}" if ended else ""
    hours = "" if attempt["gpu_hours"] is None else f", {attempt['gpu_hours']:,.1f} GPU-hours"
    return f"attempt {attempt['number']} on {attempt['target']}: {attempt['state']}{after}, {steps}{again}{hours}"


def _of_bill(bill: Mapping[str, Any]) -> Iterator[str]:
    """The sum, the prices in it, and what is not in it."""
    spent, on_demand, saved = bill["spent_usd"], bill["on_demand_usd"], bill["saved_usd"]
    dollars = "" if spent is None else f", ${spent:,.2f} spent"
    instead = "" if on_demand is None else f"; ${on_demand:,.2f} on demand, where no step is done again"
    saving = "" if saved is None else f": ${saved:,.2f} {'saved' if saved >= 0 else 'NOT saved'}"
    yield f"{bill['gpu_hours']:,.1f} GPU-hours{dollars}{instead}{saving}"
    for price in bill["prices"]:
        kinds = ((price["spot"], "spot"), (price["on_demand"], "on demand"))
        sums = ", ".join(f"${per_hour:g} {kind}" for per_hour, kind in kinds if per_hour is not None)
        origin = f"as of {price['as_of']}, {price['source']}"
        yield f"an hour of {price['cloud']} {price['instance']}: {sums}, {origin}"
    yield from (f"not in it: {reason}" for reason in bill["unpriced"])


def _of_job(job: Mapping[str, Any]) -> str:
    """What its scheduler says of it, such as PENDING (BeginTime), requeued once."""
    reason = f" ({job['reason']})" if job["reason"] else ""
    match job["starts_again"]:
        case 0:
            return f"{job['state']}{reason}"
        case 1:
            return f"{job['state']}{reason}, requeued once"
        case times:
            return f"{job['state']}{reason}, requeued {times} times"


def _group_status(members: Sequence[Run], *, as_json: bool) -> int:
    """A table with a line for each run: the settings in which they differ, and how far each is."""
    states = [{**run_summary(run), "changes": changes_of(run)} for run in members]
    if as_json:
        print(json.dumps({"group": members[0].record()["group"]["name"], "runs": states}, indent=1))
        return 0
    keys = list(dict.fromkeys(key for state in states for key in state["changes"]))
    rows = [["run", *keys, "state", "step", "loss", "ETA", ""]]
    for state in states:
        changes = [str(state["changes"].get(key, "")) for key in keys]
        loss = "-" if state["loss"] is None else f"{state['loss']:.4f}"
        step = f"{state['step']}/{state['steps']}"
        eta = "" if state["eta_seconds"] is None else duration(state["eta_seconds"])
        rows.append([state["run"], *changes, state["state"], step, loss, eta, state["cause"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
