"""Rules about what the pods of a job may do on their node and in their cluster."""

import re
from collections.abc import Callable, Iterator

from deepseek.launch.problem import Problem
from deepseek.launch.workload import Workload, at

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|API_?KEY|CREDENTIAL|PRIVATE_KEY", re.I)
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")


def runs_without_root(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """A way out of the container must not lead to root on the node."""
    of_pod, of_container = at(workload.pod, "securityContext"), _context(workload)
    where = f"{workload.where}: securityContext"
    if of_container.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield Problem(where, "runAsNonRoot is not true", "set runAsNonRoot: true")
    for context in (of_pod, of_container):
        if context.get("runAsUser") == 0 or context.get("runAsGroup") == 0:
            yield Problem(where, "the user or group is 0, root", "name a user such as 1000")


def keeps_no_privilege(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Training needs none of the powers that a container may have over its node."""
    context, where = _context(workload), f"{workload.where}: securityContext"
    if context.get("allowPrivilegeEscalation") is not False:
        yield Problem(where, "allowPrivilegeEscalation is not false", "set it to false")
    if context.get("privileged"):
        yield Problem(where, "privileged is true", "remove it")
    if "ALL" not in (at(context, "capabilities").get("drop") or []):
        yield Problem(where, "capabilities are kept", "set capabilities: {drop: [ALL]}")
    if added := at(context, "capabilities").get("add"):
        yield Problem(where, f"capabilities {added} are added", "remove `add`")
    if context.get("readOnlyRootFilesystem") is not True:
        yield Problem(where, "the root file system can be written", "set readOnlyRootFilesystem")
    profile = at(workload.pod, "securityContext", "seccompProfile").get("type")
    profile = at(context, "seccompProfile").get("type", profile)
    if profile not in ("RuntimeDefault", "Localhost"):
        yield Problem(where, f"seccompProfile is {profile}", "set type: RuntimeDefault")


def keeps_off_the_node(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Name spaces and folders of the node belong to the node."""
    for field in HOST_FIELDS:
        if workload.pod.get(field):
            yield Problem(f"{workload.where}: {field}", "is true", "remove it")
    for volume in workload.pod.get("volumes") or []:
        if "hostPath" in volume:
            yield Problem(
                f"{workload.where}: volume {volume.get('name')}",
                "hostPath reaches into the node",
                "use a claim",
            )


def carries_no_credentials(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """A manifest is read by many; and a training does not talk to the cluster."""
    if workload.pod.get("automountServiceAccountToken") is not False:
        yield Problem(
            f"{workload.where}: automountServiceAccountToken",
            "is not false: every pod gets a key to the cluster",
            "set it to false",
        )
    for entry in workload.container.get("env") or []:
        if SECRET_NAME.search(entry.get("name", "")) and entry.get("value"):
            yield Problem(
                f"{workload.where}: env {entry['name']}",
                "a secret is written into the manifest",
                "use valueFrom: {secretKeyRef: ...}",
            )


def _context(workload: Workload) -> dict:
    return at(workload.container, "securityContext")


SECURITY_RULES: tuple[Callable[[list[dict], Workload], Iterator[Problem]], ...] = (
    runs_without_root,
    keeps_no_privilege,
    keeps_off_the_node,
    carries_no_credentials,
)
