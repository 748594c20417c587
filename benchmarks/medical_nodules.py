"""Lung nodules of LIDC-IDRI: outlines, detection and malignancy, validated by patient.

Folds that are run are pooled; intervals (95 %) are drawn by patient. Nothing is chosen on what is
validated: the last weights count. Crops are 40 mm; their nodule lies off their middle.

- segmentation: mean Dice of one crop a cube; the floor is the largest bright part.
- detection: two crops a cube, one with the nodule and one without; sensitivity at 1 and 1/8 false
  marks a crop. A crop is no scan: false marks per litre stand beside it, as a chest has some 5
  litres. The floor is a blob detector in scale space.
- malignancy: AUC of 4-5 against 1-2 from form and density in all five folds; with the deepest
  features of each fold's U-Net too where segmentation ran on all of them. The floor is log volume.
  Texture: mean absolute error of its score, the floor is the median.

    python benchmarks/medical_nodules.py --data ../shared/data/lidc_nodules --folds 0 --minutes 20
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from deepseek.datasets import DataLoader
from deepseek.medical import Findings, Marks, bootstrap_interval, match_marks
from deepseek.medical.blob_detector import find_blobs
from deepseek.medical.detection import DetectionTask, crop_findings
from deepseek.medical.nodule_cubes import NUM_FOLDS, NoduleCubes, read_nodule_cubes
from deepseek.medical.nodule_dataset import NoduleDataset
from deepseek.medical.nodule_scores import (
    auc_interval,
    deep_features,
    fit_scores,
    form_features,
    malignancy_labels,
)
from deepseek.medical.threshold_segmentation import largest_bright_part
from deepseek.models import ModelEngine
from deepseek.models.sliding_window import mirrored
from deepseek.models.unet3d import UNet3D
from deepseek.trainer import Trainer
from measure import markdown_table, report

KINDS = ("segmentation", "detection", "malignancy")
RATES = (1.0, 1 / 8)
FLIPS = (0, 1, 2)
PATCH = (40, 40, 40)
RECIPE = {"batch_size": 4, "lr": 2e-3, "weight_decay": 0.01}


def train(kind: str, fold: int, cubes: NoduleCubes, args: argparse.Namespace) -> tuple:
    """Return the model of a fold, its validation data, and the minutes that its training took."""
    is_masks = kind == "segmentation"
    data = NoduleDataset(
        cubes,
        targets="masks" if is_masks else "centers",
        negative_share=0.0 if is_masks else 0.25,  # Dice is of crops with a nodule
        seed=args.seed,
    )
    train_data, val_data = data.split_fold(fold)
    folder = args.output / f"{kind}-{fold}"
    finished = folder / "minutes.json"
    if finished.is_file():
        model = ModelEngine.load(folder / "model.bin")
        return model.to(args.device), val_data, json.loads(finished.read_text())
    torch.manual_seed(args.seed)
    model = ModelEngine(
        "unet3d" if is_masks else "center_detector3d", features=args.features, blocks=args.blocks,
        **({"deep_supervision": args.deep_supervision} if is_masks else {}),
    )  # fmt: skip
    length = {"epochs": args.epochs} if args.epochs else {"time_budget": f"{args.minutes:g}m"}
    began = time.perf_counter()
    trainer = Trainer(
        model, train_data, seed=args.seed, device=args.device, graph=args.graph, run_dir=folder,
        **{**RECIPE, **length, **args.recipe},
    )  # fmt: skip
    trainer.fit()
    minutes = (time.perf_counter() - began) / 60
    finished.write_text(json.dumps(minutes))
    return trainer.model, val_data, minutes


@torch.inference_mode()
def outputs_of(model: ModelEngine, data: NoduleDataset, device: str, flips: tuple[int, ...] = ()):
    """Yield the outputs of each batch on the CPU, and the batch; means over mirrored inputs."""
    model.eval()
    compute = mirrored(model, flips, torch.float32)
    for batch in DataLoader(batch_size=8, shuffle=False, num_workers=0).bind(data):
        yield compute(batch["inputs"].to(device)).float().cpu(), batch


def measure_segmentation(cubes: NoduleCubes, args: argparse.Namespace) -> dict:
    """Return Dice over the folds, its floor, and minutes of training."""
    found, floor, patients, minutes = [], [], [], 0.0
    for fold in args.folds:
        model, data, took = train("segmentation", fold, cubes, args)
        minutes += took
        for outputs, batch in outputs_of(model, data, args.device, FLIPS if args.flips else ()):
            for labels, known, voxels in zip(
                outputs.argmax(1), batch["targets"], batch["inputs"], strict=True
            ):
                mask = known.numpy() == 1
                found.append(dice(labels.numpy() == 1, mask))
                floor.append(dice(largest_bright_part(voxels[0].numpy()), mask))
        patients += cubes.patients[data.rows].tolist()
    return {
        "kind": "segmentation", "nodules": len(found), "minutes": minutes,
        "dice": shown(bootstrap_interval(np.array(found), groups=patients)),
        "floor_dice": shown(bootstrap_interval(np.array(floor), groups=patients)),
    }  # fmt: skip


def dice(found: np.ndarray, known: np.ndarray) -> float:
    """Return the overlap of two masks, 0..1."""
    return 2 * float((found & known).sum()) / max(int(found.sum()) + int(known.sum()), 1)


def measure_detection(cubes: NoduleCubes, args: argparse.Namespace) -> dict:
    """Return sensitivities over the folds, false marks per litre, floors, minutes of training."""
    findings: dict[str, Findings] = {}
    marks: dict[str, Marks] = {}
    blobs: dict[str, Marks] = {}
    task, minutes, litres = DetectionTask(), 0.0, 0.0
    for fold in args.folds:
        model, data, took = train("detection", fold, cubes, args)
        minutes += took
        for outputs, batch in outputs_of(model, data, args.device):
            names = [f"{fold}-{index}" for index in batch["index"].tolist()]
            findings.update(zip(names, crop_findings(batch), strict=True))
            marks.update(zip(names, task.marks(outputs, batch), strict=True))
            for name, voxels, box in zip(names, batch["inputs"], batch["box"], strict=True):
                blobs[name] = inside(find_blobs(voxels[0].numpy()), box.numpy())
                litres += float((box[:, 1] - box[:, 0]).prod()) / 1e6
    record: dict = {"kind": "detection", "crops": len(findings), "minutes": minutes}
    record["false_marks_per_litre"] = {f"{r:g}": r * len(findings) / litres for r in RATES}
    for name, said in (("model", marks), ("floor", blobs)):
        froc = match_marks(findings, said)
        _, each = froc.intervals(RATES)
        record[name] = {
            "nodules": froc.num_findings, "cpm": froc.cpm, "ap": froc.average_precision,
            "sensitivity": {f"{r:g}": shown(i) for r, i in zip(RATES, each, strict=True)},
        }  # fmt: skip
    return record


def inside(marks: Marks, box: np.ndarray) -> Marks:
    """Return the marks that lie where a crop is not mirrored."""
    low, high = box.T
    kept = ((marks.centers_mm >= low - 0.5) & (marks.centers_mm <= high - 0.5)).all(1)
    return Marks(marks.centers_mm[kept], marks.scores[kept])


def measure_malignancy(cubes: NoduleCubes, args: argparse.Namespace) -> dict:
    """Return the AUC over five folds, and the error of texture, with their floors."""
    form, labels, folds = form_features(cubes), malignancy_labels(cubes.scores), cubes.folds()
    texture = cubes.scores["texture"]
    targets = np.stack([cubes.scores["malignancy"], texture], 1)
    is_deep = "segmentation" in args.only and sorted(args.folds) == list(range(NUM_FOLDS))
    predicted = {name: np.zeros((len(cubes), 2)) for name in ("form", "both")}
    median = np.zeros(len(cubes))
    for fold in range(NUM_FOLDS):
        rest = folds != fold
        features = {"form": form}
        if is_deep:
            model, _, _ = train("segmentation", fold, cubes, args)
            module = model.eval().module
            if isinstance(module, UNet3D):
                features["both"] = np.hstack([form, deep_features(module, cubes, PATCH)])
        for name, given in features.items():
            fitted = fit_scores(given[rest], targets[rest])
            predicted[name][~rest] = fitted.predict(given[~rest])
        median[~rest] = np.nanmedian(texture[rest])
    record = {
        "kind": "malignancy", "nodules": int((~np.isnan(labels)).sum()),
        "floor_auc": shown(auc_interval(np.log(cubes.diameters_mm), labels, cubes.patients)),
        "floor_texture_error": float(np.nanmean(np.abs(median - texture))),
    }  # fmt: skip
    for name in features:
        malignant, said = predicted[name].T
        record[f"auc_{name}"] = shown(auc_interval(malignant, labels, cubes.patients))
        record[f"texture_error_{name}"] = float(np.nanmean(np.abs(said - texture)))
    return record


def shown(interval) -> list[float]:
    """Return value, low and high."""
    return [round(float(each), 4) for each in (interval.value, interval.low, interval.high)]


def text(values: list[float]) -> str:
    """Return a value with its interval."""
    return f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


def rows_of(record: dict) -> list[list[str]]:
    """Return a record as rows of the table: what, reached, floor."""
    if record["kind"] == "segmentation":
        return [["Dice", text(record["dice"]), text(record["floor_dice"])]]
    if record["kind"] == "detection":
        rows = [
            [
                f"sensitivity at {rate} a crop ({litre:.1f} per litre)",
                text(record["model"]["sensitivity"][rate]),
                text(record["floor"]["sensitivity"][rate]),
            ]
            for rate, litre in record["false_marks_per_litre"].items()
        ]
        for name in ("cpm", "ap"):
            rows.append([name, *(f"{record[of][name]:.3f}" for of in ("model", "floor"))])
        return rows
    rows = []
    for name in ("form", "both"):
        if f"auc_{name}" in record:
            error = record[f"texture_error_{name}"], record["floor_texture_error"]
            rows += [
                [
                    f"malignancy, AUC, {name}",
                    text(record[f"auc_{name}"]),
                    text(record["floor_auc"]),
                ],
                [f"texture, error, {name}", *(f"{each:.2f}" for each in error)],
            ]
    return rows


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the cubes")
    parser.add_argument("--output", type=Path, default=Path("runs/nodules"), help="of the runs")
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--epochs", type=int, help="of each training, in place of minutes")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 96])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--deep-supervision", action="store_true", help="of outlines")
    parser.add_argument("--flips", action="store_true", help="outlines: mean of mirrored crops")
    parser.add_argument("--recipe", type=json.loads, default={}, help="settings as JSON")
    parser.add_argument("--graph", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    cubes = read_nodule_cubes(args.data)
    measures = {
        "segmentation": measure_segmentation, "detection": measure_detection,
        "malignancy": measure_malignancy,
    }  # fmt: skip
    records = [measures[kind](cubes, args) for kind in KINDS if kind in args.only]
    table = markdown_table(["", "reached", "floor"], [row for r in records for row in rows_of(r)])
    took = ", ".join(f"{r['kind']} {r['minutes']:.1f}" for r in records if "minutes" in r)
    args.data, args.output = str(args.data), str(args.output)
    report(args, records, table, f"Folds {args.folds}; minutes of training: {took or 'none'}.")


if __name__ == "__main__":
    main()
