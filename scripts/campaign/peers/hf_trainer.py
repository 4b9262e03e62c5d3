"""The task with the Trainer of transformers, resumed as its documentation says."""

import os
from typing import Any

import task
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = task.build()

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": task.loss(self.inner, input_ids)}


class Teller(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        task.tell("step", step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        task.tell("saved", step=state.global_step)


def main() -> None:
    folder = os.environ["CAMPAIGN_FOLDER"]
    arguments = TrainingArguments(
        output_dir=folder, use_cpu=True, ddp_backend="gloo", max_steps=task.STEPS, save_steps=task.SAVE_EVERY,
        save_total_limit=2, per_device_train_batch_size=task.SAMPLES_PER_RANK, report_to=[], logging_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, seed=1, learning_rate=2e-3,
    )  # fmt: skip
    trainer = Trainer(model=Model(), args=arguments, train_dataset=task.Samples(), callbacks=[Teller()])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    task.tell_end(trainer.model, trainer.optimizer.optimizer)


if __name__ == "__main__":
    main()
