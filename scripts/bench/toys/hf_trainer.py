"""The toy with the Trainer of transformers."""

import os
from typing import Any

import torch
import toy
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = toy.build()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": toy.loss(self.inner, x)}


class Teller(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        toy.tell("ends step")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        toy.tell("saved")


def main() -> None:
    torch.set_num_threads(1)
    folder = os.environ["BENCH_FOLDER"]
    arguments = TrainingArguments(
        output_dir=folder, use_cpu=True, ddp_backend="gloo", max_steps=toy.STEPS, save_steps=toy.SAVE_EVERY,
        save_total_limit=2, per_device_train_batch_size=toy.SAMPLES_PER_RANK, report_to=[], logging_strategy="no",
        disable_tqdm=True, ignore_data_skip=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=Model(), args=arguments, train_dataset=toy.Samples("x"), callbacks=[Teller()])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))


if __name__ == "__main__":
    main()
