"""Full fine-tuning, sharded: all weights of a Llama learn to answer questions about the Python standard library."""

from launcher import AdamW, Batch, Checkpoint, Parallel, replace
from recipes.llama_qlora import RECIPE as QLORA

RECIPE = replace(
    QLORA,
    quantize="none",
    adapter=None,
    parallel=Parallel(strategy="fsdp"),
    batch=Batch(size=32, micro=4),
    optimizer=AdamW(lr=2e-5, weight_decay=0.0),
    checkpoint=Checkpoint(every=50, keep=2),
    laptop=QLORA.laptop
    | {
        "steps": 20,
        "batch.size": 4,
        "batch.micro": 2,
        "optimizer.lr": 2e-5,
        "schedule.warmup_steps": 2,
        "evaluation.samples": 16,
    },
)
