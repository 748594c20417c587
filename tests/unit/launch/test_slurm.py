"""The batch script: what it asks for, and what it does among stand-ins for Slurm's tools."""

import os
import signal
import subprocess
import time

import pytest

from deepseek.errors import ConfigError
from deepseek.launch.job import Job
from deepseek.launch.slurm import SlurmOptions, batch_script

SCONTROL = """\
if [ "$1" = show ]; then printf '%s\\n' node7 node8 node9; else echo "$@" >> "$CALLS"; fi
"""
SRUN = """\
printf '%s\\n' "$@" > "$CALLS.srun"
printf '%s' "${SRUN_CPUS_PER_TASK-unset}" > "$CALLS.cpus"
trap 'exit "$ON_USR1"' USR1
trap 'exit 143' TERM
touch "$CALLS.started"
if [ -n "$ON_USR1" ]; then sleep 30 & wait; fi
exit "$CODE"
"""


def job(**settings):
    defaults = {"nproc": 8, "min_nodes": 3, "max_nodes": 3, "max_restarts": 3, "is_placed": True}
    return Job(("train", "my cfg.yaml", "a=$b"), **{**defaults, **settings})


@pytest.fixture
def slurm(tmp_path):
    """Return a function that starts a script where `srun` and `scontrol` are stand-ins."""
    for name, body in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)

    def start(script, **environment):
        return subprocess.Popen(
            ["bash", "-c", script],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"),
                 "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-9]",
                 "SLURM_JOB_NUM_NODES": "3", "CODE": "0", "ON_USR1": "", **environment},
        )  # fmt: skip

    return start


def srun_words(tmp_path):
    return (tmp_path / "calls.srun").read_text().splitlines()


def test_directives_are_what_was_asked_for():
    options = SlurmOptions("bert", "gpu", "team", "2-00:00:00", gpus=8, cpus=32, warning_s=300)
    asked = [line for line in batch_script(job(), options).splitlines() if "#SBATCH" in line]
    assert {line.removeprefix("#SBATCH ") for line in asked} == {
        "--job-name=bert", "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=8",
        "--cpus-per-task=32", "--partition=gpu", "--account=team", "--time=2-00:00:00",
        "--output=%x-%j.out", "--open-mode=append", "--signal=B:USR1@300", "--requeue",
    }  # fmt: skip


def test_nothing_is_asked_for_that_was_not_given():
    script = batch_script(job(), SlurmOptions())
    assert not any(name in script for name in ("--partition", "--account", "--time=", "--gpus"))


def test_one_launcher_a_node_meets_at_the_first_host(slurm, tmp_path):
    assert slurm(batch_script(job(), SlurmOptions())).wait(20) == 0
    words = srun_words(tmp_path)
    assert words[1:3] == ["deepseek", "launch"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500"
    assert words[words.index("--rdzv-id") + 1] == "slurm-42"
    assert words[words.index("--nnodes") + 1] == "3"
    assert words[-3:] == ["train", "my cfg.yaml", "a=$b"]


@pytest.mark.parametrize(
    ("environment", "cpus"), [({"SLURM_CPUS_PER_TASK": "64"}, "64"), ({}, "unset")]
)
def test_the_step_gets_the_cores_of_the_job(slurm, tmp_path, environment, cpus):
    assert slurm(batch_script(job(), SlurmOptions()), **environment).wait(20) == 0
    assert (tmp_path / "calls.cpus").read_text() == cpus


def test_elastic_job_outlives_nodes_and_names_every_host_as_a_candidate(slurm, tmp_path):
    script = batch_script(job(min_nodes=1), SlurmOptions())
    assert "#SBATCH --nodes=1-3\n" in script
    assert "#SBATCH --no-kill\n" in script
    assert slurm(script).wait(20) == 0
    words = srun_words(tmp_path)
    assert "--supervise" in words
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500,node8:29500,node9:29500"
    assert words[words.index("--nnodes") + 1] == "1:3"


@pytest.mark.parametrize("code", [0, 2, 75])
def test_exit_code_comes_back_and_saved_runs_are_queued_again(slurm, tmp_path, code):
    assert slurm(batch_script(job(), SlurmOptions()), CODE=str(code)).wait(20) == code
    requeued = (tmp_path / "calls").exists()
    assert requeued == (code == 75)


def test_warning_goes_on_to_the_launchers_and_the_job_is_queued_again(slurm, tmp_path):
    process = slurm(batch_script(job(), SlurmOptions()), ON_USR1="75")
    deadline = time.monotonic() + 20
    while not (tmp_path / "calls.started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 75
    assert (tmp_path / "calls").read_text() == "requeue 42\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a b"}, "--name=a b"),
        ({"partition": "x;rm"}, "--partition=x;rm"),
        ({"account": "$(id)"}, "--account="),
        ({"time": "tomorrow"}, "--time=tomorrow is not"),
    ],
)
def test_values_that_do_not_belong_into_a_script_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        batch_script(job(), SlurmOptions(**options))
    assert words in str(caught.value)
