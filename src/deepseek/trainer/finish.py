"""The end of a run: evaluation of the best model, summary, and what is drawn of it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from deepseek.registry import Registry
from deepseek.trainer.console import format_seconds
from deepseek.trainer.evaluation import write_evaluation

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

# Named, not imported: the layer above draws, and plug-ins may add to it.
RUN_OUTPUTS: Registry = Registry("run output", {"report": "deepseek.deploy.report:write_report"})


def finish_run(
    trainer: "Trainer", summary: dict, best_step: int | None, check: Callable[[], None]
) -> None:
    """Write `evaluation/`, `summary.json` and every run output; one that fails is reported."""
    folder, console = trainer.folder, trainer.recorder.console
    try:
        if trainer.val_loader is not None:
            _evaluate_best(trainer, best_step, check)
        folder.write_json("summary.json", summary)
    except (OSError, SafetensorError) as error:  # a full disk: the model is trained
        trainer.warn(f"evaluation and summary could not be written: {error}")
    folder.add_event("finish", step=trainer.step, status=summary["status"])
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
    engine = trainer.trained_model
    if best_step not in (None, trainer.step):
        engine = copy.deepcopy(engine)
        engine.module.load_state_dict(load_file(trainer.folder.model), strict=False)
    evaluation = trainer._evaluation(None, keeps_samples=True, check=check, engine=engine)
    data = trainer.val_loader.dataset if trainer.val_loader is not None else None
    step = trainer.step if best_step is None else best_step
    write_evaluation(trainer.folder, evaluation, step, trainer.spec.class_names, data)
