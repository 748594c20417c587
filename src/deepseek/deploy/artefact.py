"""A model ready to run somewhere: the file of a runtime, and beside it what the file cannot say.

`MODEL.onnx.json` beside `MODEL.onnx` holds the runtime, the precision, what the model takes (data
spec: preprocessing, class names, tokenizer), the hashes of the files, the machine it was made on
and how far its outputs are from the original's. Loaded, it is an engine like any other: it
predicts, is evaluated and served.

Files that can run code (`.pt2`) are opened only if this user has written them, or gives their hash.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, nn

from deepseek.datasets.spec import DataSpec
from deepseek.deploy.comparison import compare_outputs
from deepseek.deploy.machine import differences, fingerprint
from deepseek.deploy.runtimes import RUNTIMES, Conversion, Execution, Runtime
from deepseek.deploy.runtimes.program import open_dims
from deepseek.deploy.samples import fill_up, spec_of
from deepseek.deploy.trust import is_trusted, remember
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.lora import merge_lora
from deepseek.models.quantized import is_quantised
from deepseek.version import __version__
from deepseek.whole_file import replacing

FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 64 << 20
"""Of the JSON file: a tokenizer with its vocabulary is the largest thing in it."""


@dataclass(frozen=True)
class Artefact:
    """What is known of a converted model.

    Attributes:
        runtime: a name of `RUNTIMES`.
        execution: how it is run.
        architecture: of the original, for people.
        num_classes: outputs; `None` where it has no classes.
        spec: JSON of the data spec.
        hashes: file name -> SHA-256.
        difference: largest one from the original's outputs, as a share of the largest output;
            `None` where they were not compared.
        open_dims: dims of the inputs, `batch` and `length`, of which the program in the file takes
            any size; where it takes one sample only, the opened engine computes a batch one by one.
        machine: fingerprint of that which made it.
        measured: what `optimize` found, JSON-able.
    """

    runtime: str
    execution: Execution
    architecture: str
    num_classes: int | None
    spec: dict
    hashes: dict[str, str]
    difference: float | None
    open_dims: Sequence[str]
    machine: dict[str, str] = field(default_factory=fingerprint)
    measured: dict = field(default_factory=dict)


def convert(
    engine: ModelEngine,
    path: str | Path,
    inputs: Tensor,
    runtime: str,
    conversion: Conversion = Conversion(),  # noqa: B008  # frozen
    execution: Execution | None = None,
    *,
    compares: bool = True,
) -> Artefact:
    """Write an engine for a runtime, open it again and compare, in one atomic step.

    Args:
        engine: with its head and data spec.
        path: of the file; ends with the suffix of the runtime.
        inputs: real samples (B, ...) as the spec says, two or more.
        runtime: a name of `RUNTIMES`.
        conversion: how it is converted.
        execution: how it is run; by default in the precision of the conversion.
        compares: whether it is opened and compared; else the caller does so.

    Raises:
        ConfigError: the runtime is missing, or this model cannot be converted to it.
        CheckpointError: the file computes something else than the model.
    """
    path = Path(path)
    chosen = _checked(engine, path, inputs, runtime, conversion)
    execution = execution or Execution(precision=conversion.precision)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)  # of one that was killed: in a container all are 1
    staging.mkdir()
    try:
        draft = staging / path.name
        with evaluating(engine):
            chosen.convert(engine, inputs, draft, conversion)
            dims = open_dims(engine) if chosen.has_open_dims else ()
            difference = None
            if compares:
                opened = chosen.open(draft, execution)
                precision = conversion.precision
                if precision == "fp32" and is_quantised(engine.changes):
                    precision = "quantised"
                difference = compare_outputs(engine, opened, inputs, precision, path, dims)
                del opened
        files = chosen.files_of(draft)
        hashes = {file.name: sha256(file) for file in files}
        artefact = Artefact(
            runtime, execution, engine.architecture, engine.num_classes,
            spec_of(engine).to_json(), hashes, difference, dims,
        )  # fmt: skip
        earlier = _files_of_earlier(path)
        for file in files:
            os.replace(file, path.parent / file.name)
        describe(path, artefact)
        for name in earlier - hashes.keys():
            (path.parent / name).unlink(missing_ok=True)  # weights of a larger one, say
        if chosen.runs_code:
            remember(hashes.values())
    finally:
        shutil.rmtree(staging)
    return artefact


def describe(path: Path, artefact: Artefact) -> None:
    """Write the description beside an artefact's file."""
    content = {"format_version": FORMAT_VERSION, "library": __version__, **asdict(artefact)}
    target = description_of(path)
    with replacing(target) as draft:
        draft.write_text(json.dumps(content, indent=1, allow_nan=False))


def description_of(path: Path) -> Path:
    """Return where the description of an artefact's file is."""
    return path.with_name(path.name + ".json")


def locate(path: Path) -> Path:
    """Return the file of a model: `path`, or the best in a folder that `optimize` has written.

    Raises:
        ConfigError: it is a folder of something else.
    """
    if not path.is_dir():
        return path
    found = [each.with_suffix("") for each in path.glob("best.*.json")]
    if len(found) != 1:
        raise ConfigError(
            f"{path} is a folder in which `optimize` has left no best model",
            fix="give the file of a model, such as runs/NAME-1/model.bin",
        )
    return found[0]


def load_engine(
    path: str | Path, *, trust: str | None = None, threads: int | None = None
) -> ModelEngine:
    """Return an engine from a model file, or from the file of a runtime with its description.

    Args:
        path: `model.bin`, `model.onnx`, ..., or the folder that `optimize` has written.
        trust: SHA-256 of a file that can run code and that somebody else has written.
        threads: of one batch, in place of what the description says.

    Raises:
        CheckpointError: the file is damaged, was changed, or is not trusted.
        ConfigError: its runtime is not installed, or it is a folder of something else.
    """
    path = locate(Path(path))
    if not description_of(path).is_file():
        if path.suffix != ".bin":
            raise CheckpointError(
                f"{path} has no description beside it ({description_of(path).name})",
                fix="copy that file along, or export the model again",
            )
        return merge_lora(ModelEngine.load(path))
    artefact = read_description(path)
    runtime = _find_runtime(artefact.runtime)
    _check_files(path, artefact, runtime, trust)
    execution = artefact.execution
    if threads is not None:
        execution = Execution(threads, execution.precision)
    _warn_of_other_machine(path, artefact)
    module = runtime.open(path, execution)
    spec = DataSpec.from_json(artefact.spec)
    if "length" not in artefact.open_dims:
        module = OneLength(module, spec)
    return ModelEngine.around_program(module, artefact.architecture, artefact.num_classes, spec)


def read_description(path: Path) -> Artefact:
    """Read what is beside an artefact's file.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    source = description_of(path)
    try:
        if source.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise _damaged(source, "it is too large")
        content = json.loads(source.read_text())
        version = content.pop("format_version")
        content.pop("library")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{source} has format_version={version!r}, this library ({__version__}) reads"
                f" {FORMAT_VERSION}",
                fix="pip install --upgrade deepseek-framework, or export the model again",
            )
        if not isinstance(content["hashes"], dict):
            raise _damaged(source, "hashes is no table of files")
        return Artefact(**{**content, "execution": Execution(**content["execution"])})
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error}", fix="check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(source, str(error)) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(
    engine: ModelEngine, path: Path, inputs: Tensor, runtime: str, conversion: Conversion
) -> Runtime:
    chosen = _find_runtime(runtime)
    if conversion.precision not in chosen.precisions:
        raise ConfigError(
            f"{runtime} does not convert to precision={conversion.precision!r}",
            fix=f"choose one of: {', '.join(chosen.precisions)}",
        )
    if not path.name.endswith(chosen.suffix):
        raise ConfigError(
            f"{path.name} is no name for a file of {runtime}", fix=f"end it with {chosen.suffix}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder", fix=f"mkdir -p {path.parent}")
    if len(inputs) < 2:
        raise ConfigError(
            f"{len(inputs)} samples are too few to compare two batch sizes", fix="give two or more"
        )
    if conversion.opset is not None and chosen.suffix != ".onnx":
        raise ConfigError(
            f"opset={conversion.opset} is of ONNX, and {runtime} does not write it",
            fix="leave it out",
        )
    if engine.device.type != "cpu":
        raise ConfigError(
            f"the model is on {engine.device}, and is converted on the CPU",
            fix='move it: engine.to("cpu")',
        )
    engine.check_head()
    spec_of(engine)
    _check_replaces_own(path, chosen.files_of(path))
    return chosen


def _check_replaces_own(path: Path, files: Sequence[Path]) -> None:
    """`model.xml` comes with `model.bin`, which may be the very model that is exported."""
    own = _files_of_earlier(path)
    for file in files[1:]:
        if file.name not in own and (path.parent / file.name).exists():
            raise ConfigError(
                f"{path.name} would come with {file.name}, which is a file of something else",
                fix="give it another name, or write it to another folder",
            )


def _files_of_earlier(path: Path) -> set[str]:
    """Return the names of the files of an earlier export, as far as they are what it wrote."""
    try:
        known = read_description(path).hashes
    except CheckpointError:  # there is none, or nothing can be told from it
        return set()
    files = {path.with_name(Path(name).name): own for name, own in known.items()}
    return {file.name for file, own in files.items() if file.is_file() and sha256(file) == own}


class OneLength(nn.Module):
    """A program of one length: rows of tokens that are shorter are filled up for it.

    Args:
        program: from inputs to outputs (B, K), or (B, T, K) for T tokens.
        spec: of the model; that of anything but tokens changes nothing.
    """

    def __init__(self, program: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.program = program
        self._spec = spec

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the program, of the tokens that were given."""
        filled = fill_up(inputs, self._spec)
        outputs = self.program(filled)
        is_of_tokens = filled is not inputs and outputs.ndim == 3
        return outputs[:, : inputs.shape[1]] if is_of_tokens else outputs


def _find_runtime(name: str) -> Runtime:
    runtime = RUNTIMES.get(name)()
    if (command := runtime.find_missing()) is not None:
        raise ConfigError(f"what {name} needs is not installed", fix=command)
    return runtime


def _check_files(path: Path, artefact: Artefact, runtime: Runtime, trust: str | None) -> None:
    for file in runtime.files_of(path):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing", fix="copy it along, or export again")
        found = sha256(file)
        if artefact.hashes.get(file.name) != found:
            raise CheckpointError(
                f"{file} is not what was exported: its SHA-256 is {found}", fix="export it again"
            )
        if runtime.runs_code and found != trust and not is_trusted(found):
            raise CheckpointError(
                f"{file} can run code when it is opened, and this user has not written it",
                fix=f"export it here, or, if you trust who made it: --trust {found}",
            )


def _warn_of_other_machine(path: Path, artefact: Artefact) -> None:
    if artefact.measured and (found := differences(artefact.machine, fingerprint())):
        warnings.warn(
            f"{path.name} was chosen by measurement on another machine ({'; '.join(found)}):"
            " optimize it here again",
            stacklevel=3,
        )


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}", fix="export the model again")
