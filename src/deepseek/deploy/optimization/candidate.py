"""A way to run a model: what is done to its weights, the runtime, the precision, the threads."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from deepseek.deploy.optimization.preparation import METHODS, MIXED, prepares_for
from deepseek.deploy.optimization.trial import TrialTask
from deepseek.deploy.pruning.semi_structured import PATTERN
from deepseek.deploy.runtimes import RUNTIMES

ORIGINAL = "model"
_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_RUNTIMES = (
    "eager", "exported", "compiled", "aoti", "onnxruntime", "openvino", "executorch", "tensorrt",
)  # fmt: skip
"""From what changes least to what changes most: of equally good ones the first is taken."""
_TURN = {
    "openvino": 0, "onnxruntime": 0, "eager": 0, "tensorrt": 1, "compiled": 1, "aoti": 2,
    "executorch": 3, "exported": 4,
}  # fmt: skip
"""In which they are tried: what is quick to convert first, what is no faster than eager last."""
_PRECISION_TURN = ("bf16", "int8", "fp32", "fp16")
_FP16_UNITS = ("amx_fp16", "avx512_fp16", "fphp", "sve")


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    Attributes:
        runtime: a name of `RUNTIMES`.
        precision: of the conversion.
        method: of `quantize`, applied before the conversion, all of it or `mixed`; empty: none.
        source: `model`, or the name of another file that was given along.
        threads: of one batch; `None`: as many as the process may use.
        sparsity: `2:4`, or the share of the FLOPs that `prune` leaves, such as `90%`; empty: all.
    """

    runtime: str = "eager"
    precision: str = "fp32"
    method: str = ""
    source: str = ORIGINAL
    threads: int | None = None
    sparsity: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        words = [self.runtime, self.method.replace(MIXED, " mixed") or self.precision]
        if self.source != ORIGINAL:
            words.append(f"of {self.source}")
        if self.sparsity:
            of = "zeros" if self.sparsity == PATTERN else "of the FLOPs"
            words.append(f"with {self.sparsity} {of}")
        if self.threads is not None:
            words.append(f"on {self.threads} thread{'s' * (self.threads != 1)}")
        return " ".join(words)

    @property
    def effort(self) -> tuple[int, int, int, bool]:
        """How far it is from the original in eager float32: the least is the simplest."""
        runtime = _RUNTIMES.index(self.runtime) if self.runtime in _RUNTIMES else len(_RUNTIMES)
        precision = "int8" if self.method else self.precision.partition("_")[0]
        return (
            int(self.is_smaller), _PRECISIONS.index(precision), runtime,
            self.threads is not None,
        )  # fmt: skip

    @property
    def mixed(self) -> "Candidate | None":
        """The same with the layers that hurt in float; `None` where no layers are chosen."""
        if not self.method or self.is_mixed:
            return None
        return replace(self, method=self.method + MIXED)

    @property
    def is_mixed(self) -> bool:
        """Whether layers that hurt stay in float."""
        return self.method.endswith(MIXED)

    @property
    def is_smaller(self) -> bool:
        """Whether it is another model than the original, whose outputs are its own."""
        return self.source != ORIGINAL or bool(self.sparsity)

    def make_task(
        self, source: Path, base: Path, artefact: Path, data: Path, result: Path, *,
        batch_sizes: tuple[int, ...], base_threads: int, seconds: float,
    ) -> TrialTask:  # fmt: skip
        """Return what a process is to do for it; quality is not measured."""
        runtime = RUNTIMES.get(self.runtime)
        return TrialTask(
            runtime=self.runtime, precision=self.precision, method=self.method,
            sparsity=self.sparsity, is_smaller=self.is_smaller,
            provider=f"{runtime.__module__}:{runtime.__qualname__}", source=str(source),
            base=str(base), artefact=str(artefact), data=str(data), batch_sizes=batch_sizes,
            threads=self.threads, base_threads=base_threads, seconds=seconds, result=str(result),
        )  # fmt: skip

    def to_json(self) -> dict:
        """Return it as data."""
        return asdict(self)


BASE = Candidate()
"""The original as it is. It is always tried, so that the result is never worse."""


def list_candidates(
    sources: Sequence[str], runtimes: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[Candidate, str]]:
    """Yield candidates in the order in which they are tried, and why one is left out (or "").

    Args:
        sources: `model`, and the names of other files.
        runtimes: names of `RUNTIMES`.
        precisions: `fp32`, `bf16`, `fp16`, `int8`.
    """
    has_fp16 = _has_fp16_units()
    ways = {name: RUNTIMES.get(name)() for name in runtimes}
    missing = {name: way.find_missing() for name, way in ways.items()}
    found = [
        candidate
        for runtime in runtimes
        for precision in precisions
        for source in sources
        for candidate in _of(runtime, precision, source)
    ]
    lines: set[str] = set()
    for candidate in sorted(found, key=_turn_of):
        name, reason = candidate.runtime, ""
        if missing[name] is not None and ways[name].device != "cpu":
            if name in lines:
                continue  # one line says it: few machines have it
            lines.add(name)
            reason = f"not on this machine: {missing[name]}"
        elif missing[name] is not None:
            reason = f"not installed: {missing[name]}"
        elif candidate.precision == "fp16" and ways[name].device == "cpu" and not has_fp16:
            reason = "the processor has no units for fp16: it is slower than fp32"
        yield candidate, reason


def _of(runtime: str, precision: str, source: str) -> Iterator[Candidate]:
    for own in RUNTIMES.get(runtime).precisions:
        if own.partition("_")[0] == precision:  # int8, int8_bf16
            yield Candidate(runtime, own, "", source)
    if precision == "int8":
        for method in METHODS:
            if prepares_for(method, runtime):
                yield Candidate(runtime, "fp32", method, source)


def _turn_of(candidate: Candidate) -> tuple[int, int, int]:
    precision = "int8" if candidate.method else candidate.precision.partition("_")[0]
    return (
        _TURN.get(candidate.runtime, 1), bool(candidate.method),
        _PRECISION_TURN.index(precision),
    )  # fmt: skip


def _has_fp16_units() -> bool:
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in _FP16_UNITS)
