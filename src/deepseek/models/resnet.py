"""Residual networks for small images, as He et al. trained them on CIFAR-10.

Paper: He et al. 2015, arXiv 1512.03385, section 4.2: a 3x3 convolution, three stages of n blocks of
two 3x3 convolutions with 16, 32 and 64 filters, 6n + 2 layers in all, and shortcuts without
parameters (option A: every second pixel, zeros for the new filters). Parameters are called as in
the widely used `pytorch_resnet_cifar10`, whose weights load by name.

Shapes: B batch, C channels, H W pixels, K classes.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, missing_head
from deepseek.models.classifier import Classifier
from deepseek.models.hints import ParallelHints


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_filters = width - in_width
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Return the features after the block."""
        shortcut = x
        if self.stride > 1 or self.new_filters:
            before = self.new_filters // 2
            padding = (0, 0, 0, 0, before, self.new_filters - before)
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], padding)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(Classifier):
    """ResNet for small images (CIFAR style).

    Args:
        num_layers: depth, 6n + 2: 20, 32, 44, 56, 110, ...
        channels: channels of an image; images may be of any size.
        num_classes: outputs; `None` leaves the head out until `bind_classes`.
        width: filters of the first stage; the second and third have twice and four times as many.

    Raises:
        ConfigError: if a size is not positive or `num_layers` is not 6n + 2.

    Example:
        >>> import torch
        >>> ResNet(num_layers=20, num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        num_layers: int = 20,
        channels: int = 3,
        num_classes: int | None = None,
        width: int = 16,
    ) -> None:
        super().__init__()
        check_positive(num_layers=num_layers, channels=channels, width=width)
        if num_layers < 8 or (num_layers - 2) % 6:
            raise ConfigError(
                f"num_layers={num_layers} is not 6n + 2 (n >= 1)", fix="use 20, 32, 44, 56 or 110"
            )
        self._config = {
            "num_layers": num_layers, "channels": channels, "num_classes": None, "width": width,
        }  # fmt: skip
        depth = (num_layers - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, depth, stride=1)
        self.layer2 = _stage(width, 2 * width, depth, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, depth, stride=2)
        self.linear: nn.Linear | None = None
        reset_convolutions(self)
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
            blocks=("layer1", "layer2", "layer3"),
            embeddings=("conv1", "bn1"),
            head=("linear",),
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
        self.linear = make_head(4 * self._config["width"], num_classes, like=self.bn1.weight)
        self._config["num_classes"] = num_classes

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits.

        Raises:
            ConfigError: if the model has no head yet.
        """
        if self.linear is None:
            raise missing_head(type(self).__name__)
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def reset_convolutions(module: nn.Module) -> None:
    """Begin convolutions as He et al. 2015, arXiv 1502.01852, by the fan of their outputs."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def make_head(width: int, num_classes: int, like: Tensor) -> nn.Linear:
    """Return the last layer of a residual network, where and in the dtype that `like` is."""
    head = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def _stage(in_width: int, width: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [ResidualBlock(in_width, width, stride)]
    blocks += [ResidualBlock(width, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
