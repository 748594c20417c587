"""Training as control flow: when to step, evaluate, save and stop.

What a step is belongs to `TrainStep`, what a batch means to `Task`, what is shown to `Console` and
the loggers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Unpack

import torch
from torch import Tensor, nn

from deepseek.config import RunConfig, TrainerConfig, TrainerSettings
from deepseek.datasets import DataLoader, infer_spec
from deepseek.datasets.classes import check_same_data
from deepseek.datasets.host_memory import release_freed_memory
from deepseek.errors import ConfigError, DivergedError
from deepseek.models import ModelEngine
from deepseek.models.device import resolve_device
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.tensor import explain_mixture
from deepseek.parallel.world import World, processes
from deepseek.trainer.agreement import agree_if_asked, agree_to_stop, stop_check
from deepseek.trainer.assembly import Assembly, adapt, assemble, recipe_from
from deepseek.trainer.auto_parallel import choose_parallel
from deepseek.trainer.averaging import AverageBest
from deepseek.trainer.bad_steps import BadSteps
from deepseek.trainer.budget_trial import keep_to_budget
from deepseek.trainer.callbacks import BestModel, Callback, EarlyStopping
from deepseek.trainer.device import cpu_threads, grow_segments
from deepseek.trainer.evaluation import evaluation_loader, keep_min_score
from deepseek.trainer.evaluation_pass import Evaluation, count_parts, evaluate
from deepseek.trainer.finish import finish_run, note_failure
from deepseek.trainer.footprint import Footprint, announce_footprint, check_footprint
from deepseek.trainer.held_bytes import held_bytes
from deepseek.trainer.history import History
from deepseek.trainer.model_saving import save_model
from deepseek.trainer.multi_task import resolve_run_task
from deepseek.trainer.notices import note_halved, watch_graph
from deepseek.trainer.opening import begin_records, open_folder, refuse_second
from deepseek.trainer.optimizer import Optimizer
from deepseek.trainer.planning import check_evaluation, configure, plan_run
from deepseek.trainer.probe import probe
from deepseek.trainer.profiler import Profiler
from deepseek.trainer.progress import RunProgress, due
from deepseek.trainer.recorder import Recorder
from deepseek.trainer.run_folder import RUNS, RunFolder
from deepseek.trainer.run_length import begin_length
from deepseek.trainer.saving import Saving
from deepseek.trainer.signals import StopRequested, StopSignals
from deepseek.trainer.step_values import StepResult
from deepseek.trainer.task import Batch, Task
from deepseek.trainer.walked_peak import mirror_whole


class Trainer:
    """Trains a model on data and leaves a run folder.

    Args:
        model: a zoo model, a `ModelEngine`, or any `nn.Module`.
        train_data: a data set (ours or any map-style one that yields `(x, y)`), or a bound
            `DataLoader`.
        val_data: likewise; without it the last model counts as the best.
        task: what a batch means; `"auto"` follows from the data.
        callbacks: observers, beside best-model and early stopping.
        resume: `True` (the newest run of this name, or `run_dir`), a run folder, or a checkpoint
            folder.
        run_dir: folder of the run; `OUTPUT/NAME-N` by default.
        output: where numbered run folders are made.
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
        task: str | Task = "auto",
        callbacks: Sequence[Callback] = (),
        resume: bool | str | Path | None = None,
        run_dir: str | Path | None = None,
        output: str | Path = RUNS,
        name: str = "run",
        run_config: RunConfig | None = None,
        optimizer: str | Optimizer = "adamw",
        **settings: Unpack[TrainerSettings],
    ) -> None:
        recipe = optimizer if isinstance(optimizer, Optimizer) else None
        self.config: TrainerConfig = configure(settings, optimizer, train_data)
        self.recipe = recipe_from(self.config, recipe)
        self.model = model if isinstance(model, ModelEngine) else ModelEngine.wrap(model)
        self.train_loader = self._train_loader(train_data)
        self.spec = infer_spec(self.train_loader.dataset)
        grow_segments(self.config.expandable_segments)
        self.device = resolve_device(self.config.device, processes()[1] > 1)
        varies = self.train_loader.varies_in_length
        self.config, self.plan_reason = choose_parallel(
            self.config, self.model, self.spec, self.device, varies_in_length=varies
        )
        self.plan = plan_run(self.config, self.model, self.spec, varies_in_length=varies)
        self.val_loader = None
        if val_data is not None:
            self.val_loader = self._evaluation_loader(val_data)
            check_same_data(self.train_loader, self.val_loader)
        self.task = resolve_run_task(task, self.spec, self.config, self.model.module)
        self.monitor = self.config.monitor if self.config.monitor != "auto" else self.task.monitor
        # "accuracy" style names rise, losses and perplexities fall; a task knows its own
        self.higher_is_better = (
            self.task.higher_is_better
            if self.monitor == self.task.monitor
            else not any(word in self.monitor for word in ("loss", "perplexity"))
            and {"mae", "mse", "rmse", "error"}.isdisjoint(self.monitor.split("_"))
        )
        self.callbacks = self._with_own_callbacks(callbacks)
        self.progress = RunProgress()
        self.recorder = Recorder(self.train_loader, self.device, self.monitor)
        self.stop_reason: str | None = None
        self.bad_steps = BadSteps(self.config.on_bad_step, self.config.max_bad_steps)
        self._resume = resume
        self._run_dir = None if run_dir is None else Path(run_dir)
        self._output = Path(output)
        self.name, self.run_config = name, run_config
        self.footprint: Footprint | None = None
        self.mirrored: ModelEngine | None = None  # the whole model's shapes, while it is divided
        self.checks_memory_at: int | None = None
        self.wish: str | None = None  # of this rank; the reason is what all agree on
        self._folder: RunFolder | None = None
        self._world: World | None = None
        self._assembly: Assembly | None = None
        self._saving: Saving | None = None

    def _evaluation_loader(self, data) -> DataLoader:
        """Return a loader whose batches are a full micro-batch for each rank."""
        plan = self.plan
        per_rank = plan.micro_batch_size * (plan.num_micro_batches if plan.pp > 1 else 1)
        count = per_rank * plan.num_shares
        loader = evaluation_loader(data, count, self.config.num_workers, plan.num_shares)
        check_evaluation(plan, loader)
        return loader

    def _train_loader(self, data) -> DataLoader:
        if isinstance(data, DataLoader):
            return data
        recipe = DataLoader(
            batch_size=self.config.batch_size,
            shuffle=True,
            num_workers=self.config.num_workers,
            seed=self.config.seed,
            batch_size_ramp=self.config.batch_size_ramp,
            worker_timeout_s=self.config.worker_timeout_s,
        )
        return recipe.bind(data)

    def _with_own_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        own: list[Callback] = []
        if self.val_loader is not None:
            best = BestModel(self.monitor, self.higher_is_better)
            own.append(best)
            if self.config.average_best is not None:
                own.append(AverageBest(self.config.average_best, best))
            if self.config.early_stopping is not None:
                own.append(
                    EarlyStopping(self.monitor, self.config.early_stopping, self.higher_is_better)
                )
            return own + list(callbacks)
        for name in ("early_stopping", "average_best"):
            if (value := getattr(self.config, name)) is not None:
                raise ConfigError(
                    f"{name}={value} needs validation data", fix=f"pass val_data, or remove {name}"
                )
        return own + list(callbacks)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @property
    def folder(self) -> RunFolder:
        """The run folder; exists once `fit` has begun."""
        if self._folder is None:
            raise ConfigError("the run folder exists once fit() has begun", fix="call fit() first")
        return self._folder

    @folder.setter
    def folder(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def world(self) -> World:
        """The processes of the run; they meet at the first use."""
        if self._world is None:
            self._world = World(self.plan, self.device)
            for loader in (self.train_loader, self.val_loader):
                if loader is not None and self._world.is_distributed:
                    loader.take_share(*self._world.share)
        return self._world

    @property
    def saving(self) -> Saving:
        """The checkpoints of the run; they exist once `fit` has begun."""
        if self._saving is None:
            self._saving = Saving(self)
        return self._saving

    @property
    def assembly(self) -> Assembly:
        """The step and everything that was derived for it; built on first use."""
        if self._assembly is None:
            world = self.world
            # a head that is built now depends on the seed alone
            torch.manual_seed(self.config.seed)
            self.model.bind(self.spec)
            self.mirrored = mirror_whole(self)
            adapt(self.model, self.config, self.plan)
            self._assembly = assemble(
                self.model, self.task, self.spec, self.recipe, self.config, self.train_loader,
                world,
            )  # fmt: skip
            self._assembly.step.on_halved = partial(note_halved, self)
            watch_graph(self, self._assembly.step.graph)
        return self._assembly

    def forget_world(self) -> None:
        """Meet other processes, and build the step anew, at the next use."""
        self._world = self._assembly = None

    @property
    def trained(self) -> ParallelModel:
        """What is evaluated and saved: the moving average of the weights where there is one."""
        step = self.assembly.step
        if step.ema is None:
            return step.parallel
        step.ema.follow_buffers()
        return step.ema.average

    def save_model(self, path: Path | None = None) -> None:
        """Write the model as it is now to the run's `model.bin`; every rank calls it.

        Args:
            path: of another file.

        Raises:
            OSError: the disk is full, or forbids it.
        """
        save_model(self.trained, path or self.folder.model)

    def request_stop(self, reason: str) -> None:
        """Ask the run to end after the current step; the first reason counts.

        On several ranks they agree first: the run may take one more step.
        """
        self.wish = self.wish or reason
        if not self.world.is_distributed:
            self.stop_reason = self.wish

    def fit(self) -> History:
        """Train to the end, a stop or a signal, and return the history.

        Raises:
            DivergedError: a step is bad, and the policy is to abort.
            PreemptedError: SIGTERM or SIGUSR1; the state was saved.
            KeyboardInterrupt: SIGINT; the state was saved.
            DataError: a sample cannot be read.
            ConfigError: it was called before.
        """
        refuse_second(self._folder)
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
            torch.use_deterministic_algorithms(True)
        assembly = self.assembly
        resumed = open_folder(self, self._resume, self._run_dir, self._output)
        begin_records(self, assembly, resumed)
        self.world.begin_watch(self.folder.path / "hang", self._note_hang)
        self.model.train()
        if self.config.profile:
            assembly.step.clock = Profiler(
                self.folder.path / "profile", self.device, lambda: held_bytes(self)
            )
        model_graph, self.model.graph = self.model.graph, "dynamic"  # the whole step is captured
        try:
            self._emit("on_fit_begin")
            leave = self.saving.save_to_leave
            signals = StopSignals(leave, is_alone=not self.world.is_distributed)
            with cpu_threads(assembly.cpu_threads), signals:
                try:
                    if self.config.grad_accum_steps == "auto" and not resumed:
                        probe(self)
                    keep_to_budget(self)
                    announce_footprint(self)
                    self._loop(assembly, signals)
                    self.world.mark("the end of the run")
                    return finish_run(self, signals)
                except StopRequested:
                    signals.leave_if_asked()
                    raise
        except BaseException as error:
            if not isinstance(error, DivergedError):  # that all raise, and finish what is written
                self.saving.give_up()
            explained = None
            if isinstance(error, RuntimeError):
                explained = self.world.explain_loss(error) or explain_mixture(self.model, error)
            note_failure(self, explained or error)
            if explained is not None:
                raise explained from error
            raise
        finally:
            self.world.end_watch()
            self.saving.close()
            self.recorder.close()
            for loader in (self.train_loader, self.val_loader):
                if loader is not None:
                    loader.close()
            self._saving = None
            self.model.graph = model_graph
            release_freed_memory()

    def _note_hang(self, text: str) -> None:
        self.folder.add_event("hang", step=self.step, message=text)

    # -- the loop ----------------------------------------------------------------------------

    def _loop(self, assembly: Assembly, signals: StopSignals) -> None:
        step, progress, length = assembly.step, self.progress, assembly.length
        begin_length(self)
        self._complete(assembly, signals)  # what was due after the last step of a resumed run
        batches: Iterator[Batch] = iter(())
        while not length.is_over(progress.step) and self.stop_reason is None:
            signals.leave_if_asked()
            step.boundary.open(is_step=True)
            asked = perf_counter()
            self.world.mark("the data of the next batch", progress.step)
            with step.clock.phase("data"):
                while (batch := next(batches, None)) is None:
                    batches = iter(self.train_loader)
                if assembly.sequence_ramp is not None:
                    batch = step.shorten(batch, assembly.sequence_ramp.value(progress.step))
            waited_s = perf_counter() - asked
            self.world.mark("forward and backward passes")
            # a state that is saved must not lie between two updates of a backward pass
            with signals.commit() if step.in_backward is not None else nullcontext():
                num_samples = self.train_loader.batch_samples if self.world.is_distributed else None
                lr = assembly.schedule.lr(progress.step, length.share)
                measured = step.compute(
                    batch, signals.check, num_samples, lr,
                    lambda: self.wish is not None or signals.is_pending,
                )  # fmt: skip
                self.world.mark("update and records")
                with signals.commit():
                    replayed = self.bad_steps.replayed(progress.step)
                    with step.clock.phase("optimizer"):
                        result = step.update(batch, measured, progress.step, replayed, lr)
                    step.boundary.close()
                    progress.step += 1
                    length.share = measured.time_share
                    progress.is_complete = False
                    with step.clock.phase("logging"):
                        self._after_step(assembly, result, waited_s)
                    step.clock.end_step()
            if result.wants_stop and self.world.is_distributed:
                agree_to_stop(self, signals)
            self._complete(assembly, signals)

    def _after_step(self, assembly: Assembly, result: StepResult, waited_s: float) -> None:
        self.recorder.add_step(result, waited_s)
        self.progress.num_bad_in_a_row += 1
        if result.bad is not None:
            self.bad_steps.handle(self, result.bad, self.step - 1)
        else:
            self.progress.num_bad_in_a_row = 0
            if self.step % assembly.log_every == 0:
                self.recorder.log_step(self.step, result)
        if self.callbacks:
            self._emit("on_step_end", result)
        self.recorder.show_progress(self.step, result)
        if self.step == self.checks_memory_at:
            check_footprint(self)

    def _complete(self, assembly: Assembly, signals: StopSignals) -> None:
        """Do what is due after a step: evaluate, end the epoch, save."""
        if self.progress.is_complete:
            return
        loader, config = self.train_loader, self.config
        ends_epoch = loader.position >= loader.num_samples or assembly.length.is_over(self.step)
        evaluates = self.val_loader is not None and (
            due(self.step, config.eval_every, ends_epoch) or assembly.length.is_out_of_time
        )
        metrics: dict[str, float] = {}
        if evaluates:
            began = perf_counter()
            assembly.step.boundary.open(is_step=False)
            found = self._evaluation(
                None, keeps_samples=False, check=stop_check(self, signals)
            ).metrics
            keep_min_score(self.task, found, self.trained.engine)
            metrics = {f"val_{name}": value for name, value in found.items()}
            self.recorder.pause(began)
            assembly.length.note("evaluation", perf_counter() - began)
        with signals.commit():
            if evaluates:
                self._emit("on_eval_end", metrics)
                if not ends_epoch:
                    self.recorder.log_evaluation(self.step, metrics)
            if ends_epoch:
                is_best = any(
                    isinstance(c, BestModel) and c.best_step == self.step for c in self.callbacks
                )
                record = self.recorder.end_epoch(self.step, metrics, is_best)
                self._emit("on_epoch_end", record)
            assembly.step.boundary.close()
            self.progress.is_complete = True
            if ends_epoch:
                agree_if_asked(self, signals)
            if due(self.step, config.checkpoint_every, ends_epoch):
                self.world.mark("a checkpoint")
                if (bad := self.saving.find_bad()) is not None:
                    self.progress.num_bad_in_a_row += 1
                    self.bad_steps.handle(self, bad, self.step - 1)
                self.saving.save_in_background(metrics)

    def warn(self, message: str) -> None:
        """Say what went wrong, on the console and in `events.jsonl`; training goes on."""
        self.folder.add_event("warning", step=self.step, message=message)
        self.recorder.console.line(f"warning: {message}")

    def _emit(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def save(self) -> Path:
        """Write a checkpoint of everything that training depends on, and return its folder.

        Raises:
            CheckpointError: it could not be written, or the weights are not finite; earlier
                checkpoints are intact.
        """
        return self.saving.save()

    # -- evaluation --------------------------------------------------------------------------

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

    def _evaluation(
        self,
        data,
        keeps_samples: bool,
        check: Callable[[], None] = lambda: None,
        parallel: ParallelModel | None = None,
    ) -> Evaluation:
        loader = self.val_loader
        if data is not None:
            loader = self._evaluation_loader(data)
            if self.world.is_distributed:
                loader.take_share(*self.world.share)
        if loader is None:
            raise ConfigError(
                "nothing to evaluate on", fix="pass val_data to Trainer, or data here"
            )
        # the same draws in every evaluation, as in that of a run that resumes
        loader.load_state_dict({"epoch": 0, "position": 0})
        assembly = self.assembly
        return evaluate(
            self.trained if parallel is None else parallel, loader, self.task, assembly.precision,
            assembly.channels_last, keeps_samples, check,
            num_parts=count_parts(assembly.step, loader.batch_size),
        )  # fmt: skip
