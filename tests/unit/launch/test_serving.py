"""Manifests of a service: valid for Kubernetes, safe, and what is in them fits together."""

import copy

import pytest
from ruamel.yaml import YAML

from deepseek.cli.main import run
from deepseek.errors import ConfigError
from deepseek.launch.kubernetes import to_yaml
from deepseek.launch.pod import PodOptions
from deepseek.launch.serving import (
    ServingOptions,
    parse_replicas,
    serving_manifests,
    serving_problems,
)

POD = PodOptions(name="digits", image="r.io/deepseek:0.1.0-serve", cpus=2, memory="4Gi", grace_s=40)
SERVING = ServingOptions(("--models", "/data"), "tokens")
COMMAND = ["launch", "--on", "kubernetes", "--image", "r.io/x:1", "--token-secret", "tokens"]


def made(pod=POD, serving=SERVING):
    return serving_manifests(pod, serving)


def kind_of(manifests, kind):
    [found] = [entry for entry in manifests if entry["kind"] == kind]
    return found["spec"]


@pytest.mark.parametrize(
    ("pod", "serving"),
    [
        (POD, SERVING),
        (PodOptions(name="x", image="x:1", gpus=1, data_claim="models", egress=("10.0.0.0/8",)),
         ServingOptions(("/models/m.bin",), "t", 1, 1, ("web", "apps"))),
    ],
)  # fmt: skip
def test_manifests_are_valid(pod, serving):
    validator = pytest.importorskip("kubernetes_validate")
    manifests = made(pod, serving)
    assert serving_problems(manifests) == []
    for entry in manifests:
        plain = YAML(typ="safe").load(to_yaml([entry]))
        validator.validate(plain, validator.latest_version(), strict=True)
    kinds = ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
    assert [entry["kind"] for entry in manifests] == [*kinds, "NetworkPolicy"]


def test_a_pod_serves_with_a_token_and_is_probed_without_one():
    pod = kind_of(made(), "Deployment")["template"]["spec"]
    [container] = pod["containers"]
    args = container["args"]
    assert args[:2] == ["--models", "/data"]
    assert args[args.index("--token-file") + 1] == "/etc/deepseek/tokens/tokens"
    assert args[args.index("--host") + 1] == "0.0.0.0"
    probed = {container[name]["httpGet"]["port"] for name in
              ("startupProbe", "readinessProbe", "livenessProbe")}  # fmt: skip
    assert probed == {"probes"}
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert args[args.index("--probe-port") + 1] == str(ports["probes"])
    [policy] = kind_of(made(), "NetworkPolicy")["ingress"]
    assert [entry["port"] for entry in policy["ports"]] == [ports["http"]]
    threads = next(entry for entry in container["env"] if entry["name"] == "OMP_NUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert (
        pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"]
    )


def test_pods_have_time_to_open_a_host_each_and_no_more_than_their_disk():
    deployment = kind_of(made(), "Deployment")
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    probe = container["startupProbe"]
    assert (
        deployment["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]
    )
    [spread] = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == deployment["selector"]["matchLabels"]
    [tmp] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "tmp"]
    assert tmp["sizeLimit"] == "4Gi"


BREAKS = {
    "no Service selects": lambda m: m[1]["spec"]["selector"].update(x="y"),
    "no PodDisruptionBudget selects": lambda m: m.pop(3),
    "no NetworkPolicy selects": lambda m: m[4]["spec"].update(podSelector={}),
    "is no Deployment": lambda m: m[2]["spec"]["scaleTargetRef"].update(name="other"),
    "runAsNonRoot": lambda m: m[0]["spec"]["template"]["spec"].update(securityContext={}),
    "none of them serves": lambda m: m.pop(0),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_does_not_fit_together_is_found(message):
    manifests = copy.deepcopy(made())
    BREAKS[message](manifests)
    assert any(message in str(problem) for problem in serving_problems(manifests))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "2", "serve", "m.bin"], "--nproc means nothing for a service"),
        (["serve", "m.bin", "--host", "::"], "--host is set for pods already"),
        (["--replicas", "0:2", "serve", "m.bin"], "--replicas=0:2 is not N or MIN:MAX"),
        (["train", "a.yaml"], "--token-secret is for `serve` on kubernetes"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, message, capsys):
    assert run([*COMMAND, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_manifests(capsys):
    assert run([*COMMAND, "--dry-run", "--replicas", "3", "serve", "/models/m.bin"]) == 0
    documents = list(YAML(typ="safe").load_all(capsys.readouterr().out))
    assert kind_of(documents, "HorizontalPodAutoscaler")["minReplicas"] == 3
    without = [word for word in COMMAND if word not in ("--token-secret", "tokens")]
    assert run([*without, "--dry-run", "serve", "m.bin"]) == 2
    assert "--token-secret" in capsys.readouterr().err


def test_replicas_are_numbers():
    assert parse_replicas("3") == (3, 3)
    assert parse_replicas("2:10") == (2, 10)
    with pytest.raises(ConfigError):
        parse_replicas("10:2")
