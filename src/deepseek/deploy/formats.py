"""A model as a file that other programs run, checked on samples before it takes its name."""

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deepseek.deploy.artefact import Artefact, convert, description_of, load_engine
from deepseek.deploy.runtimes import RUNTIMES, Conversion, Execution
from deepseek.deploy.samples import draw_inputs, random_inputs, with_spec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.lora import merge_lora
from deepseek.registry import did_you_mean

FORMATS = {
    "pt2": "exported",
    "aoti": "aoti",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
}
"""What users call a format -> the runtime that writes and checks it."""

NUM_COMPARED, NUM_CALIBRATION, CALIBRATION_BATCH = 8, 256, 8
TIMED_ROUNDS = 5


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: of the file; its description is beside it.
        format: a name of `FORMATS`.
        precision: of the file.
        artefact: what the description holds.
        num_bytes: of all its files, without the description.
        is_real: whether the samples it was compared on are data, or random numbers.
        batch_size: samples of the batch that was timed.
        seconds: of that batch, the median of a few; on a busy machine a rough one.
        eager_seconds: of the original on it.
    """

    path: Path
    format: str
    precision: str
    artefact: Artefact
    num_bytes: int
    is_real: bool
    batch_size: int
    seconds: float
    eager_seconds: float

    def describe(self) -> str:
        """Return what was written, how large it is, how exact and how fast, in lines."""
        names = ", ".join((*self.artefact.hashes, description_of(self.path).name))
        samples = "samples of the data" if self.is_real else "random samples"
        open_dims = self.artefact.open_dims
        sizes = f"any {' and '.join(open_dims)}" if open_dims else "one sample at a time"
        return (
            f"{self.artefact.architecture} as {self.format}, {self.precision}:"
            f" {self.num_bytes / 1e6:.2f} MB in {self.path.parent} ({names})\n"
            f"takes {sizes}; on {samples} outputs differ by"
            f" {self.artefact.difference:.1e} of the largest at most\n"
            f"a batch of {self.batch_size}: {1e3 * self.seconds:.2f} ms, eager"
            f" {1e3 * self.eager_seconds:.2f} ms (a few calls; `deepseek optimize` measures)"
        )


def export(
    model: ModelEngine | str | Path,
    path: str | Path,
    *,
    format: str | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    data=None,
    threads: int | None = None,
) -> Export:
    """Write a model for another runtime, open the file again, and compare.

    Preprocessing, class names and tokenizer go into the description beside the file, and into the
    metadata of ONNX and OpenVINO. uint8 pictures are normalised inside.

    Args:
        model: an engine, or a model file.
        path: of the file.
        format: a name of `FORMATS`; by default what the end of `path` says.
        precision: `fp32`, `bf16`, `fp16`, `int8`, `int8_bf16`, as far as the format has it.
        opset: of ONNX; by default the exporter's.
        data: real samples to compare on, and for `int8` to calibrate on: a data set, a bound
            `DataLoader`, or a tensor (N, ...). Without, random ones. A model that was never trained
            has no data spec: it takes what these are.
        threads: of one batch when the file is opened; by default those of torch.

    Raises:
        ConfigError: an argument is wrong, a package is missing, or the model cannot be converted.
        CheckpointError: the file computes something else than the model.
    """
    path = Path(path)
    chosen = find_format(path, format)
    engine = model if isinstance(model, ModelEngine) else ModelEngine.load(model)
    if engine.device.type != "cpu":
        engine = copy.deepcopy(engine).to("cpu")  # the given one stays where it is
    engine = merge_lora(with_spec(engine, data))
    is_int8 = precision.startswith("int8")
    if is_int8 and data is None:
        raise ConfigError(
            f"precision={precision!r} is calibrated on real samples, and there are no data",
            fix="give data, such as those of the validation",
        )
    if data is None:
        inputs, calibration = random_inputs(engine, NUM_COMPARED), ()
    else:
        inputs = draw_inputs(engine, data, NUM_CALIBRATION if is_int8 else NUM_COMPARED)
        calibration = inputs.split(CALIBRATION_BATCH) if is_int8 else ()
        inputs = inputs[:NUM_COMPARED]
    artefact = convert(
        engine, path, inputs, FORMATS[chosen], Conversion(precision, calibration, opset),
        Execution(threads, precision),
    )  # fmt: skip
    seconds, eager_seconds = _time(load_engine(path), engine, inputs)
    num_bytes = sum((path.parent / name).stat().st_size for name in artefact.hashes)
    return Export(
        path, chosen, precision, artefact, num_bytes, data is not None, len(inputs), seconds,
        eager_seconds,
    )  # fmt: skip


def find_format(path: Path, format: str | None) -> str:
    """Return the name of a format: that given, or what the end of a path says.

    Raises:
        ConfigError: there is none of that name, or the path does not say.
    """
    if format is not None:
        if format not in FORMATS:
            raise ConfigError(f"unknown format {format!r}", fix=did_you_mean(format, FORMATS))
        return format
    suffixes = {RUNTIMES.get(runtime).suffix: name for name, runtime in FORMATS.items()}
    ends = [suffix for suffix in suffixes if path.name.endswith(suffix)]
    if not ends:
        raise ConfigError(
            f"{path.name} does not say which format it is to be",
            fix=f"end it with one of {', '.join(sorted(suffixes))}",
        )
    return suffixes[max(ends, key=len)]


def _time(converted: ModelEngine, engine: ModelEngine, inputs: torch.Tensor) -> tuple[float, float]:
    """Return the medians of a few calls, taken in turns after one that warms up."""
    times: dict[ModelEngine, list[float]] = {converted: [], engine: []}
    with evaluating(engine), torch.inference_mode():
        for _ in range(TIMED_ROUNDS + 1):
            for each, found in times.items():
                began = time.perf_counter()
                each(inputs)
                found.append(time.perf_counter() - began)
    return statistics.median(times[converted][1:]), statistics.median(times[engine][1:])
