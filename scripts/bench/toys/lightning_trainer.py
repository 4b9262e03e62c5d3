"""The toy with the Trainer of Lightning."""

import os
from typing import Any

import lightning  # type: ignore[import-not-found, unused-ignore]
import torch
import toy
from lightning.pytorch.callbacks import Callback, ModelCheckpoint  # type: ignore[import-not-found, unused-ignore]


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = toy.build()

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return toy.loss(self.inner, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Teller(Callback):  # type: ignore[misc]
    def on_train_batch_end(self, *arguments: Any) -> None:
        toy.tell("ends step")


class Saver(ModelCheckpoint):  # type: ignore[misc]
    def _save_last_checkpoint(self, *arguments: Any) -> None:
        super()._save_last_checkpoint(*arguments)
        toy.tell("saved")


def main() -> None:
    torch.set_num_threads(1)
    folder = os.environ["BENCH_FOLDER"]
    saver = Saver(dirpath=folder, save_last=True, every_n_train_steps=toy.SAVE_EVERY, save_top_k=1, monitor=None)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=toy.STEPS, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Teller(), saver],
    )  # fmt: skip
    last = os.path.join(folder, "last.ckpt")
    loader: Any = torch.utils.data.DataLoader(toy.Samples(), batch_size=toy.SAMPLES_PER_RANK)
    trainer.fit(Module(), loader, ckpt_path=last if os.path.exists(last) else None)


if __name__ == "__main__":
    main()
