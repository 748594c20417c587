"""Digits in a bare PyTorch loop: evaluated, saved, resumed, in mixed precision; then used."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from digits_task import BATCH_SIZE, CLIP, LR, SmallConvNet, load_split


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    torch.manual_seed(0)
    train_data, val_data = load_split()
    order = torch.Generator().manual_seed(0)
    train_loader = DataLoader(train_data, BATCH_SIZE, shuffle=True, generator=order)
    val_loader = DataLoader(val_data, BATCH_SIZE)
    model = SmallConvNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    begin, best = 0, 0.0
    if resume:
        state = torch.load(folder / "last.pt", weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
        random.setstate(state["python"])
        begin, best = state["epoch"] + 1, state["best"]
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(begin, epochs):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        model.eval()
        correct = 0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for images, labels in val_loader:
                correct += int((model(images).argmax(1) == labels).sum())
        accuracy = correct / len(val_data)
        print(f"epoch {epoch} loss {loss.item():.4f} accuracy {accuracy:.4f}")
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), folder / "best.pt")
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "epoch": epoch,
            "best": best,
        }
        torch.save(state, folder / "last.tmp")
        (folder / "last.tmp").replace(folder / "last.pt")
    return best


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    model = SmallConvNet()
    model.load_state_dict(torch.load(folder / "best.pt"))
    model.eval()
    with torch.inference_mode():
        return model(images).softmax(1)


if __name__ == "__main__":
    train(Path("digits-bare"), epochs=2)
    train(Path("digits-bare"), epochs=4, resume=True)
    print(predict(Path("digits-bare"), load_split()[1][0][0][None]))
