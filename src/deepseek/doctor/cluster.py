"""What Slurm and Kubernetes give a job, and what they take away."""

from deepseek.doctor.control_group import cpu_limit, memory_limit_bytes
from deepseek.doctor.finding import Findings, check, note, ok, warning
from deepseek.doctor.graphics_cards import count_cards, count_present, given_by_slurm
from deepseek.doctor.job import number, read_job
from deepseek.doctor.machine import Machine
from deepseek.doctor.memory import gib

GRACE_VARIABLES = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TERMINATION_GRACE_PERIOD_SECONDS")
"""What `deepseek launch` gives its workers, and what a manifest may set."""
MIN_GRACE_S = 60
"""The state of a large model is written in about a minute."""
POD_CPUS_PER_CARD = 4


@check(
    "cluster.scheduler",
    asks="who started this process",
    mend="start it with deepseek launch, torchrun, sbatch or a Kubernetes job",
)
def check_scheduler(machine: Machine) -> Findings:
    """Slurm, Kubernetes, a container or a plain machine."""
    job = read_job(machine)
    where = machine.inside() or "plain machine"
    value = {"scheduler": job.scheduler, "inside": where, "hosts": job.num_hosts}
    started = "by hand" if job.scheduler == "none" else f"by {job.scheduler}"
    yield ok(f"started {started}, {where}, {job.num_hosts} machine(s)", value)


@check(
    "kubernetes.limits",
    asks="the pod has limits of memory, and enough CPUs for its cards",
    mend="set resources: requests and limits of memory to the same value, of cpu to 4 per GPU",
)
def check_pod_limits(machine: Machine) -> Findings:
    """A pod without limits is the first to be evicted; one with few CPUs starves its cards."""
    if machine.inside() != "kubernetes":
        return
    memory, cpus = memory_limit_bytes(machine), cpu_limit(machine)
    cards = count_cards(machine)
    value = {"memory_bytes": memory, "cpus": cpus, "cards": cards}
    if memory is None:
        yield warning("the pod has no limit of memory: it is evicted first", value)
    elif cpus is not None and cards and cpus < POD_CPUS_PER_CARD * cards:
        yield warning(f"{cpus:g} CPUs for {cards} card(s): the loader starves them", value)
    else:
        shown = "no limit of CPUs" if cpus is None else f"{cpus:g} CPUs"
        yield ok(f"the pod has {gib(memory)} and {shown}", value)


@check(
    "kubernetes.grace_period",
    asks="the pod has time to save when it is stopped",
    mend="set terminationGracePeriodSeconds: 300, and tell it by the variable"
    " TERMINATION_GRACE_PERIOD_SECONDS",
)
def check_grace_period(machine: Machine) -> Findings:
    """A pod cannot see its grace period; only a variable tells it."""
    if machine.inside() != "kubernetes":
        return
    name = next((name for name in GRACE_VARIABLES if name in machine.env), None)
    seconds = number(machine.env[name]) if name else None
    if seconds is None:
        what = "the grace period is not known here; Kubernetes' default is 30 s"
        yield note(what, None, mend=check_grace_period.mend)
    elif seconds < MIN_GRACE_S:
        yield warning(f"{name}={seconds}: too short to save a large model", seconds)
    else:
        yield ok(f"{seconds} s to save in", seconds)


@check(
    "slurm.cpus",
    asks="each task has the CPUs that its loader and its threads need",
    mend="#SBATCH --cpus-per-task=8, and export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
)
def check_slurm_cpus(machine: Machine) -> Findings:
    """Without `--cpus-per-task` a task has one CPU."""
    if "SLURM_JOB_ID" not in machine.env:
        return
    cpus = number(machine.env.get("SLURM_CPUS_PER_TASK"))
    if cpus is None or cpus < 2:
        yield warning(f"{cpus or 1} CPU per task: loader workers and threads share it", cpus)
    else:
        yield ok(f"{cpus} CPUs per task", cpus)


@check(
    "slurm.tasks",
    asks="Slurm starts one torchrun per machine, or one task per card",
    mend="#SBATCH --ntasks-per-node=1 with torchrun, or --ntasks-per-node=CARDS without it",
)
def check_slurm_tasks(machine: Machine) -> Findings:
    """Tasks per machine against its cards."""
    env = machine.env
    if "SLURM_JOB_ID" not in env:
        return
    tasks = number((env.get("SLURM_NTASKS_PER_NODE") or "").partition("(")[0])
    given = given_by_slurm(machine)
    cards = count_cards(machine) if given is None else given
    value = {"tasks_per_node": tasks, "cards": cards}
    if tasks and tasks > 1 and cards and tasks != cards:
        yield warning(f"{tasks} tasks per machine, {cards} card(s)", value)
    elif given == 0 and count_present(machine):
        yield warning("the job asked for no card", value, mend="#SBATCH --gpus-per-node=CARDS")
    else:
        yield ok(f"{tasks or 1} task(s) per machine, {cards} card(s)", value)


@check(
    "slurm.signal",
    asks="Slurm says before the time is up that it will end the job",
    mend="#SBATCH --signal=TERM@120 --requeue",
)
def check_slurm_signal(machine: Machine) -> Findings:
    """Slurm does not tell the job whether `--signal` was given."""
    if "SLURM_JOB_ID" in machine.env and "SLURM_JOB_END_TIME" in machine.env:
        end = number(machine.env["SLURM_JOB_END_TIME"]) or 0
        left_min = max(0.0, end - machine.now()) / 60
        mend = f"so that the run is saved then: {check_slurm_signal.mend}"
        yield note(f"the job ends in {left_min:.0f} min", round(left_min), mend=mend)


CHECKS = (
    check_scheduler,
    check_pod_limits,
    check_grace_period,
    check_slurm_cpus,
    check_slurm_tasks,
    check_slurm_signal,
)
