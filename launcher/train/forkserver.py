"""The forkserver of a node's ranks. It is a fork of the agent, so that what both need is imported once."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.preemption import stop_signals_held

_spawn = multiprocessing.util.spawnv_passfds


def start_forkserver(modules: Sequence[str]) -> None:
    """Import the modules, and start the forkserver with them.

    One that is killed is started again as multiprocessing does it: by an interpreter that imports the modules itself.
    """
    # Lets torch look for GPUs without making a CUDA context, which a forked rank could not use.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    gc.disable()  # imports leave hardly any garbage
    for module in modules:
        with contextlib.suppress(ImportError):  # the rank that needs it tells
            importlib.import_module(module)
    gc.freeze()  # looking for garbage in what was imported would give each fork its own copy of it
    gc.enable()
    multiprocessing.set_forkserver_preload(["launcher.train.preload", *modules])
    with stop_signals_held():  # for good, in the tracker: a scheduler signals every process of a job
        multiprocessing.resource_tracker.ensure_running()  # first: starting it unblocks signals
    with stop_signals_held(), _forking_instead_of_spawning():
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def _forking_instead_of_spawning() -> Iterator[None]:
    multiprocessing.util.spawnv_passfds = _fork
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = _spawn


def _fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Have a fork of this process do what a new interpreter would, whose last argument is a program: its pid."""
    if pid := os.fork():
        return pid
    try:
        multiprocessing.util.spawnv_passfds = _spawn
        multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc]  # its lock is held
        _close_all_but({0, 1, 2, *passfds})
        exec(args[-1], {})
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)  # nobody asks: it serves until its last client is gone


def _close_all_but(kept: set[int]) -> None:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)
