"""The loop as written by hand: the same model, data and optimizer, and nothing that is not needed to train."""

import itertools
import os
from typing import Any

import byte_work as work
import torch
import toy

from launcher.train.data import ByteWindows, collate
from launcher.train.gpt import byte_gpt


def main() -> None:
    world = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(len(os.sched_getaffinity(0)) // world)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model: torch.nn.Module = byte_gpt(**work.ARGUMENTS)
    if world > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), work.LR)
    examples: Any = ByteWindows(work.data_file(), "train", work.LENGTH)
    sampler = torch.utils.data.DistributedSampler(examples, world, int(os.environ["RANK"]))
    loader = torch.utils.data.DataLoader(examples, work.SAMPLES_PER_RANK, sampler=sampler, collate_fn=collate)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, toy.STEPS):
        loss_sum, targets = work.loss(model, batch)
        (loss_sum / targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
