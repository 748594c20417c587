"""What makes the manifests of a training wrong although their schema is right.

A rule takes the manifests and one workload in them, and yields problems. A schema says that a field
is a number; rules say that two numbers have to be equal, and that a name has to be the name of
something. `security_rules` and `network_rules` hold those about safety and about names.
"""

import re
from collections.abc import Callable, Iterator

from deepseek.launch.job import parse_nodes
from deepseek.launch.kubernetes import NAME
from deepseek.launch.manifest_shape import shape_problems
from deepseek.launch.network_rules import NETWORK_RULES
from deepseek.launch.pod import STOPPED, USER_ERRORS
from deepseek.launch.problem import Problem
from deepseek.launch.security_rules import SECURITY_RULES
from deepseek.launch.workload import Workload, at, workloads

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "": 1}
Rule = Callable[[list[dict], Workload], Iterator[Problem]]


def find_problems(manifests: list[dict]) -> list[Problem]:
    """Return every problem with the manifests of a training, warnings last."""
    found = [problem for manifest in manifests for problem in shape_problems(manifest)]
    found += _object_problems(manifests)
    every = list(workloads(manifests))
    if not every:
        found.append(Problem("manifests", "none of them trains", "add a Job, JobSet or TrainJob"))
    for workload in every:
        for rule in (*WORKLOAD_RULES, *SECURITY_RULES, *NETWORK_RULES):
            found += rule(manifests, workload)
    return sorted(dict.fromkeys(found), key=lambda problem: problem.is_warning)


def _object_problems(manifests: list[dict]) -> Iterator[Problem]:
    namespaces = {at(entry, "metadata").get("namespace") for entry in manifests}
    if len(namespaces) > 1:
        names = ", ".join(sorted(map(str, namespaces)))
        yield Problem("manifests", f"stand in several namespaces: {names}", "use one")
    for entry in manifests:
        name = str(at(entry, "metadata").get("name", ""))
        if not NAME.fullmatch(name.removesuffix("-config").removesuffix("-runs")):
            yield Problem(
                f"{entry.get('kind')} {name}",
                "its name leaves no room for those of its pods, or is no DNS label",
                "use 1 to 40 of a-z, 0-9 and '-', beginning with a letter",
            )
        if entry.get("kind") == "TrainJob":
            yield from _train_job_problems(manifests, entry)


def _train_job_problems(manifests: list[dict], train_job: dict) -> Iterator[Problem]:
    where = f"TrainJob {at(train_job, 'metadata').get('name')}"
    reference = at(train_job, "spec", "runtimeRef")
    runtimes = [
        entry
        for entry in manifests
        if entry.get("kind") == reference.get("kind")
        and at(entry, "metadata").get("name") == reference.get("name")
    ]
    if not runtimes:
        yield Problem(
            f"{where}: runtimeRef", f"there is no {reference.get('kind')} of this name", "name it"
        )
    nodes = at(train_job, "spec", "trainer").get("numNodes")
    for runtime in runtimes:
        if at(runtime, "spec", "mlPolicy").get("numNodes") != nodes:
            yield Problem(f"{where}: numNodes={nodes}", "differs from the runtime's", "use one")
    if at(train_job, "metadata").get("name") != reference.get("name"):
        # the pods are named after the TrainJob, the rendezvous after the runtime
        yield Problem(where, "is not named as its runtime", "give both one name")


# -- rules about one workload -------------------------------------------------------------------


def gpus_are_reserved(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Kubernetes refuses GPUs of which request and limit differ; memory would be overcommitted."""
    resources = at(workload.container, "resources")
    requests, limits = at(resources, "requests"), at(resources, "limits")
    for name in sorted({"memory"} | {key for key in (*requests, *limits) if "gpu" in key.lower()}):
        if requests.get(name) is None or requests.get(name) != limits.get(name):
            yield Problem(
                f"{workload.where}: {name}",
                f"request {requests.get(name)} and limit {limits.get(name)} are not the same",
                "set both to one value",
            )
    if not isinstance(workload.gpus, int):
        yield Problem(f"{workload.where}: gpus={workload.gpus}", "is no whole number", "round it")
    elif workload.gpus and workload.option("--nproc") not in (str(workload.gpus), "auto"):
        yield Problem(
            f"{workload.where}: --nproc={workload.option('--nproc')}",
            f"is not one process for each of {workload.gpus} GPUs",
            f"use --nproc {workload.gpus}",
        )


def hosts_are_counted_once(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """All pods have to run at the same time, and torchrun has to wait for as many."""
    job = workload.job
    completions, parallelism = job.get("completions"), job.get("parallelism")
    if completions is None or completions != parallelism:
        yield Problem(
            workload.where,
            f"completions={completions} and parallelism={parallelism} are not the same",
            "set both to the number of hosts",
        )
    if job.get("completionMode") != "Indexed":
        yield Problem(workload.where, "pods have no index", "set completionMode: Indexed")
    nodes = workload.option("--nnodes") or "1"
    if parse_nodes(nodes)[1] != completions:
        yield Problem(
            f"{workload.where}: --nnodes={nodes}", f"there are {completions} pods", "use one number"
        )


def ends_are_judged(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """User errors end a job at once; pods that have saved are made anew without counting."""
    restart = workload.pod.get("restartPolicy")
    if restart != "Never":
        yield Problem(
            f"{workload.where}: restartPolicy={restart}",
            "podFailurePolicy works with Never alone",
            "set restartPolicy: Never",
        )
    rules = at(workload.job, "podFailurePolicy").get("rules") or []
    by_code = {
        code: rule.get("action")
        for rule in reversed(rules)
        for code in at(rule, "onExitCodes").get("values") or []
        if at(rule, "onExitCodes").get("operator") == "In"
    }
    where = f"{workload.where}: podFailurePolicy"
    for codes, action in ((USER_ERRORS, "FailJob"), (STOPPED, "Ignore")):
        wrong = [code for code in codes if by_code.get(code) != action]
        if wrong:
            yield Problem(where, f"exit codes {wrong} do not lead to {action}", "add such a rule")
    names = {entry.get("name") for entry in workload.pod.get("containers") or []}
    for rule in rules:
        named = at(rule, "onExitCodes").get("containerName")
        if named is not None and named not in names:
            yield Problem(where, f"there is no container {named}", f"use {sorted(map(str, names))}")
    conditions = [entry for rule in rules for entry in rule.get("onPodConditions") or []]
    if "DisruptionTarget" not in [entry.get("type") for entry in conditions]:
        yield Problem(where, "a drained node counts as a failure", "ignore DisruptionTarget")
    if not isinstance(workload.job.get("backoffLimit"), int):
        yield Problem(f"{workload.where}: backoffLimit", "is not set", "set a number")


def saves_before_it_ends(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """The kubelet kills a pod when its grace period is over, also in the midst of saving."""
    grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
    save_s = int(workload.option("--grace-s") or 60)
    if grace_s <= save_s:
        yield Problem(
            f"{workload.where}: terminationGracePeriodSeconds={grace_s}",
            f"is not longer than the {save_s} s that workers may take to save",
            f"set more than {save_s}",
        )


def volumes_fit(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Loader workers share tensors in /dev/shm, of which a pod has 64 MiB by default."""
    volumes = {entry.get("name"): entry for entry in workload.pod.get("volumes") or []}
    mounts = {
        entry.get("mountPath"): entry for entry in workload.container.get("volumeMounts") or []
    }
    for path, mount in mounts.items():
        if mount.get("name") not in volumes:
            yield Problem(f"{workload.where}: {path}", f"no volume {mount.get('name')}", "add it")
    if "/tmp" not in mounts:
        yield Problem(f"{workload.where}: /tmp", "cannot be written", "mount an emptyDir there")
    shm = at(volumes.get(mounts.get("/dev/shm", {}).get("name")), "emptyDir")
    where = f"{workload.where}: /dev/shm"
    if shm.get("medium") != "Memory":
        yield Problem(where, "is not in memory", "mount an emptyDir with medium: Memory")
    elif (size := _bytes(shm.get("sizeLimit"))) is None:
        yield Problem(where, "has no sizeLimit: it can take all of the node", "set one")
    elif size >= (_bytes(_limit(workload, "memory")) or float("inf")):
        yield Problem(where, "is as large as the memory of the pod", "make it smaller")
    yield from _claim_problems(manifests, workload, volumes)


def _claim_problems(manifests: list[dict], workload: Workload, volumes: dict) -> Iterator[Problem]:
    claims = {
        at(entry, "metadata").get("name"): at(entry, "spec")
        for entry in manifests
        if entry.get("kind") == "PersistentVolumeClaim"
    }
    maps = {
        at(entry, "metadata").get("name") for entry in manifests if entry.get("kind") == "ConfigMap"
    }
    for name, volume in volumes.items():
        modes = at(claims, at(volume, "persistentVolumeClaim").get("claimName", ""))
        is_shared = "ReadWriteMany" in (modes.get("accessModes") or [])
        if modes and not is_shared and workload.job.get("completions", 1) > 1:
            yield Problem(
                f"{workload.where}: volume {name}",
                "only one node can mount it",
                "set accessModes: [ReadWriteMany]",
            )
        wanted = at(volume, "configMap").get("name")
        if wanted is not None and wanted not in maps:
            yield Problem(f"{workload.where}: volume {name}", f"no ConfigMap {wanted}", "add it")
    if "runs" in volumes and "emptyDir" in volumes["runs"]:
        yield Problem(
            f"{workload.where}: volume runs",
            "goes with its pod, and the checkpoints with it",
            "use --runs-claim or --runs-size",
            is_warning=True,
        )


def image_is_pinned(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Pods that are made anew have to get the image that the others have."""
    image = str(workload.container.get("image", ""))
    tag = re.search(r":([\w.-]+)$", image)
    if not image:
        yield Problem(f"{workload.where}: image", "is not set", "name one")
    elif "@sha256:" not in image and (tag is None or tag[1] == "latest"):
        yield Problem(
            f"{workload.where}: image={image}",
            "may be another one tomorrow",
            "name a version, or a digest (@sha256:...)",
            is_warning=True,
        )


def environment_is_unambiguous(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Of two entries with one name the last one wins, silently."""
    names = [entry.get("name") for entry in workload.container.get("env") or []]
    for name in sorted({str(entry) for entry in names if names.count(entry) > 1}):
        yield Problem(f"{workload.where}: env {name}", "is set twice", "remove one")


WORKLOAD_RULES: tuple[Rule, ...] = (
    gpus_are_reserved,
    hosts_are_counted_once,
    ends_are_judged,
    saves_before_it_ends,
    volumes_fit,
    image_is_pinned,
    environment_is_unambiguous,
)


def _limit(workload: Workload, name: str) -> object:
    return at(workload.container, "resources", "limits").get(name)


def _bytes(quantity: object) -> int | None:
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|)", str(quantity))
    return int(found[1]) * UNITS[found[2]] if found else None
