"""A byte-level GPT from scratch on the Python language reference: about 15 seconds on two CPU cores."""

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Model, Recipe, Schedule

RECIPE = Recipe(
    model=Model(
        build="launcher.train.gpt:byte_gpt",
        arguments={"context": 128, "width": 128, "layers": 2, "heads": 4},
    ),
    data=Data(path="data/python_reference.txt", sequence_length=128),
    steps=400,
    batch=Batch(size=8, micro=8),
    optimizer=AdamW(lr=2e-3),
    schedule=Schedule(kind="cosine", warmup_steps=40),
    checkpoint=Checkpoint(every=100, keep=2),
    evaluation=Evaluation(
        samples=64, prompt="The class statement ", tokens=80, complete="launcher.train.gpt:complete_bytes"
    ),
    seed=1,
)
