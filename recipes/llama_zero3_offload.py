"""Full fine-tuning with ZeRO-3 and offload: weights and moments in host memory, on the GPU what it computes with."""

from launcher import AdamW, Checkpoint, Parallel, replace
from recipes.llama_fsdp import RECIPE as FSDP

RECIPE = replace(
    FSDP,
    parallel=Parallel(strategy="zero3", cpu_offload=True),
    optimizer=AdamW(lr=2e-5, weight_decay=0.01),
    checkpoint=Checkpoint(every=100, keep=2),
    laptop=FSDP.laptop
    | {
        "steps": 12,
        "batch.size": 8,
        "batch.micro": 4,
        "optimizer.lr": 1e-4,
        "checkpoint.every": 6,
    },
)
