"""Pre-training: a byte-level GPT from scratch on a text of your own, sharded over the ranks."""

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Model, Parallel, Recipe, Schedule

RECIPE = Recipe(
    model=Model(
        build="launcher.train.gpt:byte_gpt",
        arguments={"context": 1024, "width": 768, "layers": 12, "heads": 12},
        activation_checkpointing=True,
    ),
    data=Data(path="data/python_reference.txt", sequence_length=1024),  # give your own with data.path=FILE.txt
    parallel=Parallel(strategy="fsdp"),
    steps=2000,
    batch=Batch(size=64, micro=8),
    optimizer=AdamW(lr=6e-4),
    schedule=Schedule(kind="cosine", warmup_steps=100),
    checkpoint=Checkpoint(every=200, keep=2),
    evaluation=Evaluation(
        every=500, prompt="The class statement ", tokens=120, complete="launcher.train.gpt:complete_bytes"
    ),
    seed=1,
    laptop={
        "model.arguments.context": 256,
        "model.arguments.width": 192,
        "model.arguments.layers": 4,
        "model.arguments.heads": 6,
        "model.activation_checkpointing": False,
        "data.sequence_length": 256,
        "steps": 200,
        "batch.size": 8,
        "optimizer.lr": 1e-3,
        "schedule.warmup_steps": 20,
        "checkpoint.every": 50,
        "evaluation.every": 100,
    },
)
