"""Digits with Lightning: evaluated, saved, resumed, in mixed precision; then used."""

from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from digits_task import BATCH_SIZE, CLIP, LR, SmallConvNet, load_split


class Digits(lightning.LightningModule):
    """The network, its loss, its metric and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SmallConvNet()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Note the accuracy of a batch."""
        images, labels = batch
        accuracy = (self.model(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=0.01)


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    lightning.seed_everything(0)
    train_data, val_data = load_split()
    checkpoints = ModelCheckpoint(
        folder,
        "best",
        monitor="val_accuracy",
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        precision="bf16-mixed",
        gradient_clip_val=CLIP,
        default_root_dir=folder,
        callbacks=[checkpoints],
    )
    trainer.fit(
        Digits(),
        DataLoader(train_data, BATCH_SIZE, shuffle=True),
        DataLoader(val_data, BATCH_SIZE),
        ckpt_path=folder / "last.ckpt" if resume else None,
    )
    assert checkpoints.best_model_score is not None
    return float(checkpoints.best_model_score)


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    digits = Digits.load_from_checkpoint(folder / "best.ckpt", map_location="cpu").eval()
    with torch.inference_mode():
        return digits.model(images).softmax(1)


if __name__ == "__main__":
    train(Path("digits-lightning"), epochs=2)
    train(Path("digits-lightning"), epochs=4, resume=True)
    print(predict(Path("digits-lightning"), load_split()[1][0][0][None]))
