"""The loop as written by hand: the same model, data, optimizer and engine, and nothing that is not needed to train."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import byte_work as work
import torch
import toy

from launcher.train.data import ByteWindows, collate
from launcher.train.gpt import GPT, byte_gpt

Step = Callable[[torch.Tensor], None]  # of a loss


def with_ddp(model: GPT) -> tuple[torch.nn.Module, Step]:
    is_alone = torch.distributed.get_world_size() == 1
    return _with_torch(model if is_alone else torch.nn.parallel.DistributedDataParallel(model))


def with_fsdp(model: GPT) -> tuple[torch.nn.Module, Step]:
    from torch.distributed.fsdp import fully_shard

    for module in (*model.blocks, model):
        fully_shard(module)
    return _with_torch(model)


def with_zero3(model: GPT) -> tuple[torch.nn.Module, Step]:
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # as ours: nothing is compiled
    optimizer = torch.optim.AdamW(model.parameters(), work.LR)
    config = {
        "train_micro_batch_size_per_gpu": work.SAMPLES_PER_RANK,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def step(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.step()

    return engine, step


def _with_torch(model: torch.nn.Module) -> tuple[torch.nn.Module, Step]:
    optimizer = torch.optim.AdamW(model.parameters(), work.LR)

    def step(loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


STRATEGIES = {"ddp": with_ddp, "fsdp": with_fsdp, "zero3": with_zero3}


def main() -> None:
    world = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(len(os.sched_getaffinity(0)) // world)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model, step = STRATEGIES[os.environ["BENCH_STRATEGY"]](byte_gpt(**work.ARGUMENTS))
    examples: Any = ByteWindows(work.data_file(), "train", work.LENGTH)
    sampler = torch.utils.data.DistributedSampler(examples, world, int(os.environ["RANK"]))
    loader = torch.utils.data.DataLoader(examples, work.SAMPLES_PER_RANK, sampler=sampler, collate_fn=collate)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, toy.STEPS):
        loss_sum, targets = work.loss(model, batch)
        step(loss_sum / targets)


if __name__ == "__main__":
    main()
