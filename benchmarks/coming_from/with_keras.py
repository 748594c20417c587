"""Digits with Keras 3 on torch: evaluated, saved, resumed, in mixed precision; then used."""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from keras import layers
from torch import Tensor

from digits_task import BATCH_SIZE, CLIP, LR, load_split


def make_model() -> keras.Model:
    """Return the network of `SmallConvNet`, layer for layer; it begins with other weights."""
    model = keras.Sequential([keras.Input((1, 8, 8))])
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        model.add(layers.ZeroPadding2D(1))
        model.add(layers.Conv2D(channels, 3, stride, use_bias=False))
        model.add(layers.BatchNormalization(axis=1, momentum=0.9, epsilon=1e-5))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, dtype="float32"))
    return model


def train(folder: Path, epochs: int, resume: bool = False) -> float:
    """Train up to epoch `epochs`; return the best accuracy on the validation data."""
    keras.utils.set_random_seed(0)
    keras.config.set_image_data_format("channels_first")
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    train_data, val_data = load_split()
    model = make_model()
    model.compile(
        optimizer=keras.optimizers.AdamW(LR, weight_decay=0.01, global_clipnorm=CLIP),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # finds by itself that there is something to go on with; without `resume` there must not be
    resumable = keras.callbacks.BackupAndRestore(folder / "last", delete_checkpoint=False)
    if not resume:
        (folder / "last").mkdir(parents=True)
    best = keras.callbacks.ModelCheckpoint(
        folder / "best.keras", monitor="val_accuracy", mode="max", save_best_only=True
    )
    history = model.fit(
        *(tensor.numpy() for tensor in train_data.tensors),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=tuple(tensor.numpy() for tensor in val_data.tensors),
        callbacks=[resumable, best],
    )
    return max(history.history["val_accuracy"])


def predict(folder: Path, images: Tensor) -> Tensor:
    """Return the probabilities (B, 10) of the best model."""
    model = keras.models.load_model(folder / "best.keras")
    return torch.tensor(model.predict(images.numpy())).softmax(1)


if __name__ == "__main__":
    train(Path("digits-keras"), epochs=2)
    train(Path("digits-keras"), epochs=4, resume=True)
    print(predict(Path("digits-keras"), load_split()[1][0][0][None]))
