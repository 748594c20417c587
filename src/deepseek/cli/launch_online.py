"""`deepseek launch --on kubernetes online serve cfg.yaml`: manifests of an online service."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepseek.cli.launch_service import DRAIN_S, MEANINGLESS

NEEDED = {
    "image": "build docker/Dockerfile.serve with the extras recsys and redis, push it, and name it",
    "token_secret": "kubectl create secret generic tokens --from-file=tokens=tokens.txt",
    "log_secret": "kubectl create secret generic log --from-literal=url=redis://:PASSWORD@HOST/0",
    "runs_claim": "name a claim that many nodes can mount: versions are in it",
    "egress": "name the network that Redis is in: 10.0.0.0/8",
}
"""Options without which there is no service, and where they come from."""


def launch_online(options: Mapping[str, Any], given: set[str]) -> None:
    """Print the manifests of an online-learning service, or hand them to the cluster.

    Args:
        options: of `deepseek launch`.
        given: names of those that were on the command line.

    Raises:
        ConfigError: an option is missing, wrong, or means nothing here; the settings are wrong.
    """
    from ruamel.yaml import YAML

    from deepseek.cli.apply_manifests import apply_manifests
    from deepseek.errors import ConfigError
    from deepseek.launch.online_serving import (
        OnlineOptions,
        online_manifests,
        online_problems,
        settings_file_of,
    )
    from deepseek.launch.pod import PodOptions
    from deepseek.launch.serving import parse_replicas
    from deepseek.recsys.online.settings import read_settings

    for name in sorted(given & (MEANINGLESS.keys() - {"runs_claim", "log_secret"})):
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} means nothing for a service", fix=MEANINGLESS[name])
    for name, fix in NEEDED.items():
        if not options[name]:
            option = name.replace("_", "-")
            raise ConfigError(
                f"online serve on kubernetes without --{option}", fix=fix, see="docs/launch.md"
            )
    path = Path(settings_file_of(options["program"][2:]))
    read_settings(path)  # what is wrong with them is to be said here
    settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    pod = PodOptions(
        name=options["name"], image=options["image"], namespace=options["namespace"],
        gpus=options["gpus"] or 0, cpus=options["cpus"] or 2, memory=options["memory"] or "4Gi",
        grace_s=options["grace_s"] if "grace_s" in given else DRAIN_S, user=options["user"],
        runs_claim=options["runs_claim"], data_claim=options["data_claim"],
        egress=tuple(options["egress"]),
    )  # fmt: skip
    low, high = parse_replicas(options["replicas"])
    online = OnlineOptions(
        settings, options["token_secret"], options["log_secret"], low, high,
        tuple(options["ingress"] or ()),
    )  # fmt: skip
    made = online_manifests(pod, online)
    apply_manifests(made, online_problems(made), is_dry_run=options["dry_run"])
