"""What one rank has to hold and compute, as numbers: a recipe and its plan, without the model."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan import Plan
from launcher.preflight.shape import Shape
from launcher.recipe import Lora, Recipe

# NF4 with double quantisation: half a byte, and per block of 64 a byte of scale, of which 256 share an fp32 scale.
NF4_DATA_BYTES = 0.5
NF4_SCALE_BYTES = 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """compute_bytes: of a number in the precision of the layers. passes: micro-batches per step.

    shard_ranks: the ranks that share one copy of the model, under a strategy that shards.
    """

    shape: Shape
    adapter: Lora | None
    is_quantised: bool
    compute_bytes: int
    micro: int
    length: int
    passes: int
    keeps_activations: bool
    strategy: str
    offloads: bool
    ranks: int
    shard_ranks: int
    ranks_per_node: int

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch whose samples are all full."""
        return self.micro * self.length

    @property
    def adapted(self) -> dict[str, tuple[int, int]]:
        """The matrices of a block that have an adapter."""
        targets = self.adapter.targets if self.adapter is not None else ()
        return {name: size for name, size in self.shape.linears.items() if name.endswith(tuple(targets))}

    @property
    def adapter_block(self) -> int:
        """Parameters of the adapters of one block."""
        rank = self.adapter.rank if self.adapter is not None else 0
        return rank * sum(inputs + outputs for inputs, outputs in self.adapted.values())

    @property
    def trainable(self) -> int:
        return self.shape.parameters if self.adapter is None else self.shape.layers * self.adapter_block

    @property
    def base_block_bytes(self) -> float:
        """The frozen weights of one block, without the scales of 4-bit ones."""
        if self.adapter is None:
            return 0
        matrix_bytes = NF4_DATA_BYTES if self.is_quantised else self.compute_bytes
        return self.shape.block_matrices * matrix_bytes + 2 * self.shape.width * self.compute_bytes

    @property
    def base_root_bytes(self) -> float:
        return 0 if self.adapter is None else self.shape.root * self.compute_bytes

    @property
    def base_scale_bytes(self) -> float:
        """The scales of 4-bit weights, which no strategy shards."""
        return self.shape.layers * self.shape.block_matrices * NF4_SCALE_BYTES if self.is_quantised else 0

    @property
    def casts_weights(self) -> bool:
        """Whether autocast makes copies of fp32 weights; FSDP gathers them in the precision of the layers."""
        return self.adapter is None and self.compute_bytes < 4 and self.strategy != "fsdp"

    @property
    def casts_adapters(self) -> bool:
        """Whether the input of each adapter is converted to its fp32, and back for autocast."""
        return self.adapter is not None and self.compute_bytes < 4 and self.strategy != "fsdp"

    @property
    def residual_bytes(self) -> int:
        """Of a number between the blocks: fp32 where the weights are, and autocast leaves additions alone."""
        return 4 if self.casts_weights else self.compute_bytes


def workload(recipe: Recipe, plan: Plan, shape: Shape) -> Workload:
    topology = plan.topology
    within_node = recipe.parallel.shard_within_node
    return Workload(
        shape=shape,
        adapter=recipe.adapter,
        is_quantised=recipe.quantize == "nf4",
        compute_bytes=4 if recipe.precision == "fp32" else 2,
        micro=plan.micro,
        length=recipe.data.sequence_length,
        passes=plan.accumulation,
        keeps_activations=not recipe.model.activation_checkpointing,
        strategy=recipe.parallel.strategy,
        offloads=recipe.parallel.cpu_offload,
        ranks=topology.ranks,
        shard_ranks=topology.ranks_per_node if within_node else topology.ranks,
        ranks_per_node=topology.ranks_per_node,
    )
