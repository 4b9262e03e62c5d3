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

    def describe_batch(self, tokens: int | None) -> str:
        """In words; `tokens` are those that the recipe gives it, if it counts in tokens."""
        size, micro, accumulation = self.batch_size, self.micro, self.accumulation
        samples = f"{size} samples" if tokens is None else f"{size} samples ({tokens} tokens)"
        ranks = f"{self.topology.ranks} rank{'s' if self.topology.ranks > 1 else ''}"
        if size == micro * accumulation * self.topology.ranks:
            return f"{samples} = {micro} micro x {accumulation} accumulation x {ranks}"
        return f"{samples} over {ranks}, in up to {accumulation} micro-batches of at most {micro}"


def resolve_precision(recipe: Recipe, topology: Topology) -> tuple[str, str]:
    """The precision to compute in, and why; `auto` where the ranks have to look at their GPUs first."""
    if recipe.precision != "auto":
        return recipe.precision, "the recipe says so"
    return ("auto", "bf16 where the GPU has it, else fp16") if topology.has_gpus else ("fp32", "a CPU")


def batch_size(recipe: Recipe) -> int:
    """Samples per optimizer step over all ranks. Raises UsageError when the recipe's tokens are not whole samples."""
    tokens, length = recipe.batch.tokens, recipe.data.sequence_length
    if tokens is None:
        assert recipe.batch.size is not None
        return recipe.batch.size
    if tokens % length:
        below = max(1, tokens // length) * length
        remedy = f"use {below} or {below + length}"
        raise UsageError(f"batch.tokens={tokens} is not a multiple of data.sequence_length={length}; {remedy}")
    return tokens // length


def make_plan(recipe: Recipe, topology: Topology, *, cores_per_node: int) -> Plan:
    """Raises UsageError when the topology cannot hold the global batch, or settings exclude each other."""
    size, ranks = batch_size(recipe), topology.ranks
    if ranks > size:
        raise UsageError(
            f"{_batch_setting(recipe, size)} cannot be spread over {ranks} ranks; "
            f"use at most {size} rank{'s' if size > 1 else ''}, or {_batch_setting(recipe, ranks)}"
        )
    _check_combination(recipe, topology)
    return Plan(
        topology=topology,
        batch_size=size,
        micro=min(recipe.batch.micro, -(-size // ranks)),
        threads_per_rank=max(1, cores_per_node // topology.ranks_per_node),
    )


def _batch_setting(recipe: Recipe, samples: int) -> str:
    """What gives a batch of so many samples, in the unit of the recipe."""
    if recipe.batch.tokens is None:
        return f"batch.size={samples}"
    return f"batch.tokens={samples * recipe.data.sequence_length}"


def _check_combination(recipe: Recipe, topology: Topology) -> None:
    """Raises UsageError when settings of the recipe exclude each other, or these machines."""
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
