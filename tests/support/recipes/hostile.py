"""A recipe whose every text means harm."""

from launcher import Batch, Checkpoint, Data, Evaluation, Model, Recipe, replace

TEXT = "\x1b]0;owned\x07\x1b[31m\u202e\r\n; mkdir canary $(mkdir canary) `mkdir canary`"


def examples(split, *, hurts=False):
    import torch

    class Examples(list):
        def __getitem__(self, index):
            if hurts and split == "train" and torch.utils.data.get_worker_info() is not None:
                raise ValueError(TEXT)
            return super().__getitem__(index)

    return Examples({"id": f"{TEXT}{i}", "x": torch.tensor([float(i)])} for i in range(64))


def model():
    import torch

    return torch.nn.Linear(1, 1)


def square(model, batch):
    import torch

    return model(batch["x"]).square().sum() * 0.001, torch.tensor(len(batch["ids"]))


def not_a_number(model, batch):
    loss, count = square(model, batch)
    return loss * (float("nan") if model.training else 1.0), count


def answer(model, prompt, tokens):
    return TEXT


RECIPE = Recipe(
    model=Model(build=model),
    data=Data(build=examples),
    loss=not_a_number,
    steps=12,
    batch=Batch(size=8, micro=4),
    checkpoint=Checkpoint(every=4),
    evaluation=Evaluation(samples=8, prompt=TEXT, complete=answer),
)
WORKER = replace(RECIPE, loss=square, data=Data(build=examples, arguments={"hurts": True}, workers=1))
