"""Manifests that run a job on Kubernetes: a Job, a JobSet, or a Kubeflow TrainJob.

The last two as in jobset.x-k8s.io/v1alpha2 and trainer.kubeflow.org/v1alpha1. A TrainJob comes with
a TrainingRuntime of its own, which holds the pod: what a TrainJob may override in a runtime of the
cluster has changed from version to version.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from deepseek.errors import ConfigError
from deepseek.launch.job import Job
from deepseek.launch.pod import (
    CLEAN_UP_S,
    CONFIG_DIR,
    PORT,
    PodOptions,
    failure_policy,
    pod_spec,
)

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""RFC 1035, and short enough for the names that controllers make of it."""
KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
"""Of a config map."""
QUANTITY = re.compile(r"[1-9]\d*(Mi|Gi|Ti)")
MAX_FILE_BYTES = 512 * 1024
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
REPLICATED_JOB = "node"
ANCESTOR = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


def manifests(job: Job, options: PodOptions, kind: str = "job") -> list[dict]:
    """Return the manifests of a job.

    Args:
        job: what to start; `endpoints` are set here.
        options: what the cluster is asked for.
        kind: "job", "jobset" or "trainjob".

    Raises:
        ConfigError: for a name, size or grace period that cannot work.
    """
    check_options(options)
    if kind not in KINDS:
        raise ConfigError(f"--kind={kind} is none of {', '.join(KINDS)}", fix="use --kind job")
    files = _config_files(job.program)
    first = f"{options.name}-0" if kind == "job" else f"{options.name}-{REPLICATED_JOB}-0-0"
    args = launch_args(job, options, f"{first}.{options.name}:{PORT}", files)
    made = [_network_policy(options)]
    if files:
        made.append(_config_map(options, files))
    if options.runs_size and not options.runs_claim:
        made.append(_claim(job, options))
    return [*made, *KINDS[kind](job, options, args, bool(files))]


def launch_args(
    job: Job, options: PodOptions, endpoint: str, files: dict[str, Path] | None = None
) -> list[str]:
    """Return the arguments of `deepseek launch` inside a pod."""
    mounted = {str(path): str(CONFIG_DIR / name) for name, path in (files or {}).items()}
    args = ["--nproc", str(job.nproc), "--nnodes", job.nnodes]
    if job.has_many_hosts:
        args += ["--rdzv-endpoint", endpoint, "--supervise"]
    args += ["--rdzv-id", job.run_id, "--max-restarts", str(job.max_restarts)]
    args += ["--timeout-s", str(job.timeout_s), "--grace-s", str(options.grace_s - CLEAN_UP_S)]
    if job.rendezvous:
        args += ["--rdzv-conf", ",".join(f"{key}={value}" for key, value in job.rendezvous.items())]
    return args + [mounted.get(str(Path(word)), word) for word in job.program]


def to_yaml(documents: list[dict]) -> str:
    """Return manifests as one YAML stream."""
    yaml = YAML()
    yaml.representer.ignore_aliases = lambda *_: True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 1000  # a folded argument is hard to read, and to copy
    stream = io.StringIO()
    yaml.dump_all(documents, stream)
    return stream.getvalue()


def check_options(options: PodOptions) -> None:
    """Refuse options of which no manifest can be made.

    Raises:
        ConfigError: with every problem at once.
    """
    problems = []
    for option, value in (("name", options.name), ("namespace", options.namespace)):
        if not NAME.fullmatch(value):
            problems.append(f"--{option}={value} is not 1 to 40 of a-z, 0-9 and '-', from a letter")
    for option, value in (
        ("memory", options.memory),
        ("shm-size", options.shm),
        ("runs-size", options.runs_size or "1Gi"),
    ):
        if not QUANTITY.fullmatch(value):
            problems.append(f"--{option}={value} is not a number with Mi, Gi or Ti")
    if not options.image or " " in options.image:
        problems.append(f"--image={options.image!r} is no name of an image")
    if options.grace_s <= CLEAN_UP_S:
        problems.append(
            f"--grace-s={options.grace_s}: a pod needs {CLEAN_UP_S} s beyond the time to save"
        )
    if options.user < 1:
        problems.append(f"--user={options.user}: pods do not run as root")
    if options.runs_claim and options.runs_size:
        problems.append("--runs-claim names a claim and --runs-size would create one")
    if problems:
        raise ConfigError("\n".join(problems), fix="change these options", see="docs/launch.md")


# -- the parts --------------------------------------------------------------------------------


def _job(job: Job, options: PodOptions, args: list[str], has_files: bool) -> list[dict]:
    spec = _job_spec(job, options, args, has_files, subdomain=options.name)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(options),
        "spec": {
            "clusterIP": "None",
            # hosts look each other up before any of them is ready
            "publishNotReadyAddresses": True,
            "selector": options.labels,
            "ports": [{"name": "rendezvous", "port": PORT, "targetPort": PORT}],
        },
    }
    return [
        service,
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(options), "spec": spec},
    ]


def _job_set(job: Job, options: PodOptions, args: list[str], has_files: bool) -> list[dict]:
    return [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": _metadata(options),
            "spec": _job_set_spec(job, options, args, has_files, {}),
        }
    ]


def _train_job(job: Job, options: PodOptions, args: list[str], has_files: bool) -> list[dict]:
    group = "trainer.kubeflow.org"
    runtime = {
        "apiVersion": f"{group}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(options),
        "spec": {
            "mlPolicy": {"numNodes": job.max_nodes},
            "template": {"spec": _job_set_spec(job, options, args, has_files, ANCESTOR)},
        },
    }
    reference = {"apiGroup": group, "kind": "TrainingRuntime", "name": options.name}
    return [
        runtime,
        {
            "apiVersion": f"{group}/v1alpha1",
            "kind": "TrainJob",
            "metadata": _metadata(options),
            "spec": {"runtimeRef": reference, "trainer": {"numNodes": job.max_nodes}},
        },
    ]


KINDS: dict[str, Callable[[Job, PodOptions, list[str], bool], list[dict]]] = {
    "job": _job,
    "jobset": _job_set,
    "trainjob": _train_job,
}


def _job_set_spec(
    job: Job, options: PodOptions, args: list[str], has_files: bool, labels: dict[str, str]
) -> dict:
    return {
        "network": {
            "enableDNSHostnames": True,
            "subdomain": options.name,
            "publishNotReadyAddresses": True,
        },
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "rules": [
                {
                    "name": "user_error",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": {**options.labels, **labels}},
                    "spec": _job_spec(job, options, args, has_files, subdomain=None),
                },
            }
        ],
    }


def _job_spec(
    job: Job, options: PodOptions, args: list[str], has_files: bool, subdomain: str | None
) -> dict:
    return {
        "completionMode": "Indexed",
        "completions": job.max_nodes,
        "parallelism": job.max_nodes,
        # one failure of the job may be one of each of its pods
        "backoffLimit": job.max_restarts * job.max_nodes,
        "podFailurePolicy": failure_policy(),
        "template": {
            "metadata": {"labels": options.labels},
            "spec": pod_spec(options, args, subdomain, has_files),
        },
    }


def _network_policy(options: PodOptions) -> dict:
    """Return a policy by which only pods of this job talk to each other."""
    own = {"podSelector": {"matchLabels": options.labels}}
    outside = [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in options.egress]}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(options),
        "spec": {
            "podSelector": {"matchLabels": options.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}],
            "egress": [
                {"to": [own]},
                name_look_up(),
                *(outside if options.egress else []),
            ],
        },
    }


def name_look_up() -> dict:
    """Return the egress to what turns names into addresses."""
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    return {
        "to": [names],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }


def _claim(job: Job, options: PodOptions) -> dict:
    mode = "ReadWriteMany" if job.has_many_hosts else "ReadWriteOnce"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {**_metadata(options), "name": options.claim},
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": options.runs_size}},
        },
    }


def _config_files(program: tuple[str, ...]) -> dict[str, Path]:
    """Return the configuration files among the words: pods get them from a config map."""
    files: dict[str, Path] = {}
    for word in program:
        path = Path(word)
        if word.endswith(CONFIG_SUFFIXES) and path.is_file():
            if not KEY.fullmatch(path.name):
                raise ConfigError(
                    f"{word!r} is no key of a config map, which has letters, digits, '.', '_' and"
                    " '-'",
                    fix="rename the file, such as model_config.yaml",
                )
            if path.stat().st_size > MAX_FILE_BYTES or path.name in files:
                raise ConfigError(
                    f"{word} does not fit into the config map: files have names of their own and"
                    f" at most {MAX_FILE_BYTES // 1024} KiB",
                    fix="put it into the image or onto the data volume, and name it there",
                )
            files[path.name] = path
    return files


def _config_map(options: PodOptions, files: dict[str, Path]) -> dict:
    contents = {
        name: LiteralScalarString(path.read_text(encoding="utf-8")) for name, path in files.items()
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(options), "name": f"{options.name}-config"},
        "data": contents,
    }


def _metadata(options: PodOptions) -> dict:
    return {"name": options.name, "namespace": options.namespace, "labels": options.labels}
