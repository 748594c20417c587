"""Images per second from JPEG files to normalised float batches of 224 pixels, beside the peers.

Every pipeline reads the same files, does the same geometry (shorter side to 224, central square),
ends in a float32 batch on the CPU, and is timed with the same number of workers. Passes are
interleaved, so that a busy machine is busy for all, and the median is taken. Nothing is cached
between passes.

    python benchmarks/image_pipeline.py [--repeats 5] [--images 400] [--workers 0 1 2] [--accuracy]

Photographs come from `flowers5` and `hymenoptera` below DEEPSEEK_TEST_DATA, or ../shared/data
beside the project; they are enlarged to the size that a file of ImageNet has, and coded anew.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from deepseek.datasets import DataLoader, ImageDataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 32
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def make_photographs(root: Path, num_images: int, side: int, shorter: bool) -> Path:
    """Write photographs whose shorter (or longer) side has `side` pixels, in class folders."""
    here = Path(__file__).parents[1]
    data = Path(os.environ.get("DEEPSEEK_TEST_DATA", here.parent / "shared" / "data"))
    groups = [data / "hymenoptera" / "train", data / "hymenoptera" / "val", data / "flowers5"]
    files = [file for group in groups for file in sorted(group.rglob("*.jpg"))]
    if not files:
        sys.exit(f"no photographs below {data}; set DEEPSEEK_TEST_DATA")
    folder = root / f"{'shorter' if shorter else 'longer'}_{side}"
    for number, file in enumerate(files[:: max(len(files) // num_images, 1)][:num_images]):
        image = Image.open(file).convert("RGB")
        factor = side / (min(image.size) if shorter else max(image.size))
        size = (round(image.width * factor), round(image.height * factor))
        target = folder / file.parent.name / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.LANCZOS).save(target, quality=90)
    return folder


def ours(folder: Path, num_workers: int, shuffle: bool = False) -> Batches:
    """Our loader; normalised in the main process, as a model does it."""
    data = ImageDataset(folder, "resize_224", cache="off")
    loader = DataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers, shuffle=shuffle)
    normalization = data.spec.normalization

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            yield normalization.apply(batch["inputs"]), batch["targets"]

    return batches


def torchvision_transform():
    """Return what a torchvision user writes."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def torchvision(folder: Path, num_workers: int, shuffle: bool = False) -> Batches:
    """ImageFolder and torch's DataLoader."""
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder), torchvision_transform()),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        shuffle=shuffle,
        persistent_workers=num_workers > 0,
    )
    return lambda: iter(loader)


class _Convert:
    """What a Hugging Face user hands to `with_transform`."""

    def __init__(self) -> None:
        self.transform = torchvision_transform()

    def __call__(self, rows: dict) -> dict:
        rows["image"] = [self.transform(image.convert("RGB")) for image in rows["image"]]
        return rows


def hugging_face(folder: Path, num_workers: int, shuffle: bool = False) -> Batches:
    """`datasets`: imagefolder, with_transform, torch's DataLoader."""
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache")
    )
    loader = torch.utils.data.DataLoader(
        data.with_transform(_Convert()),  # pyright: ignore[reportArgumentType]
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        shuffle=shuffle,
        persistent_workers=num_workers > 0,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            yield batch["image"], batch["label"]

    return batches


PIPELINES = {
    "deepseek": ours,
    "torchvision ImageFolder": torchvision,
    "Hugging Face datasets": hugging_face,
}


def time_pass(batches: Batches) -> float:
    """Return the images per second of one pass."""
    begin, num_images = time.perf_counter(), 0
    for images, _ in batches():
        num_images += len(images)
    return num_images / (time.perf_counter() - begin)


def measure(folder: Path, workers: list[int], repeats: int) -> dict[str, dict[int, float]]:
    """Return name -> number of workers -> median images per second."""
    rates: dict[str, dict[int, float]] = {name: {} for name in PIPELINES}
    for num_workers in workers:
        built = {name: build(folder, num_workers) for name, build in PIPELINES.items()}
        seen: dict[str, list[float]] = {name: [] for name in built}
        for repeat in range(repeats + 1):
            for name, batches in built.items():
                rate = time_pass(batches)
                if repeat > 0:  # the first pass starts workers and fills the file cache
                    seen[name].append(rate)
        for name, values in seen.items():
            rates[name][num_workers] = statistics.median(values)
    return rates


def print_table(title: str, rates: dict[str, dict[int, float]], workers: list[int]) -> None:
    """Print one line a pipeline: each number of workers, the best, and our ratio."""
    best = {name: max(by_workers.values()) for name, by_workers in rates.items()}
    print(f"\n{title}")
    heads = "".join(f"{f'{n} workers':>12}" for n in workers)
    print(f"{'images/s':26}{heads}{'best':>10}{'we are':>9}")
    for name, by_workers in rates.items():
        cells = "".join(f"{by_workers[n]:12.0f}" for n in workers)
        print(f"{name:26}{cells}{best[name]:10.0f}{best['deepseek'] / best[name]:8.2f}x")


def collect(batches: Batches) -> tuple[Tensor, Tensor]:
    """Return every image of one pass, pooled to 56 x 56, and the targets."""
    pool = torch.nn.AvgPool2d(4)
    samples = [(pool(images), targets) for images, targets in batches()]
    return torch.cat([x for x, _ in samples]), torch.cat([y for _, y in samples])


def accuracy(images: Tensor, targets: Tensor, seed: int, num_epochs: int = 15) -> float:
    """Train a small network on 3/4 of the images, and return its accuracy on the rest."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        *_block(3, 32),
        *_block(32, 64),
        *_block(64, 128),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, int(targets.max()) + 1),
    )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, training = order[: len(order) // 4], order[len(order) // 4 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    num_steps = num_epochs * -(-len(training) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_epochs):
        for part in training[torch.randperm(len(training))].split(32):
            loss = torch.nn.functional.cross_entropy(model(images[part]), targets[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(images[part]).argmax(1) for part in held_out.split(64)])
    return (found == targets[held_out]).float().mean().item()


def _block(in_channels: int, channels: int) -> list[torch.nn.Module]:
    return [
        torch.nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(channels),
        torch.nn.ReLU(),
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--accuracy", action="store_true", help="also train on each pipeline")
    options = parser.parse_args()
    model = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")),
        platform.processor(),
    )
    print(f"{model}, {os.cpu_count()} cores; torch {torch.__version__}, Pillow {Image.__version__}")
    with tempfile.TemporaryDirectory() as root:
        for shorter in (True, False):
            folder = make_photographs(Path(root), options.images, 500, shorter)
            rates = measure(folder, options.workers, options.repeats)
            side = "shorter" if shorter else "longer"
            title = f"JPEG, {side} side 500 -> 224 x 224 float32; median of {options.repeats}"
            print_table(title, rates, options.workers)
        if options.accuracy:
            print("\naccuracy on held-out photographs, mean of 3 seeds")
            for name, build in PIPELINES.items():
                images, targets = collect(build(folder, 1))
                values = [accuracy(images, targets, seed) for seed in range(3)]
                spread = f"{min(values):.3f}..{max(values):.3f}"
                print(f"{name:26}{statistics.mean(values):10.3f}   {spread}")


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
