"""The plan of a run as data, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import LaunchError
from launcher.plan import batch_size, make_plan
from launcher.preflight import grace
from launcher.preflight.duration import Duration, duration
from launcher.preflight.footprint import MARGIN, Footprint, Parts
from launcher.preflight.gpus import GPUS, SIZES, Gpu
from launcher.preflight.grace import Budget, Notice, budget
from launcher.preflight.interruptions import EXPECTED, Expected, expect, failures
from launcher.preflight.prices import Cost, Price, costs
from launcher.preflight.saves import Saves, saves
from launcher.preflight.shape import Shape, shape_of
from launcher.preflight.verdict import Case, alternatives, largest_micro, remedies
from launcher.preflight.workload import workload

_GIB = 2**30
_SECONDS_PER_HOUR = 3600
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
class Known:
    """What somebody knows, where the plan would assume something. None, or no prices: nobody does.

    mfu: the share of a GPU's peak that is used. node_hours: between interruptions of a node. store_speed: bytes per
    second that all ranks together can save. notices: of the places that the run may have.
    """

    mfu: float | None = None
    node_hours: float | None = None
    store_speed: float | None = None
    prices: tuple[Price, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known of a case before it runs. gpu: None where it is not known; then there is no verdict.

    duration, expected: of all steps without and with interruptions. budget: of a stop. None without the GPU's speed.
    """

    case: Case
    shape: Shape
    gpu: Gpu | None
    footprint: Footprint
    duration: Duration | None
    saves: Saves
    expected: Expected | None
    costs: tuple[Cost, ...]
    budget: Budget | None
    notices: tuple[Notice, ...]

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
            "cost": {
                "gpu_hours": None if self.duration is None else self.duration.gpu_hours,
                "expected": None if self.expected is None else asdict(self.expected),
                "usd": [{**asdict(cost.price), "on_demand": cost.on_demand, "spot": cost.spot} for cost in self.costs],
            },
            "checkpoint": asdict(self.saves),
            "grace": None if self.budget is None else self.budget.as_json(self.notices),
            "assumptions": list(self.assumptions()),
        }

    def assumptions(self) -> Iterator[str]:
        yield MARGIN
        if self.case.recipe.data.build is not None:
            yield "data.build says nothing of its samples: data.sequence_length is taken for their length"
        yield from self.duration.assumptions if self.duration is not None else ()
        yield from self.saves.assumptions
        if self.expected is not None:
            yield EXPECTED
            yield grace.ASSUMED
        if self.costs:
            yield "prices are those of whole instances on that day, without storage, network and taxes"

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

    def estimate_lines(self) -> Iterator[str]:
        """Time and cost."""
        yield self._duration_line()
        yield from self._expected_lines()

    def _duration_line(self) -> str:
        if (found := self.duration) is None:
            return "time       not known without the kind of GPU; give --gpu"
        return (
            f"time       {found.flops:.3g} operations and {_span(found.step_seconds)} a step, "
            f"{_span(found.seconds)} for {self.case.recipe.steps} steps, {found.gpu_hours:,.1f} GPU-hours"
        )

    def _time_lines(self) -> Iterator[str]:
        saves = self.saves
        yield self._duration_line()
        yield (
            f"checkpoint {_gib(saves.bytes)}, durable after {_span(saves.save_seconds)}, "
            f"training waits {_span(saves.blocked_seconds)}"
        )
        every = "" if saves.best_every is None else f", which is checkpoint.every={saves.best_every}"
        yield f"           least is lost with one every {_span(saves.best_seconds)} (Young, Daly){every}"
        yield from self._expected_lines()
        yield from self._grace_lines()

    def _expected_lines(self) -> Iterator[str]:
        found, every = self.expected, f"checkpoint.every={self.case.recipe.checkpoint.every}"
        if found is None:
            return
        if found.seconds is None or found.interruptions is None:
            often = f"an interruption every {_span(self.saves.failure_seconds)}"
            yield f"expected   never done: with {every} one costs {_span(found.lost_seconds)}, and there is {often}"
            return
        hours = found.seconds * self.case.topology.ranks / _SECONDS_PER_HOUR
        yield (
            f"expected   {found.interruptions:.2g} interruptions of {_span(found.lost_seconds)} each with {every}; "
            f"with them {_span(found.seconds)}, {hours:,.1f} GPU-hours"
        )
        for title, cost in zip(["cost", *[""] * len(self.costs)], self.costs, strict=False):
            price = cost.price
            kinds = ((cost.on_demand, "on demand"), (cost.spot, "spot"))
            sums = ", ".join(f"${dollars:,.2f} {kind}" for dollars, kind in kinds if dollars is not None)
            yield f"{title:10} {sums}: {price.cloud} {price.instance}, as of {price.as_of}, {price.source}"
        if not self.costs and self.gpu is not None:
            yield f"cost       no price of {self.gpu.name} is known; give --prices FILE"

    def _grace_lines(self) -> Iterator[str]:
        if self.budget is None:
            return
        of = self.budget
        first = f"{_span(of.step)} for a step or {_span(of.saving)} for a save under way"
        last = f"{_span(of.copying + of.saving)} for the last save, {grace.LEAVING_SECONDS:g} s to leave"
        yield f"grace      a stop takes up to {_span(of.needed)}: {first}, {last}"
        for notice in self.notices:
            enough = "enough" if of.is_met(notice) else f"TOO SHORT: {self._missed(of, notice)}"
            yield f"  {notice.place:18} {notice.seconds:5.0f} s  {enough}"

    def _missed(self, of: Budget, notice: Notice) -> str:
        return f"up to {_span(of.lost(notice))} of work are lost each time; {of.remedy(notice)}"

    def warnings(self) -> Iterator[str]:
        for notice in self.notices:
            if self.budget is not None and not self.budget.is_met(notice):
                needs = f"gives {notice.seconds:.0f} s of notice, and a stop may take {_span(self.budget.needed)}"
                yield f"warning: {notice.place} {needs}: {self._missed(self.budget, notice)}"


def make_report(case: Case, gpu: Gpu | None, known: Known | None = None) -> Report:
    """Raises NoShape, or UsageError where settings exclude each other or have no formula."""
    known = known or Known()
    shape = shape_of(case.recipe.model)
    found = case.footprint(shape)
    recipe, topology = case.recipe, case.topology
    work = workload(recipe, make_plan(recipe, topology, cores_per_node=1), shape)
    time = None if gpu is None else duration(work, gpu, samples=batch_size(recipe), steps=recipe.steps, mfu=known.mfu)
    saved = saves(
        work,
        None if time is None else time.step_seconds,
        recipe.steps,
        every=recipe.checkpoint.every,
        failures=failures(nodes=topology.nodes, ranks=topology.ranks, node_hours=known.node_hours),
        store_speed=known.store_speed,
    )
    expected = None if time is None else _expected(time, saved)
    hours = None if expected is None or expected.seconds is None else expected.seconds / _SECONDS_PER_HOUR
    return Report(
        case=case,
        shape=shape,
        gpu=gpu,
        footprint=found,
        duration=time,
        saves=saved,
        expected=expected,
        budget=None if time is None else budget(saved, time),
        notices=known.notices,
        costs=() if gpu is None or hours is None else tuple(costs(known.prices, gpu.name, topology, hours)),
    )


def _expected(time: Duration, saved: Saves) -> Expected:
    assert saved.interval_seconds is not None
    return expect(
        time.seconds,
        interval_seconds=saved.interval_seconds,
        blocked_seconds=saved.blocked_seconds,
        failure_seconds=saved.failure_seconds,
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= 0.05 * _GIB or size == 0 else f"{size / 2**20:.1f} MiB"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
