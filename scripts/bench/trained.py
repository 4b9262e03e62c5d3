"""A training process whose state is saved: by itself, or under a strategy that shards it."""

from __future__ import annotations

import importlib
import time

import torch
import torch.distributed as dist

from checkpoints.flat_shard import FlatShard, State, held_parts
from cluster.topology import Topology
from launcher import AdamW, Batch, Data, Model, Parallel, Recipe
from launcher.plan import make_plan
from launcher.strategies import STRATEGIES
from launcher.train.engines.strategy import Strategy

WIDTH = 1024


class Layers(torch.nn.Module):
    def __init__(self, megabytes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        count = max(1, round(megabytes * 1e6 / (3 * 4 * WIDTH * WIDTH)))
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


class Toy:
    """A model whose weights and moments are the state, and its training step.

    state: what ours saves. plain_state: the same for the others. share: what this rank has to save of it.
    """

    state: State
    plain_state: dict[str, torch.Tensor]
    share: list[torch.Tensor]
    bytes: int  # of all ranks

    def __init__(self, megabytes: int) -> None:
        self.model, self.batch = Layers(megabytes), torch.randn(4, WIDTH)
        self._prepare()

    def _prepare(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-6, foreach=True)
        self.step()
        self.plain_state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            names = ("exp_avg", "exp_avg_sq", "step")
            self.plain_state |= {f"optimizer.{number}.{name}": moments[name] for name in names}
        self.state = self.plain_state
        self.bytes = sum(tensor.nbytes for tensor in self.plain_state.values())
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.share = [tensor for i, tensor in enumerate(self.plain_state.values()) if i // 3 % ranks == rank]

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch).backward()
        self.optimizer.step()

    def all_say(self, vote: bool) -> bool:
        """Of the ranks that have to take equally many steps."""
        return vote

    def steps_per_second(self, seconds: float) -> float:
        started, steps = time.perf_counter(), 0
        while not self.all_say(time.perf_counter() - started >= seconds):
            self.step()
            steps += 1
        return steps / (time.perf_counter() - started)


class ShardedToy(Toy):
    """The same under a strategy of the launcher, whose ranks wait for each other in each step."""

    def __init__(self, megabytes: int, strategy: str) -> None:
        self._name = strategy
        super().__init__(megabytes)

    def _prepare(self) -> None:
        ranks = dist.get_world_size()
        recipe = Recipe(
            model=Model(build="a:b"), data=Data(path="c"), steps=1, batch=Batch(size=ranks, micro=1),
            parallel=Parallel(strategy=self._name), optimizer=AdamW(lr=1e-6, clip=None),
        )  # fmt: skip
        plan = make_plan(recipe, Topology(nodes=1, ranks_per_node=ranks, has_gpus=False), cores_per_node=ranks)
        module, _, name = STRATEGIES[self._name].implementation.partition(":")
        make = getattr(importlib.import_module(module), name)
        self._strategy: Strategy = make(recipe, plan, self.model, torch.device("cpu"), "fp32")
        self.step()
        self.state = self._strategy.state()
        # DCP knows no parts such as ZeRO's. As tensors of each rank they are saved, but for this number of ranks alone.
        self.plain_state = dict(_plain(name, value) for name, value in self.state.items())
        self.share = [part for _, _, part in held_parts(self.state)]
        self.bytes = ranks * sum(part.nbytes for part in self.share)

    def step(self) -> None:
        self._strategy.accumulate(lambda model: model(self.batch), is_last=True)
        self._strategy.step(lr=1e-6, scale=1.0)

    def all_say(self, vote: bool) -> bool:
        votes = torch.tensor(float(vote))
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)


def _plain(name: str, value: torch.Tensor | FlatShard) -> tuple[str, torch.Tensor]:
    return (f"{dist.get_rank()}.{name}", value.items) if isinstance(value, FlatShard) else (name, value)
