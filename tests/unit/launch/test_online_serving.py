"""Manifests of an online-learning service: valid, safe, and what is in them fits together."""

import copy

import pytest
from ruamel.yaml import YAML

from deepseek.cli.main import run
from deepseek.errors import ConfigError
from deepseek.launch.kubernetes import to_yaml
from deepseek.launch.online_serving import OnlineOptions, online_manifests, online_problems
from deepseek.launch.pod import PodOptions

POD = PodOptions(
    name="ranks", image="r.io/deepseek:0.1.0-serve", runs_claim="shared", egress=("10.0.0.0/8",)
)
SETTINGS = {
    "model": "/data/model.bin",
    "log": {"kind": "redis"},
    "join": {"labels": {"click": {"event": "click", "window": "10m"}}},
}
ONLINE = OnlineOptions(SETTINGS, "tokens", "log", 2, 6, ("web",))
COMMAND = [
    "launch", "--on", "kubernetes", "--image", "r.io/x:1", "--token-secret", "tokens",
    "--runs-claim", "shared", "--log-secret", "log", "--egress", "10.0.0.0/8", "--dry-run",
]  # fmt: skip


def made(**sections):
    return online_manifests(POD, OnlineOptions({**SETTINGS, **sections}, *_rest()))


def _rest():
    return ONLINE.token_secret, ONLINE.log_secret, 2, 6, ONLINE.ingress


def of(manifests, kind, name):
    [found] = [e for e in manifests if (e["kind"], e["metadata"]["name"]) == (kind, name)]
    return found


def container_of(manifest):
    [found] = manifest["spec"]["template"]["spec"]["containers"]
    return found


def test_manifests_are_valid():
    validator = pytest.importorskip("kubernetes_validate")
    manifests = made()
    assert online_problems(manifests) == []
    for entry in manifests:
        plain = YAML(typ="safe").load(to_yaml([entry]))
        validator.validate(plain, validator.latest_version(), strict=True)


def test_many_rank_without_writing_and_one_learns():
    manifests = made()
    ranks, learns = (
        of(manifests, "Deployment", "ranks"),
        of(manifests, "StatefulSet", "ranks-learner"),
    )
    assert learns["spec"]["replicas"] == 1
    for manifest, command, reads in ((ranks, "serve", True), (learns, "learn", False)):
        container = container_of(manifest)
        assert container["args"][:2] == [command, "/etc/deepseek/online.yaml"]
        [mount] = [each for each in container["volumeMounts"] if each["name"] == "online"]
        assert mount["readOnly"] is reads
        [url] = [each for each in container["env"] if each["name"] == "DEEPSEEK_LOG_URL"]
        assert url["valueFrom"]["secretKeyRef"] == {"name": "log", "key": "url"}
    scaled = of(manifests, "HorizontalPodAutoscaler", "ranks")["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (2, 6)
    # one address, of those that rank
    selected = of(manifests, "Service", "ranks")["spec"]["selector"]
    assert selected.items() <= ranks["spec"]["template"]["metadata"]["labels"].items()
    assert not selected.items() <= learns["spec"]["template"]["metadata"]["labels"].items()


def test_nobody_reaches_the_learner_and_both_reach_the_log():
    manifests = made()
    learner = of(manifests, "NetworkPolicy", "ranks-learner")["spec"]
    ranks = of(manifests, "NetworkPolicy", "ranks")["spec"]
    assert learner["ingress"] == []
    assert [each["port"] for each in ranks["ingress"][0]["ports"]] == [8000]
    for policy in (learner, ranks):
        assert policy["egress"][0]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_the_settings_are_those_of_a_service_that_ranks():
    from deepseek.config.validation import validate_settings
    from deepseek.recsys.online.settings import OnlineSettings

    text = of(made(), "ConfigMap", "ranks-config")["data"]["online.yaml"]
    found = validate_settings(OnlineSettings, YAML(typ="safe").load(text))
    assert (found.trains, found.folder, found.log.kind) == (False, "/online", "redis")
    assert found.log.url_variable == "DEEPSEEK_LOG_URL"
    assert found.join.labels["click"].window == "10m"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"log": {}}, "log.kind=sqlite: pods keep events in Redis"),
        ({"log": {"kind": "redis", "url": "redis://:x@y"}}, "log.url would be in a ConfigMap"),
        ({"model": "runs/m.bin"}, "model=runs/m.bin is relative"),
        ({"gate": {"holdout": "h.csv"}}, "gate.holdout=h.csv is relative"),
        ({"server": {"port": 1}}, "is set for pods already"),
    ],
)
def test_settings_that_pods_cannot_have_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        made(**sections)


BREAKS = {
    "has not one replica": lambda m: m[6]["spec"].update(replicas=2),
    "none of them learns": lambda m: m.pop(6),
    "the settings are in none": lambda m: m.pop(0),
    "no Service selects": lambda m: m[2]["spec"]["selector"].update(x="y"),
    "runAsNonRoot": lambda m: m[6]["spec"]["template"]["spec"].update(securityContext={}),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_does_not_fit_together_is_found(message):
    manifests = copy.deepcopy(made())
    BREAKS[message](manifests)
    assert any(message in str(problem) for problem in online_problems(manifests))


def test_the_command_prints_manifests(tmp_path, capsys):
    path = tmp_path / "cfg.yaml"
    with open(path, "w") as file:
        YAML().dump(SETTINGS, file)
    assert run([*COMMAND, "online", "serve", str(path)]) == 0
    documents = list(YAML(typ="safe").load_all(capsys.readouterr().out))
    kinds = [each["kind"] for each in documents]
    assert kinds.count("Service") == 2
    assert {"Deployment", "StatefulSet", "ConfigMap", "NetworkPolicy"} <= set(kinds)
    assert run([*COMMAND, "online", "serve", str(path), "--port", "1"]) == 2
    assert "pods take a settings file and nothing else" in capsys.readouterr().err
    without = [word for word in COMMAND if word not in ("--log-secret", "log")]
    assert run([*without, "online", "serve", str(path)]) == 2
    assert "without --log-secret" in capsys.readouterr().err
