"""`deepseek verify-resume`: is a killed and resumed run of this configuration exact?"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson
from deepseek.cli.train import split_arguments


def verify_resume(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="Configuration (model_config.yaml) and settings to change.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of each run.")] = 30,
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs at random moments.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train, kill, resume, and compare bit for bit with a run that was left alone."""
    path, overrides = split_arguments(arguments or [])
    from deepseek.cli.trial_run import trial_factory
    from deepseek.trainer import chaos

    factory = trial_factory(path, overrides, steps)
    say = (lambda text: None) if as_json else (lambda text: print(text, flush=True))
    with tempfile.TemporaryDirectory(prefix="verify_resume_", dir=Path.cwd()) as folder:
        verdict = chaos.verify_resume(factory, Path(folder), num_kills=kills, seed=seed, say=say)
    if as_json:
        print(json.dumps(vars(verdict) | {"is_exact": verdict.is_exact}))
    elif verdict.is_exact:
        number = f"{verdict.num_kills} kill{'' if verdict.num_kills == 1 else 's'}"
        print(
            f"exact: weights, optimizer, random states and metrics of {verdict.num_steps} steps are"
            f" the same, bit for bit, after {number}"
        )
    else:
        print("not exact: " + "; ".join(verdict.problems))
        if not verdict.is_reproducible:
            print(
                "Two undisturbed runs differ as well: the model or the data draw numbers that no"
                " seed decides, or a kernel is not deterministic.\n"
                "  Fix: set trainer.deterministic=true, and draw from torch, numpy or random only"
            )
    raise typer.Exit(0 if verdict.is_exact else 1)
