"""The pod in which one host of a job runs: its resources, its volumes, and what it may not do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

CONTAINER = "node"
"""Also the name that Kubeflow gives to the container of a trainer."""
WORKSPACE = PurePosixPath("/workspace")
CONFIG_DIR = PurePosixPath("/etc/deepseek")
PORT = 29500
CLEAN_UP_S = 30
"""What the launcher itself needs after its workers have saved."""
USER_ERRORS = [2, 3, 4, 5]
STOPPED = [75, 143]


@dataclass(frozen=True)
class PodOptions:
    """What a cluster is asked for, for each host.

    Args:
        name: of the job and of all that belongs to it.
        namespace: where it is created.
        image: container image with `deepseek` in it, pinned by tag or digest.
        gpus: NVIDIA GPUs of a pod; 0 for none.
        cpus: cores of a pod.
        memory, shm: memory of a pod, and the part of it that data loader workers share.
        grace_s: time between the notice and the end of a pod; saving has to fit into it.
        user: numeric user and group, not root.
        runs_claim: existing claim for run folders, readable by every pod.
        runs_size: size of a claim to create instead.
        data_claim: existing claim with data, mounted read-only at /data.
        egress: networks outside of the job that pods may reach (CIDR), beside name look-up.
    """

    name: str
    image: str
    namespace: str = "default"
    gpus: int = 0
    cpus: int = 4
    memory: str = "16Gi"
    shm: str = "8Gi"
    grace_s: int = 120
    user: int = 10001
    runs_claim: str | None = None
    runs_size: str | None = None
    data_claim: str | None = None
    egress: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """Labels that every pod of the job has, and no other."""
        return {"app.kubernetes.io/name": "deepseek", "app.kubernetes.io/instance": self.name}

    @property
    def claim(self) -> str | None:
        """The claim that holds run folders."""
        return self.runs_claim or (f"{self.name}-runs" if self.runs_size else None)


def pod_spec(options: PodOptions, args: list[str], subdomain: str | None, has_files: bool) -> dict:
    """Return the spec of a pod.

    Args:
        options: what is asked for.
        args: of `deepseek launch`.
        subdomain: name of the headless service; `None` where a controller sets it.
        has_files: whether configuration files are mounted from a config map.
    """
    return {
        "restartPolicy": "Never",
        **({"subdomain": subdomain} if subdomain else {}),
        "terminationGracePeriodSeconds": options.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(options),
        "containers": [_container(options, args, has_files)],
        "volumes": _volumes(options, has_files),
    }


def container_means(options: PodOptions, mounts: Sequence[dict], env: Sequence[dict] = ()) -> dict:
    """Return environment, resources, rights and mounts of a container.

    It may do nothing beyond its own files.

    Args:
        options: of its pod.
        mounts: beside those of the data.
        env: variables beside those that every container has.
    """
    gpus = {"nvidia.com/gpu": options.gpus} if options.gpus else {}
    resources = {"cpu": options.cpus, "memory": options.memory, **gpus}
    data = {"name": "data", "mountPath": "/data", "readOnly": True}
    # the root file system is read-only; caches of compilers go below the home folder
    home = [{"name": "HOME", "value": "/tmp"}, {"name": "PYTHONUNBUFFERED", "value": "1"}]
    return {
        "env": [*home, *env],
        "resources": {"requests": dict(resources), "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [*mounts, *([data] if options.data_claim else [])],
    }


def pod_security(options: PodOptions) -> dict:
    """Return who a pod's processes are."""
    return {
        "runAsNonRoot": True,
        "runAsUser": options.user,
        "runAsGroup": options.user,
        "fsGroup": options.user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(options: PodOptions, args: list[str], has_files: bool) -> dict:
    mounts: list[dict] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "runs", "mountPath": str(WORKSPACE / "runs")},
    ]
    if has_files:
        mounts.append({"name": "config", "mountPath": str(CONFIG_DIR), "readOnly": True})
    return {
        "name": CONTAINER,
        "image": options.image,
        "command": ["deepseek", "launch"],
        "args": args,
        "workingDir": str(WORKSPACE),
        "ports": [{"name": "rendezvous", "containerPort": PORT}],
        **container_means(options, mounts),
    }


def _volumes(options: PodOptions, has_files: bool) -> list[dict]:
    runs = (
        {"persistentVolumeClaim": {"claimName": options.claim}}
        if options.claim
        else {"emptyDir": {}}
    )
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": options.shm}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "runs", **runs},
    ]
    if options.data_claim:
        claim = {"claimName": options.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    if has_files:
        volumes.append({"name": "config", "configMap": {"name": f"{options.name}-config"}})
    return volumes


def failure_policy() -> dict:
    """Return which ends of a pod fail the job at once, and which do not count.

    A user error comes again on every pod. A pod that has saved (75, 143), or whose node is taken
    away, is made anew as often as it takes.
    """
    return {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {
                    "containerName": CONTAINER,
                    "operator": "In",
                    "values": USER_ERRORS,
                },
            },
            {
                "action": "Ignore",
                "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": STOPPED},
            },
            {
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            },
        ]
    }
