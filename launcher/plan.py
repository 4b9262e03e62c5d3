"""Recipe + topology -> plan: everything that is derived, and checked, before a process starts."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.recipe import Recipe
from launcher.strategies import HYBRID, OFFLOAD, STRATEGIES, alternatives


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a recipe's global batch is spread over the ranks of a topology, and the CPU threads that each rank uses."""

    topology: Topology
    batch_size: int
    micro: int
    threads_per_rank: int

    def share(self, rank: int) -> tuple[int, int]:
        """The samples [first, last) of each global batch that `rank` computes; shares differ by at most one sample."""
        ranks = self.topology.ranks
        return rank * self.batch_size // ranks, (rank + 1) * self.batch_size // ranks

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on the rank with the largest share."""
        largest = -(-self.batch_size // self.topology.ranks)
        return -(-largest // self.micro)

    def describe_batch(self) -> str:
        size, micro, accumulation = self.batch_size, self.micro, self.accumulation
        ranks = f"{self.topology.ranks} rank{'s' if self.topology.ranks > 1 else ''}"
        if size == micro * accumulation * self.topology.ranks:
            return f"{size} samples = {micro} micro x {accumulation} accumulation x {ranks}"
        return f"{size} samples over {ranks}, in up to {accumulation} micro-batches of at most {micro}"


def resolve_precision(recipe: Recipe, topology: Topology) -> tuple[str, str]:
    """The precision to compute in, and why; `auto` where the ranks have to look at their GPUs first."""
    if recipe.precision != "auto":
        return recipe.precision, "the recipe says so"
    return ("auto", "bf16 where the GPU has it, else fp16") if topology.has_gpus else ("fp32", "a CPU")


def make_plan(recipe: Recipe, topology: Topology, *, cores_per_node: int) -> Plan:
    """Raises UsageError when the topology cannot hold the global batch, or settings exclude each other."""
    if topology.ranks > recipe.batch.size:
        raise UsageError(
            f"batch.size={recipe.batch.size} cannot be spread over {topology.ranks} ranks; "
            f"use at most {recipe.batch.size} ranks, or batch.size={topology.ranks}"
        )
    _check_combination(recipe, topology)
    return Plan(
        topology=topology,
        batch_size=recipe.batch.size,
        micro=min(recipe.batch.micro, -(-recipe.batch.size // topology.ranks)),
        threads_per_rank=max(1, cores_per_node // topology.ranks_per_node),
    )


def _check_combination(recipe: Recipe, topology: Topology) -> None:
    """Raises UsageError when the strategy cannot be used with other settings of the recipe on this kind of device."""
    settings = {f"quantize={recipe.quantize}", f"precision={resolve_precision(recipe, topology)[0]}"}
    settings |= {OFFLOAD} if recipe.parallel.cpu_offload else set()
    settings |= {HYBRID} if recipe.parallel.shard_within_node else set()
    settings |= {"device=cuda" if topology.has_gpus else "device=cpu"}
    strategy = recipe.parallel.strategy
    if refusal := STRATEGIES[strategy].refusal(settings):
        setting, reason = refusal
        others = " or ".join(f"parallel.strategy={name}" for name in alternatives(settings))
        remedy = f"use {others}, or do without {setting}" if others else f"do without {setting}"
        raise UsageError(f"{setting} cannot be used with parallel.strategy={strategy} ({reason}); {remedy}")
