"""The toy as a plain torchrun script with torch.save, as tutorials write it."""

import os

import torch
import torch.distributed as dist
import toy


def main() -> None:
    torch.set_num_threads(1)
    path = os.path.join(os.environ["BENCH_FOLDER"], "state.pt")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(toy.build())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    step = 0
    if os.path.exists(path):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    while step < toy.STEPS:
        optimizer.zero_grad()
        toy.loss(model, torch.randn(toy.SAMPLES_PER_RANK, toy.WIDTH)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        toy.tell("ends step")
        if step % toy.SAVE_EVERY == 0 and dist.get_rank() == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, path + ".new")
            os.replace(path + ".new", path)
            toy.tell("saved")


if __name__ == "__main__":
    main()
