"""`deepseek lr-range`: which learning rates a model learns at."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson
from deepseek.cli.train import split_arguments


def lr_range(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="Configuration (model_config.yaml) and settings to change.",
        ),
    ] = None,
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-7,
    max_lr: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(min=10, help="Optimizer steps.")] = 100,
    plot: Annotated[Path, typer.Option(help="Where the picture is written.")] = Path(
        "lr_range.svg"
    ),
    as_json: AsJson = False,
) -> None:
    """Raise the learning rate step by step, and draw what the loss does."""
    path, overrides = split_arguments(arguments or [])
    from deepseek.cli.build_run import build_trainer
    from deepseek.cli.model_args import check_args
    from deepseek.cli.model_output import check_output_file
    from deepseek.config import read_config
    from deepseek.trainer import lr_range_test

    check_output_file(plot)
    config = read_config(path, overrides, check_args=check_args).config
    trainer = build_trainer(config, run_dir=Path("unused"), resume=None)
    found = lr_range_test(trainer, min_lr, max_lr, steps)
    found.plot(plot)
    if as_json:
        print(json.dumps({**vars(found), "plot": str(plot)}))
        return
    stride = max(1, len(found.lrs) // 12)
    print("        lr     loss")
    for lr, loss in list(zip(found.lrs, found.smoothed, strict=True))[::stride]:
        print(f"{lr:10.1e} {loss:8.4f}")
    lr = f"{found.suggestion:.1e}"
    print(f"the loss falls fastest at lr {lr}: try trainer.lr={lr}")
    print(f"  {plot}")
