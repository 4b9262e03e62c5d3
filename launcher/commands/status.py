"""`launch status`."""

from __future__ import annotations

import argparse
import json

from launcher.places import runs_dir
from launcher.runs import find_run
from launcher.status import run_state
from launcher.terminal import answer


def status(arguments: argparse.Namespace) -> int:
    state = run_state(find_run(arguments.run, runs_dir(arguments.runs_dir)))
    if arguments.json:
        print(json.dumps(state, indent=1))
        return 0
    loss = "" if state["loss"] is None else f", loss {state['loss']:.4f}"
    answer(f"{state['run']}: {state['state']}, step {state['step']} of {state['steps']}{loss}")
    if state["cause"]:
        answer(f"  {state['cause']}")
    if (job := state["job"]) and job["state"] != "ENDED":
        again = f", started again {job['starts_again']} times" if job["starts_again"] else ""
        answer(f"  job {job['id']} is {job['state']}{again}")
    for attempt in state["attempts"]:
        steps = f"steps {attempt['first_step']}-{attempt['last_step']}" if attempt["first_step"] else "no step kept"
        line = f"  attempt {attempt['number']} on {attempt['target']}: {attempt['state']}, {steps}"
        answer(f"{line}  {attempt['cause']}".rstrip())
    for slow in state["stragglers"]:
        own = f"{slow['seconds']:.3g} s of its own work per step"
        answer(f"  rank {slow['rank']} on {slow['host']} is slow: {own}, {slow['ratio']:.2f} times the median rank")
    for commit in state["commits"]:
        pinned = ", pinned" if commit["pinned"] else ""
        answer(f"  checkpoint of step {commit['step']}, {commit['bytes'] / 1e6:.1f} MB{pinned}")
    answer(f"  {state['folder']}")
    return 0
