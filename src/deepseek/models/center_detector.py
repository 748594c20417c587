"""A detector of what is round: for every place how much it is a centre, and of how large a thing.

Papers: Zhou, Wang, Krähenbühl 2019, "Objects as Points", arXiv 1904.07850 (centre heat map and
size, no anchors); Song et al. 2020, CPM-Net, doi 10.1007/978-3-030-59725-2_53 (for lung nodules in
3D). Departures: the body is a 3D U-Net; a size is one diameter, as its logarithm; offsets of
centres between voxels are read off the heat map around a peak and not learnt.

Shapes: B batch, C channels, D H W voxels, K classes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, missing_head
from deepseek.models.classifier import Classifier
from deepseek.models.hints import ParallelHints
from deepseek.models.unet3d import NEGATIVE_SLOPE, UNet3D

INITIAL_SHARE = 0.01
"""Of a centre, at every place; the few centres would else drown (Lin et al. 2017, section 3.3)."""
INITIAL_DIAMETER_MM = 10.0
SCORE_RANGE = (1.0, 5.0)
"""Of scores, as radiologists of LIDC-IDRI give them."""
INITIAL_SCORE = sum(SCORE_RANGE) / 2


class CenterDetector3D(Classifier):
    """3D U-Net with a heat map of centres for each class, maps of scores, and of log diameters.

    Args:
        channels: channels of a volume.
        num_classes: kinds of things; `None` leaves the head out until `bind_classes`.
        features: channels of each level, as in `UNet3D`.
        blocks: residual blocks of each level of the encoder.
        strides: by how much each level but the first divides each axis; 2 by default.
        kernels: sizes of the convolutions of each level; 3 by default.
        skipped_levels: finest levels of the decoder that are left out; 1 gives a map of half the
            resolution in every axis.
        num_scores: numbers from 1 to 5 that are told of each thing beside its size, such as how
            malignant it looks.

    Raises:
        ConfigError: a size is out of its range.

    Example:
        >>> model = CenterDetector3D(num_classes=1, features=(4, 8, 16))
        >>> model(torch.zeros(1, 1, 8, 16, 16)).shape
        torch.Size([1, 2, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int = 1,
        num_classes: int | None = None,
        features: Sequence[int] = (16, 32, 64, 96),
        blocks: int | Sequence[int] = 1,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        skipped_levels: int = 1,
        num_scores: int = 0,
    ) -> None:
        super().__init__()
        self.body = UNet3D(channels, None, features, blocks, strides, kernels)
        if not 0 <= skipped_levels <= len(features) - 2:
            raise ConfigError(
                f"skipped_levels={skipped_levels} of {len(features)} levels of features leaves no"
                " decoder",
                fix=f"give {max(skipped_levels, 0) + 2} levels or more, such as features:"
                f" {[16, 32, 64, 96][: max(skipped_levels, 0) + 2]}, or skipped_levels=0",
            )
        if skipped_levels:
            del self.body.decoder[-skipped_levels:]
        if num_scores < 0:
            raise ConfigError(f"num_scores={num_scores} is below 0", fix="give 0 or more")
        self._config = {**self.body.config, "skipped_levels": skipped_levels}
        self._config["num_scores"] = num_scores
        del self._config["deep_supervision"]
        width = self._config["features"][skipped_levels]
        self.neck = nn.Conv3d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.neck.weight, a=NEGATIVE_SLOPE)
        self.head: nn.Conv3d | None = None
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
            blocks=("body.encoder", "body.decoder"),
            head=("neck", "head"),
            prefers_channels_last=False,
        )

    @property
    def input_shape(self) -> tuple[int, None, None, None]:
        """Channels of one volume; any depth, height and width."""
        return self._config["channels"], None, None, None

    @property
    def outputs_beside(self) -> int:
        """The scores and the diameter."""
        return self._config["num_scores"] + 1

    def bind_classes(self, num_classes: int) -> None:
        """Build the head.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        like = next(self.parameters())
        options = {"device": like.device, "dtype": like.dtype}
        width = self._config["features"][self._config["skipped_levels"]]
        num_outputs = num_classes + self.outputs_beside
        self.head = nn.Conv3d(width, num_outputs, 1, **options)
        bias = torch.full((num_outputs,), math.log(INITIAL_SHARE / (1 - INITIAL_SHARE)))
        bias[num_classes:] = INITIAL_SCORE
        bias[-1] = math.log(INITIAL_DIAMETER_MM)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            if self.head.bias is not None:
                self.head.bias.copy_(bias)
        self._config["num_classes"] = num_classes

    def forward(self, volumes: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B K1 D2 H2 W2"]:
        """Return K maps of logits, those of scores, and last that of log diameters (mm).

        Raises:
            ConfigError: if the model has no head yet, or the strides do not divide a volume.
        """
        if self.head is None:
            raise missing_head(type(self).__name__)
        finest = self.body.levels(volumes)[-1]
        return self.head(F.leaky_relu(self.neck(finest), NEGATIVE_SLOPE))
