"""Manifests that serve models on Kubernetes: pods that are alike, what keeps them safe and many.

A Deployment, a Service before it, an autoscaler, a budget of disruptions and a NetworkPolicy. The
hashes of the tokens come from a Secret that is there already; models from the image or a claim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from deepseek.errors import ConfigError
from deepseek.launch.kubernetes import check_options, name_look_up
from deepseek.launch.manifest_rules import environment_is_unambiguous, image_is_pinned
from deepseek.launch.pod import PodOptions, container_means, pod_security
from deepseek.launch.problem import Problem
from deepseek.launch.security_rules import SECURITY_RULES
from deepseek.launch.workload import at, workload_of_deployment

CONTAINER = "serve"
PORT = 8000
PROBE_PORT = 8001
TOKENS = "/etc/deepseek/tokens"
DRAIN_S = 10
"""From the notice of a pod's end to its signal: meanwhile the others learn to leave it alone."""
OPEN_S = 900
"""Until models are open: compiling takes minutes."""
CPU_SHARE = 70
TMP_SIZE = "4Gi"
"""Of what compilers keep; a pod that writes more is moved, and does not fill its host."""
OWN = ("--host", "--port", "--token-file", "--probe-port", "--new-token")


@dataclass(frozen=True)
class ServingOptions:
    """What is served, beside what each pod asks for.

    Args:
        words: of `deepseek serve`: model files and options.
        token_secret: Secret whose key `tokens` holds what `deepseek serve --new-token` has written.
        min_replicas, max_replicas: pods; the autoscaler keeps their CPUs busy to 70 %.
        ingress: names of namespaces that may ask, beside the pods' own.
    """

    words: tuple[str, ...]
    token_secret: str
    min_replicas: int = 2
    max_replicas: int = 10
    ingress: tuple[str, ...] = ()


def parse_replicas(text: str) -> tuple[int, int]:
    """Return the smallest and the largest number of `N` or `MIN:MAX`.

    Raises:
        ConfigError: they are no such numbers.
    """
    low, _, high = text.partition(":")
    if (
        not low.isdecimal()
        or not (high or low).isdecimal()
        or not 1 <= int(low) <= int(high or low)
    ):
        raise ConfigError(f"--replicas={text} is not N or MIN:MAX", fix="use --replicas 2:10")
    return int(low), int(high or low)


def serving_manifests(pod: PodOptions, serving: ServingOptions) -> list[dict]:
    """Return the manifests of a service.

    Raises:
        ConfigError: for a name, size or option that cannot work.
    """
    check_options(pod)
    for word in serving.words:
        if word.partition("=")[0] in OWN:
            raise ConfigError(f"{word} is set for pods already", fix="leave it out")
    return [
        _deployment(pod, serving),
        service(pod),
        autoscaler(pod, serving.min_replicas, serving.max_replicas),
        budget(pod),
        network_policy(pod, serving.ingress),
    ]


def serving_problems(manifests: list[dict]) -> list[Problem]:
    """Return what is wrong with the manifests of a service although their schema is right."""
    found: list[Problem] = []
    for manifest in manifests:
        if manifest.get("kind") == "Deployment":
            workload = workload_of_deployment(manifest)
            rules = (*SECURITY_RULES, image_is_pinned, environment_is_unambiguous)
            found += chain.from_iterable(rule(manifests, workload) for rule in rules)
            found += _name_problems(manifests, manifest)
    if not any(manifest.get("kind") == "Deployment" for manifest in manifests):
        found.append(Problem("manifests", "none of them serves", "add a Deployment"))
    return found


def _name_problems(manifests: list[dict], deployment: dict) -> Iterator[Problem]:
    """Names in one object have to be the names of something in another."""
    labels = at(deployment, "spec", "template", "metadata", "labels")
    name = at(deployment, "metadata").get("name")
    selectors = {
        "Service": ("selector",), "PodDisruptionBudget": ("selector", "matchLabels"),
        "NetworkPolicy": ("podSelector", "matchLabels"),
    }  # fmt: skip
    for kind, path in selectors.items():
        fitting = [
            entry for entry in manifests
            if entry.get("kind") == kind and (found := at(entry, "spec", *path))
            and found.items() <= labels.items()
        ]  # fmt: skip
        if not fitting:
            yield Problem(f"Deployment {name}", f"no {kind} selects its pods", "add one")
    for entry in manifests:
        if entry.get("kind") == "HorizontalPodAutoscaler":
            target = at(entry, "spec", "scaleTargetRef").get("name")
            if target != name:
                yield Problem(f"HorizontalPodAutoscaler: {target}", "is no Deployment", "name it")


# -- the parts --------------------------------------------------------------------------------


def metadata_of(pod: PodOptions) -> dict:
    """Return name, namespace and labels."""
    return {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels}


def _deployment(pod: PodOptions, serving: ServingOptions) -> dict:
    volumes: list[dict] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": "tokens", "secret": {"secretName": serving.token_secret, "defaultMode": 0o440}},
    ]
    if pod.data_claim:
        claim = {"claimName": pod.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    spec = {
        "terminationGracePeriodSeconds": DRAIN_S + pod.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(pod),
        # a host that fails takes one pod with it, where there are hosts enough
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": pod.labels},
            }
        ],
        "containers": [_container(pod, serving)],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(pod),
        "spec": {
            # no `replicas`: their number is the autoscaler's
            "selector": {"matchLabels": pod.labels},
            # by default ten minutes: less than a pod may take to open its models
            "progressDeadlineSeconds": OPEN_S + DRAIN_S + 60,
            # a new pod answers before an old one goes
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {"metadata": {"labels": pod.labels}, "spec": spec},
        },
    }


def _container(pod: PodOptions, serving: ServingOptions) -> dict:
    limit = {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu"}}
    mounts: list[dict] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "tokens", "mountPath": TOKENS, "readOnly": True},
    ]
    return {
        "name": CONTAINER,
        "image": pod.image,
        "command": ["deepseek", "serve"],
        "args": [
            *serving.words, "--host", "0.0.0.0", "--port", str(PORT), "--token-file",
            f"{TOKENS}/tokens", "--probe-port", str(PROBE_PORT),
        ],
        **answering(),
        **container_means(pod, mounts, [{"name": "OMP_NUM_THREADS", "valueFrom": limit}]),
    }  # fmt: skip


def answering() -> dict:
    """Return what a container has that answers at `PORT`, is probed, and drains before its end."""
    return {
        "ports": [
            {"name": "http", "containerPort": PORT},
            {"name": "probes", "containerPort": PROBE_PORT},
        ],
        "startupProbe": probe("/ready", period=5, failures=OPEN_S // 5),
        "readinessProbe": probe("/ready", period=5, failures=2),
        "livenessProbe": probe("/health", period=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_S}}},
    }


def probe(path: str, *, period: int, failures: int) -> dict:
    """Return a probe that asks the port `probes`."""
    return {
        "httpGet": {"path": path, "port": "probes"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def service(pod: PodOptions) -> dict:
    """Return one address for all pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(pod),
        "spec": {
            "selector": pod.labels,
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def autoscaler(pod: PodOptions, low: int, high: int) -> dict:
    """Return what keeps the CPUs of pods busy to 70 %, by their number."""
    target = {"type": "Utilization", "averageUtilization": CPU_SHARE}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata_of(pod),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": pod.name},
            "minReplicas": low,
            "maxReplicas": high,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


def budget(pod: PodOptions) -> dict:
    """Return that one pod at a time may be taken away."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(pod),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pod.labels}},
    }


def network_policy(pod: PodOptions, ingress: Sequence[str]) -> dict:
    """Return a policy by which pods are asked on one port, and reach nobody by themselves."""
    others = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ingress
    ]
    outside = [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in pod.egress]}, name_look_up()]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata_of(pod),
        "spec": {
            "podSelector": {"matchLabels": pod.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {}}, *others],
                    "ports": [{"protocol": "TCP", "port": PORT}],
                }
            ],
            "egress": outside if pod.egress else [],
        },
    }
