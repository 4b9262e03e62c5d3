"""Does it fit: a plan, what could be changed about it, and what is the least that has to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.plan import batch_size, make_plan
from launcher.preflight.footprint import Footprint, footprint
from launcher.preflight.gpus import Gpu
from launcher.preflight.shape import Shape
from launcher.preflight.spread import SPREADS
from launcher.preflight.workload import workload
from launcher.recipe import Recipe

COLUMNS = (("ddp", False), ("fsdp", False), ("fsdp", True), ("zero3", False), ("zero3", True))
NODE_FACTORS = (1, 2, 4)
_MOST_NODE_FACTOR = 16
_MOST_REMEDIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe on a topology of GPUs."""

    recipe: Recipe
    topology: Topology

    def footprint(self, shape: Shape) -> Footprint:
        """Raises UsageError where settings exclude each other, or there is no formula for the strategy."""
        strategy = self.recipe.parallel.strategy
        if strategy not in SPREADS:
            raise UsageError(f"parallel.strategy={strategy} has no closed formula; {', '.join(SPREADS)} have")
        plan = make_plan(self.recipe, self.topology, cores_per_node=1)
        return footprint(workload(self.recipe, plan, shape))

    def total(self, shape: Shape) -> float | None:
        """Bytes on a GPU; None where that cannot be run, or not be computed."""
        try:
            return self.footprint(shape).total
        except UsageError:
            return None

    def spread(self, strategy: str, *, offloads: bool) -> Case:
        parallel = replace(
            self.recipe.parallel,
            strategy=strategy,
            cpu_offload=offloads,
            shard_within_node=self.recipe.parallel.shard_within_node and strategy == "fsdp",
        )
        return replace(self, recipe=replace(self.recipe, parallel=parallel))

    def with_micro(self, micro: int) -> Case:
        return replace(self, recipe=replace(self.recipe, batch=replace(self.recipe.batch, micro=micro)))

    def on_nodes(self, nodes: int) -> Case:
        return replace(self, topology=replace(self.topology, nodes=nodes))

    def with_checkpointing(self) -> Case:
        model = replace(self.recipe.model, activation_checkpointing=True)
        return replace(self, recipe=replace(self.recipe, model=model))

    def difference(self, other: Case) -> tuple[str, ...]:
        """What to add to the command line of this case to have the other one."""
        mine, theirs = self.recipe, other.recipe
        words = (
            ("parallel.strategy", mine.parallel.strategy, theirs.parallel.strategy),
            ("parallel.cpu_offload", mine.parallel.cpu_offload, theirs.parallel.cpu_offload),
            ("parallel.shard_within_node", mine.parallel.shard_within_node, theirs.parallel.shard_within_node),
            (
                "model.activation_checkpointing",
                mine.model.activation_checkpointing,
                theirs.model.activation_checkpointing,
            ),
            ("batch.micro", mine.batch.micro, theirs.batch.micro),
            ("--nodes", self.topology.nodes, other.topology.nodes),
        )
        return tuple(
            f"{key}={str(after).lower()}" if not key.startswith("--") else f"{key} {after}"
            for key, before, after in words
            if before != after
        )


def alternatives(case: Case, shape: Shape) -> Iterator[tuple[str, int, float | None]]:
    """(strategy, nodes, bytes on a GPU) of the strategies on as many nodes and on more; None: cannot be run."""
    for (strategy, offloads), factor in product(COLUMNS, NODE_FACTORS):
        nodes = factor * case.topology.nodes
        other = case.spread(strategy, offloads=offloads).on_nodes(nodes)
        yield f"{strategy}{'+offload' if offloads else ''}", nodes, other.total(shape)


def largest_micro(case: Case, shape: Shape, gpu: Gpu) -> int:
    """Samples of the largest micro-batch that fits, up to a rank's share of the batch; 0 if none does."""
    most = -(-batch_size(case.recipe) // case.topology.ranks)
    fits, too_many = 0, most + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        total = case.with_micro(middle).total(shape)
        if total is not None and total <= gpu.memory:
            fits = middle
        else:
            too_many = middle
    return fits


def remedies(case: Case, shape: Shape, gpu: Gpu) -> list[tuple[str, ...]]:
    """The smallest changes that make the plan fit, the least first. Empty where nothing helps.

    Of those that change the same settings, or more than others need, only the first is there.
    """
    found: list[tuple[str, ...]] = []
    for changes, other in sorted(_changed(case), key=lambda change: len(change[0])):
        if any(_settings(known) <= _settings(changes) for known in found):
            continue
        total = other.total(shape)
        if total is not None and total <= gpu.memory:
            found.append(changes)
        if len(found) == _MOST_REMEDIES:
            break
    return found


def _settings(changes: tuple[str, ...]) -> set[str]:
    return {change.replace(" ", "=").partition("=")[0] for change in changes}


def _changed(case: Case) -> Iterator[tuple[tuple[str, ...], Case]]:
    """The changes that may help, each with the case that it makes: what costs least speed comes first."""
    for nodes, (strategy, offloads), micro, checkpoints in product(
        _node_counts(case), _strategies(case), _micros(case), (False, True)
    ):
        other = case.spread(strategy, offloads=offloads) if (strategy, offloads) != _strategy(case) else case
        other = other.with_micro(micro).on_nodes(nodes)
        other = other.with_checkpointing() if checkpoints else other
        yield case.difference(other), other


def _strategy(case: Case) -> tuple[str, bool]:
    return case.recipe.parallel.strategy, case.recipe.parallel.cpu_offload


def _strategies(case: Case) -> list[tuple[str, bool]]:
    own = _strategy(case)
    return [own, *(column for column in COLUMNS if column != own)]


def _micros(case: Case) -> list[int]:
    micro, sizes = case.recipe.batch.micro, []
    while micro >= 1:
        sizes.append(micro)
        micro //= 2
    return sizes


def _node_counts(case: Case) -> list[int]:
    factors = (1, 2, 4, 8, _MOST_NODE_FACTOR)
    return [case.topology.nodes * factor for factor in factors]
