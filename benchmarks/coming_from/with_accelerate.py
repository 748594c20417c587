"""Digits in a loop with Accelerate: evaluated, saved, resumed, in mixed precision; then used."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.utils.data import DataLoader

from digits_task import BATCH_SIZE, CLIP, LR, SmallConvNet, load_split


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    train_data, val_data = load_split()
    model = SmallConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        model,
        optimizer,
        DataLoader(train_data, BATCH_SIZE, shuffle=True),
        DataLoader(val_data, BATCH_SIZE),
    )
    begin, best = 0, 0.0
    if resume:
        accelerator.load_state(str(folder / "last"))
        state = json.loads((folder / "last" / "progress.json").read_text())
        begin, best = state["epoch"] + 1, state["best"]
    for epoch in range(begin, epochs):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        model.eval()
        correct = 0
        for images, labels in val_loader:
            with torch.inference_mode():
                predicted = model(images).argmax(1)
            predicted, labels = accelerator.gather_for_metrics((predicted, labels))
            correct += int((predicted == labels).sum())
        accuracy = correct / len(val_data)
        accelerator.print(f"epoch {epoch} loss {loss.item():.4f} accuracy {accuracy:.4f}")
        is_best, best = accuracy > best, max(accuracy, best)
        accelerator.save_state(str(folder / "last"))
        if accelerator.is_main_process:
            progress = json.dumps({"epoch": epoch, "best": best})
            (folder / "last" / "progress.json").write_text(progress)
            if is_best:
                save_model(accelerator.unwrap_model(model), str(folder / "best.safetensors"))
    return best


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    model = SmallConvNet()
    load_model(model, folder / "best.safetensors")
    model.eval()
    with torch.inference_mode():
        return model(images).softmax(1)


if __name__ == "__main__":
    train(Path("digits-accelerate"), epochs=2)
    train(Path("digits-accelerate"), epochs=4, resume=True)
    print(predict(Path("digits-accelerate"), load_split()[1][0][0][None]))
