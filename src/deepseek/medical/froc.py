"""How many findings a detector finds, at how many false marks a scan: FROC, CPM, precision.

A mark hits a finding if it is nearer to its centre than the finding's radius, as the evaluator of
LUNA16 has it: a finding is found with the highest score of the marks that hit it, further hits
count neither for nor against; marks that hit an excluded finding are passed over; a mark that hits
two findings has found both; a finding that no mark hits stays in the denominator at every
threshold. A diameter that is not known (negative) counts as 10 mm.

Papers: Setio et al. 2017, arXiv 1612.08012, section 3 (LUNA16); Niemeijer et al. 2011 (the CPM:
mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks a scan). Departures: a detector
without any mark has sensitivity 0 and is no error; the bootstrap draws all scans, those without
findings and marks too.

Shapes: F findings, M marks, of one scan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from deepseek.errors import ConfigError, DataError
from deepseek.trainer.bootstrap import CONFIDENCE, NUM_ROUNDS, Interval, draw_again, interval_of

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False marks a scan at which the CPM takes the sensitivity."""
UNKNOWN_DIAMETER_MM = 10.0


@dataclass(frozen=True, eq=False)
class Findings:
    """What is there in a scan.

    Args:
        centers_mm: in patient coordinates, (F, 3).
        diameters_mm: (F,); negative where unknown.
        is_excluded: findings that count neither when found nor when missed, (F,); none by default.
    """

    centers_mm: np.ndarray
    diameters_mm: np.ndarray
    is_excluded: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        centers = np.asarray(self.centers_mm, np.float64).reshape(-1, 3)
        diameters = np.asarray(self.diameters_mm, np.float64).reshape(-1)
        excluded = np.asarray(self.is_excluded, bool).reshape(-1)
        if len(excluded) == 0:
            excluded = np.zeros(len(centers), bool)
        _check_rows("findings", centers, diameters_mm=diameters, is_excluded=excluded)
        for name, value in zip(
            ("centers_mm", "diameters_mm", "is_excluded"),
            (centers, diameters, excluded),
            strict=True,
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Marks:
    """What a detector says of a scan.

    Args:
        centers_mm: in patient coordinates, (M, 3).
        scores: the higher, the surer, (M,).
    """

    centers_mm: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        centers = np.asarray(self.centers_mm, np.float64).reshape(-1, 3)
        scores = np.asarray(self.scores, np.float64).reshape(-1)
        _check_rows("marks", centers, scores=scores)
        object.__setattr__(self, "centers_mm", centers)
        object.__setattr__(self, "scores", scores)


@dataclass(frozen=True, eq=False)
class Froc:
    """Findings and marks of all scans, matched.

    Attributes:
        num_scans: with or without findings.
        hit_scores: for each finding that counts, the best score that hit it; -inf if none did.
        hit_scans: number of the scan of each of these findings.
        false_scores: of each mark that hit nothing.
        false_scans: number of the scan of each of these marks.
        num_doubles: further marks on findings that were found already.
        num_passed_over: marks on excluded findings alone.
    """

    num_scans: int
    hit_scores: np.ndarray
    hit_scans: np.ndarray
    false_scores: np.ndarray
    false_scans: np.ndarray
    num_doubles: int
    num_passed_over: int

    @property
    def num_findings(self) -> int:
        """Findings that count."""
        return len(self.hit_scores)

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return false marks a scan (rising), sensitivity, and the threshold of each point."""
        hits, false = self._counts(np.ones(self.num_scans))
        thresholds = np.concatenate([[np.inf], self._thresholds])
        return false / self.num_scans, hits / self.num_findings, thresholds

    def sensitivity(self, rates: Sequence[float] = RATES) -> np.ndarray:
        """Return the sensitivity at so many false marks a scan each."""
        false, found, _ = self.curve()
        return np.interp(rates, false, found)

    def threshold(self, rate: float) -> float:
        """Return the least score with so many false marks a scan at the most; inf if none has."""
        false, _, thresholds = self.curve()
        return float(thresholds[false <= rate].min())

    @property
    def cpm(self) -> float:
        """Mean sensitivity over `RATES`."""
        return float(self.sensitivity().mean())

    @property
    def average_precision(self) -> float:
        """Sum of precision x gain in sensitivity, over falling thresholds."""
        hits, false = self._counts(np.ones(self.num_scans))
        precision = hits / np.maximum(hits + false, 1)
        return float((np.diff(hits / self.num_findings) * precision[1:]).sum())

    def intervals(
        self,
        rates: Sequence[float] = RATES,
        *,
        num_rounds: int = NUM_ROUNDS,
        confidence: float = CONFIDENCE,
        seed: int = 0,
    ) -> tuple[Interval, list[Interval]]:
        """Return the mean over `rates` and the sensitivity at each, with their intervals.

        Scans are drawn with replacement; a round without any finding is left out.
        """
        rounds = np.full((num_rounds, len(rates)), np.nan)
        for number, drawn in enumerate(draw_again(self.num_scans, num_rounds, seed)):
            weights = np.bincount(drawn, minlength=self.num_scans).astype(np.float64)
            num_findings = weights[self.hit_scans].sum()
            if num_findings > 0:
                hits, false = self._counts(weights)
                rounds[number] = np.interp(rates, false / self.num_scans, hits / num_findings)
        values = self.sensitivity(rates)
        each = [
            interval_of(value, found, confidence)
            for value, found in zip(values.tolist(), rounds.T, strict=True)
        ]
        return interval_of(float(values.mean()), rounds.mean(1), confidence), each

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Order of found findings and false marks by score, its scans, and where scores change."""
        scores = np.concatenate([self.hit_scores, self.false_scores])
        order = np.argsort(-scores, kind="stable")[: int((scores > -np.inf).sum())]
        ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
        return order, np.concatenate([self.hit_scans, self.false_scans])[order], ends

    @cached_property
    def _thresholds(self) -> np.ndarray:
        order, _, ends = self._order
        return np.concatenate([self.hit_scores, self.false_scores])[order][ends]

    def _counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return hits and false marks at each threshold from above all on, scans weighted."""
        order, scans, ends = self._order
        weighed, is_hit = weights[scans], order < self.num_findings
        hits = np.cumsum(np.where(is_hit, weighed, 0.0))[ends]
        false = np.cumsum(np.where(is_hit, 0.0, weighed))[ends]
        return np.concatenate([[0.0], hits]), np.concatenate([[0.0], false])


def match_marks(findings: Mapping[str, Findings], marks: Mapping[str, Marks]) -> Froc:
    """Match the marks of a detector with what is there.

    Args:
        findings: of every scan that was looked at; of a healthy one too, empty.
        marks: of these scans; a scan may be left out if it has none.

    Raises:
        DataError: marks are of a scan that has no entry in `findings`, or no finding counts.
    """
    unknown = marks.keys() - findings.keys()
    if unknown:
        raise DataError(
            f"{len(unknown)} scans have marks and no entry in the findings",
            fix="give every scan that was looked at an entry, empty where nothing is there",
        )
    hit_scores, false_scores, hit_counts, false_counts = [], [], [], []
    num_doubles = num_passed_over = 0
    none = Marks(np.empty((0, 3)), np.empty(0))
    for scan, there in findings.items():
        said = marks.get(scan, none)
        hits = _hits(there, said)
        counted = hits[~there.is_excluded]
        best = np.where(counted, said.scores, -np.inf).max(1, initial=-np.inf)
        on_counted, on_any = counted.any(0), hits.any(0)
        num_doubles += int(np.maximum(counted.sum(1) - 1, 0).sum())
        num_passed_over += int((on_any & ~on_counted).sum())
        hit_scores.append(best)
        false_scores.append(said.scores[~on_any])
        hit_counts.append(len(best))
        false_counts.append(len(false_scores[-1]))
    if sum(hit_counts) == 0:
        raise DataError(
            f"none of the findings in {len(findings)} scans counts: there is no sensitivity",
            fix="give scans with at least one finding that is not excluded",
        )
    numbers = np.arange(len(findings))
    return Froc(
        len(findings), np.concatenate(hit_scores), np.repeat(numbers, hit_counts),
        np.concatenate(false_scores), np.repeat(numbers, false_counts),
        num_doubles, num_passed_over,
    )  # fmt: skip


def _hits(there: Findings, said: Marks) -> np.ndarray:
    """Return which finding is hit by which mark, bool (F, M)."""
    diameters = np.where(there.diameters_mm < 0, UNKNOWN_DIAMETER_MM, there.diameters_mm)
    apart = there.centers_mm[:, None] - said.centers_mm[None]
    return (apart**2).sum(2) < (diameters[:, None] / 2) ** 2


def _check_rows(what: str, centers: np.ndarray, **columns: np.ndarray) -> None:
    for name, column in columns.items():
        if len(column) != len(centers):
            raise ConfigError(
                f"{len(centers)} {what} with {len(column)} {name}", fix=f"give {name} of each"
            )
    numbers = [centers, *(column for column in columns.values() if column.dtype != bool)]
    if not all(np.isfinite(number).all() for number in numbers):
        raise DataError(
            f"{what} have a coordinate, size or score that is not finite",
            fix="leave these rows out, or mend what wrote them",
        )
