import pytest

from deepseek.doctor.job import read_job

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
LIMITS = {
    "/proc/self/cgroup": "0::/\n",
    "/sys/fs/cgroup/memory.max": str(64 * 2**30),
    "/sys/fs/cgroup/cpu.max": "400000 100000",
}
CARDS = {"/dev/nvidia0": "", "/dev/nvidia1": ""}
JOB = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("cluster.scheduler", {}, "ok", "by hand, plain machine, 1 machine(s)"),
        ("cluster.scheduler", {"env": POD}, "ok", "by kubernetes"),
        ("cluster.scheduler", {"env": {**JOB, "SLURM_NNODES": "4"}}, "ok", "by slurm"),
        ("kubernetes.limits", {}, None, ""),
        ("kubernetes.limits", {"env": POD, "files": LIMITS}, "ok", "64 GiB and 4 CPUs"),
        ("kubernetes.limits", {"env": POD}, "warning", "evicted first"),
        ("kubernetes.limits", {"env": POD, "files": LIMITS | CARDS}, "warning", "starves them"),
        ("kubernetes.grace_period", {"env": POD}, "note", "default is 30 s"),
        (
            "kubernetes.grace_period",
            {"env": {**POD, "TERMINATION_GRACE_PERIOD_SECONDS": "300"}},
            "ok",
            "300 s",
        ),
        (
            "kubernetes.grace_period",
            {"env": {**POD, "TERMINATION_GRACE_PERIOD_SECONDS": "30"}},
            "warning",
            "too short",
        ),
        (
            "kubernetes.grace_period",
            {"env": {**POD, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}},
            "ok",
            "120 s",
        ),
        ("slurm.cpus", {}, None, ""),
        ("slurm.cpus", {"env": JOB}, "warning", "1 CPU per task"),
        ("slurm.cpus", {"env": {**JOB, "SLURM_CPUS_PER_TASK": "12"}}, "ok", "12 CPUs"),
        ("slurm.tasks", {"env": JOB}, "ok", "1 task(s)"),
        (
            "slurm.tasks",
            {"env": {**JOB, "SLURM_NTASKS_PER_NODE": "3", "SLURM_GPUS_ON_NODE": "8"}},
            "warning",
            "3 tasks per machine, 8 card(s)",
        ),
        ("slurm.signal", {"env": JOB}, None, ""),
        (
            "slurm.signal",
            {"env": {**JOB, "SLURM_JOB_END_TIME": "4000000600"}},
            "note",
            "the job ends in 10 min",
        ),
    ],
)
def test_verdict_on_the_cluster(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


@pytest.mark.parametrize(
    ("env", "hosts"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 2),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({**JOB, "SLURM_NNODES": "4"}, 4),
        ({"PET_NNODES": "1:3"}, 3),
    ],
)
def test_number_of_machines_is_read_from_the_environment(describe, env, hosts):
    assert read_job(describe(env=env)).num_hosts == hosts
