"""Digits with deepseek: evaluated, saved, resumed, in mixed precision; then used."""

from pathlib import Path

import torch
from torch import Tensor

from deepseek import ModelEngine, Trainer
from digits_task import BATCH_SIZE, CLIP, LR, SmallConvNet, load_split


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    torch.manual_seed(0)
    train_data, val_data = load_split()
    trainer = Trainer(
        SmallConvNet(),
        train_data,
        val_data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        lr=LR,
        weight_decay=0.01,
        schedule="constant",
        warmup=0,
        clip_grad_norm=CLIP,
        precision="bf16",
        device="cpu",
        run_dir=None if resume else folder,
        resume=folder if resume else None,
    )
    return trainer.fit().best["val_accuracy"]


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    model = ModelEngine.load(folder / "model.bin", module=SmallConvNet())
    return torch.stack([prediction.probs for prediction in model.predict(images)])


if __name__ == "__main__":
    train(Path("digits-deepseek"), epochs=2)
    train(Path("digits-deepseek"), epochs=4, resume=True)
    print(predict(Path("digits-deepseek"), load_split()[1][0][0][None]))
