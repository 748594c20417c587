"""Digits with the `Trainer` of transformers: evaluated, saved, resumed, mixed precision; used."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from digits_task import BATCH_SIZE, CLIP, LR, SmallConvNet, load_split


class Digits(nn.Module):
    """The network in the form that the trainer expects: a dictionary with loss and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SmallConvNet()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss and logits."""
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch with the argument names of the model."""
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the metrics of all validation data."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    torch.manual_seed(0)
    train_data, val_data = load_split()
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=LR,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        bf16=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        Digits(),
        settings,
        data_collator=collate,
        train_dataset=train_data,
        eval_dataset=val_data,
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "best"))
    assert trainer.state.best_metric is not None
    return trainer.state.best_metric


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    digits = Digits()
    load_model(digits, folder / "best" / "model.safetensors")
    digits.eval()
    with torch.inference_mode():
        return digits.model(images).softmax(1)


if __name__ == "__main__":
    train(Path("digits-hf"), epochs=2)
    train(Path("digits-hf"), epochs=4, resume=True)
    print(predict(Path("digits-hf"), load_split()[1][0][0][None]))
