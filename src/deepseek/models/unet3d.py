"""3D U-Net: a class for every voxel of a volume.

Papers: Çiçek et al. 2016, arXiv 1606.06650 (3D U-Net: levels of halved resolution, each joined
with its like on the way back); Isensee et al. 2018, arXiv 1809.10486, and 2024, arXiv 2404.09556
(nnU-Net with residual encoder: instance norm, leaky ReLU, strides and kernels for each level and
axis, losses at several resolutions). Departures: a level of the decoder has one residual block;
shortcuts are plain where nothing changes, else a strided convolution of 1 and a norm.

Shapes: B batch, C channels, D H W voxels, K classes; a volume has D slices of H x W.
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, missing_head
from deepseek.models.classifier import Classifier
from deepseek.models.hints import ParallelHints

NEGATIVE_SLOPE = 0.01
Triple = tuple[int, int, int]


class ResidualBlock3d(nn.Module):
    """Two convolutions with instance norms around a shortcut."""

    def __init__(self, in_width: int, width: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        d, h, w = kernel
        padding = (d // 2, h // 2, w // 2)
        self.conv1 = nn.Conv3d(in_width, width, kernel, stride, padding, bias=False)
        self.norm1 = nn.InstanceNorm3d(width, affine=True)
        self.conv2 = nn.Conv3d(width, width, kernel, padding=padding, bias=False)
        self.norm2 = nn.InstanceNorm3d(width, affine=True)
        self.shortcut = nn.Identity()
        if in_width != width or prod(stride) > 1:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_width, width, 1, stride, bias=False),
                nn.InstanceNorm3d(width, affine=True),
            )

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C2 D2 H2 W2"]:
        """Return the features after the block."""
        shortcut = self.shortcut(x)
        x = F.leaky_relu(self.norm1(self.conv1(x)), NEGATIVE_SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(x)) + shortcut, NEGATIVE_SLOPE)


class DecoderLevel(nn.Module):
    """Features of the level below at the resolution of this one, joined with its own."""

    def __init__(self, below: int, width: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(below, width, stride, stride, bias=False)
        self.block = ResidualBlock3d(2 * width, width, kernel, (1, 1, 1))

    def forward(
        self, x: Float[Tensor, "B C D H W"], beside: Float[Tensor, "B C2 D2 H2 W2"]
    ) -> Float[Tensor, "B C2 D2 H2 W2"]:
        """Return the features of this level."""
        return self.block(torch.cat([self.up(x), beside], 1))


class UNet3D(Classifier):
    """3D U-Net with residual blocks.

    In training with `deep_supervision`, `forward` returns a tuple: the logits of every level of the
    decoder but the coarsest, the finest first. In evaluation, and without it, the finest alone.

    Args:
        channels: channels of a volume, such as the sequences of a scanner.
        num_classes: outputs for each voxel; `None` leaves the heads out until `bind_classes`.
        features: channels of each level, from full resolution down; two levels or more.
        blocks: residual blocks of each level of the encoder: a number, or one for each level.
        strides: by how much each level but the first divides depth, height and width; 2 for all by
            default. `(1, 2, 2)` where slices are thick.
        kernels: sizes of the convolutions of each level, odd; 3 for all by default. `(1, 3, 3)`
            where slices are thick.
        deep_supervision: give logits at several resolutions in training.

    Raises:
        ConfigError: a size is not positive, or a list has another length than the levels.

    Example:
        >>> model = UNet3D(channels=1, num_classes=3, features=(4, 8))
        >>> model(torch.zeros(1, 1, 8, 16, 16)).shape
        torch.Size([1, 3, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int = 1,
        num_classes: int | None = None,
        features: Sequence[int] = (32, 64, 128, 256, 320),
        blocks: int | Sequence[int] = 2,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        widths = list(features)
        levels = len(widths)
        if levels < 2:
            raise ConfigError(f"features={widths} are not two levels or more", fix="add levels")
        counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
        steps = _triples("strides", strides, levels - 1, 2)
        sizes = _triples("kernels", kernels, levels, 3)
        _check_count("blocks", counts, levels)
        check_positive(channels=channels)
        for width, count in zip(widths, counts, strict=True):
            check_positive(features=width, blocks=count)
        if any(size % 2 == 0 for kernel in sizes for size in kernel):
            raise ConfigError(f"kernels={sizes} are not all odd", fix="use 1, 3, 5, ...")
        self._config = {
            "channels": channels, "num_classes": None, "features": widths, "blocks": counts,
            "strides": [list(step) for step in steps], "kernels": [list(size) for size in sizes],
            "deep_supervision": deep_supervision,
        }  # fmt: skip
        self.encoder, before = nn.ModuleList(), channels
        for width, count, kernel, step in zip(
            widths, counts, sizes, [(1, 1, 1), *steps], strict=True
        ):
            first = ResidualBlock3d(before, width, kernel, step)
            rest = (ResidualBlock3d(width, width, kernel, (1, 1, 1)) for _ in range(count - 1))
            self.encoder.append(nn.Sequential(first, *rest))
            before = width
        self.decoder = nn.ModuleList(
            DecoderLevel(widths[i + 1], widths[i], sizes[i], steps[i])
            for i in reversed(range(levels - 1))
        )
        self.side_heads: nn.ModuleList | None = None
        self.head: nn.Conv3d | None = None
        self._total_stride = tuple(prod(step[axis] for step in steps) for axis in range(3))
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if num_classes is not None:
            self.bind_classes(num_classes)

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return dict(self._config)

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for."""
        return ParallelHints(
            blocks=("encoder", "decoder"), head=("head",), prefers_channels_last=False
        )

    @property
    def input_shape(self) -> tuple[int, None, None, None]:
        """Channels of one volume; any depth, height and width."""
        return self._config["channels"], None, None, None

    def bind_classes(self, num_classes: int) -> None:
        """Build the heads.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        widths, like = self._config["features"], next(self.parameters())
        options = {"device": like.device, "dtype": like.dtype}
        self.head = nn.Conv3d(widths[0], num_classes, 1, **options)
        if self._config["deep_supervision"]:
            # the coarsest level of the decoder is too coarse to tell anything
            self.side_heads = nn.ModuleList(
                nn.Conv3d(width, num_classes, 1, **options) for width in widths[1:-2]
            )
        self._config["num_classes"] = num_classes

    def forward(
        self, volumes: Float[Tensor, "B C D H W"]
    ) -> Float[Tensor, "B K D H W"] | tuple[Float[Tensor, "B K ..."], ...]:
        """Return the logits; in training with deep supervision those of several resolutions.

        Raises:
            ConfigError: if the model has no head yet, or the strides do not divide a volume.
        """
        if self.head is None:
            raise missing_head(type(self).__name__)
        _, *found = self.levels(volumes)
        logits = self.head(found[-1])
        if self.side_heads is None or not self.training:
            return logits
        finer = found[-2:0:-1] if len(found) > 2 else []
        sides = [head(x) for head, x in zip(self.side_heads, finer, strict=True)]
        return (logits, *sides)

    def levels(self, volumes: Float[Tensor, "B C D H W"]) -> list[Float[Tensor, "B C2 D2 H2 W2"]]:
        """Return the deepest features, then those of each level of the decoder, the finest last.

        Raises:
            ConfigError: the strides do not divide a volume.
        """
        _check_sizes(volumes.shape[2:], self._total_stride)
        kept, x = [], volumes
        for level in self.encoder:
            x = level(x)
            kept.append(x)
        found = [x]
        for level, beside in zip(self.decoder, kept[-2::-1], strict=False):
            found.append(level(found[-1], beside))
        return found


def _check_sizes(sizes: Sequence[int], steps: Sequence[int]) -> None:
    for axis, size, step in zip("DHW", sizes, steps, strict=True):
        if size % step:
            raise ConfigError(
                f"{axis}={size} voxels are no multiple of {step}, the product of the strides",
                fix="pad or crop the volumes, or change strides",
            )
    if list(sizes) == list(steps):
        raise ConfigError(
            f"a volume of {' x '.join(map(str, sizes))} is one voxel in the lowest level, which has"
            " no variance to normalise by",
            fix="give larger volumes, or fewer levels",
        )


def _check_count(name: str, items: Sequence[object], count: int) -> None:
    if len(items) != count:
        raise ConfigError(
            f"{name} has {len(items)} entries where {count} are needed", fix=f"change {name}"
        )


def _triples(
    name: str, given: Sequence[Sequence[int]] | None, count: int, default: int
) -> list[Triple]:
    """Return one size for each axis, for each of `count` levels."""
    if given is None:
        return [(default, default, default) for _ in range(count)]
    _check_count(name, given, count)
    found: list[Triple] = []
    for sizes in given:
        if len(sizes) != 3:
            raise ConfigError(
                f"{name} has {list(sizes)}, which is not depth, height and width",
                fix="give three numbers for each level",
            )
        for size in sizes:
            check_positive(**{name: size})
        found.append((sizes[0], sizes[1], sizes[2]))
    return found
