"""Manifests of an online-learning service on Kubernetes: many that rank, one that learns.

```
Deployment NAME            `deepseek online serve`: takes events and ranks; Service, autoscaler,
                           budget of disruptions and NetworkPolicy as of any service
StatefulSet NAME-learner   `deepseek online learn`: one pod, which nobody asks anything
ConfigMap NAME-config      the settings, with `trains: false` for those that rank
```
Events are in Redis, whose address comes from a Secret. Versions are in a claim that all pods mount,
those that rank without writing to it: they hold nothing of their own, and any of them may end.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePosixPath

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from deepseek.errors import ConfigError
from deepseek.launch.kubernetes import check_options
from deepseek.launch.manifest_rules import environment_is_unambiguous, image_is_pinned
from deepseek.launch.pod import CONFIG_DIR, PodOptions, container_means, pod_security
from deepseek.launch.problem import Problem
from deepseek.launch.security_rules import SECURITY_RULES
from deepseek.launch.serving import (
    DRAIN_S,
    OPEN_S,
    PORT,
    PROBE_PORT,
    TOKENS,
    answering,
    autoscaler,
    budget,
    metadata_of,
    network_policy,
    service,
    serving_problems,
)
from deepseek.launch.workload import at, workload_of_deployment

FOLDER = PurePosixPath("/online")
"""Where the claim with versions and checkpoints is mounted."""
URL_VARIABLE = "DEEPSEEK_LOG_URL"
SILENT_S = 60
"""The status of a learner that lives is younger."""
_LIVES = (
    "import os, sys, time; "
    f"sys.exit(time.time() - os.path.getmtime('{FOLDER}/status.json') > {SILENT_S})"
)


@dataclass(frozen=True)
class OnlineOptions:
    """What an online-learning service is asked for, beside what each pod is.

    Args:
        settings: of the service, as its file holds them.
        token_secret: Secret whose key `tokens` holds what `deepseek serve --new-token` has written.
        log_secret: Secret whose key `url` holds the address of Redis, with its password.
        min_replicas, max_replicas: pods that rank.
        ingress: names of namespaces that may ask, beside the pods' own.
    """

    settings: dict
    token_secret: str
    log_secret: str
    min_replicas: int = 2
    max_replicas: int = 10
    ingress: tuple[str, ...] = ()


def online_manifests(pod: PodOptions, online: OnlineOptions) -> list[dict]:
    """Return the manifests of an online-learning service.

    Raises:
        ConfigError: for a name, size, path or option that cannot work.
    """
    check_options(pod)
    settings = _settings_of_pods(pod, online.settings)
    learner = replace(pod, name=f"{pod.name}-learner", gpus=0)
    return [
        _config_map(pod, settings),
        _rankers(pod, online),
        service(pod),
        autoscaler(pod, online.min_replicas, online.max_replicas),
        budget(pod),
        network_policy(pod, online.ingress),
        _learner(learner, pod, online),
        _headless(learner),
        _asks_only(learner),
    ]


def online_problems(manifests: list[dict]) -> list[Problem]:
    """Return what is wrong with the manifests although their schema is right."""
    found = serving_problems(manifests)
    learners = [each for each in manifests if each.get("kind") == "StatefulSet"]
    for each in learners:
        workload = replace(workload_of_deployment(each), kind="StatefulSet")
        rules = (*SECURITY_RULES, image_is_pinned, environment_is_unambiguous)
        found += chain.from_iterable(rule(manifests, workload) for rule in rules)
        if at(each, "spec").get("replicas") != 1:
            found.append(Problem(workload.where, "has not one replica", "one learns at a time"))
    if not learners:
        found.append(Problem("manifests", "none of them learns", "add a StatefulSet"))
    if not any(each.get("kind") == "ConfigMap" for each in manifests):
        found.append(Problem("manifests", "the settings are in none", "add a ConfigMap"))
    return found


def _settings_of_pods(pod: PodOptions, settings: dict) -> dict:
    """Return settings as pods have them."""
    log = settings.get("log") or {}
    if log.get("kind") != "redis":
        raise ConfigError(
            f"log.kind={log.get('kind', 'sqlite')}: pods keep events in Redis",
            fix="set log.kind: redis",
        )
    if "url" in log:
        raise ConfigError(
            "log.url would be in a ConfigMap that many may read", fix="leave it to --log-secret"
        )
    if pod.claim is None:
        raise ConfigError(
            "pods have no folder in common, in which versions are",
            fix="name a claim that many nodes can mount: --runs-claim",
        )
    holdout = (settings.get("gate") or {}).get("holdout")
    for name, path in (("model", settings.get("model", "")), ("gate.holdout", holdout)):
        if path is not None and not PurePosixPath(str(path)).is_absolute():
            raise ConfigError(
                f"{name}={path} is relative: pods have other folders",
                fix="name the path in the image, or below /data with --data-claim",
            )
    if "server" in settings and {"host", "port", "token_file", "probe_port"} & set(
        settings["server"] or {}
    ):
        raise ConfigError("server.* is set for pods already", fix="leave the address out")
    return {
        **settings, "folder": str(FOLDER), "trains": False,
        "log": {**log, "url_variable": URL_VARIABLE},
    }  # fmt: skip


def _config_map(pod: PodOptions, settings: dict) -> dict:
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(settings, text)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata_of(pod), "name": f"{pod.name}-config"},
        "data": {"online.yaml": LiteralScalarString(text.getvalue())},
    }


def _rankers(pod: PodOptions, online: OnlineOptions) -> dict:
    container = {
        **_container(pod, "rank", online, writes=False),
        "args": [
            "serve", str(CONFIG_DIR / "online.yaml"), "--host", "0.0.0.0", "--port", str(PORT),
            "--token-file", f"{TOKENS}/tokens", "--probe-port", str(PROBE_PORT),
        ],
        **answering(),
    }  # fmt: skip
    container["volumeMounts"] = [
        *container["volumeMounts"],
        {"name": "tokens", "mountPath": TOKENS, "readOnly": True},
    ]
    secret = {"secretName": online.token_secret, "defaultMode": 0o440}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(pod),
        "spec": {
            "selector": {"matchLabels": pod.labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": _template(pod, pod, container, [{"name": "tokens", "secret": secret}]),
        },
    }


def _learner(learner: PodOptions, pod: PodOptions, online: OnlineOptions) -> dict:
    lives = {
        "exec": {"command": ["python", "-c", _LIVES]},
        "timeoutSeconds": 10,
    }
    container = {
        **_container(learner, "learn", online, writes=True),
        "args": ["learn", str(CONFIG_DIR / "online.yaml")],
        # it may have to learn again what is behind its checkpoint
        "startupProbe": {**lives, "periodSeconds": 5, "failureThreshold": OPEN_S // 5},
        "livenessProbe": {**lives, "periodSeconds": 20, "failureThreshold": 6},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata_of(learner),
        "spec": {
            "serviceName": learner.name,
            # one at most, ever: a StatefulSet waits for the end of a pod before it makes another
            "replicas": 1,
            "selector": {"matchLabels": learner.labels},
            "template": _template(learner, pod, container, []),
        },
    }


def _template(options: PodOptions, pod: PodOptions, container: dict, more: list[dict]) -> dict:
    volumes = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "config", "configMap": {"name": f"{pod.name}-config"}},
        {"name": "online", "persistentVolumeClaim": {"claimName": pod.claim}},
        *more,
    ]
    if pod.data_claim:
        claim = {"claimName": pod.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    spec = {
        "terminationGracePeriodSeconds": DRAIN_S + options.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(options),
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": {"labels": options.labels}, "spec": spec}


def _container(options: PodOptions, name: str, online: OnlineOptions, *, writes: bool) -> dict:
    mounts: list[dict] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "config", "mountPath": str(CONFIG_DIR), "readOnly": True},
        {"name": "online", "mountPath": str(FOLDER), "readOnly": not writes},
    ]
    url = {"secretKeyRef": {"name": online.log_secret, "key": "url"}}
    env = [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": URL_VARIABLE, "valueFrom": url}]
    return {
        "name": name,
        "image": options.image,
        "command": ["deepseek", "online"],
        **container_means(options, mounts, env),
    }


def _headless(learner: PodOptions) -> dict:
    """Return the service that a StatefulSet has to name; it has no port, nobody asks."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(learner),
        "spec": {"clusterIP": "None", "selector": learner.labels},
    }


def _asks_only(learner: PodOptions) -> dict:
    """Return a policy by which the learner reaches the log, and nobody reaches it."""
    policy = network_policy(learner, ())
    return {**policy, "spec": {**policy["spec"], "ingress": []}}


def settings_file_of(words: Iterable[str]) -> str:
    """Return the settings file of `online serve FILE`.

    Raises:
        ConfigError: there is none, or there is more.
    """
    rest = list(words)
    if len(rest) != 1 or rest[0].startswith("-"):
        raise ConfigError(
            f"online serve {' '.join(rest)}: pods take a settings file and nothing else",
            fix="deepseek launch --on kubernetes ... online serve cfg.yaml",
        )
    return rest[0]
