"""Nodules as points: what a detector's outputs mean, and how many nodules it finds.

Paper: Zhou et al. 2019, "Objects as Points", arXiv 1904.07850; scores as in `froc`.

Shapes: B batch, D H W voxels of a crop, K classes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.medical.froc import RATES, Findings, Froc, Marks, match_marks
from deepseek.models.center_detector import SCORE_RANGE
from deepseek.models.peaks import find_peaks
from deepseek.trainer.center_loss import center_losses, score_losses
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.task import Batch, Task

SIZE_WEIGHT = 1.0
SCORE_WEIGHT = 0.25
"""A score has a range of four, a log diameter of about one and a half."""
NUM_BINS = 2000
LOGIT_LIMIT = 12.0
"""Scores are counted in bins of their logit between -12 and 12, 0.012 wide: sums that ranks add."""
MAX_MARKS = 30
REPORTED_RATE = 1 / 8
"""False marks a crop, from whose score on a detector reports what it finds in whole scans: a chest
is some eighty crops of 40 mm."""


class FrocMetric(Metric):
    """A number of the FROC curve; each crop counts as a scan.

    Args:
        statistic: of the curve.
    """

    def __init__(self, statistic: Callable[[Froc], float]) -> None:
        self._statistic = statistic
        # hits, false marks by bin; then missed findings, crops
        self.total = torch.zeros(2 * NUM_BINS + 2, dtype=torch.float64)

    def update(self, total: Tensor, count: int) -> None:
        """Add hits and false marks of each bin, and missed findings, of `count` crops."""
        self.total[:-1] += total.double().cpu()
        self.total[-1] += count

    def compute(self) -> float:
        """Return the number; NaN without findings."""
        counts = self.total.round().long()
        missed, num_crops = counts[-2:].tolist()
        bins = np.arange(NUM_BINS, dtype=np.float64)
        hit = np.repeat(bins, counts[:NUM_BINS].numpy())
        false = np.repeat(bins, counts[NUM_BINS:-2].numpy())
        hit = np.concatenate([hit, np.full(missed, -np.inf)])
        if len(hit) == 0:
            return math.nan
        nowhere = np.zeros(len(hit), np.int64), np.zeros(len(false), np.int64)
        return self._statistic(Froc(num_crops, hit, nowhere[0], false, nowhere[1], 0, 0))

    def sums(self) -> list[float]:
        """Return all counts."""
        return self.total.tolist()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace the counts."""
        self.total = torch.tensor(sums, dtype=torch.float64)


class DetectionTask(Task):
    """Maps (B, 2, ...) of centres and log diameters, with targets (B, N, 4).

    The loss of a sample is the focal loss of centres plus the L1 loss of log diameters. Metrics
    are those of `match_marks`, a crop counting as a scan; marks outside the `box` of a crop, where
    it is mirrored, do not count.

    Args:
        spacing_mm: between voxels of the inputs.
        scores: names of what is told of each nodule beside its size, one map each, in between;
            a sample's are in `score.NAME`, NaN where one is not known: it has no loss then.
    """

    monitor = "val_cpm"
    higher_is_better = True
    takes_parts = False
    min_score_metric = "min_score"

    def __init__(
        self, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), scores: Sequence[str] = ()
    ) -> None:
        self.spacing_mm, self.scores = tuple(spacing_mm), tuple(scores)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss summed over samples, in float32."""
        return self._sample_losses(outputs, batch).sum()

    def _sample_losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, "B"]:
        focal, size = center_losses(
            outputs[:, 0], outputs[:, -1], batch["targets"], stride_of(outputs, batch["inputs"]),
            self.spacing_mm,
        )  # fmt: skip
        missed, _ = self._score_errors(outputs, outputs[:, 1:-1], batch)
        return focal + SIZE_WEIGHT * size + SCORE_WEIGHT * missed.sum(1)

    def _score_errors(self, outputs: Tensor, maps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the absolute errors of scores, summed over centres, and how many: (B, S)."""
        if maps.shape[1] != len(self.scores):
            raise ConfigError(
                f"the model tells {maps.shape[1]} scores, the data have {len(self.scores)}",
                fix=f"set model.args.num_scores to {len(self.scores)}",
            )
        if not self.scores:
            nothing = outputs.new_zeros(len(outputs), 0, dtype=torch.float32)
            return nothing, nothing
        wanted = torch.stack([batch[f"score.{name}"] for name in self.scores], 1)
        return score_losses(
            maps, wanted, batch["targets"], stride_of(outputs, batch["inputs"]), self.spacing_mm
        )

    def new_metrics(self) -> dict[str, Metric]:
        """Loss, CPM, sensitivity at each of its rates of false marks a crop, precision.

        `min_score` is the score at 1/8 false marks a crop, from which on findings are reported;
        `NAME_error` is the mean absolute error of a score;
        `false_per_litre_at_1` says what one false mark a crop is per litre: a crop is small.
        """
        rates: dict[str, Metric] = {
            f"sensitivity_at_{rate:g}": FrocMetric(lambda froc, r=rate: froc.sensitivity([r])[0])
            for rate in RATES
        }
        return {
            "loss": Mean(),
            "cpm": FrocMetric(lambda froc: froc.cpm),
            "average_precision": FrocMetric(lambda froc: froc.average_precision),
            **rates,
            "min_score": FrocMetric(lambda froc: _score_of(froc.threshold(REPORTED_RATE))),
            "false_per_litre_at_1": Mean(),
            **{f"{name}_error": Mean() for name in self.scores},
        }

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        count = len(batch["targets"])
        metrics["loss"].update(self._sample_losses(outputs, batch).sum(), count)
        # crops over their litres: marks are counted within the box alone
        crops = torch.tensor(count * 1e6)
        metrics["false_per_litre_at_1"].update(crops, round(self._seen_mm3(batch)))
        # as they are told: the loss alone sees scores beyond their range, which it draws back
        told = outputs[:, 1:-1].clamp(*SCORE_RANGE)
        missed, counts = self._score_errors(outputs, told, batch)
        for name, own, known in zip(self.scores, missed.T, counts.T, strict=True):
            metrics[f"{name}_error"].update(own.sum(), round(float(known.sum())))
        total = self._count(outputs, batch)
        for metric in metrics.values():
            if isinstance(metric, FrocMetric):
                metric.update(total, count)

    def _seen_mm3(self, batch: Batch) -> float:
        inputs = batch["inputs"]
        voxels = len(inputs) * math.prod(inputs.shape[2:])
        if "box" in batch:
            voxels = int((batch["box"][..., 1] - batch["box"][..., 0]).prod(-1).sum())
        return voxels * math.prod(self.spacing_mm)

    def _count(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return hits and false marks by bin, and missed findings, of all crops of a batch."""
        findings, marks = crop_findings(batch), self.marks(outputs, batch)
        counts = torch.zeros(2 * NUM_BINS + 1)
        if not any(len(each.diameters_mm) for each in findings):
            froc_hits, froc_false = np.empty(0), np.concatenate([each.scores for each in marks])
        else:
            names = [str(number) for number in range(len(findings))]
            froc = match_marks(
                dict(zip(names, findings, strict=True)), dict(zip(names, marks, strict=True))
            )
            froc_hits, froc_false = froc.hit_scores, froc.false_scores
        is_hit = froc_hits > -np.inf
        counts[:NUM_BINS] = _binned(froc_hits[is_hit])
        counts[NUM_BINS:-1] = _binned(froc_false)
        counts[-1] = float((~is_hit).sum())
        return counts

    def marks(self, outputs: Tensor, batch: Batch) -> list[Marks]:
        """Return the marks of each crop, in mm from its first voxel's centre, along D, H, W."""
        stride, found = stride_of(outputs, batch["inputs"]), []
        for number, maps in enumerate(outputs.float()):
            peaks = find_peaks(maps[0], maps[-1], stride, self.spacing_mm, max_peaks=MAX_MARKS)
            places, scores = peaks.indices.cpu().double().numpy(), peaks.scores.cpu().numpy()
            if "box" in batch:
                low, high = batch["box"][number].cpu().numpy().T
                is_real = ((places >= low - 0.5) & (places <= high - 0.5)).all(1)
                places, scores = places[is_real], scores[is_real]
            found.append(Marks(places * np.array(self.spacing_mm), scores))
        return found

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (B,), and `score` (B,), the highest of each crop's marks, 0 without any."""
        scores = [each.scores.max(initial=0.0) for each in self.marks(outputs, batch)]
        return {
            "loss": self._sample_losses(outputs, batch),
            "score": torch.tensor(scores, dtype=torch.float32),
        }


def stride_of(outputs: Tensor, inputs: Tensor) -> list[int]:
    """Return how many voxels of the inputs a place of the outputs stands for, along D, H, W."""
    return [
        size // extent for size, extent in zip(inputs.shape[2:], outputs.shape[2:], strict=True)
    ]


def crop_findings(batch: Batch, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> list[Findings]:
    """Return what is there in each crop, in mm from its first voxel's centre, along D, H, W."""
    found = []
    for rows in batch["targets"].double().cpu().numpy():
        there = rows[rows[:, 3] > 0]
        found.append(Findings(there[:, :3] * np.array(spacing_mm), there[:, 3]))
    return found


def _binned(scores: np.ndarray) -> Tensor:
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    places = (np.log(clipped / (1 - clipped)) + LOGIT_LIMIT) / (2 * LOGIT_LIMIT) * NUM_BINS
    bins = np.clip(places.astype(np.int64), 0, NUM_BINS - 1)
    return torch.from_numpy(np.bincount(bins, minlength=NUM_BINS).astype(np.float32))


def _score_of(place: float) -> float:
    """Return the least score of a bin; NaN beyond all."""
    logit = 2 * LOGIT_LIMIT * place / NUM_BINS - LOGIT_LIMIT
    return 1 / (1 + math.exp(-logit)) if math.isfinite(place) else math.nan


def make_task(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task of a data set whose `spec.task` is "detection".

    Raises:
        ConfigError: there are several classes, or labels to smooth.
    """
    if spec.num_classes != 1 or label_smoothing:
        raise ConfigError(
            f"num_classes={spec.num_classes}, label_smoothing={label_smoothing}: a detector of"
            " centres learns one class, without smoothing",
            fix="leave label_smoothing out, and give one class",
        )
    return DetectionTask(scores=[
        name.removeprefix("score.") for name in spec.fields if name.startswith("score.")
    ])  # fmt: skip
