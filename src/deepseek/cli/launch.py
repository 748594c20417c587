"""`deepseek launch`: one command on several processes or hosts."""

import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from deepseek.launch.job import Job

CONTEXT_SETTINGS = {"allow_interspersed_args": False}
"""Options behind the program are the program's own."""
HOSTS, SLURM, KUBERNETES = "Several hosts", "On Slurm", "On Kubernetes"
SERVICE = "A service on Kubernetes"
CLUSTER = "On Slurm or Kubernetes"
ONLY: dict[str, tuple[str, ...]] = {
    "local": ("local_addr", "log_dir"),
    "slurm": ("partition", "account", "time"),
    "kubernetes": (
        *("kind", "image", "namespace", "memory", "shm_size", "user"),
        *("runs_claim", "runs_size", "data_claim", "egress"),
        *("replicas", "token_secret", "log_secret", "ingress"),
    ),
}
"""Options that mean something in one place alone."""


def launch(
    context: typer.Context,
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROGRAM...",
            help="A deepseek command or a script, with its arguments: train model_config.yaml",
        ),
    ] = None,
    nproc: Annotated[
        str, typer.Option(metavar="N", help='Processes on each host; "auto": one per GPU.')
    ] = "auto",
    module: Annotated[
        bool, typer.Option("-m", "--module", help="PROGRAM is the name of a Python module.")
    ] = False,
    on: Annotated[str, typer.Option(metavar="PLACE", help="local, slurm or kubernetes.")] = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be started; start nothing.")
    ] = False,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Restarts of failed workers; by default 0 on one host, 3 on several, with"
            " --supervise and on a cluster.",
        ),
    ] = None,
    grace_s: Annotated[
        int,
        typer.Option(min=1, help="How long workers may take to save after a signal."),
    ] = 120,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps the output of every rank.")
    ] = None,
    nnodes: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Hosts; a range makes the job elastic.",
            rich_help_panel=HOSTS,
        ),
    ] = "1",
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,...",
            help="Where hosts meet; several with --supervise, in the order of preference.",
            rich_help_panel=HOSTS,
        ),
    ] = None,
    rdzv_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Name of the job, the same on every host.", rich_help_panel=HOSTS
        ),
    ] = None,
    rdzv_conf: Annotated[
        str,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Settings of torch's rendezvous.",
            rich_help_panel=HOSTS,
        ),
    ] = "",
    local_addr: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of this host for the others; found out by default.",
            rich_help_panel=HOSTS,
        ),
    ] = None,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise", help="Survive the death of the rendezvous host.", rich_help_panel=HOSTS
        ),
    ] = False,
    timeout_s: Annotated[
        int,
        typer.Option(min=1, help="How long to wait for other hosts.", rich_help_panel=HOSTS),
    ] = 600,
    name: Annotated[
        str, typer.Option(help="Name of the job.", rich_help_panel=CLUSTER)
    ] = "deepseek",
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs of a host; --nproc by default.", rich_help_panel=CLUSTER),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cores of a host; on Kubernetes 4 a process.", rich_help_panel=CLUSTER
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.", rich_help_panel=SLURM)] = None,
    account: Annotated[str | None, typer.Option(help="Account.", rich_help_panel=SLURM)] = None,
    time: Annotated[
        str | None, typer.Option(help="Time limit: 12:00:00.", rich_help_panel=SLURM)
    ] = None,
    kind: Annotated[
        str, typer.Option(help="job, jobset or trainjob.", rich_help_panel=KUBERNETES)
    ] = "job",
    image: Annotated[
        str | None,
        typer.Option(help="Container image, with a version.", rich_help_panel=KUBERNETES),
    ] = None,
    namespace: Annotated[
        str, typer.Option(help="Namespace.", rich_help_panel=KUBERNETES)
    ] = "default",
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of a pod; 16Gi a process.", rich_help_panel=KUBERNETES),
    ] = None,
    shm_size: Annotated[
        str | None,
        typer.Option(help="Part of it for /dev/shm; 4Gi a process.", rich_help_panel=KUBERNETES),
    ] = None,
    user: Annotated[
        int, typer.Option(help="Numeric user of a pod.", rich_help_panel=KUBERNETES)
    ] = 10001,
    runs_claim: Annotated[
        str | None,
        typer.Option(help="Existing claim for run folders.", rich_help_panel=KUBERNETES),
    ] = None,
    runs_size: Annotated[
        str | None,
        typer.Option(help="Size of a claim to create: 100Gi.", rich_help_panel=KUBERNETES),
    ] = None,
    data_claim: Annotated[
        str | None,
        typer.Option(help="Existing claim with data, at /data.", rich_help_panel=KUBERNETES),
    ] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Network that pods may reach, beside each other; may be repeated.",
            rich_help_panel=KUBERNETES,
        ),
    ] = None,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX", help="Pods, as their load wants.", rich_help_panel=SERVICE
        ),
    ] = "2:10",
    token_secret: Annotated[
        str | None,
        typer.Option(
            help="Secret whose key `tokens` holds the file of hashes.", rich_help_panel=SERVICE
        ),
    ] = None,
    log_secret: Annotated[
        str | None,
        typer.Option(
            help="Secret whose key `url` is the address of Redis, of `online serve`.",
            rich_help_panel=SERVICE,
        ),
    ] = None,
    ingress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE",
            help="Namespace that may ask, beside the pods' own; may be repeated.",
            rich_help_panel=SERVICE,
        ),
    ] = None,
) -> None:
    """Start a command or a script on several processes or hosts."""
    _refuse_ignored(context, on)
    options: dict[str, Any] = dict(context.params)
    words = tuple(program or ())
    options["program"] = ("-m", *words) if module else words
    if on == "kubernetes" and words[:1] == ("serve",) and not module:
        from deepseek.cli.launch_service import launch_service

        launch_service(options, _given(context))
        return
    if on == "kubernetes" and words[:2] == ("online", "serve") and not module:
        from deepseek.cli.launch_online import launch_online

        launch_online(options, _given(context))
        return
    _refuse_options_of_services(_given(context))
    job = _job(options)
    if on == "local" and not (dry_run or module):
        _check_script(words[0])
    if on == "slurm":
        _run_on_slurm(job, options)
    elif on == "kubernetes":
        named = _with_configuration(context, job.program)
        _run_on_kubernetes(replace(job, program=named), options)
    elif dry_run:
        from deepseek.launch.agent import show_command

        print(show_command(job))
    else:
        from deepseek.launch.supervisor import launch as start

        sys.exit(start(job, log_dir))


def _job(options: Mapping[str, Any]) -> "Job":
    from deepseek.errors import ConfigError
    from deepseek.launch.endpoint import parse_endpoints
    from deepseek.launch.job import (
        DEFAULT_RESTARTS,
        Job,
        check_program,
        parse_nodes,
        parse_nproc,
        parse_rendezvous,
    )

    check_program(options["program"])
    _check_command(options["program"][0])
    min_nodes, max_nodes = parse_nodes(options["nnodes"])
    is_here = options["on"] == "local"
    endpoints = parse_endpoints(options["rdzv_endpoint"]) if options["rdzv_endpoint"] else ()
    if is_here and max_nodes > 1 and options["rdzv_id"] is None:
        raise ConfigError(
            f"--nnodes={options['nnodes']} without --rdzv-id: each host would make up its own",
            fix="add --rdzv-id NAME, the same on every host",
        )
    repeats = max_nodes > 1 or options["supervise"] or not is_here
    restarts = options["max_restarts"]
    nproc = options["nproc"]
    if nproc == "auto" and not is_here:
        nproc = str(options["gpus"] or 1)  # the GPUs that count are not those of this machine
    return Job(
        program=options["program"],
        nproc=parse_nproc(nproc),
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        endpoints=endpoints,
        run_id=options["rdzv_id"] or f"{options['name']}-{uuid.uuid4().hex[:12]}",
        max_restarts=(DEFAULT_RESTARTS if repeats else 0) if restarts is None else restarts,
        supervised=options["supervise"],
        timeout_s=options["timeout_s"],
        grace_s=options["grace_s"],
        local_addr=options["local_addr"],
        rendezvous=parse_rendezvous(options["rdzv_conf"]),
        is_placed=not is_here,
    )


def _run_on_slurm(job: "Job", options: Mapping[str, Any]) -> None:
    from deepseek.launch.slurm import SlurmOptions, batch_script
    from deepseek.launch.submission import submit

    script = batch_script(
        job,
        SlurmOptions(
            name=options["name"],
            partition=options["partition"],
            account=options["account"],
            time=options["time"],
            gpus=job.nproc if options["gpus"] is None else options["gpus"],
            cpus=options["cpus"],
            warning_s=options["grace_s"],
        ),
    )
    print(script if options["dry_run"] else submit(["sbatch"], script), end="")


def _run_on_kubernetes(job: "Job", options: Mapping[str, Any]) -> None:
    from deepseek.cli.apply_manifests import apply_manifests
    from deepseek.errors import ConfigError
    from deepseek.launch.kubernetes import manifests
    from deepseek.launch.manifest_rules import find_problems
    from deepseek.launch.pod import PodOptions

    if options["image"] is None:
        raise ConfigError(
            "--on kubernetes without --image: pods need one that has `deepseek` in it",
            fix="build docker/Dockerfile, push it, and name it with its version",
            see="docs/launch.md",
        )
    pod = PodOptions(
        name=options["name"],
        image=options["image"],
        namespace=options["namespace"],
        gpus=job.nproc if options["gpus"] is None else options["gpus"],
        cpus=options["cpus"] or 4 * job.nproc,
        memory=options["memory"] or f"{16 * job.nproc}Gi",
        shm=options["shm_size"] or f"{4 * job.nproc}Gi",
        grace_s=options["grace_s"],
        user=options["user"],
        runs_claim=options["runs_claim"],
        runs_size=options["runs_size"],
        data_claim=options["data_claim"],
        egress=tuple(options["egress"] or ()),
    )
    made = manifests(job, pod, options["kind"])
    apply_manifests(made, find_problems(made), is_dry_run=options["dry_run"])


def _with_configuration(context: typer.Context, program: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with the configuration that it reads where none is named.

    A pod does not have it unless it is named.
    """
    from deepseek.cli.train import split_arguments, with_resume_value

    commands = context.find_root().command
    if not isinstance(commands, TyperGroup):
        return program
    command = commands.get_command(context, program[0])
    if command is None:
        return program
    words = with_resume_value(program)[1:]
    given = command.make_context(program[0], words, resilient_parsing=True).params
    if "arguments" not in given or given.get("resume") is not None:
        return program
    arguments = given["arguments"] or []
    path, _ = split_arguments(arguments)
    if path in arguments or not Path(path).is_file():
        return program
    return (program[0], path, *program[1:])


def _check_command(word: str) -> None:
    """Refuse a word that is neither a command nor a script, before processes are started for it."""
    if word == "-m" or word.endswith(".py"):
        return
    from deepseek.cli.main import app
    from deepseek.errors import ConfigError
    from deepseek.registry import did_you_mean

    commands = [entry.name for entry in app.registered_commands if entry.name]
    names = [*commands, *(entry.name for entry in app.registered_groups if entry.name)]
    if word not in names or word == "launch":
        raise ConfigError(
            f"{word!r} is no deepseek command that can be launched, and no script (*.py)",
            fix=did_you_mean(word, [entry for entry in names if entry != "launch"]),
        )


def _check_script(word: str) -> None:
    """Refuse a script that is not there; elsewhere it may well be."""
    if word.endswith(".py") and not Path(word).is_file():
        from deepseek.errors import ConfigError

        raise ConfigError(
            f"script {word} does not exist, seen from {Path.cwd()}",
            fix="correct its path, or change the folder",
        )


def _given(context: typer.Context) -> set[str]:
    """Return the options that are on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _refuse_options_of_services(given: set[str]) -> None:
    from deepseek.errors import ConfigError

    for name in sorted(given & {"replicas", "token_secret", "log_secret", "ingress"}):
        raise ConfigError(
            f"--{name.replace('_', '-')} is for `serve` on kubernetes", fix="leave it away"
        )


def _refuse_ignored(context: typer.Context, on: str) -> None:
    from deepseek.errors import ConfigError
    from deepseek.registry import did_you_mean

    if on not in ONLY:
        raise ConfigError(f"--on={on} is no place to launch", fix=did_you_mean(on, ONLY))
    foreign = {name: place for place, names in ONLY.items() if place != on for name in names}
    if on == "local":
        foreign |= dict.fromkeys(("gpus", "cpus"), "slurm or kubernetes")
    else:
        foreign |= {"rdzv_endpoint": "local"}
        if on == "slurm":  # the id of a Slurm job stays when it is queued again
            foreign |= {"rdzv_id": "local or kubernetes"}
    for name, place in foreign.items():
        if name in _given(context):
            raise ConfigError(
                f"--{name.replace('_', '-')} means nothing with --on={on}; it is for --on={place}",
                fix="leave it away",
            )
