"""The memory of one step from the real model, on fake tensors: its operations and shapes, without values or memory.

Fake tensors are those of the CPU: its attention may keep something else than a GPU's does. A 4-bit base is traced in
the precision of the layers, and counted as what it takes.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from cluster.topology import Topology
from launcher import loading
from launcher.errors import UsageError
from launcher.plan import Plan, make_plan
from launcher.preflight.shape import config_of
from launcher.preflight.stage3 import BUCKET_ITEMS
from launcher.preflight.states import STATES, States, Weights
from launcher.preflight.workload import NF4_DATA_BYTES, NF4_SCALE_BYTES
from launcher.recipe import Recipe
from launcher.train.engines.fsdp import make_mesh, shard_module
from launcher.train.functions import find_function, loss_function
from launcher.train.live_bytes import LiveBytes
from launcher.train.models import prepare_model, repeated_blocks
from launcher.train.precision import COMPUTE_DTYPES

FEW_BLOCKS = 5
_EDGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes of one rank. passes: what the trace of the passes had at most. formula: what is added, by name `added`.

    At the optimizer's step all is by formula. host: on the host, by formula.
    """

    passes: float
    formula: float
    added: str
    host: float

    def as_json(self) -> dict[str, object]:
        sizes = {name: round(getattr(self, name)) for name in ("passes", "formula", "host")}
        return {"bytes": round(self.passes + self.formula), **sizes, "added": self.added}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Bytes of one rank in a forward and a backward pass, with as many blocks as were traced.

    rows: the most in each part of the passes; each row has the same part for all blocks.
    """

    rows: Sequence[Sequence[float]]
    weights: Weights

    def peak(self, states: States) -> Peak:
        passes = max(map(max, self.rows)) - states.counted_too_much
        if states.step > passes + states.beside:
            return Peak(passes=0, formula=states.step, added="all that the optimizer's step needs", host=states.host)
        return Peak(passes=passes, formula=states.beside, added=states.name, host=states.host)

    def extended(self, more: Traced, blocks: int) -> Traced:
        """With so many blocks on top of these, when `more` has one on top: each adds as much as the one before.

        Between the first and the last blocks memory grows, or shrinks, evenly: the most is at an edge.
        """

        def at(few: float, one: float) -> float:
            return few + (one - few) * blocks

        pairs = zip(map(_edges, self.rows), map(_edges, more.rows), strict=True)
        sizes = {name: at(getattr(self.weights, name), getattr(more.weights, name)) for name in Weights.__slots__}
        return Traced(
            rows=[[at(few, one) for few, one in zip(*edges, strict=True)] for edges in pairs], weights=Weights(**sizes)
        )


def _edges(row: Sequence[float]) -> Sequence[float]:
    return row if len(row) < FEW_BLOCKS else [*row[:_EDGE], *row[-_EDGE:]]


def trace(recipe: Recipe, plan: Plan) -> Peak:
    """The most that one rank has allocated on its device in a step.

    The forward and the backward pass are traced; what is known by formula is added. Of a model by name, whose blocks
    are all alike, a few are traced, and one more, which says what each further one adds.
    Raises UsageError for a strategy that cannot be traced.
    """
    if recipe.parallel.strategy not in STATES:
        raise UsageError(f"parallel.strategy={recipe.parallel.strategy} cannot be traced; {', '.join(STATES)} can")
    config = None if recipe.model.name is None else config_of(recipe.model)
    mesh = make_group(recipe, plan)
    layers = 0 if config is None else config["num_hidden_layers"]
    if config is None or layers <= FEW_BLOCKS + 1:
        traced = trace_blocks(recipe, plan, config, mesh)
    else:
        counts = (FEW_BLOCKS, FEW_BLOCKS + 1)
        few, more = (trace_blocks(recipe, plan, {**config, "num_hidden_layers": count}, mesh) for count in counts)
        traced = few.extended(more, layers - FEW_BLOCKS)
    ranks = plan.topology.ranks if mesh is None else mesh["shard"].size()
    return traced.peak(STATES[recipe.parallel.strategy](traced.weights, ranks, recipe.parallel.cpu_offload))


def trace_blocks(recipe: Recipe, plan: Plan, config: Mapping[str, Any] | None, mesh: Any) -> Traced:
    """A model of this configuration, or the recipe's own, with all of its blocks."""
    precision = "bf16" if recipe.precision == "auto" else recipe.precision
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = fake_model(recipe, config, precision)
        blocks = repeated_blocks(module)
        weights = _weights(module, blocks, _saved_by_quantisation(recipe, module, precision))
        live = LiveBytes(shared_shapes(module))
        if mesh is not None:
            shard_module(module, mesh, precision, offloads=recipe.parallel.cpu_offload)
        with _marks_between(blocks, live):
            run_passes(recipe, plan, module, precision, live)
    return Traced(rows=_rows(live.peaks, len(blocks)), weights=weights)


def shared_shapes(module: torch.nn.Module) -> set[torch.Size]:
    """Of the parameters that are used in several places, such as an embedding that is the output layer, too."""
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    return {p.shape for p in module.parameters() if uses[id(p)] > 1}


def _weights(module: torch.nn.Module, blocks: Sequence[torch.nn.Module], saved: float) -> Weights:
    parameters = list(module.parameters())
    in_blocks = {id(p) for block in blocks for p in block.parameters()}
    layers = [sum(p.numel() for p in block.parameters()) for block in blocks]
    return Weights(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        all=sum(p.numel() for p in parameters),
        frozen=sum(p.nbytes for p in parameters if not p.requires_grad) - saved,
        largest=max([*layers, *(p.numel() for p in parameters if id(p) not in in_blocks)]),
        saved=saved,
    )


@contextmanager
def _marks_between(blocks: Sequence[torch.nn.Module], live: LiveBytes) -> Iterator[None]:
    """Marks at the start of each block, and when the gradient of its output is there."""

    def start(_block: torch.nn.Module, _inputs: Any) -> None:
        live.mark()

    def watch(_block: torch.nn.Module, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda _gradient: live.mark())

    hooks = [
        hook
        for block in blocks
        for hook in (block.register_forward_pre_hook(start), block.register_forward_hook(watch))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(peaks: Sequence[int], blocks: int) -> list[Sequence[int]]:
    """What was marked before the first block, in the forward pass of each, and in each part of the backward passes."""
    if not blocks or (len(peaks) - 1) % blocks:
        return [peaks]
    backward = peaks[blocks + 1 :]
    parts = len(backward) // blocks
    return [peaks[:1], peaks[1 : blocks + 1], *(backward[part::parts] for part in range(parts))]


def run_passes(recipe: Recipe, plan: Plan, module: torch.nn.Module, precision: str, live: LiveBytes) -> None:
    """Count one forward and backward pass, fake or real as the module is.

    With weights and gradients, unless they stay on the host, or with DeepSpeed.
    """
    parallel, dtype = recipe.parallel, COMPUTE_DTYPES[precision]
    is_zero = parallel.strategy == "zero3"
    linears = _linears_of_deepspeed() if is_zero else nullcontext()
    with live, live.counting_resizes(), _without_packing(), linears:
        if is_zero or parallel.cpu_offload:
            _leave_out_weights(module, live, _to_a_bucket() if is_zero else _to_the_host)
        else:
            replicates = parallel.strategy == "ddp" and plan.topology.ranks > 1
            _count_weights(module, live, has_gradients=replicates or plan.accumulation > 1)
        for buffer in module.buffers():
            live.count(buffer)
        shape = (plan.micro, recipe.data.sequence_length)
        batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "labels")}
        # The engine of ZeRO autocasts without the cache.
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None, cache_enabled=not is_zero):
            loss, _ = loss_function(recipe.loss)(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]


def _count_weights(module: torch.nn.Module, live: LiveBytes, *, has_gradients: bool) -> None:
    for parameter in module.parameters():
        live.count(parameter)
        if has_gradients and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _leave_out_weights(module: torch.nn.Module, live: LiveBytes, take: Callable[[torch.Tensor], None]) -> None:
    """Have each gradient taken as soon as it is there."""
    for parameter in module.parameters():
        live.exclude(parameter)
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]


def _to_the_host(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _to_a_bucket() -> Callable[[torch.Tensor], None]:
    """What DeepSpeed's bucket has no room for waits until the next gradient is there, and is reduced by itself."""
    waiting: list[torch.Tensor | None] = []

    def take(parameter: torch.Tensor) -> None:
        waiting[:] = [parameter.grad] if parameter.numel() > BUCKET_ITEMS else []
        parameter.grad = None

    return take


@contextmanager
def _linears_of_deepspeed() -> Iterator[None]:
    """They keep no copy of a weight in the precision of the layers."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    linear = torch.nn.functional.linear
    torch.nn.functional.linear = zero3_linear_wrap
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


@contextmanager
def _without_packing() -> Iterator[None]:
    """transformers looks whether samples are packed, which fake tensors cannot say, and then masks to be safe."""
    from transformers import masking_utils

    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda _positions: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def fake_model(recipe: Recipe, config: Mapping[str, Any] | None, precision: str) -> torch.nn.Module:
    """The recipe's model, ready to be trained, as tensors of the mode that is entered."""
    with torch.device("meta"):
        if config is None:
            module: torch.nn.Module = find_function(str(recipe.model.build))(**recipe.model.arguments)
        else:
            module = _configured(config, (COMPUTE_DTYPES[precision] if recipe.adapter else None) or torch.float32)
        module = prepare_model(module, recipe).train()
    _replace_tensors(module)
    return module


def _configured(config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    others = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
    known = AutoConfig.for_model(config["model_type"], **others)
    module: torch.nn.Module = AutoModelForCausalLM.from_config(known, dtype=dtype, attn_implementation="sdpa")
    return module


def _replace_tensors(module: torch.nn.Module) -> None:
    """Give tensors without memory those of the mode; what is shared stays shared."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    made.setdefault(id(tensor), (tensor, _with_memory(tensor)))
                    tensors[name] = made[id(tensor)][1]  # type: ignore[assignment]


def _with_memory(tensor: torch.Tensor) -> torch.Tensor:
    memory = torch.empty(tensor.shape, dtype=tensor.dtype)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(memory, requires_grad=tensor.requires_grad) if is_parameter else memory


def _saved_by_quantisation(recipe: Recipe, module: torch.nn.Module, precision: str) -> float:
    """Bytes that 4-bit matrices take less than traced ones."""
    if recipe.quantize == "none":
        return 0
    linears = (m for name, m in module.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in name)
    matrices = [m.weight for m in linears if m is not module.get_output_embeddings()]  # type: ignore[operator]
    return float(sum(m.numel() * (m.element_size() - NF4_DATA_BYTES - NF4_SCALE_BYTES) for m in matrices))


def make_group(recipe: Recipe, plan: Plan) -> Any:
    """The mesh of the ranks that share shards; None where none do. Outside the mode: it holds real numbers."""
    if recipe.parallel.strategy != "fsdp":
        return None
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=plan.topology.ranks, store=FakeStore())
    return make_mesh(plan, torch.device("cpu"), shards_within_node=recipe.parallel.shard_within_node)


def main() -> None:
    """`python -m launcher.train.trace CONFIG NODES GPUS_PER_NODE`: JSON on stdout, in a process of its own."""
    started = time.perf_counter()
    recipe = loading.load_frozen(Path(sys.argv[1])).recipe
    topology = Topology(nodes=int(sys.argv[2]), ranks_per_node=int(sys.argv[3]), has_gpus=True)
    try:
        found = trace(recipe, make_plan(recipe, topology, cores_per_node=1)).as_json()
    except UsageError as error:
        found = {"error": str(error)}
    print(json.dumps(found | {"seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
