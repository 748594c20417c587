"""From a set of volumes and a machine to spacing, patch, batch, model and augmentation.

Paper: Isensee et al. 2021 (nnU-Net), Nature Methods 18, 203-211, supplementary note 2: median
spacing (the 10th percentile along thick slices), the patch of the median shape, shrunk along its
longest axis until two of them fit, a batch of 5 % of the data at most, features of 32 doubled up to
320. Departures: memory is estimated for the machine at hand; on a CPU a step must not take long
either, and the features may begin at 16 or 8.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod

import numpy as np
import torch

from deepseek.config.memory import parse_bytes
from deepseek.datasets.parallel_encoding import count_cores
from deepseek.doctor.control_group import memory_limit_bytes
from deepseek.doctor.machine import Machine
from deepseek.errors import ConfigError
from deepseek.medical.fingerprint import Fingerprint, take_fingerprint
from deepseek.medical.topology import Topology, plan_levels
from deepseek.models.device import resolve_device
from deepseek.models.unet3d import UNet3D
from deepseek.trainer.estimate import StepEstimate, estimate_step
from deepseek.trainer.precision import chip_has_bf16
from deepseek.trainer.throughput import total_memory_bytes

MIB = 2**20
LARGEST_PATCH_VOXELS = 256**3
SMALLEST_EDGE = 32
MAX_FEATURES = 320
THICK = 3.0
"""Times the other spacings from which on slices are thick."""
DATA_SHARE_OF_BATCH = 0.05
USABLE_SHARE = 0.8
"""Of the memory: the rest is left to the allocator, and to others."""
PROCESS_BYTES = {"cpu": 960 * MIB, "cuda": 1024 * MIB}
"""Python, torch and its kernels, before the model."""
STATE_BYTES = 16
"""Of a weight: itself, its gradient and two moments, in fp32."""
KERNEL_SHARE = 1.25
"""Of what is kept for the backward pass, with the buffers and gradients that come and go."""
CPU_STEP_S = 0.5
"""Of a step on a CPU at most: some thousand steps in half an hour."""
CPU_CORE_FLOPS = {True: 120e9, False: 60e9}
"""With bf16 and without it: what this model reached on one core of an AMD EPYC (Zen 4)."""
SIDES = {
    "d": {"upper", "lower", "superior", "inferior"},
    "h": {"anterior", "posterior"},
    "w": {"left", "right", "l", "r", "lt", "rt"},
}
"""Words in the name of a class that a mirror would make wrong, for each axis."""


@dataclass(frozen=True)
class Means:
    """What there is to compute with.

    Attributes:
        device: `cpu`, `cuda`, ...
        memory_bytes: of it.
        step_flops: work that a step may have at most; `None`: any.
        has_bf16: whether activations take two bytes.
    """

    device: str
    memory_bytes: int
    step_flops: float | None
    has_bf16: bool

    @classmethod
    def here(cls, device: str = "auto", memory: str | None = None) -> "Means":
        """Return those of this machine.

        Args:
            device: as `Trainer` takes it.
            memory: to keep to, such as `8GiB`; by default what there is.

        Raises:
            ConfigError: there is no such device.
        """
        found = resolve_device(device)
        if memory is not None:
            try:
                nbytes = parse_bytes(memory)
            except ValueError as error:
                raise ConfigError(f"memory={memory!r}: {error}", fix="write 8GiB") from error
        else:
            nbytes = total_memory_bytes(found)
            if found.type == "cpu":
                nbytes = min(nbytes, memory_limit_bytes(Machine()) or nbytes)
        has_bf16 = chip_has_bf16(found)
        flops = CPU_STEP_S * CPU_CORE_FLOPS[has_bf16] * count_cores()
        return cls(found.type, nbytes, flops if found.type == "cpu" else None, has_bf16)


@dataclass(frozen=True)
class VolumeSettings:
    """What was chosen, as a run takes it, and why.

    Attributes:
        fingerprint: of the data.
        spacing_mm: that volumes are resampled to.
        topology: patch, strides and kernels.
        features: of each level.
        blocks: residual blocks of each level of the encoder.
        batch_size: patches.
        steps: of the transform, without spacing and patch.
        memory_bytes: that training takes, estimated.
        step_flops: work of a step.
        reasons: of each choice, by its name.
    """

    fingerprint: Fingerprint
    spacing_mm: tuple[float, float, float]
    topology: Topology
    features: tuple[int, ...]
    blocks: int
    batch_size: int
    steps: tuple[str, ...]
    memory_bytes: float
    step_flops: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def transform(self) -> str:
        """In the string language of `VolumeDataset`."""
        spacing = "x".join(f"{size:g}" for size in self.spacing_mm)
        patch = "x".join(str(size) for size in self.topology.patch)
        return "+".join([f"spacing_{spacing}", self.steps[0], f"patch_{patch}", *self.steps[1:]])

    @property
    def model_args(self) -> dict:
        """The arguments of `UNet3D`."""
        return {
            "channels": self.fingerprint.channels,
            "features": list(self.features),
            "blocks": self.blocks,
            "strides": [list(step) for step in self.topology.strides],
            "kernels": [list(size) for size in self.topology.kernels],
            "deep_supervision": len(self.features) > 2,
        }

    def describe(self) -> str:
        """Return the choices, a line each with its reason."""
        shown = {
            "spacing": " x ".join(f"{size:g}" for size in self.spacing_mm) + " mm",
            "intensity": self.steps[0],
            "patch": " x ".join(map(str, self.topology.patch)) + " voxels",
            "batch": f"{self.batch_size} patches",
            "model": f"features {'-'.join(map(str, self.features))}, {self.blocks} block(s) each",
            "augmentation": "+".join(self.steps[1:]),
            "cost": self.describe_cost(),
        }
        return "\n".join(
            f"{name:<13}{value:<44} {self.reasons[name]}" for name, value in shown.items()
        )

    def describe_cost(self) -> str:
        """Return memory and work of a step."""
        return cost_in_words(self.memory_bytes, self.step_flops)


def cost_in_words(memory_bytes: float, step_flops: float) -> str:
    """Return memory and work of a step."""
    return f"{memory_bytes / MIB:,.0f} MiB, {step_flops / 1e9:,.0f} GFLOP a step"


def configure(
    data: str | os.PathLike | Fingerprint,
    *,
    means: Means | None = None,
    spacing_mm: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    batch_size: int | None = None,
    features: Sequence[int] | None = None,
    modality: str | None = None,
) -> VolumeSettings:
    """Choose how to learn from volumes on this machine.

    Args:
        data: the volumes, as `VolumeDataset` takes them, or their fingerprint.
        means: what there is to compute with; this machine by default.
        spacing_mm: along D, H, W; chosen where it is not given, as the four that follow.
        patch: voxels along D, H, W; rounded up to what the levels divide.
        batch_size: patches of a step.
        features: of each level from full resolution down; says how many levels there are.
        modality: `ct` or `other`; what the fingerprint says by default.

    Raises:
        DataError: a volume cannot be used.
        ConfigError: what was given is out of range, or nothing fits into memory.
    """
    found = data if isinstance(data, Fingerprint) else take_fingerprint(data)
    means = means if means is not None else Means.here()
    kind = _check(found, spacing_mm, patch, batch_size, features, modality)
    reasons: dict[str, str] = {}
    spacing = _spacing(found, spacing_mm, reasons)
    shape = np.median(found.shapes * found.spacings_mm / np.array(spacing), axis=0)
    search = _Search(found, means, spacing, shape, 1 if means.device == "cpu" else 2)
    chosen = search.run(patch, batch_size, features, reasons)
    steps = (_intensity(found, kind, reasons), *_augmentation(found, kind, spacing, reasons))
    reasons["cost"] = f"estimated; of {means.memory_bytes / MIB:,.0f} MiB on {means.device}"
    return VolumeSettings(
        found, spacing, chosen.topology, chosen.features, search.blocks, chosen.batch_size, steps,
        training_bytes(means, chosen.estimate, chosen.batch_size),
        chosen.estimate.step_flops(chosen.batch_size), reasons,
    )  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    topology: Topology
    features: tuple[int, ...]
    estimate: StepEstimate
    batch_size: int = 2


class _Search:
    """Looks for the largest patch, and then the largest batch, that fits."""

    def __init__(
        self,
        found: Fingerprint,
        means: Means,
        spacing: tuple[float, float, float],
        shape: np.ndarray,
        blocks: int,
    ) -> None:
        self.found, self.means, self.spacing, self.shape = found, means, spacing, shape
        self.blocks = blocks

    def run(
        self,
        patch: Sequence[int] | None,
        batch_size: int | None,
        features: Sequence[int] | None,
        reasons: dict[str, str],
    ) -> _Candidate:
        widths = (16, 8) if self.means.device == "cpu" else (32, 16, 8)
        fitting = None
        for width, needs_speed in [*((width, True) for width in widths), (widths[-1], False)]:
            fitting = self._shrink(patch, batch_size or 2, features, width, needs_speed=needs_speed)
            if fitting is not None:
                break
        if fitting is None:
            raise ConfigError(
                f"not even the smallest patch fits into {self.means.memory_bytes / MIB:,.0f} MiB",
                fix="give more memory, a smaller batch_size, a smaller patch or fewer features",
            )
        chosen = self._enlarge(fitting) if batch_size is None else fitting
        self._explain(chosen, patch, batch_size, features, reasons)
        return chosen

    def _shrink(
        self,
        patch: Sequence[int] | None,
        batch_size: int,
        features: Sequence[int] | None,
        width: int,
        *,
        needs_speed: bool,
    ) -> _Candidate | None:
        sizes = list(patch) if patch is not None else _first_patch(self.shape, self.spacing)
        floor = [min(SMALLEST_EDGE, ceil(size)) for size in self.shape]
        while True:
            tried = self._candidate(sizes, batch_size, features, width)
            if self._excess(tried, needs_speed) <= 1:
                return tried
            sizes, multiple = list(tried.topology.patch), tried.topology.multiple
            # costs go with the voxels: several steps at once where they are far above the limit
            enough = prod(sizes) / max(1.0, 0.9 * self._excess(tried, needs_speed))
            while patch is None:
                can = [axis for axis in range(3) if sizes[axis] - multiple[axis] >= floor[axis]]
                if not can:
                    break
                longest = max(can, key=lambda axis: sizes[axis] / self.shape[axis])
                sizes[longest] -= multiple[longest]
                if prod(sizes) <= enough:
                    break
            if sizes == list(tried.topology.patch):
                return None

    def _candidate(
        self, sizes: Sequence[int], batch_size: int, features: Sequence[int] | None, width: int
    ) -> _Candidate:
        if features is None:
            topology = plan_levels(sizes, self.spacing)
            levels = range(len(topology.kernels))
            widths = tuple(min(width * 2**level, MAX_FEATURES) for level in levels)
        else:
            topology = plan_levels(sizes, self.spacing, len(features))
            widths = tuple(features[: len(topology.kernels)])
        with torch.device("meta"):
            model = UNet3D(
                self.found.channels, len(self.found.class_names), widths, self.blocks,
                topology.strides, topology.kernels, len(widths) > 2,
            )  # fmt: skip
        estimate = estimate_step(model, (self.found.channels, *topology.patch))
        if estimate is None:
            raise ConfigError(
                f"a patch of {topology.patch} voxels cannot be computed", fix="give a larger patch"
            )
        return _Candidate(topology, widths, estimate, batch_size)

    def _excess(self, tried: _Candidate, needs_speed: bool) -> float:
        return excess(self.means, tried.estimate, tried.batch_size, needs_speed=needs_speed)

    def _enlarge(self, fitting: _Candidate) -> _Candidate:
        voxels = float(np.prod(self.shape)) * self.found.num_volumes
        most = max(2, int(DATA_SHARE_OF_BATCH * voxels / prod(fitting.topology.patch)))
        while fitting.batch_size < most:
            larger = replace(fitting, batch_size=fitting.batch_size + 1)
            if self._excess(larger, needs_speed=True) > 1:
                break
            fitting = larger
        return fitting

    def _explain(
        self,
        chosen: _Candidate,
        patch: Sequence[int] | None,
        batch_size: int | None,
        features: Sequence[int] | None,
        reasons: dict[str, str],
    ) -> None:
        median = " x ".join(f"{size:.0f}" for size in self.shape)
        whole = all(p >= s for p, s in zip(chosen.topology.patch, self.shape, strict=True))
        fits = "the median volume" if whole else f"what fits of the median volume ({median})"
        multiple = " x ".join(map(str, chosen.topology.multiple))
        reasons["patch"] = (
            "as given" if patch is not None else fits
        ) + f", in multiples of {multiple}"
        limit = "memory" if self.means.step_flops is None else f"{CPU_STEP_S:g} s a step"
        reasons["batch"] = (
            "as given"
            if batch_size is not None
            else f"as many as fit ({limit}, {DATA_SHARE_OF_BATCH:.0%} of the data), two at least"
        )
        reasons["model"] = (
            "as given"
            if features is not None
            else f"halved while {2 * 4} voxels are left and voxels stay within twice the shortest"
        )


def training_bytes(means: Means, estimate: StepEstimate, batch_size: int) -> float:
    """Return the bytes that training takes, estimated."""
    half = 0.5 if means.has_bf16 else 1.0
    kept = estimate.activation_bytes * half * KERNEL_SHARE * batch_size
    process = PROCESS_BYTES.get(means.device, PROCESS_BYTES["cuda"])
    return process + STATE_BYTES * estimate.num_parameters + kept


def excess(
    means: Means, estimate: StepEstimate, batch_size: int, *, needs_speed: bool = True
) -> float:
    """Return how many times what is allowed a batch takes: memory or, on a CPU, time."""
    taken = training_bytes(means, estimate, batch_size)
    found = taken / (USABLE_SHARE * means.memory_bytes)
    if means.step_flops is not None and needs_speed:
        found = max(found, estimate.step_flops(batch_size) / means.step_flops)
    return found


def _check(
    found: Fingerprint,
    spacing_mm: Sequence[float] | None,
    patch: Sequence[int] | None,
    batch_size: int | None,
    features: Sequence[int] | None,
    modality: str | None,
) -> str:
    problems = [
        f"{name}={list(given)} is not three numbers above 0"
        for name, given in (("spacing_mm", spacing_mm), ("patch", patch))
        if given is not None and (len(given) != 3 or min(given) <= 0)
    ]
    if batch_size is not None and batch_size < 1:
        problems.append(f"batch_size={batch_size} is below 1")
    if features is not None and (len(features) < 2 or min(features) < 1):
        problems.append(f"features={list(features)} are not two positive numbers or more")
    kind = modality or found.modality
    if kind not in ("ct", "other"):
        problems.append(f"modality={kind!r} is neither ct nor other")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of configure")
    return kind


def _spacing(
    found: Fingerprint, given: Sequence[float] | None, reasons: dict[str, str]
) -> tuple[float, float, float]:
    if given is not None:
        reasons["spacing"] = "as given"
        return given[0], given[1], given[2]
    median = np.median(found.spacings_mm, axis=0)
    shape = np.median(found.shapes, axis=0)
    coarse = int(median.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    reasons["spacing"] = "the median"
    is_thick = median[coarse] > THICK * median[others].max()
    if is_thick and THICK * shape[coarse] < shape[others].min():
        median[coarse] = max(np.percentile(found.spacings_mm[:, coarse], 10), median[others].max())
        reasons["spacing"] = "the median; across thick slices the 10th percentile"
    d, h, w = (float(f"{size:.3g}") for size in median)
    return d, h, w


def _first_patch(shape: np.ndarray, spacing: Sequence[float]) -> list[int]:
    """Return a cube in millimetres of the largest number of voxels, no larger than the volume."""
    edge = (LARGEST_PATCH_VOXELS * prod(spacing)) ** (1 / 3)
    return [
        max(8, min(ceil(size), round(edge / step)))
        for size, step in zip(shape.tolist(), spacing, strict=True)
    ]


def _intensity(found: Fingerprint, kind: str, reasons: dict[str, str]) -> str:
    if kind == "ct":
        reasons["intensity"] = "CT: 0.5 to 99.5 % of what the classes show, in HU"
        low, high = np.floor(found.low), np.ceil(max(found.high, found.low + 1))
        return f"window_{low:g}_{high:g}"
    reasons["intensity"] = "no unit: each volume to mean 0, standard deviation 1"
    return "zscore"


def _augmentation(
    found: Fingerprint, kind: str, spacing: Sequence[float], reasons: dict[str, str]
) -> list[str]:
    words = {word for name in found.class_names for word in _words(name)}
    axes = "".join(axis for axis, sides in SIDES.items() if not sides & words)
    is_thick = max(spacing) > THICK * min(spacing)
    turn = "rotate_5" if is_thick else "rotate_15"
    steps = [f"flip_{axes}"] if axes else []
    noise = ("brightness_0.1", "gamma_0.3", "noise_0.03")
    if kind == "other":
        noise = ("brightness_0.2", "gamma_0.3", "noise_0.1")
    steps += [turn, "scale_0.2", "elastic_2", *noise]
    why = ["thick slices are hardly turned"] if is_thick else []
    if len(axes) < 3:
        why.append("not mirrored where a class is named by its side")
    reasons["augmentation"] = "; ".join(why) or "mirrored along every axis"
    return steps


def _words(name: str) -> list[str]:
    """Return the words of a name, small, as in `left_lung`, `Left-Lung`, `LeftLung`, `lung_L`.

    L1 to L5 are vertebrae, no side.
    """
    name = re.sub(r"(?<![A-Za-z])[Ll](?=[1-5](?!\d))", "", name)
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
