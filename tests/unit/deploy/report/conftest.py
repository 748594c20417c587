"""A run folder as the trainer writes it, with hostile names."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

HOSTILE = "<script>alert('x')</script>"
NUM_SAMPLES = 900


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metric_rows(num_epochs: int = 12, steps_per_epoch: int = 100) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(1, num_epochs + 1):
        for step in range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1):
            share = step / (num_epochs * steps_per_epoch)
            rows.append(
                {
                    "kind": "train",
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    "loss": 2.3 * float(np.exp(-3.5 * share)) + 0.08 + 0.08 * abs(rng.normal()),
                    "lr": 1e-3 * min(1, step / 100) * (0.5 + 0.5 * float(np.cos(np.pi * share))),
                    "grad_norm": float(np.exp(rng.normal(0, 0.4))) + (40 if step == 700 else 0),
                    "samples_per_s": 2400 + 90 * rng.normal(),
                    "data_wait_share": abs(0.04 + 0.01 * rng.normal()),
                    "memory_bytes": 3 * 2**30 + step * 1000,
                    "time_s": step * 0.3,
                }
            )
        rows.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "loss": 2.2 / epoch + 0.1,
                "val_loss": 2.1 / epoch + 0.25,
                "val_accuracy": 0.95 - 0.6 / epoch,
                "val_f1": 0.93 - 0.6 / epoch,
                "time_s": epoch * steps_per_epoch * 0.3,
                "epoch_s": 30.0,
                "eta_s": 0.0,
            }
        )
    return rows


def write_evaluation(run: Path, class_names: list[str], num_samples: int = NUM_SAMPLES) -> None:
    rng = np.random.default_rng(1)
    folder = run / "evaluation"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    num_classes = len(class_names)
    targets = rng.integers(0, num_classes, num_samples)
    logits = rng.normal(0, 1.2, (num_samples, num_classes))
    logits[np.arange(num_samples), targets] += 4
    logits[np.arange(num_samples), (targets + 1) % num_classes] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(probs[np.arange(num_samples), targets])
    save_file(
        {
            "index": np.arange(num_samples),
            "targets": targets,
            "probs": probs.astype(np.float32),
            "loss": loss.astype(np.float32),
        },
        folder / "predictions.safetensors",
    )
    (folder / "metrics.json").write_text(json.dumps({"step": 1200, "val_loss": 0.4}))
    samples = {}
    for name, order in (("worst", np.argsort(-loss)), ("best", np.argsort(loss))):
        samples[name] = []
        for index in order[:8].tolist():
            picture = (
                rng.normal(128, 30, (32, 32, 3))
                + 80 * np.sin(np.arange(32) / (2 + index % 7))[:, None, None]
            )
            pixels = picture.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"samples/{name}-{index}.png")
            guess = int(probs[index].argmax())
            samples[name].append(
                {
                    "file": f"samples/{name}-{index}.png",
                    "index": index,
                    "target": class_names[targets[index]],
                    "predicted": class_names[guess],
                    "prob": float(probs[index, guess]),
                    "loss": float(loss[index]),
                }
            )
    (folder / "samples.json").write_text(json.dumps(samples))
    spec = {"spec": {"task": "classification", "class_names": class_names}}
    save_file({"w": np.zeros(1)}, run / "model.bin", metadata={"deepseek": json.dumps(spec)})


def write_run(run: Path, class_names: list[str] | None = None) -> Path:
    run.mkdir(parents=True)
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        HOSTILE,
    ]
    config = (
        "model:\n  architecture: resnet18\ntrainer:\n  epochs: 12\n  lr: 0.001\n  note: '"
        + HOSTILE
        + "'\n"
    )
    (run / "config.yaml").write_text(config)
    environment = {
        "versions": {"python": "3.12.4", "torch": "2.11.0"},
        "machine": {"device": "NVIDIA H100", "num_cpus": 16},
        "git": {"commit": "0123abc", "is_dirty": False},
        "argv": ["deepseek", "train", "c.yaml"],
        "seed": 0,
    }
    (run / "environment.json").write_text(json.dumps(environment))
    best = {"val_accuracy": 0.9, "epoch": 12, "step": 1200}
    summary = {"status": "finished", "monitor": "val_accuracy", "best": best, "time_s": 360.0}
    (run / "summary.json").write_text(json.dumps(summary))
    write_lines(run / "metrics.jsonl", metric_rows())
    events = [
        {"event": "save", "step": 600, "time_s": 180.0, "path": "checkpoints/step_600"},
        {"event": "resume", "step": 600, "time_s": 180.0},
        {"event": "warning", "step": 700, "message": HOSTILE},
    ]
    write_lines(run / "events.jsonl", events)
    write_evaluation(run, class_names or names)
    return run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "cifar10-resnet18-1")
