"""Recipes that cannot be resumed: each has a state that no checkpoint holds."""

import itertools
import random
import time

from launcher import Batch, Data, Evaluation, Model, Recipe, replace

STEP_SECONDS = 0.05  # so that a step can be interrupted
COUNT = 64

next_example = itertools.count()
steps_seen = {"train": 0}
noise = random.Random(0)


def example(i):
    import torch

    return {"id": f"train-{i}", "x": torch.tensor([i / COUNT]), "y": torch.tensor([3 * i / COUNT + 1])}


def examples(split):
    return [example(i) for i in range(COUNT)]


class Stream:
    """Whatever is asked for, the next example comes."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return [] if isinstance(index, slice) else example(next(next_example) % COUNT)


def stream(split):
    return Stream()


def line():
    import torch

    return torch.nn.Linear(1, 1)


def squared_error(model, batch):
    import torch

    time.sleep(STEP_SECONDS)
    return (model(batch["x"]) - batch["y"]).square().sum(), torch.tensor(len(batch["ids"]))


def error_of_an_own_generator(model, batch):
    loss, count = squared_error(model, batch)
    return loss * (1 + 0.1 * noise.random()), count


def growing_error(model, batch):
    loss, count = squared_error(model, batch)
    steps_seen["train"] += 1
    return loss * (1 + 0.1 * steps_seen["train"]), count


STREAM = Recipe(
    model=Model(build=line),
    data=Data(build=stream),
    loss=squared_error,
    steps=400,
    stop_after=20,
    batch=Batch(size=8, micro=4),
    evaluation=Evaluation(samples=0),
)
GENERATOR = replace(STREAM, data=Data(build=examples), loss=error_of_an_own_generator)
GLOBAL = replace(GENERATOR, loss=growing_error)
