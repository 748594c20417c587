"""What a whole CT takes, window by window: a plain way, MONAI's, and what can be left out.

The baseline is ours: fp32, windows that overlap by a half, all of the volume, not compiled. Beside
it MONAI's `sliding_window_inference` with the same windows, then one thing more in each row. Rounds
alternate, and medians are compared. Times are from voxels in memory to labels, the region where
there is something to look for included, compiling not. Data are the slabs of real CT in
`lidc_ct_slabs`, and a phantom: a body with lungs, into which the real nodules of `lidc_nodules` are
put. The net is trained for `--train-s` seconds on crops of a phantom with the other nodules, or is
that of `--model`.

    python benchmarks/medical_inference.py --data ../shared/data --rounds 5
    python benchmarks/medical_inference.py --data ../shared/data --size 48 96 96 --rounds 1
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets import read_volume
from deepseek.datasets.volume import Volume, make_affine
from deepseek.medical import dice_by_class
from deepseek.medical.regions import find_region
from deepseek.models import ModelEngine, SlidingWindow, UNet3D
from deepseek.models.device import resolve_device
from deepseek.trainer.precision import chip_has_bf16
from measure import markdown_table, report, spread

NOTES = (
    "Time: of the baseline's, medians of rounds. Dice: of what a row finds with what the baseline"
    " finds; its change: of the Dice with the nodules of the phantom, against the baseline's."
)
COLUMNS = ["volume", "way", "seconds", "+-", "time", "Dice", "change"]
HU = (-1000.0, 400.0)
COMPILED = "compiled"
HELD_OUT = 34
"""Nodules that the net is not trained on: they are those of the phantom."""
Find = Callable[[Tensor, Volume], Tensor]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", type=Path, help="model file of a net of CT in 0..1")
    parser.add_argument("--train-s", type=float, default=60.0, help="seconds of training")
    parser.add_argument("--size", type=int, nargs=3, default=[300, 512, 512], help="of the phantom")
    parser.add_argument("--window", type=int, nargs=3, default=[16, 96, 96], help="of all ways")
    parser.add_argument("--batch", type=int, default=4, help="windows at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ways", nargs="+", help="beside the first; all by default")
    parser.add_argument("--only", choices=["slabs", "phantom"])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    device = resolve_device(args.device)
    net = ModelEngine.load(args.model) if args.model else train(args, device)
    net.to(device).eval()
    rows = []
    found = ways(net, args, device)
    first = next(iter(found))
    if args.ways:
        found = {way: find for way, find in found.items() if way in (first, *args.ways)}
    for name, volume, labels in volumes(args):
        for row in measure(name, volume, labels, found, args.rounds, device):
            print(f"  {row}", flush=True)
            rows.append(row)
    table = [[str(row[column]) for column in COLUMNS] for row in rows]
    report(args, rows, markdown_table(COLUMNS, table), NOTES)


# -- data ------------------------------------------------------------------------------------------


def nodules(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return cubes in 0..1 and their masks, (N, 51, 51, 51)."""
    held = np.load(folder / "lidc_nodules" / "lidc_nodules_u8.npz", allow_pickle=False)
    return held["image"].astype(np.float32) / 255, held["mask"] > 0


def volumes(args: argparse.Namespace) -> Iterator[tuple[str, Volume, np.ndarray | None]]:
    """Yield name, volume in HU, and labels where they are known."""
    if args.only != "phantom":
        for folder in sorted((args.data / "lidc_ct_slabs").glob("LIDC*")):
            yield folder.name, read_volume(folder), None
    if args.only != "slabs":
        volume, labels = phantom(args.data, args.size)
        yield "phantom " + " x ".join(map(str, args.size)), volume, labels


def phantom(folder: Path, size: list[int]) -> tuple[Volume, np.ndarray]:
    """Return a body with two lungs and real nodules in them, in HU; 300 x 360 x 360 mm."""
    cubes, masks = nodules(folder)
    return build_phantom(cubes[-HELD_OUT:], masks[-HELD_OUT:], size, seed=0)


def build_phantom(
    cubes: np.ndarray, masks: np.ndarray, size: list[int], seed: int
) -> tuple[Volume, np.ndarray]:
    """Return a phantom with these nodules, and their labels (D, H, W)."""
    depth, height, width = size
    h, w = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    body = (h / 0.7) ** 2 + (w / 0.85) ** 2 < 1
    lungs = ((h / 0.5) ** 2 + ((np.abs(w) - 0.4) / 0.27) ** 2 < 1) & body
    slice_ = np.where(body, 40.0, HU[0])
    slice_[lungs] = -850
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 20, (height, width))
    voxels = np.stack([slice_ + np.roll(noise, 7 * d, 1) for d in range(depth)])
    labels = np.zeros(voxels.shape, np.uint8)
    inside = np.argwhere(lungs)
    for cube, mask in zip(cubes, masks, strict=True):
        at = np.array([rng.integers(0, depth), *inside[rng.integers(len(inside))]]) - 25
        low, high = np.maximum(at, 0), np.minimum(at + 51, voxels.shape)
        there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        here = tuple(slice(a, b) for a, b in zip(low - at, high - at, strict=True))
        part = mask[here]
        voxels[there][part] = HU[0] + (HU[1] - HU[0]) * cube[here][part]
        labels[there][part] = 1
    spacing = (300 / depth, 360 / height, 360 / width)
    return Volume(voxels[None].astype(np.float32), make_affine(spacing)), labels


def scale(volume: Volume) -> np.ndarray:
    """Return voxels in 0..1, (1, D, H, W)."""
    low, high = HU
    return ((np.clip(volume.voxels, low, high) - low) / (high - low)).astype(np.float32)


def train(args: argparse.Namespace, device: torch.device) -> ModelEngine:
    """Return a small net that knows nodules, a little."""
    torch.manual_seed(0)
    net = UNet3D(channels=1, num_classes=2, features=(16, 32, 64), blocks=1).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    cubes, masks = nodules(args.data)
    volume, labels = build_phantom(cubes[:-HELD_OUT], masks[:-HELD_OUT], args.size, seed=1)
    voxels, known = torch.from_numpy(scale(volume))[0], torch.from_numpy(labels).long()
    near, began, step, loss = known.nonzero(), perf_counter(), 0, torch.zeros(())
    room = torch.tensor(known.shape) - torch.tensor(args.window)
    has_bf16 = chip_has_bf16(device)
    while perf_counter() - began < args.train_s:
        anywhere = (torch.rand(2, 3) * (room + 1)).long()
        at_nodules = near[torch.randint(len(near), (2,))] - torch.tensor(args.window) // 2
        crops = [
            tuple(slice(low, low + extent) for low, extent in zip(at, args.window, strict=True))
            for at in torch.cat([anywhere, at_nodules.clamp(min=0).minimum(room)]).tolist()
        ]
        inputs = torch.stack([voxels[crop][None] for crop in crops]).to(device)
        targets = torch.stack([known[crop] for crop in crops]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16):
            logits = net(inputs)
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    print(f"  {step} steps of training, loss {loss.item():.3f}", flush=True)
    return ModelEngine.wrap(net)


# -- ways ------------------------------------------------------------------------------------------


def ways(net: ModelEngine, args: argparse.Namespace, device: torch.device) -> dict[str, Find]:
    """Return how labels are found, by name; the first is the baseline."""
    half = torch.bfloat16 if chip_has_bf16(device) else None
    said = "bf16" if half else "fp32 (no bf16)"
    common = {"batch_size": args.batch, "device": device}
    make = partial(SlidingWindow, net, args.window, **common)
    faster = partial(make, compute_dtype=half)
    return {
        "fp32, overlap .5": partial(ours, make(overlap=0.5)),
        "MONAI, the same": partial(monai, net, args),
        said: partial(ours, faster(overlap=0.5)),
        f"{said}, {COMPILED}": partial(ours, faster(overlap=0.5, compiles=True)),
        f"{said}, {COMPILED}, overlap .4": partial(ours, faster(overlap=0.4, compiles=True)),
        f"{said}, {COMPILED}, overlap .25": partial(ours, faster(overlap=0.25, compiles=True)),
        f"{said}, lungs alone": partial(ours_in_lungs, faster(overlap=0.5)),
        f"{said}, lungs alone, {COMPILED}": partial(
            ours_in_lungs, faster(overlap=0.5, compiles=True)
        ),
        f"{said}, lungs alone, {COMPILED}, overlap .25": partial(
            ours_in_lungs, faster(overlap=0.25, compiles=True)
        ),
    }


def ours(sliding: SlidingWindow, inputs: Tensor, hounsfield: Volume) -> Tensor:
    """Return labels (D, H, W)."""
    return sliding(inputs, finish=lambda logits: logits.argmax(0).to(torch.uint8))[0]


def ours_in_lungs(sliding: SlidingWindow, inputs: Tensor, hounsfield: Volume) -> Tensor:
    """Return labels (D, H, W), 0 in windows without lung."""
    mask = torch.from_numpy(find_region("lungs")(hounsfield).voxels > 0)
    return sliding(inputs, mask, finish=lambda logits: logits.argmax(0).to(torch.uint8))[0]


def monai(net: ModelEngine, args: argparse.Namespace, inputs: Tensor, _: Volume) -> Tensor:
    """Return labels (D, H, W), as a user of MONAI finds them."""
    from monai.inferers.utils import sliding_window_inference

    with torch.no_grad():
        logits = sliding_window_inference(inputs, args.window, args.batch, net, 0.5, "gaussian")
    return logits[0].argmax(0).to(torch.uint8)


# -- measurement -----------------------------------------------------------------------------------


def measure(
    name: str,
    volume: Volume,
    labels: np.ndarray | None,
    found: dict[str, Find],
    rounds: int,
    device: torch.device,
) -> Iterator[dict[str, object]]:
    """Yield a row for each way."""
    inputs = torch.from_numpy(scale(volume))[None].to(device)
    seconds: dict[str, list[float]] = {way: [] for way in found}
    masks: dict[str, np.ndarray] = {}
    for round_ in range(rounds + 1):
        for way, find in found.items():
            if round_ == 0 and COMPILED not in way:
                continue  # round 0 is there to compile; others have nothing to get ready
            wait(device)
            began = perf_counter()
            mask = find(inputs, volume)
            wait(device)
            if round_:
                seconds[way].append(perf_counter() - began)
            masks[way] = mask.cpu().numpy()
    first = next(iter(found))
    for way in found:
        median, half_width = spread(seconds[way])
        yield {
            "volume": name,
            "way": way,
            "seconds": f"{median:.2f}",
            "+-": f"{half_width:.2f}",
            "time": f"{median / spread(seconds[first])[0]:.2f}",
            "Dice": f"{overlap(masks[way], masks[first]):.4f}",
            "change": "" if labels is None else _change(masks[way], masks[first], labels),
        }


def _change(mask: np.ndarray, baseline: np.ndarray, labels: np.ndarray) -> str:
    return f"{overlap(mask, labels) - overlap(baseline, labels):+.4f}"


def overlap(found: np.ndarray, known: np.ndarray) -> float:
    """Return the Dice coefficient of class 1; 1 where neither has it."""
    value = dice_by_class(found, known, 2)[1]
    return 1.0 if np.isnan(value) else float(value)


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
