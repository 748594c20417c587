"""Bootstrap of a worker: `python -m deepseek.launch.worker PROGRAM...`, started by torchrun.

PROGRAM is `train model_config.yaml ...` (a deepseek command), `script.py ...` or `-m module ...`.
Before it runs, the worker is tied to the life of its agent, an earlier attempt is looked up, and
the environment gets its defaults. Nothing here imports torch: the variables are read when it is.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from deepseek.errors import DeepSeekError
from deepseek.launch.environment import LAUNCH_DIR, recorder_defaults, thread_default
from deepseek.launch.exit_report import find_user_error, read_reports, write_report
from deepseek.launch.process import AGENT_PID, register_worker
from deepseek.launch.tied import watch_parent

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    folder = os.environ.get(LAUNCH_DIR)
    launch_dir = Path(folder) if folder else None
    die_with_agent(launch_dir)
    if launch_dir is None:
        run_program(arguments)
        return
    leave_if_refused(launch_dir)
    set_defaults(launch_dir)
    register_worker(launch_dir)
    code = 1  # an exception of which Python will print the traceback
    try:
        run_program(arguments)
        code = 0
    except SystemExit as error:
        code = _code_of(error)
        raise
    except DeepSeekError as error:
        code = error.exit_code
        if os.environ.get("DEEPSEEK_DEBUG") == "1":
            raise
        # a script of the user: told as the command line tells it, not as a traceback of ours
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(code)
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        write_report(launch_dir, code)


def die_with_agent(launch_dir: Path | None) -> None:
    """Have the kernel kill this process when its parent dies, also by SIGKILL.

    Otherwise a worker, which torchrun puts into a session of its own, trains on unsupervised.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        watch_parent(parent, signal.SIGKILL)
    # The parent may have died before the call; then no signal comes any more.
    if os.getppid() != parent or _is_orphan(launch_dir, parent):
        os._exit(128 + signal.SIGKILL)


def _is_orphan(launch_dir: Path | None, parent: int) -> bool:
    if launch_dir is None:
        return False
    try:
        return int((launch_dir / AGENT_PID).read_text()) != parent
    except (OSError, ValueError):
        return False


def leave_if_refused(launch_dir: Path) -> None:
    """Exit at once where an earlier attempt ended in a user error: it would end so again.

    The first attempt has printed the error; torchrun counts this as one more failed attempt.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    found = find_user_error(read_reports(launch_dir))
    if found is not None and found.attempt < attempt:
        sys.exit(found.code)


def set_defaults(launch_dir: Path) -> None:
    """Set the variables that torch reads when it is imported, unless the user has."""
    nproc = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for name, value in {**thread_default(nproc), **recorder_defaults(launch_dir)}.items():
        os.environ.setdefault(name, value)


def run_program(arguments: list[str]) -> None:
    """Run a script, a module or a deepseek command as `__main__`.

    The command line is run by its name: it is a higher layer than this one.
    """
    program = arguments[0]
    if program == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif program.endswith(".py"):
        sys.argv = arguments
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.argv = ["deepseek", *arguments]
        runpy.run_module("deepseek.cli.main", run_name="__main__", alter_sys=True)


def _code_of(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


if __name__ == "__main__":
    main()
