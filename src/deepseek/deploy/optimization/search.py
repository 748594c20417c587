"""The search: every candidate is tried, the best are timed longer, then threads are chosen.

```
original          converted, opened, measured: the base of all comparisons
every candidate   converted, opened, measured; a failure is a row        60 % of the budget
int8 too coarse   again, with the layers that hurt in float              75 % of the budget
the best four     timed for twice as long, the best two of them for four times
the best          with fewer threads
```
Trials that a journal knows are not done again. Successive halving: Jamieson and Talwalkar 2016,
arXiv 1502.07943.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from deepseek.deploy.artefact import description_of
from deepseek.deploy.optimization.candidate import BASE, ORIGINAL, Candidate
from deepseek.deploy.optimization.journal import Journal
from deepseek.deploy.optimization.material import Material
from deepseek.deploy.optimization.process import Limits, run_trial
from deepseek.deploy.optimization.quality import Quality, compare
from deepseek.deploy.optimization.result import (
    FAILED,
    KEPT,
    REJECTED,
    SKIPPED,
    Batch,
    Row,
    choose,
    figures,
)
from deepseek.deploy.optimization.trial import OUTPUTS, SUMS
from deepseek.deploy.optimization.turns import Round, Timing, summarise
from deepseek.deploy.pruning.semi_structured import PATTERN
from deepseek.deploy.runtimes import RUNTIMES
from deepseek.errors import ConfigError
from deepseek.trainer.console import Console, format_seconds
from deepseek.trainer.task import Task

FIRST_SHARE = 0.6
"""Of the budget, after which no further candidate is begun."""
RETRY_SHARE = 0.75
"""After which none is tried again."""
SPARSE_SHARE = 0.85
"""After which no fewer weights are tried."""
NUM_LEADING = 3
"""The best so many are tried with fewer weights and threads."""
TRIAL_SHARE = 0.3
"""Of the budget, that one trial may take, and `LEAST_TRIAL_S` at least."""
LEAST_TRIAL_S = 30.0
MOST_TIMING_S = 4.0
"""For each batch size, of a first trial."""
BASE_LIMIT_S = 3600.0
CLOSE = 1.25
"""Of the best's cost, up to which a candidate is timed longer."""
MANY_LAYERS = 4
"""That a row names."""
_HALVING = ((4, 2), (2, 4))
NO_NAME = r"[^\w.]+"
"""What the name of a file does not hold."""


@dataclass(frozen=True)
class Plan:
    """What is searched.

    Attributes:
        work: folder of the files of all candidates.
        sources: name -> model file; `model` is the original.
        hashes: name -> SHA-256 of that file.
        candidates: in order, with why one is left out (or "").
        sparsities: of the original that are tried with the best of them.
        material: what they are measured on.
        task: what its samples mean.
        metric: of the task.
        target: what the best is to be best in.
        tolerance: largest drop of the metric.
        batch_sizes: of throughput, ascending.
        threads: that the process may use.
        budget_s: seconds, from `began`.
        began: by `time.monotonic`.
        memory_bytes: that one trial may take; `None`: no limit.
    """

    work: Path
    sources: dict[str, Path]
    hashes: dict[str, str]
    candidates: Sequence[tuple[Candidate, str]]
    sparsities: Sequence[str]
    material: Material
    task: Task
    metric: str
    target: str
    tolerance: float
    batch_sizes: tuple[int, ...]
    threads: int
    budget_s: float
    began: float
    memory_bytes: int | None

    @property
    def left_s(self) -> float:
        """What is left of the budget."""
        return self.began + self.budget_s - time.monotonic()

    @property
    def timing_s(self) -> float:
        """Seconds of timing a batch size in a first trial."""
        return min(self.budget_s / 100, MOST_TIMING_S)


class Search:
    """Tries candidates.

    Args:
        plan: what.
        journal: of finished trials.
        console: where progress is shown.
    """

    def __init__(self, plan: Plan, journal: Journal, console: Console) -> None:
        self.plan, self._journal, self._console = plan, journal, console
        self.rows: dict[Candidate, Row] = {}
        self._rounds: dict[Candidate, _Rounds] = {}
        self._shares: dict[int, float] = {}
        self._base_sums = None
        self._num_done = 0
        self._num_left = len(plan.candidates) + len(plan.sparsities)

    def run(self) -> None:
        """Fill `rows`.

        Raises:
            ConfigError: the original itself cannot be measured.
        """
        plan = self.plan
        self._try(BASE, "", BASE_LIMIT_S)
        base = self.rows[BASE]
        if not base.is_measured:
            raise ConfigError(
                f"the model as it is could not be measured: {base.reason}",
                fix=f"see {self._folder(BASE) / 'log.txt'}",
            )
        for candidate, reason in plan.candidates:
            if candidate != BASE:
                self._try_in_time(candidate, reason, FIRST_SHARE)
        self._retry_mixed()
        self._try_sparse()
        if plan.target in ("latency", "throughput"):
            for count, factor in _HALVING:
                self._time_longer(count, factor * plan.timing_s)
            self._choose_threads()

    def _try_in_time(self, candidate: Candidate, reason: str, share: float) -> None:
        """Try a candidate, unless this share of the budget is used up."""
        plan = self.plan
        if not reason and plan.left_s < (1 - share) * plan.budget_s:
            done = self._journal.find(self.what(candidate, "first"))
            reason = "" if done else "the budget was used up"
        self._try(candidate, reason, self._trial_limit_s())

    def _retry_mixed(self) -> None:
        """Try int8 that lost too much again, with the layers that hurt in float."""
        coarse = [row.candidate for row in self.rows.values() if row.status == REJECTED]
        retries = [mixed for each in coarse if (mixed := each.mixed) is not None]
        self._num_left += len(retries)
        for candidate in retries:
            self._try_in_time(candidate, "", RETRY_SHARE)

    def _try_sparse(self) -> None:
        """Try fewer weights in eager float32, and those that hold with the best other ways."""
        leading = [
            row.candidate for row in self._best(NUM_LEADING + 1) if row.candidate != BASE
        ][:NUM_LEADING]  # fmt: skip
        for sparsity in self.plan.sparsities:
            scout = replace(BASE, sparsity=sparsity)
            self._try_in_time(scout, "", SPARSE_SHARE)
            # no runtime of a CPU gains from zeros in a pattern
            if self.rows[scout].status != KEPT or sparsity == PATTERN:
                continue
            ways = [each for each in leading if not each.is_smaller]
            self._num_left += len(ways)
            for each in ways:
                self._try_in_time(replace(each, sparsity=sparsity), "", SPARSE_SHARE)

    def _best(self, count: int) -> list[Row]:
        """Return the rows inside the tolerance that are best for the target, best first."""
        kept = [row for row in self.rows.values() if row.status == KEPT]
        return sorted(kept, key=lambda row: row.cost(self.plan.target))[:count]

    def convert(self, candidate: Candidate) -> str:
        """Convert a candidate where its file is not there; return why it failed, or ""."""
        candidate = replace(candidate, threads=None)
        if description_of(self.artefact_of(candidate)).is_file():
            return ""
        limit_s = BASE_LIMIT_S if candidate == BASE else self._full_limit_s()
        return self._run("convert", candidate, "", 0.0, limit_s).get("error", "")

    def artefact_of(self, candidate: Candidate) -> Path:
        """Return the file of a candidate; it does not depend on its threads."""
        suffix = RUNTIMES.get(candidate.runtime).suffix
        return self._folder(replace(candidate, threads=None)) / f"best{suffix}"

    def _try(self, candidate: Candidate, reason: str, limit_s: float) -> None:
        self._num_left -= 1
        if reason:
            self.rows[candidate] = Row(candidate, SKIPPED, reason)
        else:
            what = self.what(candidate, "first")
            entry = self._journal.find(what)
            if entry is not None and entry.get("timed_out") and limit_s > entry["limit_s"]:
                entry = None  # a larger budget gives it more time
            if entry is None or (candidate == BASE and self._needs_base_sums()):
                entry = self._first_trial(candidate, limit_s)
                if not entry.get("timed_out") or limit_s >= self._full_limit_s():
                    self._journal.add(what, entry)
                elif "error" in entry:
                    entry = {"skipped": "the budget ended while it was tried"}
            self.rows[candidate] = self._row(candidate, entry)
        self._num_done += 1
        row = self.rows[candidate]
        if row.status != SKIPPED:
            self._console.line(f"{candidate.name:<28} {figures(row, self.plan.metric)}")

    def _first_trial(self, candidate: Candidate, limit_s: float) -> dict:
        if candidate != BASE:
            self._restore_base()
        end = time.monotonic() + limit_s
        found = {}
        if not description_of(self.artefact_of(candidate)).is_file():
            found = self._run("convert", candidate, "", 0.0, limit_s)
        if "error" not in found:
            left = max(end - time.monotonic(), 1.0)
            metric = self.plan.metric
            found |= self._run("measure", candidate, metric, self.plan.timing_s, left)
        if found.get("timed_out"):
            return {**found, "error": f"took longer than {limit_s:.0f} s", "limit_s": limit_s}
        if "error" in found:
            return found
        sums = load_file(self._folder(candidate) / SUMS)["sums"]
        quality = compare(self.plan.task, self.plan.metric, self._load_base_sums(), sums)
        return {
            **found,
            "quality": [quality.value, quality.drop, *quality.interval],
        }

    def _restore_base(self) -> None:
        """Measure the model itself again, where a search that ended has removed what it gave."""
        if not (self._folder(BASE) / SUMS).is_file():
            self._first_trial(BASE, BASE_LIMIT_S)

    def _row(self, candidate: Candidate, entry: dict) -> Row:
        if "skipped" in entry:
            return Row(candidate, SKIPPED, entry["skipped"])
        if "error" in entry:
            return Row(candidate, FAILED, entry["error"])
        value, drop, *interval = entry["quality"]
        quality = Quality(value, drop, (interval[0], interval[1]))
        self._rounds[candidate] = _Rounds.of(entry)
        one, batches = self._summarise(candidate)
        status, reason = KEPT, ""
        if quality.drop > self.plan.tolerance:
            status, reason = REJECTED, f"{self.plan.metric} drops by more than the tolerance"
            if candidate.sparsity:
                reason += ": prune it, train it on, and give that file along (also)"
        elif quality.interval[1] > self.plan.tolerance and candidate != BASE:
            reason = "with more samples the drop may turn out larger than the tolerance"
        if candidate.sparsity == PATTERN and status == KEPT:
            reason = "; ".join(filter(None, ["no CPU gains from zeros in a pattern", reason]))
        if in_float := entry.get("in_float"):
            layers = f"{len(in_float)} layers in float: {', '.join(in_float[:MANY_LAYERS])}"
            layers += ", ..." if len(in_float) > MANY_LAYERS else ""
            reason = "; ".join(filter(None, [reason, layers]))
        return Row(
            candidate, status, reason, one, batches, quality,
            entry["file_bytes"], entry["peak_bytes"] or 0, entry["ready_s"],
            entry.get("convert_s", 0.0), entry["difference"],
            tuple(entry.get("fused", ())),
        )  # fmt: skip

    def _summarise(self, candidate: Candidate) -> tuple[Timing, tuple[Batch, ...]]:
        """Return the times of one sample, and of batches of each size."""
        rounds = self._rounds[candidate]
        timings = {size: summarise(each) for size, each in rounds.batches.items()}
        if candidate == BASE and not self._shares:
            rates = {size: size / timing.seconds for size, timing in timings.items()}
            self._shares = {size: rate / rates[max(rates)] for size, rate in rates.items()}
        batches = (
            Batch(size, timing, self._shares.get(size, 1.0)) for size, timing in timings.items()
        )
        return summarise(rounds.one), tuple(batches)

    def _time_longer(self, count: int, seconds: float) -> None:
        target = self.plan.target
        kept = self._best(len(self.rows))
        close = [row for row in kept if row.cost(target) <= CLOSE * kept[0].cost(target)][:count]
        for row in close if len(close) > 1 else ():
            candidate = row.candidate
            entry = self._again(candidate, f"longer {seconds:g}", seconds)
            if entry is not None:
                self._rounds[candidate].add(_Rounds.of(entry))
                one, batches = self._summarise(candidate)
                self.rows[candidate] = replace(row, one=one, batches=batches)

    def _choose_threads(self) -> None:
        """Time the best with fewer threads, and what is close to it."""
        target = self.plan.target
        best = choose(list(self.rows.values()), target)
        limit = CLOSE * best.cost(target)
        close = [each for each in self._best(len(self.rows)) if each.cost(target) <= limit]
        for row in [best, *(each for each in close if each != best)][:NUM_LEADING]:
            if RUNTIMES.get(row.candidate.runtime).device != "cpu":
                continue
            timings = (row.one, *(batch.timing for batch in row.batches))
            if all(timing and timing.is_quiet for timing in timings):
                # beside other programs fewer threads look better than they are
                self._try_threads(row)

    def _try_threads(self, row: Row) -> None:
        counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < self.plan.threads]
        for count in counts:
            candidate = replace(row.candidate, threads=count)
            entry = self._again(candidate, "threads", 2 * self.plan.timing_s)
            if entry is None:
                continue
            self._rounds[candidate] = _Rounds.of(entry)
            one, batches = self._summarise(candidate)
            self.rows[candidate] = replace(row, candidate=candidate, one=one, batches=batches)
            self._console.line(
                f"{candidate.name:<28} {figures(self.rows[candidate], self.plan.metric)}"
            )

    def _again(self, candidate: Candidate, stage: str, seconds: float) -> dict | None:
        """Time a candidate that is good once more; `None` where the budget or it fails."""
        what = self.what(candidate, stage)
        entry = self._journal.find(what)
        if entry is None:
            if self.plan.left_s < 2 * seconds * (1 + len(self.plan.batch_sizes)):
                return None
            if candidate.is_smaller or candidate.method:
                self._restore_base()
            # the original is timed beside it: a search that ended has removed its file
            if self.convert(BASE) or self.convert(candidate):
                return None
            entry = self._run("measure", candidate, "", seconds, max(self.plan.left_s, 1.0))
            if "error" in entry:
                return None
            self._journal.add(what, entry)
        return entry

    def _run(
        self, kind: str, candidate: Candidate, metric: str, seconds: float, limit_s: float
    ) -> dict:
        plan, folder = self.plan, self._folder(candidate)
        folder.mkdir(parents=True, exist_ok=True)
        is_reference = candidate == BASE or plan.material.has_labels
        layers = (
            f"{plan.hashes[candidate.source][:12]}-{candidate.method}-{candidate.sparsity}"
            f"-{plan.tolerance:g}-{plan.metric}"
        )
        task = candidate.make_task(
            plan.sources[candidate.source], self.artefact_of(BASE), self.artefact_of(candidate),
            plan.material.path, folder / "result.json", batch_sizes=plan.batch_sizes,
            base_threads=plan.threads, seconds=seconds,
        )  # fmt: skip
        task = replace(
            task, metric=metric, quality_metric=plan.metric, tolerance=plan.tolerance,
            known_layers=str(plan.work / f"{re.sub(NO_NAME, '-', layers)}.json"),
            reference="" if is_reference else str(self._folder(BASE) / OUTPUTS),
        )  # fmt: skip
        limits = Limits(limit_s, plan.memory_bytes)
        return run_trial(kind, task, folder, limits, self._tick(kind, candidate))

    def _tick(self, kind: str, candidate: Candidate) -> Callable[[], None]:
        def tick() -> None:
            if self._console.wants_progress():
                total = self._num_done + self._num_left + 1
                left = format_seconds(max(self.plan.left_s, 0.0))
                doing = {"convert": "converting", "measure": "measuring"}[kind]
                self._console.progress(
                    "optimize", self._num_done, total, f"{doing} {candidate.name}, {left} left"
                )

        return tick

    def what(self, candidate: Candidate, stage: str) -> dict:
        """Return what a measurement is of, JSON-able: another file or tolerance is another."""
        source = self.plan.hashes[candidate.source]
        found = {"candidate": candidate.to_json(), "stage": stage, "source": source}
        if candidate.is_mixed:  # the tolerance says which layers are in float
            found |= {"tolerance": self.plan.tolerance, "metric": self.plan.metric}
        return found

    def _full_limit_s(self) -> float:
        return max(TRIAL_SHARE * self.plan.budget_s, LEAST_TRIAL_S)

    def _trial_limit_s(self) -> float:
        return min(self._full_limit_s(), max(self.plan.left_s, 1.0))

    def _folder(self, candidate: Candidate) -> Path:
        name = candidate.name
        if candidate.source != ORIGINAL:
            name += f" {self.plan.hashes[candidate.source][:12]}"
        if candidate.is_mixed:
            name += f" {self.plan.tolerance:g} {self.plan.metric}"
        return self.plan.work / re.sub(NO_NAME, "-", name)

    def _needs_base_sums(self) -> bool:
        """Return whether there is something to compare, and nothing to compare it with."""
        return not (self._folder(BASE) / SUMS).is_file() and any(
            not reason and self._journal.find(self.what(candidate, "first")) is None
            for candidate, reason in self.plan.candidates
        )

    def _load_base_sums(self):
        if self._base_sums is None:
            self._base_sums = load_file(self._folder(BASE) / SUMS)["sums"]
        return self._base_sums


@dataclass(frozen=True)
class _Rounds:
    """Rounds of one sample, and of batches by their size."""

    one: list[Round]
    batches: dict[int, list[Round]]

    @classmethod
    def of(cls, entry: dict) -> "_Rounds":
        """Return those that a trial has measured."""
        batches = {each["size"]: _read(each["rounds"]) for each in entry["batches"]}
        return cls(_read(entry["one"]), batches)

    def add(self, other: "_Rounds") -> None:
        """Take others along."""
        self.one.extend(other.one)
        for size, rounds in other.batches.items():
            self.batches[size].extend(rounds)


def _read(content: list[dict]) -> list[Round]:
    return [Round(**each) for each in content]
