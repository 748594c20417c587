"""Where progress is written besides the console: JSON lines, TensorBoard, Weights & Biases."""

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path

from deepseek.errors import ConfigError
from deepseek.registry import Registry, import_extra
from deepseek.trainer.run_folder import RunFolder


class Logger(ABC):
    """Takes the records of `metrics.jsonl` as they come."""

    @abstractmethod
    def log(self, record: dict) -> None:
        """Write one record; `record["kind"]` is `train` or `epoch`."""

    @abstractmethod
    def close(self) -> None:
        """Flush and release what is held."""


class JsonlLogger(Logger):
    """`metrics.jsonl` in the run folder, a line per record, flushed at once."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.metrics.open("a", encoding="utf-8")

    def log(self, record: dict) -> None:
        """Append a line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLogger(Logger):
    """Event files in `RUN/tensorboard`, written by TensorBoard's own background thread.

    `torch.utils.tensorboard` would import tensorflow's stubs for seconds; the event writer under
    it is all we need.
    """

    def __init__(self, folder: RunFolder) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        path = folder.path / "tensorboard"
        path.mkdir(exist_ok=True)
        self._writer = EventFileWriter(str(path))

    def log(self, record: dict) -> None:
        """Write every number of the record as a scalar `KIND/NAME`."""
        import time

        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [
            Summary.Value(tag=f"{record['kind']}/{name}", simple_value=float(value))
            for name, value in record.items()
            if name not in ("kind", "step")
        ]
        summary = Summary(value=values)
        self._writer.add_event(Event(wall_time=time.time(), step=record["step"], summary=summary))

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._writer.close()


class WandbLogger(Logger):
    """Weights & Biases, online or offline (`wandb sync` sends an offline run later).

    Raises:
        MissingExtraError: the extra `wandb` is not installed.
    """

    def __init__(self, folder: RunFolder, mode: str, config: dict) -> None:
        wandb = import_extra("wandb", "wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run = wandb.init(
            project="deepseek",
            name=folder.path.name,
            # the same id on every resume: the run goes on instead of forking
            id=_wandb_id(folder.path),
            resume="allow",
            dir=str(folder.path),
            mode=mode,
            config=config,
        )

    def log(self, record: dict) -> None:
        """Send one record at its step."""
        values = {
            f"{record['kind']}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step")
        }
        self._run.log(values, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    path = folder / "wandb_id.txt"
    if not path.exists():
        path.write_text(os.urandom(4).hex())
    return path.read_text().strip()


LOGGERS: Registry = Registry(
    "logger",
    {
        "tensorboard": "deepseek.trainer.loggers:TensorBoardLogger",
        "jsonl": "deepseek.trainer.loggers:JsonlLogger",
    },
)


def open_loggers(
    names: tuple[str, ...], folder: RunFolder, wandb_mode: str, config: dict
) -> list[Logger]:
    """Open the loggers by name; `console` is the console's own, `jsonl` is always there.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = [name for name in names if name not in LOGGERS and name not in ("console", "wandb")]
    if unknown:
        known = ["console", "wandb", *LOGGERS.names()]
        raise ConfigError(f"unknown logger {unknown[0]!r}", fix=f"choose from: {', '.join(known)}")
    opened: list[Logger] = []
    for name in dict.fromkeys(("jsonl", *names)):
        if name == "wandb":
            opened.append(WandbLogger(folder, wandb_mode, config))
        elif name != "console":
            opened.append(LOGGERS.get(name)(folder))
    return opened
