"""Residual networks for large images, as trained on ImageNet.

Papers: He et al. 2015, arXiv 1512.03385, table 1 (18 to 152 layers, shortcuts of option B); Xie et
al. 2016 (ResNeXt), arXiv 1611.05431: `groups`; Zagoruyko & Komodakis 2016, arXiv 1605.07146: wider
blocks. Departure: a bottleneck that halves the image does so in its 3x3 convolution rather than in
the first 1x1 (Goyal et al. 2017, arXiv 1706.02677, section 5.1), as all published weights do.
Parameters are called as in torchvision and timm, whose weights load by name.

Shapes: B batch, C channels, H W pixels, K classes.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_choice, check_positive, missing_head
from deepseek.models.classifier import Classifier
from deepseek.models.hints import ParallelHints
from deepseek.models.resnet import make_head, reset_convolutions

EXPANSIONS = {"basic": 1, "bottleneck": 4}
"""Filters that a block gives for each of its width, by its kind."""
STEM_WIDTH = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_width, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_width, width, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Return the features after the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 that narrow and widen, around a shortcut."""

    def __init__(
        self, in_width: int, inner_width: int, out_width: int, stride: int, groups: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv(in_width, inner_width, 1)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.conv2 = _conv(inner_width, inner_width, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner_width)
        self.conv3 = _conv(inner_width, out_width, 1)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.downsample = _shortcut(in_width, out_width, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Return the features after the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ImageNetResNet(Classifier):
    """ResNet, ResNeXt and Wide ResNet for large images.

    Args:
        depths: blocks of each of the four stages: (2, 2, 2, 2) of "basic" make 18 layers, (3, 4, 6,
            3) 34; (3, 4, 6, 3) of "bottleneck" 50, (3, 4, 23, 3) 101, (3, 8, 36, 3) 152.
        block: "basic" or "bottleneck".
        channels: channels of an image; images may be of any size.
        num_classes: outputs; `None` leaves the head out until `bind_classes`.
        groups: of the 3x3 convolutions of a bottleneck; 32 in ResNeXt.
        group_width: filters of a group in the first stage; 4 in ResNeXt-50, 128 in Wide ResNet.

    Raises:
        ConfigError: a size is not positive, or the block is unknown or has no groups.

    Example:
        >>> import torch
        >>> ImageNetResNet(depths=(1, 1, 1, 1), num_classes=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        block: str = "bottleneck",
        channels: int = 3,
        num_classes: int | None = None,
        groups: int = 1,
        group_width: int = STEM_WIDTH,
    ) -> None:
        super().__init__()
        check_choice(block=(block, EXPANSIONS))
        check_positive(channels=channels, groups=groups, group_width=group_width)
        if not isinstance(depths, list | tuple) or len(depths) != 4:
            raise ConfigError(f"depths={depths!r} are not four", fix="give depths=(3, 4, 6, 3)")
        check_positive(**{f"depths[{stage}]": depth for stage, depth in enumerate(depths)})
        if block == "basic" and (groups, group_width) != (1, STEM_WIDTH):
            raise ConfigError(
                f"groups={groups}, group_width={group_width}, and a basic block has none",
                fix='leave them out, or use block="bottleneck"',
            )
        self._config = {
            "depths": list(depths), "block": block, "channels": channels, "num_classes": None,
            "groups": groups, "group_width": group_width,
        }  # fmt: skip
        self.conv1 = nn.Conv2d(channels, STEM_WIDTH, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = self._stage(0)
        self.layer2 = self._stage(1)
        self.layer3 = self._stage(2)
        self.layer4 = self._stage(3)
        self.fc: nn.Linear | None = None
        reset_convolutions(self)
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _stage(self, stage: int) -> nn.Sequential:
        config = self._config
        width = STEM_WIDTH * 2**stage
        out_width = width * EXPANSIONS[config["block"]]
        in_width = STEM_WIDTH if stage == 0 else out_width // 2
        inner_width = width * config["group_width"] // STEM_WIDTH * config["groups"]
        blocks = []
        for index in range(config["depths"][stage]):
            stride = 2 if stage and index == 0 else 1
            if config["block"] == "basic":
                blocks.append(BasicBlock(in_width, out_width, stride))
            else:
                blocks.append(
                    Bottleneck(in_width, inner_width, out_width, stride, config["groups"])
                )
            in_width = out_width
        return nn.Sequential(*blocks)

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return {**self._config, "depths": list(self._config["depths"])}

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for."""
        return ParallelHints(
            blocks=("layer1", "layer2", "layer3", "layer4"),
            embeddings=("conv1", "bn1"),
            head=("fc",),
            prefers_channels_last=True,
        )

    @property
    def input_shape(self) -> tuple[int, None, None]:
        """Channels of one image; any height and width."""
        return self._config["channels"], None, None

    def bind_classes(self, num_classes: int) -> None:
        """Build a head.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        width = 8 * STEM_WIDTH * EXPANSIONS[self._config["block"]]
        self.fc = make_head(width, num_classes, like=self.bn1.weight)
        self._config["num_classes"] = num_classes

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits.

        Raises:
            ConfigError: if the model has no head yet.
        """
        if self.fc is None:
            raise missing_head(type(self).__name__)
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _conv(in_width: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_width, width, size, stride=stride, padding=size // 2, groups=groups, bias=False
    )


def _shortcut(in_width: int, width: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_width == width:
        return None
    return nn.Sequential(_conv(in_width, width, 1, stride), nn.BatchNorm2d(width))
