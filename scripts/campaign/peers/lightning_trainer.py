"""The task with the Trainer of Lightning, resumed from its last checkpoint."""

import os
from typing import Any

import lightning  # type: ignore[import-not-found, unused-ignore]
import task
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint  # type: ignore[import-not-found, unused-ignore]


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = task.build()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return task.loss(self.inner, batch["input_ids"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-3)


class Teller(Callback):  # type: ignore[misc]
    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        task.tell("step", step=trainer.global_step)


class Saver(ModelCheckpoint):  # type: ignore[misc]
    def _save_last_checkpoint(self, trainer: Any, *arguments: Any) -> None:
        super()._save_last_checkpoint(trainer, *arguments)
        task.tell("saved", step=trainer.global_step)


def main() -> None:
    lightning.seed_everything(1, verbose=False)
    folder = os.environ["CAMPAIGN_FOLDER"]
    saver = Saver(dirpath=folder, save_last=True, every_n_train_steps=task.SAVE_EVERY, save_top_k=1, monitor=None)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp", max_steps=task.STEPS, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Teller(), saver],
    )  # fmt: skip
    last = os.path.join(folder, "last.ckpt")
    loader: Any = torch.utils.data.DataLoader(task.Samples(), batch_size=task.SAMPLES_PER_RANK, shuffle=True)
    module = Module()
    trainer.fit(module, loader, ckpt_path=last if os.path.exists(last) else None)
    task.tell_end(module.inner, trainer.optimizers[0])


if __name__ == "__main__":
    main()
