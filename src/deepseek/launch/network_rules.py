"""Rules about how the pods of a job find each other, and who else may talk to them."""

from collections.abc import Callable, Iterator

from deepseek.launch.endpoint import parse_endpoints
from deepseek.launch.problem import Problem
from deepseek.launch.workload import Workload, at

DNS_PORT = 53


def is_closed_to_others(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """The rendezvous and NCCL ask nobody for a password: the network has to keep strangers out."""
    policies = [entry for entry in manifests if entry.get("kind") == "NetworkPolicy"]
    fitting = [entry for entry in policies if _selects(entry, workload)]
    if not fitting:
        yield Problem(
            workload.where,
            "no NetworkPolicy selects its pods",
            "add one whose podSelector has the labels of the pods",
        )
    for policy in fitting:
        yield from _policy_problems(policy, workload)


def _policy_problems(policy: dict, workload: Workload) -> Iterator[Problem]:
    where = f"NetworkPolicy {at(policy, 'metadata').get('name')}"
    spec = at(policy, "spec")
    for kind in ("Ingress", "Egress"):
        if kind not in (spec.get("policyTypes") or []):
            yield Problem(where, f"does not restrict {kind}", f"add {kind} to policyTypes")
    for entry in spec.get("ingress") or []:
        peers = entry.get("from") or []
        if not peers or not all(_is_own(peer, workload) for peer in peers):
            yield Problem(where, "lets others in", "allow only the pods of the job in `from`")
    if not any(_reaches_own(entry, workload, "from") for entry in spec.get("ingress") or []):
        yield Problem(
            where, "keeps the pods from each other", "allow the pods of the job in `from`"
        )
    egress = spec.get("egress") or []
    if not any(_reaches_own(entry, workload, "to") for entry in egress):
        yield Problem(where, "keeps the pods from each other", "allow the pods of the job in `to`")
    if not all(entry.get("to") for entry in egress):
        yield Problem(where, "lets pods reach everything", "name networks in `to`")
    if not any(_allows_port(entry, DNS_PORT) for entry in egress):
        yield Problem(where, "forbids name look-up", "allow port 53 to kube-system")


def finds_its_hosts(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    """Hosts meet at a name that has to be the name of the first pod."""
    if workload.kind == "Job":
        yield from _service_problems(manifests, workload)
    endpoint = workload.option("--rdzv-endpoint")
    if endpoint is None:
        if workload.job.get("completions", 1) > 1:
            yield Problem(workload.where, "no --rdzv-endpoint for several pods", "add it")
        return
    expected = f"{workload.first_host}.{workload.subdomain}"
    [first, *_] = parse_endpoints(endpoint)
    if first.host != expected:
        yield Problem(
            f"{workload.where}: --rdzv-endpoint={endpoint}",
            f"the first pod is {expected}",
            f"write {expected}:{first.port}",
        )


def _service_problems(manifests: list[dict], workload: Workload) -> Iterator[Problem]:
    services = {
        at(entry, "metadata").get("name"): entry
        for entry in manifests
        if entry.get("kind") == "Service"
    }
    service = services.get(workload.subdomain)
    if service is None:
        yield Problem(
            f"{workload.where}: subdomain={workload.subdomain}",
            "no Service has this name",
            "name the headless Service",
        )
        return
    where, spec = f"Service {workload.subdomain}", at(service, "spec")
    if spec.get("clusterIP") != "None":
        yield Problem(where, "is not headless: pods get no names", 'set clusterIP: "None"')
    if spec.get("publishNotReadyAddresses") is not True:
        yield Problem(where, "publishes only ready pods", "set publishNotReadyAddresses: true")
    selector = spec.get("selector") or {}
    if not selector or not selector.items() <= workload.labels.items():
        yield Problem(where, "does not select the pods", "use the labels of the pods")
    if spec.get("type", "ClusterIP") != "ClusterIP":
        yield Problem(where, f"type {spec['type']} opens the job to outside", "remove `type`")


def _selects(policy: dict, workload: Workload) -> bool:
    wanted = at(policy, "spec", "podSelector", "matchLabels")
    return bool(wanted) and wanted.items() <= workload.labels.items()


def _is_own(peer: dict, workload: Workload) -> bool:
    wanted = at(peer, "podSelector", "matchLabels")
    is_here = "namespaceSelector" not in peer and "ipBlock" not in peer
    return is_here and bool(wanted) and wanted.items() <= workload.labels.items()


def _reaches_own(entry: dict, workload: Workload, side: str) -> bool:
    peers = entry.get(side) or []
    return not entry.get("ports") and any(_is_own(peer, workload) for peer in peers)


def _allows_port(entry: dict, port: int) -> bool:
    ports = entry.get("ports")
    if ports is None:
        return any("namespaceSelector" in peer for peer in entry.get("to") or [])
    return any(allowed.get("port") == port for allowed in ports)


NETWORK_RULES: tuple[Callable[[list[dict], Workload], Iterator[Problem]], ...] = (
    is_closed_to_others,
    finds_its_hosts,
)
