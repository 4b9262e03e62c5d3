"""Llamas that are planned, traced, and, when they are small, trained."""

from __future__ import annotations

from typing import Any

from cluster.topology import Topology
from launcher.plan import make_plan
from launcher.preflight.shape import SHIPPED, Shape, read_shape
from launcher.preflight.verdict import Case
from launcher.preflight.workload import Workload, workload
from launcher.recipe import Batch, Data, Lora, Model, Parallel, Recipe

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = Lora(rank=16, alpha=32, targets=ALL_LINEAR)
NAMES = {"1b": "meta-llama/Llama-3.2-1B", "8b": "meta-llama/Llama-3.1-8B", "70b": "meta-llama/Llama-3.1-70B"}
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def shape(size: str) -> Shape:
    return read_shape(TINY if size == "tiny" else SHIPPED[NAMES[size]], size)


def case(
    size: str = "1b",
    strategy: str = "ddp",
    *,
    nodes: int = 1,
    gpus: int = 1,
    micro: int = 4,
    length: int = 1024,
    samples: int | None = None,
    checkpoints: bool = True,
    offload: bool = False,
    adapter: Lora | None = None,
    quantize: Any = "none",
    precision: Any = "auto",
) -> Case:
    recipe = Recipe(
        model=Model(name=NAMES.get(size, "tiny"), activation_checkpointing=checkpoints),
        data=Data(path="questions.jsonl", sequence_length=length),
        steps=100,
        adapter=adapter,
        quantize=quantize,
        parallel=Parallel(strategy=strategy, cpu_offload=offload),
        batch=Batch(size=samples or micro * nodes * gpus, micro=micro),
        precision=precision,
    )
    return Case(recipe=recipe, topology=Topology(nodes=nodes, ranks_per_node=gpus, has_gpus=True))


def work(case: Case, size: str) -> Workload:
    return workload(case.recipe, make_plan(case.recipe, case.topology, cores_per_node=1), shape(size))
