"""A batch script that runs a job on Slurm: one launcher on each node.

Slurm warns the script before the time is up; it passes the warning on, the run saves and ends with
75, and the script puts the job into the queue again. The id of a Slurm job stays, and with it the
run that is gone on with.
"""

import re
import shlex
from dataclasses import dataclass

from deepseek.errors import ConfigError
from deepseek.launch.endpoint import DEFAULT_PORT
from deepseek.launch.job import Job

TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")
SAVED = 75


@dataclass(frozen=True)
class SlurmOptions:
    """What Slurm is asked for.

    Args:
        name: of the job in the queue.
        partition, account: as the cluster calls them; its own defaults where `None`.
        time: limit, such as 12:00:00 or 2-00:00:00.
        gpus: of each node.
        cpus: of each node.
        warning_s: time between the warning and the end; saving has to fit into it.
    """

    name: str = "deepseek"
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: int = 0
    cpus: int | None = None
    warning_s: int = 120


def batch_script(job: Job, options: SlurmOptions) -> str:
    """Return the script for `sbatch`.

    Raises:
        ConfigError: for a value that Slurm would not take.
    """
    check_options(options)
    lines = ["#!/bin/bash", *(f"#SBATCH {entry}" for entry in _directives(job, options)), ""]
    return "\n".join([*lines, *_body(job)]) + "\n"


def check_options(options: SlurmOptions) -> None:
    """Refuse values that are not what they should be: they stand in a script.

    Raises:
        ConfigError: with every problem at once.
    """
    problems = [
        f"--{option}={value} is not a name of letters, digits, '.', '_', ',' and '-'"
        for option, value in (
            ("name", options.name),
            ("partition", options.partition),
            ("account", options.account),
        )
        if value is not None and not WORD.fullmatch(value)
    ]
    if options.time is not None and not TIME.fullmatch(options.time):
        problems.append(f"--time={options.time} is not MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    if problems:
        raise ConfigError("\n".join(problems), fix="change these options")


def _directives(job: Job, options: SlurmOptions) -> list[str]:
    elastic = job.min_nodes != job.max_nodes
    settings = {
        "job-name": options.name,
        "nodes": f"{job.min_nodes}-{job.max_nodes}" if elastic else job.max_nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": options.gpus or None,
        "cpus-per-task": options.cpus,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "output": "%x-%j.out",
        "open-mode": "append",
        # to the script alone: the step gets it from there, as one signal to each launcher
        "signal": f"B:USR1@{options.warning_s}",
    }
    lines = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return [*lines, "--requeue", *(["--no-kill"] if elastic else [])]


def _body(job: Job) -> list[str]:
    elastic = job.min_nodes != job.max_nodes
    hosts = 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
    if elastic:
        meeting = f"$({hosts} | sed 's/$/:{DEFAULT_PORT}/' | paste -s -d ,)"
        nodes = f'"{job.min_nodes}:$SLURM_JOB_NUM_NODES"'
    else:
        meeting, nodes = f"$({hosts} | head -n 1):{DEFAULT_PORT}", str(job.max_nodes)
    options = ["--nproc", str(job.nproc), "--nnodes", nodes]
    options += ["--rdzv-endpoint", '"$meeting"', "--rdzv-id", '"slurm-$SLURM_JOB_ID"']
    options += ["--supervise"] if elastic or job.supervised else []
    options += ["--max-restarts", str(job.max_restarts), "--timeout-s", str(job.timeout_s)]
    options += ["--grace-s", str(job.grace_s)]
    if job.rendezvous:
        conf = ",".join(f"{key}={value}" for key, value in job.rendezvous.items())
        options += ["--rdzv-conf", shlex.quote(conf)]
    keep = "0" if elastic else "1"
    return [
        f"meeting={meeting}",
        "# since 22.05 srun does not take this over from the job: the step would get one core",
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "step= early=",
        "# srun passes a signal on to the launchers; one that comes before it is kept",
        *(
            f'trap \'early={name}; [ -z "$step" ] || kill -{name} "$step"\' {name}'
            for name in ("USR1", "TERM")
        ),
        f"srun --kill-on-bad-exit={keep} deepseek launch {' '.join(options)} \\",
        f"  {shlex.join(job.program)} &",
        "step=$!",
        '[ -z "$early" ] || kill -"$early" "$step"',
        'wait "$step"; code=$?',
        "# a signal ends `wait`, not the step; 127: there is nothing left to wait for",
        'while [ "$code" -gt 128 ]; do',
        '  wait "$step"; again=$?; [ "$again" -ne 127 ] || break',
        '  [ "$again" -ne "$code" ] || kill -0 "$step" 2>/dev/null || break',
        "  code=$again",
        "done",
        f'if [ "$code" -eq {SAVED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
