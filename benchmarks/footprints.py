"""The predicted peak of a step against that of the allocator, for every architecture of the zoo.

Predicted: weights, gradients, two moments of AdamW, and what `deepseek.memory.simulation` says of a
step on fake tensors. Measured: the same weights and states, and the most that is allocated within a
real step beside them, by the events of a CPU's allocator or the statistics of a GPU's. `step` is
that part alone: activations and what kernels take for a moment. What a process holds beyond its
tensors is not in it.

    python benchmarks/footprints.py                        our zoo, and some of timm's
    python benchmarks/footprints.py --models gpt timm/resnet50 --precision fp32
    python benchmarks/footprints.py --device cuda --batch-size 32
"""

import argparse
import inspect
import sys
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.memory.simulation import simulate_step
from deepseek.models import ModelEngine, MultiHead, TableModel, list_models
from deepseek.models.classifier import Classifier
from deepseek.models.zoo import ARCHITECTURES, is_own, timm_input_shape
from measure import markdown_table, report
from memory import allocated

TIMM = (
    "timm/convnext_atto", "timm/densenet121", "timm/efficientnet_b0", "timm/mixer_s32_224",
    "timm/mobilenetv3_small_100", "timm/regnety_002", "timm/resnet50",
    "timm/swin_tiny_patch4_window7_224", "timm/vgg11", "timm/vit_tiny_patch16_224",
)  # fmt: skip
SIZES = {
    "context_length": 256, "num_layers": 2, "dim": 256, "heads": 4, "vocab_size": 1000,
    "image_size": 64, "patch_size": 8, "channels": 3,
}  # fmt: skip
"""Of an architecture without a preset; `num_layers` of presets that can be cut, too."""
MOST_WEIGHTS = 300e6
MIB = 2**20
NUM_CLASSES = 500
TOKENS, PIXELS, VOXELS = 256, 64, 64


@dataclass(frozen=True)
class Subject:
    """A model with a batch."""

    name: str
    model: nn.Module
    shape: tuple[int, ...]

    def inputs(self) -> Tensor:
        """Return the batch."""
        dtype = torch.int64 if len(self.shape) == 2 else torch.float32
        return torch.ones(self.shape, dtype=dtype)


def loss_of(outputs: Tensor) -> Tensor:
    """Return the mean cross-entropy to class 0, of each item, token or voxel."""
    logits = outputs.float()
    logits = logits.flatten(0, -2) if logits.ndim <= 3 else logits
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))


def make(name: str, batch_size: int) -> Subject | None:
    """Return a small model of an architecture; `None` where its weights alone are too many."""
    num_classes = 4 if name.endswith("3d") or "3d_" in name else NUM_CLASSES
    with torch.device("meta"):
        size = ModelEngine(name, num_classes=num_classes, **small_args(name)).num_parameters
    if size > MOST_WEIGHTS:
        return None
    torch.manual_seed(0)
    model = ModelEngine(name, num_classes=num_classes, **small_args(name)).module.train()
    takes = model.input_shape if isinstance(model, Classifier) else timm_input_shape(model, {})
    if len(takes) == 1:
        shape: tuple[int, ...] = (takes[0] or TOKENS,)
    else:
        side = PIXELS if len(takes) == 3 else VOXELS
        shape = tuple(side if size is None else size for size in takes)
    return Subject(name, model, (1 if len(shape) == 4 else batch_size, *shape))


OTHERS = (TableModel, MultiHead)


def list_own() -> list[str]:
    """Return our own models but those of tables and those around another model."""
    builds = {name: ARCHITECTURES.get(name).build for name in list_models(own_only=True)}
    return [n for n, b in builds.items() if not (isinstance(b, type) and issubclass(b, OTHERS))]


def small_args(name: str) -> dict[str, int]:
    """Return arguments that make an architecture of ours small: fewer layers of a preset."""
    if not is_own(name):
        return {}
    entry = ARCHITECTURES.get(name)
    known = inspect.signature(entry.build).parameters
    needed = {
        each for each in known if known[each].default is inspect.Parameter.empty
    } - entry.preset.keys()
    args = {each: SIZES[each] for each in needed - {"num_classes"}}
    if "resnet" in name:  # its depth is what the preset is
        return args | ({"num_layers": 20} if "num_layers" in needed else {})
    if "num_layers" in entry.preset:
        args["num_layers"] = SIZES["num_layers"]
    return args


def compare(subject: Subject, precision: str, device: str) -> dict:
    """Return predicted and measured bytes."""
    cast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bf16")
    model = subject.model.to(device)
    simulated = simulate_step(
        model, subject.inputs, loss_of, autocast=cast, has_gradients=True,
        is_on_cpu=device == "cpu", device=device,
    )  # fmt: skip
    inputs = subject.inputs().to(device)

    def step() -> None:
        with cast():
            loss = loss_of(model(inputs))
        loss.backward()

    step()  # gradients are there before, as from the second micro-batch on
    _, peak = allocated(step, device)
    held = 4 * simulated.gradient_bytes
    predicted = simulated.peak_bytes - simulated.gradient_bytes
    return {
        "model": subject.name,
        "precision": precision,
        "num_parameters": sum(p.numel() for p in subject.model.parameters()),
        "held_bytes": held,
        "predicted_bytes": held + predicted,
        "measured_bytes": held + peak,
        "off": (held + predicted) / (held + peak) - 1,
        "step_off": predicted / peak - 1,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*list_own(), *TIMM])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    records, skipped = [], []
    for name in args.models:
        try:
            subject = make(name, args.batch_size)
        except ConfigError as error:  # some releases of timm cannot build all without numbers
            print(f"{name}: {error}", file=sys.stderr)
            subject = None
        if subject is None:
            skipped.append(name)
            continue
        records += [compare(subject, precision, args.device) for precision in args.precision]
        subject.model.cpu()
    header = ["model", "M weights"]
    for precision in args.precision:
        header += [f"{precision} predicted MiB", "measured MiB", "off", "step alone"]
    rows = []
    width = len(args.precision)
    for at in range(0, len(records), width):
        same = records[at : at + width]
        row = [same[0]["model"], f"{same[0]['num_parameters'] / 1e6:.1f}"]
        for r in same:
            row += [f"{r['predicted_bytes'] / MIB:,.1f}", f"{r['measured_bytes'] / MIB:,.1f}"]
            row += [f"{r['off']:+.1%}", f"{r['step_off']:+.1%}"]
        rows.append(row)
    worst = max(records, key=lambda record: abs(record["off"]))
    notes = f"Worst: {worst['model']} in {worst['precision']}, {worst['off']:+.1%}."
    if skipped:
        most = f"{MOST_WEIGHTS / 1e6:.0f} M weights"
        notes += f" Left out, above {most} or not built: {', '.join(skipped)}."
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
