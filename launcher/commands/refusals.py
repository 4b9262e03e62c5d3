"""What is refused, or warned of, before anything is made: settings that do not go together, and what would not fit."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from cluster.backend import Backend
from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.places import is_object, own_disk, runs_dir
from launcher.preflight.compatibility import cautions, refuse_incompatible
from launcher.preflight.gpus import Gpu, gpu_named, gpu_of_model, gpu_with_memory, local_gpu
from launcher.recipe import Recipe

TYPE_CHECKING = False  # as in the package's own module
if TYPE_CHECKING:
    from launcher.preflight.grace import Notice
    from launcher.preflight.report import Report

_MOUNTS = Path("/proc/self/mounts")


def refuse_what_cannot_work(
    recipe: Recipe, topology: Topology, backend: Backend, arguments: argparse.Namespace
) -> None:
    """Raises UsageError for what is known not to work, and DoesNotFit, unless forced, where a formula says so.

    The GPU counts where the command or the place names it, or where the run is to be on this machine's.
    """
    gpu = gpu_of_run(topology, backend, arguments)
    if gpu is not None and not topology.has_gpus:
        raise UsageError(f"--gpu {gpu.name}: this run has no GPU; give --plan to see what it would need on one")
    refuse_incompatible(recipe, gpu)
    report = None if arguments.force else _report(recipe, topology, backend, arguments)
    if report is not None:
        report.refuse_misfit()


def warnings(recipe: Recipe, topology: Topology, backend: Backend, arguments: argparse.Namespace) -> Iterator[str]:
    """What may not go well."""
    yield from cautions(recipe, topology)
    yield from warnings_of_disk(backend, arguments)
    if not backend.needs_launcher:
        for what in _absent(recipe):
            yield f"warning: {what} here; the nodes of {backend.name} must have it"
    if (report := _report(recipe, topology, backend, arguments)) is not None:
        yield from report.warnings()


def refuse_absent(recipes: Sequence[Recipe], backend: Backend) -> None:
    """Raises UsageError for what is not on this machine and has to be, and for data that its bucket does not give."""
    if backend.needs_launcher:
        for what in chain.from_iterable(map(_absent, recipes)):
            raise UsageError(f"{what} of this machine; correct the path")
    for path in {recipe.data.path for recipe in recipes}:
        if path is not None and is_object(path):
            from launcher.train.bucket_data import refuse_missing

            refuse_missing(path)


def _absent(recipe: Recipe) -> Iterator[str]:
    """What the recipe has by a path that leads nowhere here."""
    path, name = recipe.data.path, recipe.model.name
    if path is not None and not is_object(path) and not os.path.isfile(path):
        yield f"data.path={path} is no file"
    if name is not None and name.startswith(("/", "~")) and not os.path.isdir(os.path.expanduser(name)):
        yield f"model.name={name} is no folder"


def warnings_of_disk(backend: Backend, arguments: argparse.Namespace) -> Iterator[str]:
    folder = runs_dir(arguments.runs_dir)
    kind = None if backend.needs_launcher else own_disk(folder, _MOUNTS.read_text(encoding="utf-8"))
    if kind is not None:
        yield f"warning: --runs-dir {folder} is on {kind} here; the nodes of {backend.name} must see the same folder"


def known_gpu(arguments: argparse.Namespace, backend: Backend) -> Gpu | None:
    """The GPU that the command or the place names, or that this machine has; None where none is known."""
    return _named_gpu(arguments, backend) or local_gpu()


def _named_gpu(arguments: argparse.Namespace, backend: Backend) -> Gpu | None:
    if arguments.gpu is not None and arguments.gpu_memory is not None:
        raise UsageError(f"--gpu {arguments.gpu} and --gpu-memory {arguments.gpu_memory:g} say the same; give one")
    if arguments.gpu is not None:
        return gpu_named(arguments.gpu)
    if arguments.gpu_memory is not None:
        return gpu_with_memory(arguments.gpu_memory)
    return gpu_of_model(backend.rent().accelerator or "")


def notices_of(backend: Backend, arguments: argparse.Namespace) -> tuple[Notice, ...]:
    """What is known of the place; nothing where it never ends a run."""
    from launcher.preflight.grace import Notice

    if arguments.grace_seconds is not None:
        return (Notice(place="--grace-seconds", seconds=arguments.grace_seconds),)
    if (known := backend.notice()) is None:
        return ()
    setting, seconds = known
    return (Notice(place=backend.name, seconds=seconds, setting=setting),)


def gpu_of_run(topology: Topology, backend: Backend, arguments: argparse.Namespace) -> Gpu | None:
    """The one that the command or the place names, or this machine's where the run is to be on it."""
    named = _named_gpu(arguments, backend)
    return local_gpu() if named is None and topology.has_gpus and backend.needs_launcher else named


def _report(recipe: Recipe, topology: Topology, backend: Backend, arguments: argparse.Namespace) -> Report | None:
    """None where the GPU is not known, or there is no formula."""
    if (gpu := gpu_of_run(topology, backend, arguments)) is None:
        return None
    from launcher.preflight.report import Known, make_report
    from launcher.preflight.shape import NoShape
    from launcher.preflight.spread import SPREADS
    from launcher.preflight.verdict import Case

    if recipe.parallel.strategy not in SPREADS:
        return None
    known = Known(node_hours=arguments.mtbf_hours, notices=notices_of(backend, arguments))
    try:
        return make_report(Case(recipe=recipe, topology=topology), gpu, known)
    except NoShape:
        return None
