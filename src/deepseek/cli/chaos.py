"""`deepseek chaos`: kill, corrupt, poison and starve runs of a configuration."""

import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson
from deepseek.cli.train import split_arguments


def chaos(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="Configuration (model_config.yaml) and settings to change.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Faults of each kind.")] = 5,
    steps: Annotated[int, typer.Option(min=3, help="Optimizer steps of each run.")] = 12,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Only these kinds of faults.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random moments and places.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Inject faults into short runs of a configuration, and say what they came to."""
    path, overrides = split_arguments(arguments or [])
    from deepseek.cli.trial_run import trial_factory
    from deepseek.errors import ConfigError
    from deepseek.registry import did_you_mean
    from deepseek.trainer.chaos.checks import CHECKS, Bench

    chosen = only.split(",") if only else list(CHECKS)
    for name in chosen:
        if name not in CHECKS:
            raise ConfigError(f"--only={name} is no kind of fault", fix=did_you_mean(name, CHECKS))
    factory = trial_factory(path, overrides, steps)
    results = {}
    with tempfile.TemporaryDirectory(prefix="chaos_", dir=Path.cwd()) as folder:
        bench = Bench(factory, Path(folder), trials, seed)
        if not as_json:
            print(f"a run of {bench.expected.step} steps takes {bench.whole_s:.1f} s", flush=True)
        for name in chosen:
            began = perf_counter()
            result = results[name] = CHECKS[name](bench)
            if as_json:
                continue
            count = result.skipped or f"{result.num_passed} of {result.num_trials} passed"
            means = (CHECKS[name].__doc__ or "").splitlines()[0]
            print(f"{name:<14} {count:<20} {perf_counter() - began:6.1f} s  {means}", flush=True)
            for failure in result.failures:
                print(f"    {failure}", flush=True)
    if as_json:
        print(json.dumps({name: vars(result) for name, result in results.items()}))
    failed = any(result.num_passed < result.num_trials for result in results.values())
    raise typer.Exit(1 if failed else 0)
