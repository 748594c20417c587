"""A process that converts a model, or opens a converted one and measures it.

    python -m deepseek.deploy.optimization.trial convert TASK.json
    python -m deepseek.deploy.optimization.trial measure TASK.json

Whatever goes wrong ends this process and not the search: what can be said is written to the result
file, and of a crash the parent sees the signal.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepseek.deploy.artefact import convert, load_engine, read_description
from deepseek.deploy.comparison import SMALLER, compare_batch
from deepseek.deploy.optimization.material import count_rows, label_names, read_rows
from deepseek.deploy.optimization.turns import take_turns
from deepseek.deploy.runtimes import RUNTIMES, Conversion, Execution
from deepseek.deploy.samples import spec_of
from deepseek.errors import CheckpointError, DeepSeekError
from deepseek.launch.worker import die_with_agent
from deepseek.models import ModelEngine
from deepseek.models.joint_outputs import divide, join_outputs

SUMS = "sums.safetensors"
OUTPUTS = "outputs.safetensors"


@dataclass(frozen=True)
class TrialTask:
    """What a process is to do, as a JSON file.

    Attributes:
        runtime, precision, method, sparsity: of the candidate.
        is_smaller: whether its outputs are its own, and not the original's but for rounding.
        provider: `module:class` of the runtime, for those that are not ours.
        source: model file that is converted.
        base: the original in eager, as it would be deployed: the other one in timing.
        artefact: file that is written, or opened.
        data: file of the samples.
        batch_sizes: samples of large batches.
        threads: of a batch; `None`: `base_threads`.
        base_threads: of the original in timing.
        seconds: of timing, for each batch size.
        result: file that is written.
        metric: of the task; empty: quality is not measured.
        quality_metric: the same, where quality decides what is converted.
        tolerance: largest drop of it.
        known_layers: file of the layers that stay in float for it, once they are found.
        reference: outputs of the original, where the data have no labels; else empty.
    """

    runtime: str
    precision: str
    method: str
    sparsity: str
    is_smaller: bool
    provider: str
    source: str
    base: str
    artefact: str
    data: str
    batch_sizes: tuple[int, ...]
    threads: int | None
    base_threads: int
    seconds: float
    result: str
    metric: str = ""
    quality_metric: str = ""
    tolerance: float = 0.0
    known_layers: str = ""
    reference: str = ""

    @property
    def batch_size(self) -> int:
        """Samples of the largest batch, by which what is not timed is computed, too."""
        return max(self.batch_sizes)

    def write(self, path: Path) -> None:
        """Write it."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "TrialTask":
        """Read what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def run_convert(task: TrialTask) -> dict:
    """Convert a model; return the seconds that it took."""
    began = perf_counter()
    engine = ModelEngine.load(task.source)
    data = Path(task.data)
    calibration = read_rows(data, "calibration").split(task.batch_size)
    in_float: list[str] = []
    fused: list[str] = []
    way = (task.runtime, task.precision, task.method, task.sparsity)
    if way != ("eager", "fp32", "", ""):
        # brings the trainer, which the process that measures is to do without
        from deepseek.deploy.optimization.preparation import Mixing, cut_down, prepare

        engine = cut_down(engine, task.sparsity, read_rows(data, "calibration", 0, 2))
        mixing = Mixing(data, task.quality_metric, task.tolerance, Path(task.known_layers))
        engine, in_float, fused = prepare(engine, task.method, calibration, mixing)
    inputs = read_rows(data, "inputs", 0, max(2, task.batch_size))
    conversion = Conversion(
        task.precision, calibration if task.precision.startswith("int8") else ()
    )
    execution = Execution(task.threads, task.precision)
    is_model_file = RUNTIMES.get(task.runtime).suffix == ".bin"
    if is_model_file:  # in which weights are, and no operators
        fused = [note for note in fused if note.endswith("norms folded")]
    path = Path(task.artefact)
    # what is compiled when it is opened is compared when it is measured: it would compile twice
    compares = not is_model_file
    convert(engine, path, inputs, task.runtime, conversion, execution, compares=compares)
    return {"convert_s": perf_counter() - began, "in_float": in_float, "fused": fused}


def run_measure(task: TrialTask) -> dict:
    """Open a converted model; return how good, fast and large it is."""
    data = Path(task.data)
    one, *batches = (read_rows(data, "inputs", 0, size) for size in (1, *task.batch_sizes))
    began = perf_counter()
    path = Path(task.artefact)
    engine = load_engine(path, threads=task.threads)
    own = _caller(engine, task.threads or task.base_threads)
    first = own(one)
    found: dict = {"ready_s": perf_counter() - began}
    for batch in batches:
        own(batch)
    if not torch.allclose(first, own(one), rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise CheckpointError(
            "asked twice, it answers differently", fix="use another runtime or precision"
        )
    found["peak_bytes"] = _peak_bytes()
    found["file_bytes"] = sum(
        (path.parent / name).stat().st_size for name in read_description(path).hashes
    )
    if task.metric:
        _measure_quality(task, engine, own)
    base = _caller(load_engine(task.base), task.base_threads)
    precision = "int8" if task.method else task.precision
    precision = SMALLER if task.is_smaller else precision
    found["difference"] = max(
        compare_batch(base, own, batch, precision, path) for batch in (one, *batches)
    )
    rounds = {}
    for batch in (one, *batches):  # where there are few samples, some are of the same size
        if len(batch) not in rounds:
            turns = take_turns(lambda b=batch: own(b), lambda b=batch: base(b), task.seconds)
            rounds[len(batch)] = [asdict(each) for each in turns]
    sizes = sorted({len(batch) for batch in batches})
    found["one"] = rounds[1]
    found["batches"] = [{"size": size, "rounds": rounds[size]} for size in sizes]
    return found


def _measure_quality(task: TrialTask, engine: ModelEngine, own: Callable[[Tensor], Tensor]) -> None:
    """Write the sums of the metric; without labels and as the original, the outputs first."""
    # brings the trainer, whose memory is not that of the candidate: its peak was read before
    from deepseek.deploy.optimization.quality import metric_of, sum_by_group, task_of

    data, folder = Path(task.data), Path(task.result).parent
    count, has_labels = count_rows(data, "inputs"), count_rows(data, "targets") > 0
    if has_labels:
        answers, names = data, label_names(data)
    else:
        answers, names = Path(task.reference or folder / OUTPUTS), ["outputs"]
        if not task.reference:
            starts = range(0, count, task.batch_size)
            outputs = [
                own(read_rows(data, "inputs", at, min(at + task.batch_size, count)))
                for at in starts
            ]
            save_file({"outputs": torch.cat(outputs).contiguous()}, answers)

    def read(start: int, stop: int) -> dict[str, Tensor]:
        labels = {
            name if name.startswith("targets") else "targets": read_rows(answers, name, start, stop)
            for name in names
        }
        return {"inputs": read_rows(data, "inputs", start, stop), **labels}

    spec = spec_of(engine)
    what = task_of(spec, engine.num_classes, has_labels)
    metric = metric_of(what, task.metric)
    by_task = (lambda outputs: divide(outputs, spec)) if has_labels and spec.tasks else None
    sums = sum_by_group(own, read, what, metric, count, task.batch_size, by_task)
    save_file({"sums": sums}, folder / SUMS)


def _caller(engine: ModelEngine, threads: int) -> Callable[[Tensor], Tensor]:
    engine.eval()

    def call(inputs: Tensor) -> Tensor:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return join_outputs(engine(inputs))

    return call


def _peak_bytes() -> int | None:
    """Return the largest memory this process has had, as the kernel counts it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(value) * 1024 for value in values), None)


def _register(task: TrialTask) -> None:
    if task.runtime not in RUNTIMES:
        module, _, name = task.provider.partition(":")
        RUNTIMES.register(task.runtime)(getattr(importlib.import_module(module), name))


def main(arguments: list[str]) -> None:
    """Do one task."""
    die_with_agent(None)
    kind, path = arguments
    task = TrialTask.read(Path(path))
    torch.set_num_threads(task.threads or task.base_threads)
    try:
        _register(task)
        found = {"convert": run_convert, "measure": run_measure}[kind](task)
    except DeepSeekError as error:
        found = {"error": error.message}
    except Exception as error:  # whatever a runtime may raise is a line of the report
        traceback.print_exc()
        words = str(error).strip().splitlines()
        found = {"error": f"{type(error).__name__}: {words[0] if words else ''}".strip(": ")}
    result = Path(task.result)
    draft = result.with_name(f".{result.name}")
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.replace(result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries may hang or crash on their way out, and all is written


if __name__ == "__main__":
    main(sys.argv[1:])
