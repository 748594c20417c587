"""Losses of segmentation by name: a number for each sample, from logits and labels.

Papers: Milletari et al. 2016 (soft Dice), arXiv 1606.04797, eq. 3; Lin et al. 2017 (focal loss),
arXiv 1708.02002, eq. 4; Salehi et al. 2017 (Tversky index), arXiv 1706.05721, eq. 2. Departures: no
squares in the denominator of the overlap; overlaps are taken of each sample, not of a batch, so
that a batch in parts learns what it learns as one; the focal loss is a mean over voxels, of all
classes alike.

Shapes: B batch, K classes, C classes whose overlap counts, V pixels or voxels, of any dims.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.registry import Registry
from deepseek.trainer.task import IGNORE_INDEX

SMOOTHING = 1e-5
"""Added to both sides of an overlap: a class that is nowhere, and is predicted nowhere, has 1."""
SampleLoss = Callable[[Tensor, Tensor, int], Tensor]
"""From logits (B, K, ...), labels (B, ...) and the first class that counts to losses (B,)."""
DEFAULT_LOSS = "dice_ce"

SEGMENTATION_LOSSES: Registry[Callable[..., SampleLoss]] = Registry(
    "segmentation loss",
    {
        name: f"deepseek.trainer.segmentation_losses:{name}"
        for name in (DEFAULT_LOSS, "dice_focal", "focal", "tversky")
    },
)


def dice_ce(*, label_smoothing: float = 0.0) -> SampleLoss:
    """1 - Dice, and the cross-entropy.

    Paper: Isensee et al. 2018 (nnU-Net), arXiv 1809.10486, section 2.3.

    Args:
        label_smoothing: probability spread over all classes, in the cross-entropy.
    """

    def loss(logits: Tensor, labels: Tensor, first_class: int) -> Tensor:
        crossed = _voxel_losses(logits, labels, label_smoothing)
        overlaps = tversky_overlaps(logits.softmax(1), labels, first_class)
        return _mean_of_counted(crossed, labels) + 1 - overlaps.mean(1)

    return loss


def dice_focal(*, gamma: float = 2.0) -> SampleLoss:
    """1 - Dice, and the focal loss; `gamma` as in `focal`."""
    focal_loss = focal(gamma=gamma)

    def loss(logits: Tensor, labels: Tensor, first_class: int) -> Tensor:
        overlaps = tversky_overlaps(logits.softmax(1), labels, first_class)
        return focal_loss(logits, labels, first_class) + 1 - overlaps.mean(1)

    return loss


def focal(*, gamma: float = 2.0) -> SampleLoss:
    """The cross-entropy, of each voxel times (1 - p)^gamma: what is sure already counts little.

    Args:
        gamma: 0 or more; 0 is the cross-entropy. p is the probability of the true class.

    Raises:
        ConfigError: gamma is below 0.
    """
    _check_settings(gamma=gamma)

    def loss(logits: Tensor, labels: Tensor, first_class: int) -> Tensor:
        del first_class
        crossed = _voxel_losses(logits, labels, 0.0)
        # log p = -crossed; 1 - p by expm1 keeps its digits where p is near 1, and the clamp keeps
        # the slope of the power finite where it is 1
        away = (-torch.expm1(-crossed)).clamp(min=torch.finfo(crossed.dtype).tiny)
        return _mean_of_counted(away**gamma * crossed, labels)

    return loss


def tversky(*, alpha: float = 0.3, beta: float = 0.7) -> SampleLoss:
    """1 - the Tversky index: an overlap in which what is missed may weigh more than what is extra.

    Args:
        alpha: weight of voxels that are found and not there, 0 or more.
        beta: weight of voxels that are there and not found, 0 or more. Both 0.5: the Dice.

    Raises:
        ConfigError: a weight is below 0, or both are 0.
    """
    _check_settings(alpha=alpha, beta=beta)
    if alpha + beta == 0:
        raise ConfigError("alpha=0 and beta=0: no error counts", fix="give one of them above 0")
    overlaps = partial(tversky_overlaps, alpha=alpha, beta=beta)

    def loss(logits: Tensor, labels: Tensor, first_class: int) -> Tensor:
        return 1 - overlaps(logits.softmax(1), labels, first_class).mean(1)

    return loss


def tversky_overlaps(
    probs: Float[Tensor, "B K ..."],
    labels: Int[Tensor, "B ..."],
    first_class: int = 0,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Float[Tensor, "B C"]:
    """Return the Tversky index of each sample and class, in 0..1; by default the Dice.

    Args:
        probs: of each class.
        labels: -100 where a voxel does not count.
        first_class: those below it are left out.
        alpha: weight of voxels that are found and not there.
        beta: weight of voxels that are there and not found.
    """
    is_counted = (labels != IGNORE_INDEX)[:, None]
    known = F.one_hot(labels.clamp(min=0), probs.shape[1]).movedim(-1, 1) * is_counted
    probs = (probs * is_counted)[:, first_class:].flatten(2)
    known = known[:, first_class:].flatten(2)
    shared, found, there = (probs * known).sum(2), probs.sum(2), known.sum(2)
    # doubled, so that 1/2 and 1/2 are the Dice with its smoothing
    whole = 2 * (alpha * found + beta * there + (1 - alpha - beta) * shared)
    return (2 * shared + SMOOTHING) / (whole + SMOOTHING)


def make_segmentation_loss(
    given: str | Mapping[str, Any] | None, label_smoothing: float = 0.0
) -> SampleLoss:
    """Return a loss from its name, or from `{"name": ..., SETTING: ...}`; `None`: `dice_ce`.

    Raises:
        ConfigError: the name or a setting is not known or out of range, or the loss takes no
            `label_smoothing`.
    """
    settings: dict[str, Any] = (
        {"name": given or DEFAULT_LOSS} if given is None or isinstance(given, str) else dict(given)
    )
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"loss={settings} has no name",
            fix=f"add name, one of {', '.join(SEGMENTATION_LOSSES.names())}",
        )
    factory = SEGMENTATION_LOSSES.get(name)
    if "label_smoothing" in settings:
        raise ConfigError(
            f"loss={name} with label_smoothing={settings['label_smoothing']}: that is of training"
            " alone, a setting of its own",
            fix="set trainer.label_smoothing",
        )
    if label_smoothing:
        if name != DEFAULT_LOSS:
            raise ConfigError(
                f"label_smoothing={label_smoothing:g} would be ignored by loss={name}",
                fix=f"leave it out, or use loss={DEFAULT_LOSS}",
            )
        settings["label_smoothing"] = label_smoothing
    try:
        return factory(**settings)
    except TypeError as error:
        raise ConfigError(
            f"loss {name!r} does not take {settings}: {error}",
            fix="look its settings up in docs/trainer.md",
        ) from error


def _voxel_losses(
    logits: Float[Tensor, "B K ..."], labels: Int[Tensor, "B ..."], label_smoothing: float
) -> Float[Tensor, "B ..."]:
    return F.cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing,
        reduction="none",
    )  # fmt: skip


def _mean_of_counted(
    losses: Float[Tensor, "B ..."], labels: Int[Tensor, "B ..."]
) -> Float[Tensor, "B"]:
    """Return the mean over the voxels of each sample that count; losses of others are 0."""
    counts = (labels != IGNORE_INDEX).flatten(1).sum(1).clamp(min=1)
    return losses.flatten(1).sum(1) / counts


def _check_settings(**given: float) -> None:
    for name, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value!r} of a loss is not 0 or more", fix="give a number")
