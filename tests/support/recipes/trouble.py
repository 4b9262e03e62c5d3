"""Recipes whose own functions go wrong, each in its way."""

from launcher import Batch, Checkpoint, Data, Evaluation, Model, Recipe, replace


def line_examples(split, *, count=64):
    """Points of y = 3x + noise-free 1, as a user's own data would give them."""
    import torch

    return [
        {"id": f"{split}-{i}", "x": torch.tensor([i / count]), "y": torch.tensor([3 * i / count + 1])}
        for i in range(count)
    ]


def line_model():
    import torch

    return torch.nn.Linear(1, 1)


def squared_error(model, batch):
    import torch

    return (model(batch["x"]) - batch["y"]).square().sum(), torch.tensor(len(batch["ids"]))


def nan_on_a_sample(model, batch):
    loss, count = squared_error(model, batch)
    return loss * (float("nan") if "train-7" in batch["ids"] else 1.0), count


def own_error(model, batch):
    raise ZeroDivisionError("the user's own mistake")


def takes_all_memory(model, batch):
    taken = []
    while True:
        taken.append(b"1" * 2**26)


def not_deterministic(model, batch):
    import torch

    loss, count = squared_error(model, batch)
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    return loss, count


def dies(model, batch):
    import os

    os.kill(os.getpid(), 9)


def kills_its_data_worker(model, batch):
    import multiprocessing
    import os

    for worker in multiprocessing.active_children():
        os.kill(worker.pid, 9)
    return squared_error(model, batch)


RECIPE = Recipe(
    model=Model(build=line_model),
    data=Data(build=line_examples),
    loss=squared_error,
    steps=12,
    batch=Batch(size=8, micro=4),
    checkpoint=Checkpoint(every=4),
    evaluation=Evaluation(samples=0),
)
NAN = replace(RECIPE, loss=nan_on_a_sample)
OWN_ERROR = replace(RECIPE, loss=own_error)
GREEDY = replace(RECIPE, loss=takes_all_memory)
NOT_DETERMINISTIC = replace(RECIPE, loss=not_deterministic)
DIES = replace(RECIPE, loss=dies)
WORKER = replace(RECIPE, loss=kills_its_data_worker, data=Data(build=line_examples, workers=1))
