"""From cubes of nodules, or scans, and a machine to patch, batch and depth of a detector.

The rules of `configuration` where they apply: levels, features, a batch of 5 % of the data at most,
what fits into memory and, on a CPU, half a second a step. Nothing is cut or trained for it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from deepseek.errors import ConfigError
from deepseek.medical.configuration import (
    CPU_STEP_S,
    DATA_SHARE_OF_BATCH,
    MAX_FEATURES,
    MIB,
    Means,
    cost_in_words,
    excess,
    training_bytes,
)
from deepseek.medical.nodule_crops import CUBE_VOXELS, SPACING_MM
from deepseek.medical.nodule_cubes import NoduleCubes, holds_scans
from deepseek.medical.nodule_cutting import known_scans
from deepseek.medical.topology import plan_levels
from deepseek.models.center_detector import CenterDetector3D
from deepseek.trainer.estimate import StepEstimate, estimate_step

PATCH_SHARE = 0.8
"""Of the edge of a cube: a nodule must not always be in the middle of its crop."""
STEP_VOXELS = 8
SMALLEST_PATCH = 16
"""Three levels, the fewest of a detector whose map has half the resolution."""


@dataclass(frozen=True)
class NoduleSettings:
    """What was chosen, as a run takes it, and why.

    Attributes:
        found: what there is to learn from, in words.
        num_nodules: to learn from and to be validated on.
        patch: voxels along each side.
        features: of each level.
        blocks: residual blocks of each level of the encoder.
        batch_size: crops.
        memory_bytes: that training takes, estimated.
        step_flops: work of a step.
        reasons: of each choice, by its name.
    """

    found: str
    num_nodules: int
    patch: int
    features: tuple[int, ...]
    blocks: int
    batch_size: int
    memory_bytes: float
    step_flops: float
    reasons: dict[str, str]

    @property
    def model_args(self) -> dict:
        """The arguments of `CenterDetector3D`."""
        return {"features": list(self.features), "blocks": self.blocks}

    def describe(self) -> str:
        """Return the choices, a line each with its reason."""
        shown = {
            "patch": " x ".join([str(self.patch)] * 3) + " voxels",
            "batch": f"{self.batch_size} crops",
            "model": f"features {'-'.join(map(str, self.features))}, {self.blocks} block(s) each",
            "cost": self.describe_cost(),
        }
        return "\n".join(
            f"{name:<7}{value:<44} {self.reasons[name]}" for name, value in shown.items()
        )

    def describe_cost(self) -> str:
        """Return memory and work of a step."""
        return cost_in_words(self.memory_bytes, self.step_flops)


def configure_detector(data: str | os.PathLike, *, means: Means | None = None) -> NoduleSettings:
    """Choose how to learn where nodules are on this machine.

    Args:
        data: cubes, or scans that they are cut from, as `NoduleCubes.open` takes them.
        means: what there is to compute with; this machine by default.

    Raises:
        DataError: there are no such data.
        ConfigError: cubes are too small, or nothing fits into memory.
    """
    found, num_nodules, edge = _look(data)
    if PATCH_SHARE * edge < SMALLEST_PATCH:
        raise ConfigError(
            f"{PATCH_SHARE:.0%} of cubes of {edge} voxels are less than the smallest patch,"
            f" {SMALLEST_PATCH}",
            fix=f"give cubes of {ceil(SMALLEST_PATCH / PATCH_SHARE)} voxels or more",
        )
    means = means if means is not None else Means.here()
    for tried in _candidates(edge, means):
        if excess(means, tried.estimate, 2, needs_speed=tried.needs_speed) <= 1:
            break
    else:
        raise ConfigError(
            f"not even a patch of {SMALLEST_PATCH} voxels fits into"
            f" {means.memory_bytes / MIB:,.0f} MiB",
            fix="give more memory",
        )
    most = max(2, int(DATA_SHARE_OF_BATCH * num_nodules))
    batch_size = 2
    while batch_size < most and excess(means, tried.estimate, batch_size + 1) <= 1:
        batch_size += 1
    limit = "memory" if means.step_flops is None else f"{CPU_STEP_S:g} s a step"
    reasons = {
        "patch": f"of cubes of {edge} voxels {PATCH_SHARE:.0%}, or what fits, in steps of"
        f" {STEP_VOXELS}",
        "batch": f"as many as fit ({limit}, {DATA_SHARE_OF_BATCH:.0%} of the nodules), two at"
        " least",
        "model": "halved while 8 voxels are left; as wide as fits",
        "cost": f"estimated; of {means.memory_bytes / MIB:,.0f} MiB on {means.device}",
    }
    return NoduleSettings(
        found, num_nodules, tried.patch, tried.features, tried.blocks, batch_size,
        training_bytes(means, tried.estimate, batch_size),
        tried.estimate.step_flops(batch_size), reasons,
    )  # fmt: skip


def _look(data: str | os.PathLike) -> tuple[str, int, int]:
    """Return what there is in words, how many nodules, and the edge of their cubes in voxels."""
    if not holds_scans(data):
        cubes = NoduleCubes.open(data)
        edge = min(cubes.voxels.shape[1:])
        return f"{len(cubes)} cubes of {edge} voxels", len(cubes), edge
    scans = known_scans(Path(data).expanduser())
    listed = [scan.findings for scan in scans if scan.findings is not None]
    count = sum(int((~findings.is_excluded).sum()) for findings in listed)
    said = f"{count:,} findings" if listed else "findings as labelled"
    cut = f"cubes of {CUBE_VOXELS} voxels are cut when training starts"
    return f"{len(scans):,} scans, {said}; {cut}", count or len(scans), CUBE_VOXELS


@dataclass(frozen=True)
class _Candidate:
    patch: int
    features: tuple[int, ...]
    blocks: int
    estimate: StepEstimate
    needs_speed: bool


def _candidates(edge: int, means: Means) -> Iterator[_Candidate]:
    """Yield what may fit, the best first: narrower nets before smaller patches, slow ones last."""
    on_cpu = means.device == "cpu"
    first = int(PATCH_SHARE * edge) // STEP_VOXELS * STEP_VOXELS
    for needs_speed in (True, False):
        for patch in range(first, SMALLEST_PATCH - 1, -STEP_VOXELS):
            for width in (16, 8) if on_cpu else (32, 16, 8):
                yield _candidate(patch, width, 1 if on_cpu else 2, needs_speed)


def _candidate(patch: int, width: int, blocks: int, needs_speed: bool) -> _Candidate:
    topology = plan_levels([patch] * 3, [SPACING_MM] * 3)
    features = tuple(min(width * 2**level, MAX_FEATURES) for level in range(len(topology.kernels)))
    with torch.device("meta"):
        model = CenterDetector3D(1, 1, features, blocks)
    estimate = estimate_step(model, (1, *topology.patch))
    if estimate is None:
        raise ConfigError(
            f"a patch of {topology.patch} voxels cannot be computed", fix="give larger cubes"
        )
    return _Candidate(topology.patch[0], features, blocks, estimate, needs_speed)
