"""The plan of a run as data, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import LaunchError, UsageError
from launcher.plan import batch_size, make_plan
from launcher.preflight.duration import Duration, Saves, duration, saves
from launcher.preflight.footprint import MARGIN, Footprint, Parts
from launcher.preflight.gpus import GPUS, SIZES, Gpu
from launcher.preflight.shape import Shape, shape_of
from launcher.preflight.verdict import Case, alternatives, largest_micro, remedies
from launcher.preflight.workload import workload

_GIB = 2**30
_KINDS = {
    "parameters": "parameters",
    "base": "frozen base",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "communication": "communication",
    "workspace": "workspace",
}


class DoesNotFit(LaunchError):
    """The plan needs more memory than a GPU has."""

    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known of a case before it runs. gpu: None where it is not known; then there is no verdict."""

    case: Case
    shape: Shape
    gpu: Gpu | None
    footprint: Footprint
    duration: Duration | None
    saves: Saves

    @property
    def fits(self) -> bool | None:
        return None if self.gpu is None else self.footprint.total <= self.gpu.memory

    def remedies(self) -> list[tuple[str, ...]]:
        return [] if self.gpu is None or self.fits else remedies(self.case, self.shape, self.gpu)

    def refuse_misfit(self) -> None:
        """Raises DoesNotFit, with what to change, where that is known to be."""
        if self.fits is not False or self.gpu is None:
            return
        needs = f"a rank needs {_gib(self.footprint.total)} at {self.footprint.moment}"
        helps = "; or ".join(" ".join(changes) for changes in self.remedies())
        remedy = f"use {helps}" if helps else "no change of strategy, micro-batch or nodes helps; use a larger GPU"
        raise DoesNotFit(
            f"{needs}, and {self.gpu.name} has {_gib(self.gpu.memory)}; {remedy}; --force starts it anyway"
        )

    def as_json(self) -> dict[str, Any]:
        recipe, topology = self.case.recipe, self.case.topology
        table = [
            {"strategy": strategy, "nodes": nodes, "bytes": None if total is None else round(total)}
            for strategy, nodes, total in alternatives(self.case, self.shape)
        ]
        return {
            "world": {"nodes": topology.nodes, "gpus_per_node": topology.ranks_per_node, "ranks": topology.ranks},
            "batch": {"size": batch_size(recipe), "micro": recipe.batch.micro, "length": recipe.data.sequence_length},
            "memory": {
                "gpu": None if self.gpu is None else asdict(self.gpu),
                "fits": self.fits,
                "rank": self.footprint.as_json(),
                "host": asdict(self.footprint.host),
                "largest_micro": None if self.gpu is None else largest_micro(self.case, self.shape, self.gpu),
                "remedies": [list(changes) for changes in self.remedies()],
                "alternatives": table,
            },
            "time": None if self.duration is None else asdict(self.duration),
            "cost": {"gpu_hours": None if self.duration is None else self.duration.gpu_hours},
            "checkpoint": asdict(self.saves),
            "assumptions": list(self.assumptions()),
        }

    def assumptions(self) -> Iterator[str]:
        yield MARGIN
        if self.case.recipe.data.build is not None:
            yield "data.build says nothing of its samples: data.sequence_length is taken for their length"
        yield from self.duration.assumptions if self.duration is not None else ()
        yield from self.saves.assumptions

    def lines(self) -> Iterator[str]:
        yield f"model      {self.case.recipe.model.name}: {self.shape.parameters / 1e9:.2f} B parameters"
        plan = make_plan(self.case.recipe, self.case.topology, cores_per_node=1)
        yield f"ranks      {self.case.topology}, {self.case.recipe.parallel.describe()}"
        yield f"batch      {plan.describe_batch(self.case.recipe.batch.tokens)}"
        yield from self._memory_lines()
        yield from self._table_lines()
        yield from self._time_lines()
        for assumption in self.assumptions():
            yield f"assumed    {assumption}"

    def _memory_lines(self) -> Iterator[str]:
        yield f"memory     of a rank, at {self.footprint.moment}:"
        for field in Parts.__slots__:
            if size := getattr(self.footprint.parts, field):
                yield f"  {_KINDS[field]:15} {_gib(size):>10}"
        yield f"  {'margin':15} {_gib(self.footprint.margin):>10}"
        yield f"  {'total':15} {_gib(self.footprint.total):>10}  {self._verdict()}"
        host = self.footprint.host
        yield (
            f"host       of a node: {_gib(host.offload)} offloaded, {_gib(host.staging)} to stage checkpoints; "
            f"{_gib(host.loading)} while the model is loaded"
        )
        if self.gpu is not None:
            micro = largest_micro(self.case, self.shape, self.gpu)
            share = -(-batch_size(self.case.recipe) // self.case.topology.ranks)
            most = f"batch.micro={micro} is the largest that fits, of a rank's {share} samples of each step"
            yield f"micro      {most if micro else 'none fits'}"
        for changes in self.remedies():
            yield f"fits with  {' '.join(changes)}"

    def _verdict(self) -> str:
        if self.gpu is not None:
            word = "fits" if self.fits else "DOES NOT FIT"
            return f"{word}: {self.gpu.name} has {_gib(self.gpu.memory)}"
        sizes = [str(size) for size, name in SIZES.items() if self.footprint.total <= GPUS[name].memory]
        return f"fits GPUs of {', '.join(sizes)} GB" if sizes else f"fits no GPU of up to {max(SIZES)} GB"

    def _table_lines(self) -> Iterator[str]:
        rows: dict[str, list[str]] = {}
        nodes: list[int] = []
        for strategy, count, total in alternatives(self.case, self.shape):
            nodes += [count] if count not in nodes else []
            is_too_much = total is not None and self.gpu is not None and total > self.gpu.memory
            rows.setdefault(strategy, []).append("-" if total is None else f"{_gib(total)}{'!' if is_too_much else ''}")
        note = " (! does not fit)" if self.gpu is not None else ""
        yield f"{'nodes':15}" + "".join(f"{count:>12}" for count in nodes) + note
        for strategy, cells in rows.items():
            yield f"  {strategy:13}" + "".join(f"{cell:>12}" for cell in cells)

    def _time_lines(self) -> Iterator[str]:
        found, saves = self.duration, self.saves
        if found is not None:
            yield (
                f"time       {found.flops:.3g} operations and {_span(found.step_seconds)} a step, "
                f"{_span(found.seconds)} for {self.case.recipe.steps} steps, {found.gpu_hours:,.1f} GPU-hours"
            )
        else:
            yield "time       not known without the kind of GPU; give --gpu"
        yield (
            f"checkpoint {_gib(saves.bytes)}, durable after {_span(saves.save_seconds)}, "
            f"training waits {_span(saves.blocked_seconds)}"
        )
        every = "" if saves.every is None else f", which is checkpoint.every={saves.every}"
        yield f"           least is lost with one every {_span(saves.interval_seconds)} (Young, Daly){every}"


def make_report(case: Case, gpu: Gpu | None, *, mfu: float | None = None) -> Report:
    """Raises NoShape, or UsageError where settings exclude each other or have no formula."""
    shape = shape_of(case.recipe.model)
    if shape.longest_sequence is not None and case.recipe.data.sequence_length > shape.longest_sequence:
        longest = f"the model's limit of {shape.longest_sequence}"
        raise UsageError(f"data.sequence_length={case.recipe.data.sequence_length} is above {longest}; make it less")
    found = case.footprint(shape)
    plan = make_plan(case.recipe, case.topology, cores_per_node=1)
    work = workload(case.recipe, plan, shape)
    batch, steps = batch_size(case.recipe), case.recipe.steps
    time = None if gpu is None else duration(work, gpu, samples=batch, steps=steps, mfu=mfu)
    return Report(
        case=case,
        shape=shape,
        gpu=gpu,
        footprint=found,
        duration=time,
        saves=saves(work, None if time is None else time.step_seconds, steps),
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= 0.05 * _GIB or size == 0 else f"{size / 2**20:.1f} MiB"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
