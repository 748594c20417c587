"""Where progress is written besides the console: JSON lines, TensorBoard, Weights & Biases."""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Full, Queue
from threading import Thread
from typing import Any

from deepseek.errors import ConfigError
from deepseek.registry import Registry, import_extra
from deepseek.trainer.run_folder import RunFolder

MAX_QUEUED = 10_000
CLOSE_S = 5.0


class Logger(ABC):
    """Takes the records of `metrics.jsonl` as they come."""

    @abstractmethod
    def log(self, record: dict) -> None:
        """Write one record; `record["kind"]` is `train`, `eval` or `epoch`."""

    @abstractmethod
    def close(self) -> None:
        """Flush and release what is held."""


class JsonlLogger(Logger):
    """`metrics.jsonl` in the run folder, a line per record, written at once.

    What does not fit onto a full disk is written as soon as there is room.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.metrics.open("ab", buffering=0)
        self._unwritten = b""

    def log(self, record: dict) -> None:
        """Append a line."""
        self._unwritten += json.dumps(record).encode() + b"\n"
        with suppress(OSError):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BackgroundLogger(Logger):
    """Another logger in a thread of its own: slow, unreachable or broken, it costs no step.

    Args:
        name: of the logger, for warnings.
        open_logger: makes it; called in the thread, as that alone may take a minute.
        warn: called by `log` and `close` with what went wrong.
    """

    def __init__(
        self, name: str, open_logger: Callable[[], Logger], warn: Callable[[str], None]
    ) -> None:
        self._name = name
        self._open = open_logger
        self._warn = warn
        self._records: Queue[dict | None] = Queue(MAX_QUEUED)
        self._problems: Queue[str] = Queue()
        self._num_dropped = 0
        self._is_closed = False
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def log(self, record: dict) -> None:
        """Hand a record to the thread; with `MAX_QUEUED` waiting it is dropped and counted."""
        try:
            self._records.put_nowait(record)
        except Full:
            self._num_dropped += 1
        self._tell()

    def close(self) -> None:
        """Let the thread finish, for `CLOSE_S` at the most."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(Full):
            self._records.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._num_dropped += max(
                0, self._records.qsize() - 1
            )  # the last says that there are no more
            self._problems.put(f"does not answer for {CLOSE_S:.0f} s")
        if self._num_dropped:
            self._problems.put(f"{self._num_dropped} records were not sent")
        self._tell()

    def _tell(self) -> None:
        while not self._problems.empty():
            text = f"logger {self._name}: {self._problems.get()}; metrics.jsonl has every record"
            self._warn(text)

    def _work(self) -> None:
        logger: Logger | None = None
        try:
            logger = self._open()
            while (record := self._records.get()) is not None:
                logger.log(record)
            logger.close()
        # a logger may do anything, and training must not end for it
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            self._problems.put(f"{type(error).__name__}: {first}")
            while self._records.get() is not None:
                pass


class TensorBoardLogger(Logger):
    """Event files in `RUN/tensorboard`, written by TensorBoard's own background thread.

    `torch.utils.tensorboard` would import tensorflow's stubs for seconds; the event writer under
    it is all we need.
    """

    def __init__(self, folder: RunFolder, step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        path = folder.path / "tensorboard"
        path.mkdir(exist_ok=True)
        self._writer = EventFileWriter(str(path))
        if step:  # what a killed run wrote beyond its last checkpoint is taken back
            make: Any = event_pb2  # protobuf makes its classes at run time
            log = make.SessionLog(status=make.SessionLog.START)
            event = make.Event(wall_time=time.time(), step=step + 1, session_log=log)
            self._writer.add_event(event)

    def log(self, record: dict) -> None:
        """Write every number of the record as a scalar `KIND/NAME`."""
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

    _NAME = "wandb.json"

    def __init__(self, folder: RunFolder, mode: str, config: dict) -> None:
        wandb = import_extra("wandb", "wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        self._folder = folder
        path = folder.path / self._NAME
        # the same id on every resume: the run goes on instead of forking
        self._sent = {"id": os.urandom(4).hex(), "step": 0}
        if path.exists():
            self._sent = json.loads(path.read_text())
        settings = {
            "project": "deepseek",
            "name": folder.path.name,
            "id": self._sent["id"],
            "resume": "allow",
            "dir": str(folder.path),
            "config": config,
        }
        try:
            self._run = wandb.init(**settings, mode=mode)
        except wandb.errors.CommError:
            self._run = wandb.init(**settings, mode="offline")

    def log(self, record: dict) -> None:
        """Send one record at its step; those sent before a resume are not sent again."""
        if record["step"] < self._sent["step"]:
            return
        values = {
            f"{record['kind']}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step")
        }
        self._run.log(values, step=record["step"])
        self._sent["step"] = record["step"]
        self._folder.write_json(self._NAME, self._sent)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


LOGGERS: Registry = Registry(
    "logger",
    {
        "tensorboard": "deepseek.trainer.loggers:TensorBoardLogger",
        "jsonl": "deepseek.trainer.loggers:JsonlLogger",
    },
)


def open_loggers(
    names: tuple[str, ...],
    folder: RunFolder,
    wandb_mode: str,
    config: dict,
    step: int,
    warn: Callable[[str], None],
) -> list[Logger]:
    """Open the loggers by name; `console` is the console's own, `jsonl` is always there.

    Args:
        names: `jsonl`, `tensorboard`, `wandb`, or registered ones.
        folder: of the run.
        wandb_mode: `online` or `offline`.
        config: settings of the run.
        step: where a resumed run goes on.
        warn: told what goes wrong with a logger.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: `wandb` is not installed.
    """
    unknown = [name for name in names if name not in LOGGERS and name not in ("console", "wandb")]
    if unknown:
        known = ["console", "wandb", *LOGGERS.names()]
        raise ConfigError(f"unknown logger {unknown[0]!r}", fix=f"choose from: {', '.join(known)}")
    opened: list[Logger] = []
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, step),
        "wandb": lambda: WandbLogger(folder, wandb_mode, config),
    }
    for name in dict.fromkeys(("jsonl", *names)):
        if name == "jsonl":
            opened.append(JsonlLogger(folder))
        elif name != "console":
            if name == "wandb":
                import_extra("wandb", "wandb")
            maker = makers.get(name) or partial(LOGGERS.get(name), folder)
            opened.append(BackgroundLogger(name, maker, warn))
    return opened
