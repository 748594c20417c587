"""Training as control flow: when to step, evaluate, save and stop.

What a step is belongs to `TrainStep`, what a batch means to `Task`, what is shown to `Console` and
the loggers.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn

from deepseek.checkpoint import CheckpointStore
from deepseek.config import RunConfig, TrainerConfig, dump_config, validate_settings
from deepseek.datasets import DataLoader, ImageDataset, infer_spec
from deepseek.datasets.classes import check_same_classes
from deepseek.datasets.host_memory import release_freed_memory
from deepseek.errors import ConfigError, DeepSeekError, DivergedError
from deepseek.models import ModelEngine
from deepseek.trainer.announcement import data_line, machine_line, model_line
from deepseek.trainer.assembly import Assembly, assemble, choose_batch_size, recipe_from
from deepseek.trainer.callbacks import BestModel, Callback, EarlyStopping
from deepseek.trainer.console import Console, format_seconds
from deepseek.trainer.device import cpu_threads, resolve_device
from deepseek.trainer.evaluation import Evaluation, evaluate, evaluation_loader
from deepseek.trainer.finish import finish_run
from deepseek.trainer.history import History
from deepseek.trainer.loggers import open_loggers
from deepseek.trainer.metrics import Mean
from deepseek.trainer.optimizer import Optimizer
from deepseek.trainer.run_folder import RunFolder, describe_environment
from deepseek.trainer.signals import StopSignals
from deepseek.trainer.step import StepResult
from deepseek.trainer.task import Task, resolve_task
from deepseek.trainer.throughput import Throughput, peak_memory_bytes
from deepseek.trainer.training_state import capture, find_checkpoint, restore


class Trainer:
    """Trains a model on data and leaves a run folder.

    Args:
        model: a zoo model, a `ModelEngine`, or any `nn.Module`.
        train_data: a data set (ours or any map-style one that yields `(x, y)`), or a bound
            `DataLoader`.
        val_data: likewise; without it the last model counts as the best.
        optimizer: a name, or an `Optimizer` recipe (which then holds learning rate and decay).
        task: what a batch means; `"auto"` follows from the data.
        callbacks: observers, beside best-model and early stopping.
        resume: `True` (the newest run of this name, or `run_dir`), a run folder, or a checkpoint
            folder.
        run_dir: folder of the run; `runs/NAME-N` by default.
        name: of the run.
        run_config: the whole configuration file, stored with the run; the settings below where
            there was none.
        batch_size, epochs, ...: see `deepseek.config.TrainerConfig`, which documents each with its
        unit.

    Raises:
        ConfigError: a setting is out of range, unknown, or contradicts another.

    Example:
        ```python
        trainer = Trainer(model=model, train_data=train, val_data=val, batch_size=64, epochs=50)
        history = trainer.fit()
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        train_data,
        val_data=None,
        *,
        batch_size: int | None = None,
        epochs: int | Literal["auto"] | None = "auto",
        max_steps: int | None = None,
        optimizer: str | Optimizer = "adamw",
        lr: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        momentum: float | Literal["auto"] = "auto",
        betas: tuple[float, float] | Literal["auto"] = "auto",
        schedule: str = "cosine",
        warmup: int | float | Literal["auto"] = "auto",
        min_lr_share: float = 0.01,
        precision: str = "auto",
        grad_accum_steps: int = 1,
        clip_grad_norm: float | None = 1.0,
        label_smoothing: float = 0.0,
        channels_last: bool | Literal["auto"] = "auto",
        eval_every: int | Literal["epoch"] = "epoch",
        checkpoint_every: int | Literal["epoch"] | None = "epoch",
        keep_checkpoints: int = 2,
        log_every: int | Literal["auto"] = "auto",
        early_stopping: int | None = None,
        monitor: str = "auto",
        num_workers: int | Literal["auto"] = "auto",
        device: str = "auto",
        seed: int = 0,
        loggers: Sequence[str] = ("console", "jsonl", "tensorboard"),
        wandb_mode: str = "online",
        deterministic: bool = False,
        task: str | Task = "auto",
        callbacks: Sequence[Callback] = (),
        resume: bool | str | Path | None = None,
        run_dir: str | Path | None = None,
        name: str = "run",
        run_config: RunConfig | None = None,
    ) -> None:
        recipe = optimizer if isinstance(optimizer, Optimizer) else None
        if recipe is not None and {lr, weight_decay, momentum, betas} != {"auto"}:
            raise ConfigError(
                "lr, weight_decay, momentum or betas is set beside an Optimizer recipe, which"
                " holds them",
                fix="set them in the Optimizer, or name the optimizer as a string",
            )
        given = {key: value for key, value in locals().items() if key in TrainerConfig.model_fields}
        given["optimizer"] = recipe.algorithm if recipe else optimizer
        given["loggers"] = tuple(loggers)
        given["batch_size"] = choose_batch_size(batch_size, train_data)
        if epochs == "auto":
            given["epochs"] = TrainerConfig().epochs if max_steps is None else None
        self.config: TrainerConfig = validate_settings(TrainerConfig, given)
        self.recipe = recipe_from(self.config, recipe)
        self.model = model if isinstance(model, ModelEngine) else ModelEngine.wrap(model)
        self.train_loader = self._train_loader(train_data)
        self.val_loader = None
        if val_data is not None:
            size = self.config.batch_size // self.config.grad_accum_steps
            self.val_loader = evaluation_loader(val_data, size, self.config.num_workers)
            if isinstance(val_data, ImageDataset) and isinstance(train_data, ImageDataset):
                check_same_classes(train_data, val_data)
        self.spec = infer_spec(self.train_loader.dataset)
        self.device = resolve_device(self.config.device)
        self.task = resolve_task(task, self.spec, self.config.label_smoothing)
        self.monitor = self.config.monitor if self.config.monitor != "auto" else self.task.monitor
        # "accuracy" style names rise, losses and errors fall; a task knows its own
        self.higher_is_better = (
            self.task.higher_is_better
            if self.monitor == self.task.monitor
            else "loss" not in self.monitor
        )
        self.callbacks = self._with_own_callbacks(callbacks)
        self.step = 0
        self.stop_reason: str | None = None
        self._resume, self._run_dir, self._name, self._run_config = (
            resume,
            run_dir,
            name,
            run_config,
        )
        self.records: list[dict] = []
        self.spent_s = 0.0
        self.epoch_loss = Mean()
        self._folder: RunFolder | None = None
        self._assembly: Assembly | None = None

    def _train_loader(self, data) -> DataLoader:
        if isinstance(data, DataLoader):
            return data
        recipe = DataLoader(
            batch_size=self.config.batch_size,
            shuffle=True,
            num_workers=self.config.num_workers,
            seed=self.config.seed,
        )
        return recipe.bind(data)

    def _with_own_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        own: list[Callback] = []
        if self.val_loader is not None:
            own.append(BestModel(self.monitor, self.higher_is_better))
            if self.config.early_stopping is not None:
                own.append(
                    EarlyStopping(self.monitor, self.config.early_stopping, self.higher_is_better)
                )
        elif self.config.early_stopping is not None:
            raise ConfigError(
                f"early_stopping={self.config.early_stopping} needs validation data",
                fix="pass val_data, or remove early_stopping",
            )
        return own + list(callbacks)

    @property
    def folder(self) -> RunFolder:
        """The run folder; exists once `fit` has begun."""
        if self._folder is None:
            raise ConfigError("the run folder exists once fit() has begun", fix="call fit() first")
        return self._folder

    @property
    def assembly(self) -> Assembly:
        """The step and everything that was derived for it; built on first use."""
        if self._assembly is None:
            torch.manual_seed(
                self.config.seed
            )  # a head that is built now depends on the seed alone
            self.model.bind(self.spec)
            self._assembly = assemble(
                self.model,
                self.task,
                self.spec,
                self.recipe,
                self.config,
                len(self.train_loader),
                self.device,
            )
        return self._assembly

    def request_stop(self, reason: str) -> None:
        """Ask the run to end after the current step; the first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def fit(self) -> History:
        """Train to the end, a stop or a signal, and return the history.

        Raises:
            DivergedError: the loss is not finite.
            PreemptedError: SIGTERM or SIGUSR1; the state was saved.
            KeyboardInterrupt: SIGINT; the state was saved.
            DataError: a sample cannot be read.
        """
        if self.config.deterministic:
            torch.use_deterministic_algorithms(True)
        assembly = self.assembly
        resumed = self._open_folder()
        self._console = Console(self.folder.log, "console" in self.config.loggers)
        settings = self.config.model_dump(mode="json")
        self._loggers = open_loggers(
            self.config.loggers, self.folder, self.config.wandb_mode, settings
        )
        run = str(self.folder.path)
        self._console.line(
            machine_line(self.device, assembly.cpu_threads, run, self.config.seed, resumed)
        )
        self._console.line(model_line(self.model, assembly, self.device))
        self._console.line(data_line(self.train_loader, self.val_loader, self.spec))
        self.model.train()
        self._began = perf_counter()
        self._began_step = self.step
        self._window, self._epoch_window = Throughput(), Throughput()
        status = "failed"
        try:
            self._emit("on_fit_begin")
            with cpu_threads(assembly.cpu_threads), StopSignals() as signals:
                self._loop(assembly, signals)
            status = "finished" if self.stop_reason is None else f"stopped: {self.stop_reason}"
            return self._finish(status)
        except (DeepSeekError, KeyboardInterrupt) as error:
            status = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.folder.add_event("error", step=self.step, message=status)
            self.folder.write_json("summary.json", {"status": status, "step": self.step})
            raise
        finally:
            for logger in self._loggers:
                logger.close()
            release_freed_memory()

    def _loop(self, assembly: Assembly, signals: StopSignals) -> None:
        batches = iter(self.train_loader)
        steps_per_epoch = len(self.train_loader)
        while self.step < assembly.max_steps and self.stop_reason is None:
            asked = perf_counter()
            batch = next(batches, None)
            if batch is None:
                batches = iter(self.train_loader)
                batch = next(batches)
            waited = perf_counter() - asked
            wants_log = (self.step + 1) % assembly.log_every == 0
            result = assembly.step(batch, self.step, wants_grad_norm=wants_log)
            self.step += 1
            self._after_step(result, waited, wants_log)
            ends_epoch = self.step % steps_per_epoch == 0 or self.step == assembly.max_steps
            evaluated = self._evaluate_if_due(ends_epoch)
            if ends_epoch:
                self._end_epoch(evaluated)
            saves = _due(self.step, self.config.checkpoint_every, ends_epoch)
            if saves or signals.received is not None:
                saved = self.save()
                signals.raise_received(f"step {self.step} is saved in {saved}")

    def _after_step(self, result: StepResult, waited: float, wants_log: bool) -> None:
        self.epoch_loss.update(result.loss_sum, result.num_items)
        self._last = result
        for window in (self._window, self._epoch_window):
            window.num_samples += result.num_items
            window.wait_s += waited
        # Reading the loss is free on a CPU; elsewhere it waits for the device, so only when
        # something is logged.
        if wants_log or self.device.type == "cpu":
            self._check_finite(result)
        if wants_log:
            self._log_step(result)
        if self.callbacks:
            self._emit("on_step_end", result)
        if self._console.wants_progress():
            self._show_progress(result)

    def _check_finite(self, result: StepResult) -> None:
        loss = float(result.loss_sum)
        if not math.isfinite(loss):
            raise DivergedError(
                f"loss={loss} at step {self.step}: training diverged (lr={result.lr:.3g})",
                fix="lower lr, lengthen warmup, or look for outliers in the data",
            )

    def _log_step(self, result: StepResult) -> None:
        record = {
            "kind": "train",
            "step": self.step,
            "epoch": self.step / len(self.train_loader),
            "loss": float(result.loss_sum) / result.num_items,
            "lr": result.lr,
            **({"grad_norm": float(result.grad_norm)} if result.grad_norm is not None else {}),
            **self._window.record(),
            "memory_bytes": peak_memory_bytes(self.device),
            "time_s": self.time_s(),
        }
        self._window.reset()
        self._log(record)

    def _log(self, record: dict) -> None:
        for logger in self._loggers:
            logger.log(record)

    def time_s(self) -> float:
        """Return seconds spent in this run, over all its resumes."""
        return self.spent_s + perf_counter() - self._began

    def _eta_s(self) -> float:
        done = max(1, self.step - self._began_step)
        return (perf_counter() - self._began) / done * (self.assembly.max_steps - self.step)

    def _show_progress(self, result: StepResult) -> None:
        steps_per_epoch = len(self.train_loader)
        epoch = (self.step - 1) // steps_per_epoch + 1
        speed = self._epoch_window.record()
        loss = float(result.loss_sum) / result.num_items
        tail = (
            f"loss {loss:.4f}  {speed['images_per_s']:,.0f} img/s"
            f"  data {100 * speed['data_wait_share']:.0f}%"
            f"  total eta {format_seconds(self._eta_s())}"
        )
        done = self.step - (epoch - 1) * steps_per_epoch
        self._console.progress(f"{epoch}/{self.assembly.num_epochs}", done, steps_per_epoch, tail)

    def _evaluate_if_due(self, ends_epoch: bool) -> dict[str, float]:
        if self.val_loader is None or not _due(self.step, self.config.eval_every, ends_epoch):
            return {}
        began = perf_counter()
        metrics = {f"val_{name}": value for name, value in self.evaluate().items()}
        self._emit("on_eval_end", metrics)
        if not ends_epoch:
            self._log({"kind": "eval", "step": self.step, **metrics, "time_s": self.time_s()})
        self._pause(began)
        return metrics

    def _pause(self, began: float) -> None:
        for window in (self._window, self._epoch_window):
            window.paused_s += perf_counter() - began

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        last = self._last
        record = {
            "kind": "epoch",
            "epoch": math.ceil(self.step / len(self.train_loader)),
            "step": self.step,
            "loss": self.epoch_loss.compute(),
            **metrics,
            "lr": last.lr,
            **self._epoch_window.record(),
            "memory_bytes": peak_memory_bytes(self.device),
            **({"grad_norm": float(last.grad_norm)} if last.grad_norm is not None else {}),
            "time_s": self.time_s(),
            "epoch_s": perf_counter() - self._epoch_window.begin,
            "eta_s": self._eta_s(),
        }
        self._check_finite(last)
        self.records.append({key: value for key, value in record.items() if key != "kind"})
        best = next((c for c in self.callbacks if isinstance(c, BestModel)), None)
        is_best = best is not None and best.best_step == self.step
        self._console.epoch(record, self.assembly.num_epochs, self.monitor, is_best)
        self._log(record)
        self._emit("on_epoch_end", record)
        self.epoch_loss = Mean()
        self._epoch_window.reset()

    def _emit(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def _open_folder(self) -> str:
        """Make or find the run folder; return what the first line says of a resume."""
        if not self._resume:
            self._folder = RunFolder.create(self._name, self._run_dir)
            self._write_config()
            environment = describe_environment(self.config.seed, self.device)
            self.folder.write_json("environment.json", environment)
            torch.manual_seed(self.config.seed)
            return ""
        self._folder = RunFolder.find(self._name, self._run_dir, self._resume)
        restore(self, find_checkpoint(self._store, self._resume))
        self.folder.rewind_metrics(self.step)
        self._write_config()  # a resumed run may have been given more epochs
        self.folder.add_event("resume", step=self.step)
        return f"resumed at step {self.step} (verified)"

    def _write_config(self) -> None:
        """Write every setting as YAML: the whole file where there was one."""
        if self._run_config is not None:
            text = dump_config(self._run_config)
        else:  # JSON is YAML, and has no surprises
            text = json.dumps({"trainer": self.config.model_dump(mode="json")}, indent=1) + "\n"
        (self.folder.path / "config.yaml").write_text(text, encoding="utf-8")

    @property
    def _store(self) -> CheckpointStore:
        return CheckpointStore(self.folder.checkpoints, self.config.keep_checkpoints)

    def save(self) -> Path:
        """Write a checkpoint of everything that training depends on, and return its folder.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are intact.
        """
        began = perf_counter()
        path = self._store.save(capture(self))
        self.folder.add_event("save", step=self.step, seconds=round(perf_counter() - began, 3))
        self._pause(began)
        return path

    def evaluate(self, data=None) -> dict[str, float]:
        """Return the metrics of the model as it is now, on `data` or the validation data.

        Raises:
            ConfigError: there is no data.
        """
        return self._evaluation(data, keeps_samples=False).metrics

    def predict(self, data) -> dict[str, Tensor]:
        """Return what the task predicts for every sample of a data set, on the host.

        Classification: `probs` (N, C), `targets` (N,), `loss` (N,), `index` (N,).
        """
        return self._evaluation(data, keeps_samples=True).samples

    def _evaluation(self, data, keeps_samples: bool) -> Evaluation:
        loader = self.val_loader
        if data is not None:
            loader = evaluation_loader(data, self.config.batch_size, self.config.num_workers)
        if loader is None:
            raise ConfigError(
                "nothing to evaluate on", fix="pass val_data to Trainer, or data here"
            )
        assembly = self.assembly
        return evaluate(
            self.model,
            loader,
            self.task,
            assembly.precision,
            self.device,
            assembly.channels_last,
            keeps_samples,
        )

    def _finish(self, status: str) -> History:
        best = next((c for c in self.callbacks if isinstance(c, BestModel)), None)
        if best is None or best.best_step is None:
            self.model.save(self.folder.model)
        self._emit("on_fit_end")
        for logger in self._loggers:
            logger.close()
        history = History(
            self.records, self.folder.path, self.monitor, self.higher_is_better, status
        )
        summary = {
            "status": status,
            "step": self.step,
            "monitor": self.monitor,
            "last": self.records[-1] if self.records else {},
            "best": history.best,
            "time_s": self.time_s(),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "predicted_memory_bytes": self.assembly.predicted_memory_bytes,
        }
        finish_run(self, summary, best.best_step if best else None, self._console)
        return history


def _due(step: int, every: int | Literal["epoch"] | None, ends_epoch: bool) -> bool:
    if every is None:
        return False
    return ends_epoch if every == "epoch" else step % every == 0
