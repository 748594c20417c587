"""The end of a run: evaluation of the best model, summary, and what is drawn of it."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from deepseek.errors import PreemptedError
from deepseek.registry import Registry
from deepseek.trainer.averaging import AverageBest, weights_of
from deepseek.trainer.callbacks import BestModel
from deepseek.trainer.console import format_seconds
from deepseek.trainer.evaluation import write_evaluation
from deepseek.trainer.history import History
from deepseek.trainer.signals import StopSignals
from deepseek.trainer.throughput import peak_memory_bytes

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

# Named, not imported: the layer above draws, and plug-ins may add to it.
RUN_OUTPUTS: Registry = Registry("run output", {"report": "deepseek.deploy.report:write_report"})


def finish_run(trainer: "Trainer", signals: StopSignals) -> History:
    """Save the last state, evaluate the best model, and draw the report."""
    if trainer.config.checkpoint_every is not None:
        with signals.commit():
            trainer.saving.save_to_leave()
    graph, console = trainer.assembly.step.graph, trainer.recorder.console
    if graph.is_static:
        console.line(f"graph  {graph.describe()}")
    for line in trainer.assembly.step.clock.close():
        console.line(line)
    best = next((c for c in trainer.callbacks if isinstance(c, BestModel)), None)
    best_step = best.best_step if best is not None else None
    if best_step is None:
        _save_last_model(trainer)
    trainer._emit("on_fit_end")
    trainer.recorder.close()
    status = "finished" if trainer.stop_reason is None else f"stopped: {trainer.stop_reason}"
    records = trainer.recorder.records
    history = History(
        records, trainer.folder.path, trainer.monitor, trainer.higher_is_better, status
    )
    summary = {
        "status": status,
        "step": trainer.step,
        "monitor": trainer.monitor,
        "last": records[-1] if records else {},
        "best": history.best,
        "time_s": trainer.recorder.time_s(),
        "time_budget_s": trainer.assembly.length.budget_s,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "predicted_memory_bytes": trainer.footprint.peak if trainer.footprint else None,
        "graph": graph.summary() if graph.is_static else None,
    }
    _write_outputs(trainer, summary, best_step, signals.check)
    return history


def note_failure(trainer: "Trainer", error: BaseException) -> None:
    """Write into the run folder what ended the run."""
    message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    trainer.folder.add_event("error", step=trainer.step, message=message)
    with suppress(OSError):
        trainer.folder.write_json("summary.json", {"status": message, "step": trainer.step})


def _save_last_model(trainer: "Trainer") -> None:
    path = trainer.folder.model
    try:
        trainer.save_model()
    except OSError as error:
        raise PreemptedError(
            f"the run is trained, but {path} could not be written: {error}",
            fix="free disk space, then `deepseek train --resume`, or Trainer(..., resume=True)",
        ) from error


def _write_outputs(
    trainer: "Trainer", summary: dict, best_step: int | None, check: Callable[[], None]
) -> None:
    """Write `evaluation/`, `summary.json` and every run output; one that fails is reported."""
    folder, console = trainer.folder, trainer.recorder.console
    try:
        if trainer.val_loader is not None:
            _evaluate_best(trainer, best_step, check)
        summary["time_s"] = trainer.recorder.time_s()
        folder.write_json("summary.json", summary)
    except (OSError, SafetensorError) as error:  # a full disk: the model is trained
        trainer.warn(f"evaluation and summary could not be written: {error}")
    folder.add_event("finish", step=trainer.step, status=summary["status"])
    if not trainer.world.is_main:
        return
    trainer.world.end_watch()
    written: list[Path] = [folder.model]
    for name in RUN_OUTPUTS.names():
        try:
            written.append(Path(RUN_OUTPUTS.get(name)(folder.path)))
        except (
            Exception
        ) as error:  # the model is trained and saved: a drawing must not lose the exit code
            folder.add_event("warning", message=f"output {name!r} failed: {error}")
            console.line(f"warning: output {name!r} failed: {error}")
    best, monitor = summary["best"], summary["monitor"]
    shown = (
        f"  best {monitor} {best[monitor]:.4f} (epoch {best['epoch']})" if monitor in best else ""
    )
    console.line(f"{summary['status']} after {format_seconds(summary['time_s'])}{shown}")
    for path in written:
        console.line(f"  {path}")


def _evaluate_best(trainer: "Trainer", best_step: int | None, check: Callable[[], None]) -> None:
    """Evaluate the weights of `model.bin`; those of the trainer stay."""
    parallel = trainer.trained
    with ExitStack() as stack:
        is_average = any(isinstance(c, AverageBest) and c.is_used for c in trainer.callbacks)
        if is_average or best_step not in (None, trainer.step):
            stack.enter_context(weights_of(parallel, trainer.folder.model))
        evaluation = trainer._evaluation(None, keeps_samples=True, check=check, parallel=parallel)
    if not trainer.world.is_main:
        return
    trainer.world.end_watch()  # nobody is waited for any more
    data = trainer.val_loader.dataset if trainer.val_loader is not None else None
    step = trainer.step if best_step is None else best_step
    write_evaluation(trainer.folder, evaluation, step, trainer.spec.class_names, data)
