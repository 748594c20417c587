"""What it takes to work with other people's converters: silence, and their errors as ours."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from deepseek.deploy.runtimes.program import in_brief
from deepseek.deploy.runtimes.runtime import Conversion
from deepseek.errors import CheckpointError, ConfigError, DeepSeekError
from deepseek.models import ModelEngine
from deepseek.models.quantized import schemes_of


def find_missing_of(extra: str, *modules: str) -> str | None:
    """Return how to install an extra of which a module is missing, or `None`."""
    if all(importlib.util.find_spec(module) for module in modules):
        return None
    return f"pip install 'deepseek-framework[{extra}]'"


def check_calibration(conversion: Conversion) -> None:
    """Check that there is what int8 is chosen from.

    Raises:
        ConfigError: there is not.
    """
    if not conversion.calibration:
        raise ConfigError(
            f"precision={conversion.precision!r} needs calibration data, and there are none",
            fix="give batches of real samples",
        )


def check_schemes(engine: ModelEngine, runtime: str) -> None:
    """Check that a runtime which reads ONNX knows what `quantize` has made of a model.

    Raises:
        ConfigError: it does not.
    """
    if "int8_dynamic" in schemes_of(engine.changes):
        raise ConfigError(
            f"{runtime} does not know the integer product of int8_dynamic",
            fix="convert the model that it was made of, with precision='int8', or use aoti",
        )


def properties_of(engine: ModelEngine) -> dict[str, str]:
    """Return what other programs want to know: the class names, and all of the data spec."""
    if engine.spec is None:
        return {}
    content = engine.spec.to_json()
    return {"class_names": json.dumps(content["class_names"]), "data_spec": json.dumps(content)}


@contextlib.contextmanager
def converting(engine: ModelEngine, runtime: str) -> Iterator[None]:
    """Let a converter work without a word; what it cannot do is a `ConfigError`."""
    try:
        with _quiet():
            yield
    except DeepSeekError:
        raise
    except Exception as error:  # of any type: converters are foreign code
        raise ConfigError(
            f"{engine.architecture} cannot be converted for {runtime}: {in_brief(error)}",
            fix="use another runtime for this model",
        ) from error


@contextlib.contextmanager
def opening(path: Path, runtime: str) -> Iterator[None]:
    """Let a runtime open a file; what it does not take is a `CheckpointError`."""
    try:
        with _quiet():
            yield
    except DeepSeekError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be opened by {runtime}: {in_brief(error)}",
            fix="export the model again, here",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # NNCF draws bars of progress on stdout.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
