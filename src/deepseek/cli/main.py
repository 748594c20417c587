"""The `deepseek` command.

Each command is a file of its own and imports what is heavy inside its function: `deepseek --help`
imports neither torch nor pydantic. Exit codes are those of `deepseek.errors`, 130 after Ctrl-C and
143 after SIGTERM.
"""

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli import (
    bench,
    calibrate,
    chaos,
    config,
    convert,
    doctor,
    evaluate,
    explain,
    export,
    features,
    finance,
    generate,
    init,
    launch,
    lr_range,
    online,
    optimize,
    plan,
    predict,
    prune,
    quantize,
    report,
    reproduce,
    runs,
    serve,
    train,
    verify_resume,
)
from deepseek.cli.installation import require_own_package
from deepseek.errors import DeepSeekError
from deepseek.version import __version__

app = typer.Typer(
    name="deepseek",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train any PyTorch model, on a laptop or on a cluster, and take it into production.",
    epilog="First steps:  deepseek init digits  and then  deepseek train",
)
app.command("init")(init.init)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("features")(features.features)
app.command("quantize")(quantize.quantize)
app.command("generate")(generate.generate)
app.command("prune")(prune.prune)
app.command("serve")(serve.serve)
app.command("explain")(explain.explain)
app.command("calibrate")(calibrate.calibrate)
app.command("report")(report.report)
app.command("optimize")(optimize.optimize)
app.command("lr-range")(lr_range.lr_range)
app.command("verify-resume")(verify_resume.verify_resume)
app.command("chaos")(chaos.chaos)
app.command("launch", context_settings=launch.CONTEXT_SETTINGS)(launch.launch)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(online.app, name="online")
app.add_typer(runs.app, name="runs")
app.add_typer(config.app, name="config")
app.add_typer(finance.app, name="finance")


@app.command("version")
def version() -> None:
    """Print the version."""
    print(f"deepseek {__version__}")


def _print_version(value: bool) -> None:
    if value:
        version()
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version  # the callback has printed it


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if os.environ.get("DEEPSEEK_DEBUG") != "1":
        _show_own_warnings_as_lines()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    signal.signal(signal.SIGTERM, _exit_143)
    try:
        require_own_package()
        code = app(args=train.with_resume_value(arguments), standalone_mode=True)
        return code or 0
    except SystemExit as error:
        interrupt = find_interrupt(error)
        if interrupt is not None:
            print(f"interrupted: {interrupt}" if interrupt.args else "interrupted", file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except DeepSeekError as error:
        if os.environ.get("DEEPSEEK_DEBUG") == "1":
            raise
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone (`deepseek runs | head`): not an error, nothing to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def find_interrupt(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt behind an exit, which typer keeps to itself; it says what is saved."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause


def _show_own_warnings_as_lines() -> None:
    """Print a warning of this library as a line, once; those of others as Python does."""
    own, as_python_does = str(Path(__file__).parents[1]), warnings.showwarning
    printed: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if not filename.startswith(own) or not issubclass(category, UserWarning):
            as_python_does(message, category, filename, lineno, file, line)
        elif (text := str(message)) not in printed:
            printed.add(text)
            print(f"warning: {text}", file=file or sys.stderr)

    warnings.showwarning = show


def print_error(error: DeepSeekError) -> None:
    """Print `error` to stderr, without a traceback."""
    kind = type(error).__name__
    head = "" if kind == "ConfigFileError" else f"{kind}: "
    print(f"{head}{error}", file=sys.stderr)


def _exit_143(signum: int, frame: object) -> None:
    del signum, frame
    raise SystemExit(143)


if __name__ == "__main__":
    main()
