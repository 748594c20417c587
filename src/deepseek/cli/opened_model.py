"""The model that a command names: a model file, or the file of a runtime, on its device."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deepseek.models import ModelEngine


class OpenedModel(NamedTuple):
    """A model and how it computes.

    Attributes:
        engine: on its device.
        context: in which it computes, such as autocast.
        path: of its file.
        is_program: whether that is of a runtime, with a device and precision of its own.
    """

    engine: "ModelEngine"
    context: Callable[[], AbstractContextManager]
    path: Path
    is_program: bool


def open_model(
    path: Path, device: str, precision: str, threads: int | None = None, trust: str | None = None
) -> OpenedModel:
    """Open the model of a command.

    Args:
        path: of the file, or of the folder that `optimize` has written.
        device: `auto`, `cpu`, `cuda:1`; the file of a runtime computes on the CPU.
        precision: of a model file; the file of a runtime has its own.
        threads: of a batch on the CPU; all cores by default.
        trust: SHA-256 of a file that can run code, and may.

    Raises:
        ConfigError: the device or precision cannot be used; or the file has one of its own.
    """
    import torch

    from deepseek.deploy.artefact import description_of, load_engine, locate
    from deepseek.errors import ConfigError
    from deepseek.models.device import resolve_device
    from deepseek.trainer.evaluation import precision_of
    from deepseek.trainer.precision import DTYPES, resolve_precision

    if threads is not None:
        torch.set_num_threads(threads)
    path = locate(path)
    engine = load_engine(path, trust=trust, threads=threads)
    if description_of(path).is_file():
        for name, value in (("device", device), ("precision", precision)):
            if value not in ("auto", "cpu", "fp32"):
                raise ConfigError(
                    f"{name}={value} would be ignored: {path} was converted for one",
                    fix=f"leave --{name} out, or give the model file",
                )
        return OpenedModel(engine, nullcontext, path, is_program=True)
    if precision not in ("auto", *DTYPES):
        raise ConfigError(f"precision={precision!r} is not known", fix="fp32, bf16, fp16 or auto")
    where = resolve_device(device)
    engine.to(where)
    context = resolve_precision(precision_of(engine, precision), where).autocast
    return OpenedModel(engine, context, path, is_program=False)
